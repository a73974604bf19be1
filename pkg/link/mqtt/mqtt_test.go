package mqtt

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/tests/wait"
)

// The client library's calls linger until writeTimeout when the connection ends under
// them; nothing waits for them.
func TestMain(m *testing.M) {
	const client = "github.com/eclipse/paho%2emqtt%2egolang.(*client)."
	wait.Leaks(m, goleak.IgnoreAnyFunction(client+"SubscribeMultiple"), goleak.IgnoreAnyFunction(client+"Subscribe"),
		goleak.IgnoreAnyFunction(client+"Unsubscribe"), goleak.IgnoreAnyFunction(client+"Publish"))
}

// events is a handler of both directions that writes down what it hears.
type events struct {
	mu  sync.Mutex
	log []string
	// onFrame is called within FromChild and FromParent, onUp within ChildUp. Both are set
	// before whoever calls them runs, or never.
	onFrame func(id api.DeviceID, frame []byte)
	onUp    func(id api.DeviceID)
}

func newEvents() *events { return &events{} }

func (e *events) add(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.log = append(e.log, fmt.Sprintf(format, args...))
}

func (e *events) ParentUp(p api.DeviceID)  { e.add("up %s", p) }
func (e *events) ParentDown(error)         { e.add("down") }
func (e *events) FromParent(f []byte)      { e.frame("down-frame", api.DeviceID{}, f) }
func (e *events) Retained(raw []byte)      { e.add("retained %s", raw) }
func (e *events) ChildDown(c api.DeviceID) { e.add("down %s", c) }
func (e *events) ChildUp(c api.DeviceID, cert []byte) {
	if e.onUp != nil {
		e.onUp(c)
	}
	e.add("up %s %t", c, len(cert) > 0)
}
func (e *events) FromChild(c api.DeviceID, f []byte) { e.frame("frame "+c.String(), c, f) }

func (e *events) frame(what string, id api.DeviceID, f []byte) {
	if e.onFrame != nil {
		e.onFrame(id, f)
	}
	if len(f) > 64 {
		e.add("%s %d bytes", what, len(f))
		return
	}
	e.add("%s %s", what, f)
}

func (e *events) count(line string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.log {
		if l == line {
			n++
		}
	}
	return n
}

func (e *events) all() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string(nil), e.log...)
}

// until waits for a condition on the events.
func (e *events) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	wait.Seen(t, what, func() (any, bool) { return e.all(), ok() })
}

func (e *events) wait(t testing.TB, line string) {
	t.Helper()
	e.until(t, line, func() bool { return e.count(line) > 0 })
}

// running runs f until the test ends.
func running(t testing.TB, f func(context.Context) error) context.CancelFunc {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		f(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		wait.For(t, "its end", done)
	})
	return cancel
}

