package stream

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/wait"
)

// Devices below one child share its large bound, and none takes another's small one;
// refusals pass beside both. Places come back.
func TestPlacesOfARelay(t *testing.T) {
	type key struct {
		child api.DeviceID
		to    route
	}
	rapid.Check(t, func(t *rapid.T) {
		s := NewSplice(SpliceConfig{Log: slog.New(slog.DiscardHandler), Max: 12, PerChild: 8, PerDevice: 3})
		id := func(label string) (id api.DeviceID) {
			binary.BigEndian.PutUint64(id[:], uint64(rapid.IntRange(1, 3).Draw(t, label)))
			return id
		}
		var open []key
		count := func(same func(key) bool) (n int) {
			for _, k := range open {
				if same(k) {
					n++
				}
			}
			return n
		}
		t.Repeat(map[string]func(*rapid.T){
			"enter": func(t *rapid.T) {
				k := key{child: id("child"), to: route{id("device"), rapid.Bool().Draw(t, "refusal")}}
				room := count(func(o key) bool { return o.child == k.child && o.to.refusal }) < maxRefusals
				if !k.to.refusal {
					streams := func(same func(key) bool) int {
						return count(func(o key) bool { return !o.to.refusal && same(o) })
					}
					room = streams(func(key) bool { return true }) < 12 && streams(func(o key) bool { return o.child == k.child }) < 8 &&
						streams(func(o key) bool { return o == k }) < 3
				}
				err := s.enter(k.child, k.to)
				if (err == nil) != room {
					t.Fatalf("room %v, %v", room, err)
				}
				if err == nil {
					open = append(open, k)
				} else if api.CodeOf(err) != api.Unavailable || !strings.Contains(err.Error(), "too many streams") {
					t.Fatal(err)
				}
			},
			"leave": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip("nothing is open")
				}
				n := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				s.leave(open[n].child, open[n].to)
				open = append(open[:n], open[n+1:]...)
			},
		})
		for _, k := range open {
			s.leave(k.child, k.to)
		}
		if s.total != 0 || len(s.child)+len(s.device)+len(s.refusal) != 0 {
			t.Fatalf("left: %+v", s)
		}
	})
}

func TestRouteGoesUnchanged(t *testing.T) {
	child, device := api.DeviceID{1}, api.DeviceID{2}
	for _, want := range []route{{device, false}, {device, true}} {
		if got := routeOf(want.header(), child); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	for _, h := range []http.Header{{}, {headerDevice: {"nobody"}}, {headerDevice: {strings.Repeat("a", 1<<10)}}} {
		if got := routeOf(h, child); got != (route{child, false}) {
			t.Errorf("%v: %+v", h, got)
		}
	}
}

// A relay far up has no room: the person is told so by the device, not by a timeout.
func TestRefusedThroughTwoRelays(t *testing.T) {
	for name, narrow := range map[string]func(relay int, conf *SpliceConfig){
		"at the upper relay": func(relay int, conf *SpliceConfig) {
			if relay == 0 {
				conf.PerChild = 1
			}
		},
		"at the lower relay": func(relay int, conf *SpliceConfig) {
			if relay == 1 {
				conf.PerDevice = 1
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t, 2, plain, narrow)
			held := make(chan *Conn, 1)
			beside(t, func() { tr.serve(t, func(conn *Conn) { held <- conn }) })
			first, err := tr.hub.Open(t.Context(), tr.device.ID(), Command{Verb: Top})
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			conn := wait.For(t, "the device's answer", held)
			defer conn.Close()

			beside(t, func() {
				tr.serve(t, func(conn *Conn) { t.Error("a second stream found room"); conn.Close() })
			})
			second, err := tr.hub.Open(t.Context(), tr.device.ID(), Command{Verb: Top})
			if err != nil {
				t.Fatal(err)
			}
			_, err = Run(t.Context(), second, Local{Stdout: io.Discard})
			if api.CodeOf(err) != api.Unavailable || !strings.Contains(err.Error(), "too many streams") {
				t.Errorf("the person hears %v", err)
			}
		})
	}
}

// serve plays the device for one command: it opens the stream, or tells why not.
func (tr *tree) serve(t testing.TB, opened func(*Conn)) {
	c := tr.command(t)
	if c == nil {
		return
	}
	ctx := context.WithoutCancel(t.Context())
	conn, err := Answer(ctx, tr.device, tr.parent, c)
	switch {
	case Full(err):
		if err := Refuse(ctx, tr.device, tr.parent, c, err); err != nil {
			t.Errorf("refuse: %v", err)
		}
	case err != nil:
		t.Error(err)
	default:
		opened(conn)
	}
}

func TestHubBoundsStreamsOfADevice(t *testing.T) {
	ca := newCA(t)
	hub := NewHub(HubConfig{Signer: ca.signer, Wait: time.Millisecond, PerDevice: 2, Log: slog.New(slog.DiscardHandler), Send: func(api.DeviceID, []byte) error { return nil }})
	a, b := api.DeviceID{1}, api.DeviceID{2}
	var open []*waiting
	for n := range 2 {
		w, err := hub.expect(SessionID{byte(n)}, a)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, w)
	}
	if _, err := hub.Open(t.Context(), a, Command{Verb: Top}); err == nil || !strings.Contains(err.Error(), "too many streams to this device are open (2)") {
		t.Errorf("a third stream: %v", err)
	}
	if _, err := hub.Open(t.Context(), b, Command{Verb: Top}); err == nil || !strings.Contains(err.Error(), "did not answer") {
		t.Errorf("another device: %v", err)
	}
	for n, w := range open {
		hub.forget(SessionID{byte(n)}, w)
	}
	if len(hub.busy) != 0 || hub.open != 0 {
		t.Errorf("left: %v, %d", hub.busy, hub.open)
	}
}
