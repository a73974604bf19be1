package mqtt

import (
	"fmt"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/wait"
)

// worst holds the goroutines of an old session and of the one that takes it over in the
// order in which mochi's own take-over loses the new one: the old one leaves its loop,
// finds itself not taken over yet, and forgets its client id when the new one has it.
type worst struct {
	mochi.HookBase
	mu      sync.Mutex
	ended   map[*mochi.Client]chan struct{}
	visits  map[*mochi.Client]int
	started chan struct{}
}

func newWorst() *worst {
	return &worst{ended: map[*mochi.Client]chan struct{}{}, visits: map[*mochi.Client]int{}, started: make(chan struct{}, 1)}
}

func (*worst) ID() string { return "worst" }

func (*worst) Provides(what byte) bool {
	return what == mochi.OnSessionEstablished || what == mochi.OnDisconnect || what == mochi.OnUnsubscribed
}

func (w *worst) end(cl *mochi.Client) chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended[cl] == nil {
		w.ended[cl] = make(chan struct{})
	}
	return w.ended[cl]
}

func (w *worst) OnDisconnect(cl *mochi.Client, _ error, _ bool) { close(w.end(cl)) }

func (w *worst) OnSessionEstablished(*mochi.Client, packets.Packet) {
	select {
	case w.started <- struct{}{}:
	default:
	}
}

// OnUnsubscribed is called in the goroutine of either of the two.
func (w *worst) OnUnsubscribed(cl *mochi.Client, _ packets.Packet) {
	w.mu.Lock()
	w.visits[cl]++
	first := w.visits[cl] == 1
	w.mu.Unlock()
	wait := w.end(cl)
	if !first {
		wait = w.started
	}
	select {
	case <-wait:
	case <-time.After(10 * time.Second): // nobody takes over any more
	}
}

// A device whose network died without a word comes back by a second connection while the
// first still stands at its parent. What is sent down must reach the new one every time.
func TestTakeOver(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), nil)
	w := newWorst()
	if err := p.server.AddHook(w, nil); err != nil {
		t.Fatal(err)
	}
	up := fmt.Sprintf("up %s true", dev.ID())
	for i := range 20 {
		select {
		case <-w.started: // the session before
		default:
		}
		c := client(t, p.Addr().String(), dev, nil)
		if !connects(c) {
			t.Fatalf("connection %d is refused", i)
		}
		heard := make(chan string, 10)
		c.Subscribe(downTopic(dev.ID()), 1, func(_ paho.Client, m paho.Message) { heard <- string(m.Payload()) })
		p.until(t, "the session to begin", func() bool { return p.count(up) == i+1 })
		word := fmt.Sprint("word ", i)
		if err := p.Send(dev.ID(), []byte(word), i%2 == 0); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if got := wait.For(t, fmt.Sprintf("what connection %d hears", i), heard); got != word {
			t.Fatalf("connection %d heard %q", i, got)
		}
	}
}