func logger(t testing.TB) *slog.Logger {
	if os.Getenv("MQTT_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

type parent struct {
	*Broker
	*events
	id   *identity.Live
	stop context.CancelFunc
}

func newParent(t testing.TB, id *identity.Live, change func(*BrokerConfig)) *parent {
	t.Helper()
	return newParentTelling(t, newEvents(), id, change)
}

// newParentTelling is newParent with its events made, and their hooks set, before it runs.
func newParentTelling(t testing.TB, told *events, id *identity.Live, change func(*BrokerConfig)) *parent {
	t.Helper()
	p := &parent{events: told, id: id}
	cfg := BrokerConfig{Listener: listen(t), Identity: id, Log: logger(t)}
	if change != nil {
		change(&cfg)
	}
	var err error
	if p.Broker, err = NewBroker(cfg); err != nil {
		t.Fatal(err)
	}
	p.stop = running(t, func(ctx context.Context) error { return p.Broker.Run(ctx, p.events) })
	return p
}

func (p *parent) ref(device string) api.ParentRef {
	return api.ParentRef{Device: device, Address: p.Addr().String()}
}

type box struct {
	*Uplink
	*events
	me   api.DeviceID
	stop context.CancelFunc
}

var quick = Backoff{Min: 20 * time.Millisecond, Max: 200 * time.Millisecond}

func newBox(t testing.TB, id *identity.Identity, parents ...api.ParentRef) *box {
	t.Helper()
	return newBoxTelling(t, newEvents(), id, parents...)
}

// newBoxTelling is newBox with its events made, and their hooks set, before it runs.
func newBoxTelling(t testing.TB, told *events, id *identity.Identity, parents ...api.ParentRef) *box {
	t.Helper()
	b := &box{events: told, me: id.ID()}
	b.Uplink = NewUplink(UplinkConfig{Identity: identity.NewLive(id), Parents: parents, Backoff: quick, Log: logger(t)})
	b.stop = running(t, func(ctx context.Context) error { return b.Uplink.Run(ctx, b.events) })
	return b
}

func TestFramesBothWays(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), nil)
	b := newBox(t, dev, p.ref(relay.ID().String()))
	b.wait(t, "up "+relay.ID().String())
	p.wait(t, fmt.Sprintf("up %s true", b.me))
	for _, reliable := range []bool{false, true} {
		if err := b.Send([]byte(fmt.Sprint("hello ", reliable)), reliable); err != nil {
			t.Fatal(err)
		}
		if err := p.Send(b.me, []byte(fmt.Sprint("answer ", reliable)), reliable); err != nil {
			t.Fatal(err)
		}
		p.wait(t, fmt.Sprintf("frame %s hello %t", b.me, reliable))
		b.wait(t, fmt.Sprint("down-frame answer ", reliable))
	}
	big := bytes.Repeat([]byte{7}, link.MaxFrame)
	if err := b.Send(big, true); err != nil {
		t.Fatal(err)
	}
	if err := p.Send(b.me, big, true); err != nil {
		t.Fatal(err)
	}
	p.wait(t, fmt.Sprintf("frame %s %d bytes", b.me, len(big)))
	b.wait(t, fmt.Sprintf("down-frame %d bytes", len(big)))
	if err := p.Send(api.DeviceID{9}, []byte("x"), false); err != link.ErrDown {
		t.Fatalf("to nobody: %v", err)
	}
}

func TestOrderIsKept(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	// Up, an echo from within the handler, and down again, in order.
	made := make(chan *parent, 1)
	echo := sync.OnceValue(func() *parent { return <-made })
	told := newEvents()
	told.onFrame = func(id api.DeviceID, f []byte) {
		if err := echo().Send(id, f, f[len(f)-1]%2 == 0); err != nil {
			t.Errorf("echo: %v", err)
		}
	}
	p := newParentTelling(t, told, identity.NewLive(relay), nil)
	made <- p
	b := newBox(t, dev, p.ref(""))
	b.wait(t, "up "+relay.ID().String())
	const n = 1500
	for i := range n {
		if err := b.Send([]byte(fmt.Sprint(i)), i%3 == 0); err != nil {
			t.Fatal(err)
		}
	}
	last := fmt.Sprint("down-frame ", n-1)
	b.until(t, last, func() bool { return b.count(last) == 1 })
	next := 0
	for _, l := range b.all() {
		if l == fmt.Sprint("down-frame ", next) {
			next++
		}
	}
	if next != n {
		t.Fatalf("order broke at %d", next)
	}
}

func TestRetainedManifest(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), nil)
	if err := p.Retain(dev.ID(), []byte("manifest 1")); err != nil {
		t.Fatal(err)
	}
	b := newBox(t, dev, p.ref(""))
	b.wait(t, "up "+relay.ID().String())
	if err := b.FetchRetained(); err != nil {
		t.Fatal(err)
	}
	b.wait(t, "retained manifest 1")
	// Fetched once, it does not come again by itself; fetched again, the newest comes.
	if err := p.Retain(dev.ID(), []byte("manifest 2")); err != nil {
		t.Fatal(err)
	}
	if err := b.FetchRetained(); err != nil {
		t.Fatal(err)
	}
	b.wait(t, "retained manifest 2")
	if err := p.Retain(dev.ID(), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.FetchRetained(); err != nil {
		t.Fatal(err)
	}
	p.Send(dev.ID(), []byte("after"), false)
	b.wait(t, "down-frame after")
	if n := b.count("retained "); n != 0 {
		t.Fatal("an empty manifest")
	}
}

