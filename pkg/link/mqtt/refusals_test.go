package mqtt

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/wait"
)

// One device's refusals are told once a minute, with the number of those between.
func TestRefusalsAreFew(t *testing.T) {
	var r refusals
	now := time.Unix(1_764_000_000, 0)
	a, b := api.DeviceID{1}, api.DeviceID{2}
	if _, ok := r.tell(a, now); !ok {
		t.Error("the first is not told")
	}
	for range 5 {
		if _, ok := r.tell(a, now.Add(refusalsEvery-1)); ok {
			t.Error("told again within the minute")
		}
	}
	if _, ok := r.tell(b, now); !ok {
		t.Error("another device's is not told")
	}
	if n, ok := r.tell(a, now.Add(refusalsEvery)); !ok || n != 5 {
		t.Errorf("after a minute: %d %v", n, ok)
	}
	for i := range 3 * maxRefused {
		r.tell(api.DeviceID{3, byte(i), byte(i >> 8)}, now)
	}
	if len(r.last) > maxRefused {
		t.Errorf("%d devices are kept", len(r.last))
	}
}

type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

var _ io.Writer = (*lines)(nil)

// Who asks for another's place stands in the log by their certificate.
func TestRefusalsAreNamed(t *testing.T) {
	for what, try := range map[string]func(t *testing.T, addr string, me *identity.Identity, victim api.DeviceID){
		"connect": func(t *testing.T, addr string, me *identity.Identity, victim api.DeviceID) {
			if connects(client(t, addr, me, func(o *paho.ClientOptions) { o.SetClientID(victim.String()) })) {
				t.Error("connected under another's id")
			}
		},
		"publish": func(t *testing.T, addr string, me *identity.Identity, victim api.DeviceID) {
			c := client(t, addr, me, nil)
			if !connects(c) {
				t.Fatal("cannot connect")
			}
			c.Publish(upTopic(victim), 0, false, []byte("forged")).WaitTimeout(wait.Limit)
		},
		"subscribe": func(t *testing.T, addr string, me *identity.Identity, victim api.DeviceID) {
			c := client(t, addr, me, nil)
			if !connects(c) {
				t.Fatal("cannot connect")
			}
			c.Subscribe(downTopic(victim), 1, nil).WaitTimeout(wait.Limit)
		},
	} {
		t.Run(what, func(t *testing.T) {
			pki := newPKI(t)
			relay, me, victim := pki.device(t), pki.device(t), pki.device(t)
			log := &lines{}
			b, err := NewBroker(BrokerConfig{Listener: listen(t), Identity: identity.NewLive(relay), Log: slog.New(slog.NewTextHandler(log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); _ = b.Run(ctx, nil) }()
			t.Cleanup(func() { cancel(); <-done })
			try(t, b.Addr().String(), me, victim.ID())
			wait.Seen(t, "the log names who did it", func() (any, bool) {
				text := log.text()
				return text, strings.Contains(text, "level=WARN") && strings.Contains(text, "device="+me.ID().String()) && strings.Contains(text, "what="+what) && strings.Contains(text, victim.ID().String())
			})
		})
	}
}
