package link_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
	"tributary.dev/tributary/pkg/link/spool"
	"tributary.dev/tributary/tests/wait"
)

// wire is an Uplink and a Downlink in memory: each end has a queue that one goroutine
// empties, as a broker's client has.
type wire struct {
	hub   *hub
	id    api.DeviceID
	queue chan func(link.UplinkHandler)
}

type hub struct {
	parent   api.DeviceID
	mu       sync.Mutex
	children map[api.DeviceID]*wire
	queue    chan func(link.DownlinkHandler)
}

func newHub(parent api.DeviceID) *hub {
	return &hub{parent: parent, children: map[api.DeviceID]*wire{}, queue: make(chan func(link.DownlinkHandler), 1024)}
}

func (h *hub) Run(ctx context.Context, to link.DownlinkHandler) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case do := <-h.queue:
			do(to)
		}
	}
}

func (h *hub) Send(child api.DeviceID, frame []byte, _ bool) error {
	h.mu.Lock()
	w := h.children[child]
	h.mu.Unlock()
	if w == nil {
		return link.ErrDown
	}
	b := append([]byte(nil), frame...)
	w.queue <- func(to link.UplinkHandler) { to.FromParent(b) }
	return nil
}

func (h *hub) Retain(api.DeviceID, []byte) error { return nil }
func (h *hub) Kick(api.DeviceID, string)         {}

func (w *wire) Run(ctx context.Context, to link.UplinkHandler) error {
	w.hub.mu.Lock()
	w.hub.children[w.id] = w
	w.hub.mu.Unlock()
	w.hub.queue <- func(h link.DownlinkHandler) { h.ChildUp(w.id, linksim.Cert(w.id)) }
	to.ParentUp(w.hub.parent)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case do := <-w.queue:
			do(to)
		}
	}
}

func (w *wire) Send(frame []byte, _ bool) error {
	b := append([]byte(nil), frame...)
	w.hub.queue <- func(h link.DownlinkHandler) { h.FromChild(w.id, b) }
	return nil
}

func (w *wire) SetParents([]api.ParentRef) {}
func (w *wire) FetchRetained() error       { return nil }
func (w *wire) Reset(string)               {}