func TestSessionsEndAndComeBack(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), nil)
	b := newBox(t, dev, p.ref(relay.ID().String()))
	up, down := fmt.Sprintf("up %s true", b.me), fmt.Sprintf("down %s", b.me)
	b.wait(t, "up "+relay.ID().String())
	p.Kick(b.me, "test")
	p.until(t, "down and up again", func() bool { return p.count(down) == 1 && p.count(up) == 2 })
	b.wait(t, "down")
	b.until(t, "up again", func() bool { return b.count("up "+relay.ID().String()) == 2 })
	b.Reset("test")
	p.until(t, "down and up after reset", func() bool { return p.count(down) == 2 && p.count(up) == 3 })
	b.until(t, "up after reset", func() bool { return b.count("up "+relay.ID().String()) == 3 })
	p.stop()
	b.until(t, "down when the parent is gone", func() bool { return b.count("down") == 3 })
	b.until(t, "ErrDown", func() bool { return b.Send([]byte("x"), false) == link.ErrDown })
}

func TestNextParent(t *testing.T) {
	pki := newPKI(t)
	one, two, dev := pki.device(t), pki.device(t), pki.device(t)
	a, c := newParent(t, identity.NewLive(one), nil), newParent(t, identity.NewLive(two), nil)
	b := newBox(t, dev, a.ref(one.ID().String()), c.ref(two.ID().String()))
	b.wait(t, "up "+one.ID().String())
	a.stop()
	b.wait(t, "up "+two.ID().String())
	// The second is taken off the list; a third entry has the right place and the wrong
	// name: it is not believed.
	b.SetParents([]api.ParentRef{c.ref(one.ID().String())})
	b.until(t, "down", func() bool { return b.count("down") == 2 })
	b.SetParents(nil)
	b.SetParents([]api.ParentRef{c.ref(two.ID().String())})
	b.until(t, "up again", func() bool { return b.count("up "+two.ID().String()) == 2 })
	b.SetParents([]api.ParentRef{c.ref(two.ID().String()), a.ref(one.ID().String())})
	if err := b.Send([]byte("still here"), true); err != nil {
		t.Fatalf("a session with the best parent must be kept: %v", err)
	}
	c.wait(t, fmt.Sprintf("frame %s still here", b.me))
	// A better one is put before it; it is not there, so the second serves again.
	b.SetParents([]api.ParentRef{a.ref(one.ID().String()), c.ref(two.ID().String())})
	b.until(t, "up after looking for the better one", func() bool { return b.count("up "+two.ID().String()) == 3 })
}

func TestTakeover(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), nil)
	first := newBox(t, dev, p.ref(""))
	first.wait(t, "up "+relay.ID().String())
	second := newBox(t, dev, p.ref("")) // a clone, or the same box after a cut
	second.wait(t, "up "+relay.ID().String())
	first.wait(t, "down")
	up := fmt.Sprintf("up %s true", dev.ID())
	p.until(t, "two sessions", func() bool { return p.count(up) >= 2 })
}

func TestSlowChildIsDropped(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), func(c *BrokerConfig) { c.MaxQueue = 4 << 20 })
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	told := newEvents()
	told.onFrame = func(api.DeviceID, []byte) { <-hold }
	b := newBoxTelling(t, told, dev, p.ref(""))
	p.wait(t, fmt.Sprintf("up %s true", b.me))
	frame := make([]byte, 1<<20)
	var err error
	for range 100 {
		if err = p.Send(b.me, frame, true); err != nil {
			break
		}
	}
	if err != link.ErrDown {
		t.Fatalf("100 MiB queued for a child that does not read: %v", err)
	}
	p.wait(t, fmt.Sprintf("down %s", b.me))
	release()
	p.until(t, "back", func() bool { return p.count(fmt.Sprintf("up %s true", b.me)) == 2 })
}

