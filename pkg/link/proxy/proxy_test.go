package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// serve answers each connection in a goroutine.
func serve(t *testing.T, each func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go each(c)
		}
	}()
	return l.Addr().String()
}

// real dials what the test calls core.example where it listens.
func real(at map[string]string) Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		to, ok := at[address]
		if !ok {
			return nil, fmt.Errorf("nobody is at %s", address)
		}
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}
}

func noNetworks() ([]net.Addr, error) { return nil, nil }

func TestThrough(t *testing.T) {
	core := serve(t, func(c net.Conn) { // it speaks first, so that its words come right behind the proxy's answer
		defer c.Close()
		_, _ = io.WriteString(c, "core says hello\n")
		_, _ = io.Copy(c, c)
	})
	var asked http.Header
	proxy := serve(t, func(c net.Conn) {
		defer c.Close()
		in := bufio.NewReader(c)
		req, err := http.ReadRequest(in)
		if err != nil || req.Method != http.MethodConnect {
			return
		}
		asked = req.Header
		if req.RequestURI != "core.example:8883" {
			_, _ = io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
			return
		}
		to, err := net.Dial("tcp", core)
		if err != nil {
			return
		}
		defer to.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(to, in) }()
		_, _ = io.Copy(c, to)
	})
	file := filepath.Join(t.TempDir(), "proxy")
	dial := Through(FromFile(file), real(map[string]string{"proxy.example:3128": proxy, "10.1.2.3:8883": core}), func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.IPv4(10, 1, 2, 9), Mask: net.CIDRMask(24, 32)}}, nil
	})
	talk := func(address string) (string, error) {
		c, err := dial(t.Context(), "tcp", address)
		if err != nil {
			return "", err
		}
		defer c.Close()
		if _, err := io.WriteString(c, "and back\n"); err != nil {
			return "", err
		}
		in := bufio.NewReader(c)
		a, _ := in.ReadString('\n')
		b, err := in.ReadString('\n')
		return a + b, err
	}
	if _, err := talk("core.example:8883"); err == nil {
		t.Error("without a proxy the far core is reached")
	}
	if err := os.WriteFile(file, []byte("http://ann:s%3Acret@proxy.example:3128\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := talk("core.example:8883"); err != nil || got != "core says hello\nand back\n" {
		t.Errorf("%q %v", got, err)
	}
	if got := asked.Get("Proxy-Authorization"); got != "Basic YW5uOnM6Y3JldA==" {
		t.Errorf("credentials: %q", got)
	}
	if got, err := talk("10.1.2.3:8883"); err != nil || !strings.HasPrefix(got, "core says") {
		t.Errorf("a neighbour is not reached directly: %q %v", got, err)
	}
	_, err := talk("other.example:8883")
	if err == nil || !strings.Contains(err.Error(), "403") || strings.Contains(err.Error(), "cret") {
		t.Errorf("a refusal: %v", err)
	}
	if err := os.WriteFile(file, []byte("ftp://proxy.example"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := talk("core.example:8883"); err == nil {
		t.Error("a proxy of another kind is taken")
	}
	broken := errors.New("unreadable")
	dial = Through(func() (string, error) { return "", broken }, real(map[string]string{"core.example:8883": core}), noNetworks)
	if _, err := dial(t.Context(), "tcp", "core.example:8883"); !errors.Is(err, broken) {
		t.Errorf("with an unreadable setting it goes another way: %v", err)
	}
}

func TestNear(t *testing.T) {
	own := func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.ParseIP("fd00::5"), Mask: net.CIDRMask(64, 128)}}, nil
	}
	for address, want := range map[string]bool{
		"127.0.0.1:1": true, "localhost:8443": true, "relay.local:8883": true, "169.254.3.4:1": true, "[fd00::1]:8883": true, "[fd01::1]:8883": false, "10.0.0.1:8883": false, "core.example:443": false, "rubbish": false,
	} {
		if got := near(address, own); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
}