func box(t *testing.T, keys *linksim.Keyring, id api.DeviceID, up, down *hub) *link.Endpoint {
	t.Helper()
	dir := t.TempDir()
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	records, err := spool.Open(spool.Config{Dir: filepath.Join(dir, "spool"), DB: db, Now: time.Now, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := records.Close(); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg := link.EndpointConfig{RelayConfig: link.RelayConfig{Config: link.Config{RecordDelay: 10 * time.Millisecond}, Self: id, Cert: linksim.Cert(id),
		Store: link.OpenBolt(db), Spool: records, Keys: keys.Device(id)}, Uplink: &wire{hub: up, id: id, queue: make(chan func(link.UplinkHandler), 1024)}}
	if down != nil {
		cfg.Downlink = down
	}
	e, err := link.NewEndpoint(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// guarded lets the test look into the core's store while the core writes it.
type guarded struct {
	mu sync.Mutex
	*linksim.Database
}

func (g *guarded) ApplyState(c []link.StateChange) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Database.ApplyState(c)
}

func (g *guarded) keys(id api.DeviceID) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	if s := g.States[id]; s != nil {
		for _, e := range s.Entries {
			if !e.Deleted {
				n++
			}
		}
	}
	return n
}

// The facades with goroutines, a real spool and real bbolt files: two hops, everything
// that crosses them.
func TestEndpoints(t *testing.T) {
	defer wait.NoLeaks(t)
	keys := keyring(t)
	db := &guarded{Database: linksim.NewDatabase()}
	relayID, fieldID := api.DeviceID{1}, api.DeviceID{2}
	top, mid := newHub(api.DeviceID{}), newHub(relayID)
	core, err := link.NewCoreEndpoint(link.CoreEndpointConfig{CoreConfig: link.CoreConfig{Epoch: 1, Store: db, Keys: keys.Core()}, Downlink: top})
	if err != nil {
		t.Fatal(err)
	}
	relay, field := box(t, keys, relayID, top, mid), box(t, keys, fieldID, mid, nil)
	commands := make(chan string, 1)
	field.OnCommand(func(raw []byte) { commands <- string(raw) })

	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{core.Run, relay.Run, field.Run} {
		running.Go(func() { _ = run(ctx) })
	}
	defer running.Wait()
	defer stop()

	want := linksim.NewDesired(1)
	if err := want.Set(keys, fieldID, 1, 1_764_000_000, map[string][]byte{"config/a": {1}}); err != nil {
		t.Fatal(err)
	}
	if err := core.Publish(want.Signed, want.Tombs); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := field.Report(fmt.Sprintf("key/%d", i), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		if _, err := field.Append(api.RecordEvent, []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	wait.Until(t, "the manifest", func() bool { s := field.Manifest(); return s != nil && s.Manifest.Generation == 1 })
	wait.Until(t, "the command", func() bool {
		_ = core.Command(fieldID, []byte("hello"))
		select {
		case c := <-commands:
			return c == "hello"
		default:
			return false
		}
	})
	wait.Until(t, "all records to be acknowledged", func() bool { return core.Reachable(fieldID) && field.Acked() == 50 })
	wait.Until(t, "all keys", func() bool { return db.keys(fieldID) == 50 })
	stop()
	running.Wait()
	for seq := uint64(1); seq <= 50; seq++ {
		if l := db.Ledger[fieldID][seq]; l == nil || l.Count != 1 {
			t.Errorf("record %d is counted %+v", seq, l)
		}
	}
}

// faint is a store that sometimes does not answer. What it was told before it fell silent may
// have been committed, or not.
type faint struct {
	*guarded
	away atomic.Bool
	late atomic.Bool // it commits, and cannot tell
}

var errAway = &api.Error{Code: api.Unavailable, Message: "the database does not answer"}

func (f *faint) ApplyState(changes []link.StateChange) error {
	if f.away.Load() {
		return errAway
	}
	return f.guarded.ApplyState(changes)
}

func (f *faint) AcceptBatches(in []link.BatchIn) ([]link.BatchResult, error) {
	if f.away.Load() {
		return nil, errAway
	}
	out, err := f.guarded.AcceptBatches(in)
	if err == nil && f.late.CompareAndSwap(true, false) {
		f.away.Store(true)
		return nil, errAway
	}
	return out, err
}

// A store that does not answer ends nothing: what comes meanwhile waits unacknowledged, and is
// counted once when it is back, also what it had committed without a word.
func TestStoreAway(t *testing.T) {
	defer wait.NoLeaks(t)
	keys, id := keyring(t), api.DeviceID{2}
	db := &faint{guarded: &guarded{Database: linksim.NewDatabase()}}
	top := newHub(api.DeviceID{})
	core, err := link.NewCoreEndpoint(link.CoreEndpointConfig{CoreConfig: link.CoreConfig{Epoch: 1, Store: db, Keys: keys.Core()}, Downlink: top})
	if err != nil {
		t.Fatal(err)
	}
	field := box(t, keys, id, top, nil)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	ended := make(chan error, 1)
	running.Go(func() { ended <- core.Run(ctx) })
	running.Go(func() { _ = field.Run(ctx) })
	defer running.Wait()
	defer stop()
	tell := func(n int) {
		t.Helper()
		for i := range n {
			if _, err := field.Append(api.RecordEvent, []byte{byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	warned := func() bool {
		return slices.ContainsFunc(core.Warnings(), func(w api.Warning) bool { return w.Name == "store-away" && w.Severity == api.Critical })
	}
	tell(5)
	wait.Until(t, "the first records to be acknowledged", func() bool { return field.Acked() == 5 })
	db.late.Store(true)
	tell(5)
	wait.Until(t, "the core to say that its store is away", warned)
	if err := field.Report("key", []byte{1}); err != nil {
		t.Fatal(err)
	}
	tell(5)
	if n := field.Acked(); n != 5 {
		t.Errorf("%d records are acknowledged, of which the store said nothing", n)
	}
	db.away.Store(false)
	wait.Until(t, "all records to be acknowledged", func() bool { return field.Acked() == 15 })
	wait.Until(t, "the key", func() bool { return db.keys(id) == 1 })
	wait.Until(t, "the warning to end", func() bool { return !warned() })
	select {
	case err := <-ended:
		t.Fatal("the core's end of the link ended: ", err)
	default:
	}
	stop()
	running.Wait()
	for seq := uint64(1); seq <= 15; seq++ {
		if l := db.Ledger[id][seq]; l == nil || l.Count != 1 {
			t.Errorf("record %d is counted %+v", seq, l)
		}
	}
}