func TestRetiredDeviceIsRefused(t *testing.T) {
	pki := newPKI(t)
	relay, dev, other := pki.device(t), pki.device(t), pki.device(t)
	live := identity.NewLive(relay)
	live.Refused = func(id api.DeviceID) bool { return id == dev.ID() }
	p := newParent(t, live, nil)
	b := newBox(t, dev, p.ref(""))
	ok := newBox(t, other, p.ref(""))
	ok.wait(t, "up "+relay.ID().String())
	stranger := newBox(t, newPKI(t).device(t), p.ref(""))
	if len(b.all()) != 0 || len(stranger.all()) != 0 || p.count(fmt.Sprintf("up %s true", b.me)) != 0 {
		t.Fatal("a retired device or a stranger got in")
	}
}

func TestTraffic(t *testing.T) {
	pki := newPKI(t)
	relay, dev := pki.device(t), pki.device(t)
	p := newParent(t, identity.NewLive(relay), nil)
	b := newBox(t, dev, p.ref(""))
	b.wait(t, "up "+relay.ID().String())
	if err := b.Send(make([]byte, 1000), true); err != nil {
		t.Fatal(err)
	}
	p.until(t, "both ends to count the same", func() bool {
		r, s := p.Broker.Traffic().Wire()
		ur, us := b.Uplink.Traffic().Wire()
		return r == us && s == ur && r > 1000
	})
}

func TestPause(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Backoff{Min: time.Duration(rapid.Int64Range(0, 1e10).Draw(t, "min")), Max: time.Duration(rapid.Int64Range(0, 1e12).Draw(t, "max"))}.withDefaults()
		n, r := rapid.IntRange(1, 1000).Draw(t, "failures"), rand.Float64()
		d := b.pause(n, r)
		if d < b.Min/2 || d > b.Max {
			t.Fatalf("pause %v outside %v to %v", d, b.Min/2, b.Max)
		}
		if more := b.pause(n+1, r); more < d {
			t.Fatalf("pause fell from %v to %v", d, more)
		}
	})
}

func TestLadder(t *testing.T) {
	ref := func(n int) api.ParentRef { return api.ParentRef{Address: fmt.Sprint(n)} }
	rapid.Check(t, func(t *rapid.T) {
		var l ladder
		n := rapid.IntRange(1, 4).Draw(t, "parents")
		var list []api.ParentRef
		for i := range n {
			list = append(list, ref(i))
		}
		l.set(list)
		seen := map[api.ParentRef]bool{}
		for range n * patience {
			if f := l.failures(); f > patience {
				t.Fatalf("pauses as after %d failures before all parents were tried", f)
			}
			p, ok := l.current()
			if !ok {
				t.Fatal("no parent")
			}
			seen[p] = true
			l.failed()
		}
		if len(seen) != n {
			t.Fatalf("tried %d of %d", len(seen), n)
		}
		if f := l.failures(); f < patience {
			t.Fatalf("pauses as after %d failures though all parents failed", f)
		}
		at, _ := l.current()
		l.set(append(slices.Clone(list), ref(99)))
		if now, _ := l.current(); now != at {
			t.Fatal("left its parent for a worse one")
		}
		l.set(append([]api.ParentRef{ref(98)}, list...))
		if now, _ := l.current(); now != ref(98) {
			t.Fatal("stays where it is though a better parent is listed")
		}
		l.set([]api.ParentRef{ref(99)})
		if now, _ := l.current(); now != ref(99) {
			t.Fatal("stays at a parent that is gone")
		}
		l.set(nil)
		if _, ok := l.current(); ok {
			t.Fatal("a parent out of nothing")
		}
		l.failed()
	})
}
