//go:build linux

package hostport

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/wait"
)

func TestMain(m *testing.M) { wait.Leaks(m) }

// local serves like edged's local socket.
func local(t *testing.T, path string) *http.Server {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) })}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func ask(t *testing.T, host net.Conn, path string) (int, string) {
	t.Helper()
	_ = host.SetDeadline(time.Now().Add(wait.Limit))
	if _, err := io.WriteString(host, "GET "+path+" HTTP/1.1\r\nHost: edged\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(host), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestConverse(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	host, guest := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- converse(guest, socket, 50*time.Millisecond) }()
	if code, _ := ask(t, host, "/early"); code != http.StatusServiceUnavailable {
		t.Errorf("without edged the answer is %d", code)
	}
	server := local(t, socket)
	for _, path := range []string{"/status", "/metrics"} {
		if code, body := ask(t, host, path); code != 200 || body != path {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	// edged is started again: the host need not notice.
	_ = server.Close()
	_ = os.Remove(socket)
	local(t, socket)
	deadline := time.Now().Add(time.Minute)
	for {
		code, body := ask(t, host, "/records")
		if code == 200 && body == "/records" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a restart: %d %q", code, body)
		}
	}
	// The host goes away in the middle of an answer.
	if _, err := io.WriteString(host, "GET /unread HTTP/1.1\r\nHost: edged\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = host.Close()
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("it ended with %v", err)
	}
}

func TestFind(t *testing.T) {
	sys := t.TempDir()
	if got := Find(sys, "/dev"); got != "" {
		t.Errorf("no port is found at %s", got)
	}
	for port, name := range map[string]string{"vport1p1": "org.other", "vport1p2": Name + "\n"} {
		dir := filepath.Join(sys, "class/virtio-ports", port)
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "name"), []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if got := Find(sys, "/dev"); !strings.HasSuffix(got, "/vport1p2") {
		t.Errorf("the port is %q", got)
	}
}
