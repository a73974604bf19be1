package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/onboard/sztp"
	"tributary.dev/tributary/tests/mutation"
)

// proxyOf answers CONNECT on the loopback, lets nobody through, and tells whom it was asked for.
func proxyOf(t *testing.T) (url string, asked <-chan string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hosts := make(chan string, 64)
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil && req.Method == http.MethodConnect {
				select {
				case hosts <- req.Host:
				default:
				}
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
			_ = conn.Close()
		}
	}()
	return "http://" + l.Addr().String(), hosts
}

// TestBehindProxy: a box whose site lets out what goes by the proxy of its settings alone asks bootstrap servers, and enrols, by that.
func TestBehindProxy(t *testing.T) {
	url, asked := proxyOf(t)
	dir := t.TempDir()
	b := &box{o: options{data: dir, proxy: filepath.Join(dir, "proxy"), uplinks: filepath.Join(dir, "uplinks.json")}, log: slog.New(slog.DiscardHandler), out: json.NewEncoder(io.Discard)}
	if err := os.WriteFile(b.o.proxy, []byte(url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Addresses for documentation lead nowhere (RFC 5737).
	if _, err := b.dial(t.Context(), "tcp", "203.0.113.1:8444"); err == nil {
		t.Fatal("an address for documentation is reached")
	}
	if got := next(t, asked); got != "203.0.113.1:8444" {
		t.Errorf("for a bootstrap server the proxy is asked for %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- b.enrol(ctx, &sztp.Found{Beginning: sztp.Beginning{Parents: []api.ParentRef{{Device: "core", Address: "203.0.113.2:8883", HTTPSPort: 8443}}}})
	}()
	got := next(t, asked)
	cancel()
	if err := <-ended; err == nil {
		t.Error("enrolled nowhere")
	}
	if got != "203.0.113.2:8443" {
		t.Errorf("for a parent the proxy is asked for %q", got)
	}
}

func next(t *testing.T, asked <-chan string) string {
	t.Helper()
	select {
	case host := <-asked:
		return host
	case <-time.After(20 * time.Second):
		return "nothing"
	}
}

// TestBehindProxyCounts: without it, enrolment goes by no proxy.
func TestBehindProxyCounts(t *testing.T) {
	const with = "proxy.With(ctx, b.dial)"
	mutation.Prove(t, mutation.Check{Name: "proxy", Test: "^TestBehindProxy$", File: "main.go", From: with,
		To: "map[bool]context.Context{false: proxy.With(ctx, b.dial), true: ctx}[GONE]", Says: `for a parent the proxy is asked for "nothing"`})
}
