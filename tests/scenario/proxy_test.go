package scenario

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/wait"
)

// far is an address of the core to which no route of the box leads.
const far = "10.99.0.1"

// TestProxy: a box whose site lets out nothing but its HTTP proxy, which wants a password,
// enrols, has its link and pulls its images by CONNECT alone, and comes back when the proxy
// was away.
func TestProxy(t *testing.T) {
	s := raise(t, []lab.BoxSpec{{Name: "agg-1", Parent: "core", Role: "aggregation"}})
	s.Fields = nil
	ctx := t.Context()
	_, err := s.Lab.CoreCommand(ctx, "ip", "addr", "add", far+"/32", "dev", "lo")
	must(t, err)
	box := s.Lab.Boxes["agg-1"]
	if out, err := box.Command(ctx, "ip", "route", "get", far); err == nil {
		t.Fatalf("the box has a way of its own: %s", out)
	}
	setting := filepath.Join(s.Lab.Dir, "proxy")
	must(t, os.WriteFile(setting, []byte("http://ann:secret@"+box.Uplink.ParentAddr+":3128\n"), 0o600))
	asked, stop := startProxy(t, s.Lab.CorePrefix(), box.Uplink.ParentAddr+":3128")
	must(t, s.Lab.StartCore(ctx))
	must(t, s.Lab.Join(ctx))
	box.Alone, box.EdgedArgs = true, []string{"--parent", far, "--join-token-file", filepath.Join(s.Lab.Dir, "join-aggregation.token"), "--proxy-file", setting}
	must(t, s.Lab.StartBoxes(ctx))
	must(t, s.Enrolled(ctx))
	must(t, s.PushImages(ctx))
	_, err = s.Lab.Edgectl(ctx, appText("hello", "services:\n  cache: {image: \"default/cache:latest\"}\n")+"---\n"+fleetText("hello", "aggregation", "hello"), "apply", "-f", "-")
	must(t, err)
	_, err = s.Grown(ctx, "agg-1", 1)
	must(t, err)
	for _, port := range []string{"8443", "8883"} {
		if !asked()[far+":"+port] {
			t.Errorf("nobody has asked the proxy for port %s: %v", port, asked())
		}
	}

	stop()
	asked, stop = startProxy(t, s.Lab.CorePrefix(), box.Uplink.ParentAddr+":3128")
	defer stop()
	wait.Until(t, "the box has its link by the new proxy", func() bool { return asked()[far+":8883"] })
	must(t, online(ctx, s, "agg-1"))
}

// startProxy runs TestProxyItself in a network.
func startProxy(t *testing.T, prefix []string, at string) (asked func() map[string]bool, stop func()) {
	t.Helper()
	argv := append(prefix, os.Args[0], "-test.run=^TestProxyItself$", "-test.timeout=20m")
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "SCENARIO_PROXY="+at)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var mu sync.Mutex
	seen := map[string]bool{}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			mu.Lock()
			seen[lines.Text()] = true
			mu.Unlock()
		}
	}()
	asked = func() map[string]bool {
		mu.Lock()
		defer mu.Unlock()
		copied := map[string]bool{}
		for k := range seen {
			copied[k] = true
		}
		return copied
	}
	stop = sync.OnceFunc(func() {
		_ = in.Close() // its wish to end
		<-read
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	wait.Until(t, "the proxy listens", func() bool { return asked()["listening"] })
	return asked, stop
}

// TestProxyItself is the proxy's process: CONNECT, for one user with a password.
func TestProxyItself(t *testing.T) {
	at := os.Getenv("SCENARIO_PROXY")
	if at == "" {
		t.Skip("is the proxy of another test")
	}
	l, err := net.Listen("tcp", at)
	must(t, err)
	fmt.Println("listening")
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // until the process ends
			r.Header.Set("Authorization", r.Header.Get("Proxy-Authorization"))
			user, password, _ := r.BasicAuth()
			if r.Method != http.MethodConnect || user != "ann" || password != "secret" {
				w.WriteHeader(http.StatusProxyAuthRequired)
				return
			}
			fmt.Println(r.Host)
			to, err := net.Dial("tcp", r.Host)
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			defer to.Close()
			from, rest, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer from.Close()
			if _, err := io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(to, rest)
				_ = to.Close()
			}()
			_, _ = io.Copy(from, to)
		}))
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
}
