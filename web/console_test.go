package web

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

func ask(t *testing.T, h http.Handler, method, path string) (*http.Response, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	b, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Result(), string(b)
}

var nonces = regexp.MustCompile(`'nonce-([^']+)'`)

// The page carries the nonce of its own policy, another each time, and the policy lets nothing inline through.
func TestPage(t *testing.T) {
	h := From(fstest.MapFS{"index.html": {Data: []byte(`<meta nonce="__NONCE__">app`)}, "assets/a-1.js": {Data: []byte("script")}})
	seen := map[string]bool{}
	for _, path := range []string{"/", "/devices/default/box", "/../etc/passwd"} {
		resp, body := ask(t, h, "GET", path)
		policy := resp.Header.Get("Content-Security-Policy")
		m := nonces.FindStringSubmatch(policy)
		if resp.StatusCode != 200 || m == nil || !strings.Contains(body, m[1]) || !strings.Contains(body, "app") || seen[m[1]] {
			t.Fatalf("%s: %d %s %s", path, resp.StatusCode, policy, body)
		}
		seen[m[1]] = true
		if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") || strings.Contains(policy, "data:") || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", path, resp.Header)
		}
	}
	if resp, body := ask(t, h, "GET", "/assets/a-1.js"); body != "script" || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("%v %s", resp.Header, body)
	}
	if resp, _ := ask(t, h, "GET", "/assets/none.js"); resp.StatusCode != 404 || strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("a file that is not there: %d %v", resp.StatusCode, resp.Header)
	}
	if resp, _ := ask(t, h, "POST", "/"); resp.StatusCode != 405 {
		t.Errorf("a POST: %d", resp.StatusCode)
	}
}

// A build without the console says so, and what to do.
func TestNotBuilt(t *testing.T) {
	if resp, body := ask(t, From(fstest.MapFS{".keep": {}}), "GET", "/"); resp.StatusCode != 503 || !strings.Contains(body, "make web") || resp.Header.Get("Content-Security-Policy") == "" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}
