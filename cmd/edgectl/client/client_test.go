package client

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

func TestReadEvents(t *testing.T) {
	in := ": alive\n\nid: 7\nevent: changed\ndata: {\"a\":\ndata: 1}\n\nevent: empty\n\ndata: x\r\n\r\n"
	var got []RawEvent
	err := ReadEvents(strings.NewReader(in), func(e RawEvent) error { got = append(got, e); return nil })
	if api.CodeOf(err) != api.Unavailable {
		t.Errorf("end: %v", err)
	}
	if len(got) != 2 || got[0] != (RawEvent{"7", "changed", "{\"a\":\n1}"}) || got[1] != (RawEvent{Data: "x"}) {
		t.Errorf("events: %+v", got)
	}
	stop := errors.New("enough")
	if err := ReadEvents(strings.NewReader(in), func(RawEvent) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped with %v", err)
	}
	endless := "data: " + strings.Repeat("x", maxEvent/2) + "\n"
	if err := ReadEvents(strings.NewReader(endless+endless+endless), func(RawEvent) error { return nil }); api.CodeOf(err) != api.TooLarge {
		t.Errorf("an event without end: %v", err)
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add("id: 7\nevent: changed\ndata: {}\n\n")
	f.Add(": x\n\ndata\ndata:\n\n")
	f.Fuzz(func(t *testing.T, in string) {
		if err := ReadEvents(strings.NewReader(in), func(RawEvent) error { return nil }); err == nil {
			t.Fatal("a stream ended without an error")
		}
	})
}

func TestBaseURL(t *testing.T) {
	for in, want := range map[string]string{
		"core.example": "https://core.example", "https://core.example:8443/": "https://core.example:8443", "http://127.0.0.1:80": "http://127.0.0.1:80", "http://localhost": "http://localhost",
		"http://core.example": "", "ftp://core": "", "https://a@core": "", "https://core/path": "", "": "",
	} {
		u, err := BaseURL(in)
		if got := ""; err == nil {
			if got = u.String(); got != want {
				t.Errorf("%q: %q, want %q", in, got, want)
			}
		} else if want != "" {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("current: a\ncontexts:\n  a: {server: https://x, token: t}\n")
	f.Add("contexts: {a: null}")
	f.Fuzz(func(t *testing.T, in string) {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(in), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(path)
		if err != nil {
			return
		}
		if err := c.Save(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); err != nil {
			t.Fatalf("saved what cannot be read: %v", err)
		}
	})
}

// Who interrupts a stream that is about to open is not told that the core is away.
func TestStreamInterrupted(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Read(make([]byte, 1)) // it is asked, and does not answer
		cancel()
		<-ctx.Done()
	}()
	c, err := New(Context{Server: "http://" + ln.Addr().String(), Token: "t"}, "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stream(ctx, "field-1", "logs", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
