package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/meter"
	"tributary.dev/tributary/pkg/edge/state"
	"tributary.dev/tributary/pkg/edge/workload"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/spool"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/oci"
	"tributary.dev/tributary/pkg/report"
	"tributary.dev/tributary/tests/wait"
)

// bench is an agent over a real state file, a real spool, real keys and a real HTTPS
// artifact server; the link and the runtime are recorders.
type bench struct {
	t     *testing.T
	dir   string
	state *state.Store
	spool *spool.Spool
	meter *meter.Meter
	link  *linkRecorder
	work  *workRecorder
	agent *Agent
	id    *identity.Identity
	up    *artifacts
	tune  func(*Config) // nil changes nothing
	stop  func()
}

// artifacts is a registry of bundles.
type artifacts struct {
	mu    sync.Mutex
	blobs map[string][]byte
	down  bool
	asked int
	url   *url.URL
	http  *http.Client
}

func newArtifacts(t *testing.T) *artifacts {
	a := &artifacts{blobs: map[string][]byte{}}
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	a.url, _ = url.Parse(s.URL)
	a.http = s.Client()
	return a
}

func (a *artifacts) Endpoint() (*url.URL, *http.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		return nil, nil, api.Errorf(api.Unavailable, "cut")
	}
	return a.url, a.http, nil
}

func (a *artifacts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route, err := oci.ParseRequest(r)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	b, ok := a.blobs[route.Reference]
	if err != nil || !ok {
		http.NotFound(w, r)
		return
	}
	if route.Kind == oci.RouteManifest {
		w.Header().Set("Content-Type", oci.TypeManifest)
	}
	_, _ = w.Write(b)
}

func (a *artifacts) push(t *testing.T, b api.Bundle) manifest.Ref {
	raw, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	m, digest := oci.BundleManifest(raw)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.blobs[digest], a.blobs[oci.Digest(raw)], a.blobs[oci.Digest([]byte("{}"))] = m, raw, []byte("{}")
	return manifest.Ref{Repo: "default/" + b.App, Digest: digest, Size: int64(len(m))}
}

func (a *artifacts) cut(down bool) { a.mu.Lock(); a.down = down; a.mu.Unlock() }

type linkRecorder struct {
	mu      sync.Mutex
	entries map[string][]byte
	man     *manifest.Signed
	changed chan struct{}
	spool   *spool.Spool
}

func (l *linkRecorder) Report(key string, value []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries[key] = value; value == nil {
		delete(l.entries, key)
	}
	return nil
}
func (l *linkRecorder) Append(k api.RecordKind, p []byte) (uint64, error) {
	return l.spool.Append(k, p)
}
func (l *linkRecorder) Manifest() *manifest.Signed { l.mu.Lock(); defer l.mu.Unlock(); return l.man }
func (l *linkRecorder) Changed() <-chan struct{}   { return l.changed }
func (l *linkRecorder) OnCommand(func([]byte))     {}
func (l *linkRecorder) Warnings() []api.Warning    { return nil }

func (l *linkRecorder) publish(gen uint64, dev api.DeviceID, items map[string]manifest.Item) {
	for k, i := range items {
		if i.Gen == 0 {
			i.Gen = gen
		}
		items[k] = i
	}
	l.mu.Lock()
	l.man = &manifest.Signed{Manifest: manifest.Manifest{Version: 1, Device: dev, Epoch: 1, Generation: gen, Items: items}}
	l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

func (l *linkRecorder) value(t *testing.T, key string, to any) bool {
	l.mu.Lock()
	b := l.entries[key]
	l.mu.Unlock()
	if b == nil {
		return false
	}
	if err := bodyMode.Unmarshal(b, to); err != nil {
		t.Fatal(err)
	}
	return true
}

// app reads the reported status of an app, as the core does.
func (l *linkRecorder) app(name string, to *api.AppStatus) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	apps, _ := report.Join(l.entries)
	for _, a := range apps {
		if a.Name == name {
			*to = a
			return true
		}
	}
	return false
}

// workRecorder takes every app it is given for running at once.
type workRecorder struct {
	mu      sync.Mutex
	apps    []workload.App
	sets    int
	changed chan struct{}
}

func (w *workRecorder) Set(apps []workload.App) {
	w.mu.Lock()
	w.apps = apps
	w.sets++
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}
func (w *workRecorder) Status() (out []api.AppStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.apps {
		s := api.AppStatus{Name: a.Bundle.App, State: api.Running, Bundle: a.Digest, Taken: a.Digest}
		for _, one := range a.Bundle.Services {
			s.Services = append(s.Services, api.ServiceStatus{Name: one.Name, State: api.Running})
		}
		if a.Hold != "" {
			s.State, s.Message = api.Pending, a.Hold
		}
		out = append(out, s)
	}
	return out
}
func (w *workRecorder) Changed() <-chan struct{} { return w.changed }
func (w *workRecorder) Warnings() []api.Warning  { return nil }
func (w *workRecorder) Targets() []meter.Target {
	return []meter.Target{{ID: "1", App: "shop", Service: "web", Started: time.Unix(1, 0)}}
}
func (w *workRecorder) Logs(context.Context, string, string, bool, int, io.Writer) error { return nil }
func (w *workRecorder) Exec(context.Context, workload.ExecRequest) (int, error)          { return 0, nil }
func (w *workRecorder) Dial(context.Context, string, string, int) (net.Conn, error) {
	return nil, errors.New("none")
}
func (w *workRecorder) running() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]string{}
	for _, a := range w.apps {
		out[a.Bundle.App] = a.Digest
	}
	return out
}

// counters is a meter.Reader whose CPU time grows with each reading.
type counters struct{ n uint64 }

func (c *counters) Read(meter.Target) (meter.Reading, error) {
	c.n += 1000
	return meter.Reading{CPUMicros: c.n, MemoryBytes: 1 << 20}, nil
}

func key(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, dir: t.TempDir(), up: newArtifacts(t), id: &identity.Identity{Key: key(t), Seal: key(t)}}
	t.Cleanup(func() { b.halt() })
	return b
}

// open opens what is on the disk; close closes it.
func (b *bench) open() {
	b.t.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	if b.state, err = state.Open(state.Config{Path: filepath.Join(b.dir, "state.db"), Log: log}); err != nil {
		b.t.Fatal(err)
	}
	if b.spool, err = spool.Open(spool.Config{Dir: filepath.Join(b.dir, "spool"), DB: b.state.DB(), Now: time.Now, Rand: rand.Reader, Log: log}); err != nil {
		b.t.Fatal(err)
	}
	b.work = &workRecorder{changed: make(chan struct{}, 1)}
	b.meter, err = meter.New(meter.Config{Store: b.state.Mirror("meter"), Reader: &counters{}, Targets: b.work.Targets, Log: log})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) close() {
	if err := errors.Join(b.spool.Close(), b.state.Close()); err != nil {
		b.t.Error(err)
	}
}

// start makes the agent as after a (re)start of the process.
func (b *bench) start() {
	b.t.Helper()
	b.open()
	log := slog.New(slog.DiscardHandler)
	clock, err := b.state.Clock(time.Now, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	old := b.link
	b.link = &linkRecorder{entries: map[string][]byte{}, changed: make(chan struct{}, 1), spool: b.spool}
	if old != nil { // the link keeps both
		b.link.entries, b.link.man = old.entries, old.man
	}
	live := identity.NewLive(b.id)
	parents := NewParents(ParentsConfig{Live: live, First: []api.ParentRef{{Address: "127.0.0.1:1"}}, Attach: func([]api.ParentRef) {},
		Current: func() (string, bool) { return "core", true }, Log: log})
	cfg := Config{Identity: live, Link: b.link, Workload: b.work, Meter: b.meter, Records: b.spool, State: b.state, Clock: clock,
		Artifacts: b.up, Parents: parents, Settings: func(api.DeviceSettings) {}, RenewTrust: func() {},
		Hardware: func() api.Hardware { return api.Hardware{Arch: "amd64"} }, Labels: func(api.Hardware) map[string]string { return nil },
		Addresses: func() []string { return nil }, Version: "test", Stream: parents.Stream,
		RetryMin: time.Millisecond, RetryMax: 5 * time.Millisecond, Log: log}
	if b.tune != nil {
		b.tune(&cfg)
	}
	if b.agent, err = New(cfg); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.agent.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
		b.close()
	}
}

func (b *bench) halt() {
	if b.stop != nil {
		b.stop()
		b.stop = nil
	}
}

func (b *bench) wait(what string, ok func() bool) {
	b.t.Helper()
	wait.Seen(b.t, what, func() (any, bool) {
		if ok() {
			return nil, true
		}
		return fmt.Sprintf("runs %v, warnings %v", b.work.running(), b.agent.Warnings()), false
	})
}

func (b *bench) applied() uint64 {
	var v [2]uint64
	b.link.value(b.t, keyApplied, &v)
	return v[1]
}

func (b *bench) warned(name string) bool {
	return slices.ContainsFunc(b.agent.Warnings(), func(w api.Warning) bool { return w.Name == name })
}

func shop(image string, services ...api.Service) api.Bundle {
	return api.Bundle{Version: 1, App: "shop", Services: append([]api.Service{{Name: "web", Image: image}}, services...)}
}

func app(ref manifest.Ref) map[string]manifest.Item {
	return map[string]manifest.Item{"app/shop": {Refs: []manifest.Ref{ref}}}
}

func TestFromManifestToRuntimeAndBack(t *testing.T) {
	b := newBench(t)
	b.start()
	id := b.id.ID()
	v1 := b.up.push(t, shop("web@sha256:1", api.Service{Name: "side", Mounts: []api.Mount{{Kind: api.MountSecret, Source: "keys/a"}, {Kind: api.MountConfig, Source: "conf"}}}))
	sealed, err := identity.Seal(&b.id.Seal.PublicKey, identity.SealInfo{Device: id, Name: "keys", Generation: 3}, encode(t, api.ConfigData{Files: map[string][]byte{"a": []byte("s3cret")}}))
	if err != nil {
		t.Fatal(err)
	}
	items := app(v1)
	items["secret/keys"] = manifest.Item{Gen: 3, Body: sealed}
	items["config/conf"] = manifest.Item{Body: encode(t, api.ConfigData{Files: map[string][]byte{"f": []byte("x")}})}
	b.link.publish(3, id, items)
	b.wait("the manifest is in force and reported", func() bool { return b.applied() == 3 })
	b.work.mu.Lock()
	got := b.work.apps[0]
	b.work.mu.Unlock()
	if string(got.Secrets["keys"].Files["a"]) != "s3cret" || string(got.Configs["conf"].Files["f"]) != "x" || got.Digest != v1.Digest {
		t.Errorf("the runtime got %+v", got)
	}
	var status api.AppStatus
	if !b.link.app("shop", &status) || status.State != api.Running || status.Bundle != v1.Digest || len(status.Services) != 2 {
		t.Errorf("reported %+v", status)
	}

	b.link.publish(4, id, map[string]manifest.Item{})
	b.wait("the app goes, and its entry with it", func() bool {
		b.link.mu.Lock()
		defer b.link.mu.Unlock()
		return b.link.entries["app/shop"] == nil && b.link.entries["app/shop/web"] == nil
	})
	b.wait("that is in force too", func() bool { return b.applied() == 4 })
	if raw, err := b.state.Bundle(v1.Digest); raw != nil || err != nil {
		t.Errorf("the bundle is kept after its app: %v", err)
	}
}

func TestRestartWithNobodyAbove(t *testing.T) {
	b := newBench(t)
	b.start()
	v1 := b.up.push(t, shop("web@sha256:1"))
	b.link.publish(1, b.id.ID(), app(v1))
	b.wait("it runs", func() bool { return b.applied() == 1 })
	b.halt()
	b.up.cut(true)
	b.start()
	b.wait("it runs again", func() bool { return b.work.running()["shop"] == v1.Digest })
}

// What is in the box is reported as it changes; what went while nobody looked is taken back.
func TestTheInventoryIsReported(t *testing.T) {
	b := newBench(t)
	var mu sync.Mutex
	disks := []api.Disk{{Name: "sda"}, {Name: "sdb"}}
	news := make(chan struct{}, 1)
	b.tune = func(c *Config) {
		c.NewInventory = news
		c.Inventory = func() *api.Inventory {
			mu.Lock()
			defer mu.Unlock()
			return &api.Inventory{Disks: slices.Clone(disks)}
		}
	}
	told := func() string {
		b.link.mu.Lock()
		defer b.link.mu.Unlock()
		i, bad := report.JoinInventory(b.link.entries)
		if i == nil || len(bad) > 0 {
			return ""
		}
		var names []string
		for _, d := range i.Disks {
			names = append(names, d.Name)
		}
		return strings.Join(names, " ")
	}
	b.start()
	news <- struct{}{}
	b.wait("both disks are told of", func() bool { return told() == "sda sdb" })
	mu.Lock()
	disks = disks[1:]
	mu.Unlock()
	news <- struct{}{}
	b.wait("one went", func() bool { return told() == "sdb" })
	b.halt()
	mu.Lock()
	disks = []api.Disk{{Name: "sdc"}}
	mu.Unlock()
	b.start()
	news <- struct{}{}
	b.wait("another went while nobody looked", func() bool { return told() == "sdc" })
}

// deaf is a link that has no manifest yet.
type deaf struct{ *linkRecorder }

func (deaf) Manifest() *manifest.Signed { return nil }

func TestWhatIsInForceIsKnownAfterARestart(t *testing.T) {
	b := newBench(t)
	b.start()
	b.link.publish(7, b.id.ID(), app(b.up.push(t, shop("web@sha256:1"))))
	b.wait("it is in force", func() bool { return b.applied() == 7 })
	b.halt()
	b.tune = func(c *Config) { c.Link = deaf{b.link} }
	b.start()
	if s := b.agent.Status(); s.Applied != 7 {
		t.Errorf("in force after a restart: %d", s.Applied)
	}
}

func TestWhatCannotBeFetchedTakesNothingDown(t *testing.T) {
	b := newBench(t)
	b.start()
	id := b.id.ID()
	v1, v2 := b.up.push(t, shop("web@sha256:1")), b.up.push(t, shop("web@sha256:2"))
	b.link.publish(1, id, app(v1))
	b.wait("v1 runs", func() bool { return b.applied() == 1 })
	b.up.cut(true)
	items := app(v2)
	items["app/other"] = manifest.Item{Refs: []manifest.Ref{{Repo: "default/other", Digest: v2.Digest}}}
	b.link.publish(2, id, items)
	b.wait("a warning names it", func() bool { return b.warned("manifest-incomplete") })
	if r := b.work.running(); r["shop"] != v1.Digest || b.applied() != 1 {
		t.Fatalf("runs %v, applied %d", r, b.applied())
	}
	var other api.AppStatus
	b.wait("the other is told to be pending", func() bool { return b.link.app("other", &other) && other.State == api.Pending })

	b.halt() // and after a restart it is the same
	b.start()
	b.wait("v1 runs again", func() bool { return b.work.running()["shop"] == v1.Digest })
	b.up.cut(false)
	b.link.publish(3, id, app(v2))
	b.wait("v2 runs", func() bool { return b.applied() == 3 && b.work.running()["shop"] == v2.Digest })
	b.wait("the warning goes", func() bool { return !b.warned("manifest-incomplete") })
}

// A version that a rollout gave waits while its permit is closed: what runs goes on, also after a
// restart; a first version waits for nothing.
func TestPermitsAreHeeded(t *testing.T) {
	b := newBench(t)
	b.start()
	id := b.id.ID()
	v1, v2 := b.up.push(t, shop("web@sha256:1")), b.up.push(t, shop("web@sha256:2"))
	with := func(ref manifest.Ref, p api.Permit) map[string]manifest.Item {
		items := app(ref)
		items[manifest.KeyPermits] = manifest.Item{Body: encode(t, map[string]api.Permit{"app/shop": p})}
		return items
	}
	past, future := time.Now().Add(-time.Minute).Unix(), time.Now().Add(time.Hour).Unix()
	closed := api.Hours(time.Now().UTC().Add(2*time.Hour).Format("15:04") + "-" + time.Now().UTC().Add(3*time.Hour).Format("15:04"))
	b.link.publish(1, id, with(v1, api.Permit{Rollout: "r", Until: past}))
	b.wait("v1 runs", func() bool { return b.applied() == 1 })
	b.link.publish(2, id, with(v2, api.Permit{Rollout: "r", Until: past}))
	b.wait("a warning names it", func() bool { return b.warned("manifest-incomplete") })
	if r := b.work.running(); r["shop"] != v1.Digest || b.applied() != 1 {
		t.Fatalf("by a permit that has ended it runs %v, applied %d", r, b.applied())
	}
	b.halt()
	b.start()
	b.wait("v1 runs after a restart", func() bool { return b.work.running()["shop"] == v1.Digest })
	b.link.publish(3, id, with(v1, api.Permit{Rollout: "r", Until: past}))
	b.wait("the warning goes", func() bool { return b.applied() == 3 && !b.warned("manifest-incomplete") })
	b.link.publish(4, id, with(v2, api.Permit{Rollout: "r", Until: future, Hours: closed}))
	b.wait("a warning names the hours", func() bool { return b.warned("manifest-incomplete") })
	if r := b.work.running(); r["shop"] != v1.Digest {
		t.Fatalf("outside of its hours it runs %v", r)
	}
	b.link.publish(5, id, with(v2, api.Permit{Rollout: "r", Until: future}))
	b.wait("v2 runs", func() bool { return b.applied() == 5 && b.work.running()["shop"] == v2.Digest })
}

func TestAnAppThatCannotBeMadeReadyIsHeld(t *testing.T) {
	b := newBench(t)
	b.start()
	id := b.id.ID()
	v1 := b.up.push(t, shop("web@sha256:1", api.Service{Name: "s", EnvConfig: []string{"conf"}}))
	items := app(v1)
	items["config/conf"] = manifest.Item{Body: encode(t, api.ConfigData{})}
	b.link.publish(1, id, items)
	b.wait("v1 runs", func() bool { return b.applied() == 1 })
	b.link.publish(2, id, app(v1)) // its config is gone: neither version can be made ready
	b.wait("a warning names it", func() bool { return b.warned("manifest-incomplete") })
	b.work.mu.Lock()
	got := b.work.apps
	b.work.mu.Unlock()
	if len(got) != 1 || got[0].Bundle.App != "shop" || !strings.Contains(got[0].Hold, "conf") {
		t.Errorf("the runtime got %+v", got)
	}
}

func TestUsageIsRecordedOnceThroughCrashes(t *testing.T) {
	b := newBench(t)
	b.start()
	settings := map[string]manifest.Item{"setting/device": {Body: encode(t, api.DeviceSettings{MeterInterval: api.Duration(20 * time.Millisecond)})}}
	b.link.publish(1, b.id.ID(), settings)
	recorded := func() (sum uint64, last int64) {
		first, end, _, _ := b.spool.Range()
		for at := first; at <= end; at++ {
			list, err := b.spool.Read(at, 1)
			if err != nil || len(list) == 0 {
				t.Fatal(err)
			}
			if u, ok := readUsage(list[0].Kind, list[0].Payload); ok {
				if u.From < last {
					t.Fatalf("interval %d to %d overlaps one that ended at %d", u.From, u.To, last)
				}
				last = u.To
				for _, use := range u.Uses {
					sum += use.CPUMicros
				}
			}
		}
		return sum, last
	}
	total := func() (n uint64) {
		for _, u := range b.agent.Totals() {
			n += u.CPUMicros
		}
		return n
	}
	b.wait("some records", func() bool { _, last, _, _ := b.spool.Range(); return last > 3 })
	b.halt()

	// A crash after the append and before anything else was noted: the totals are older
	// than the spool, and the meter still holds the interval.
	st, err := state.Open(state.Config{Path: filepath.Join(b.dir, "state.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Put("blob", "usage-totals", nil); err != nil {
		t.Fatal(err)
	}
	st.Close()
	b.start()
	b.wait("more records", func() bool { _, last, _, _ := b.spool.Range(); return last > 6 })
	b.link.publish(2, b.id.ID(), map[string]manifest.Item{}) // back to 15 minutes
	b.wait("totals equal what is recorded", func() bool { sum, _ := recorded(); return sum > 0 && sum == total() })
}

func TestPendingUsageIsNotRecordedTwice(t *testing.T) {
	b := newBench(t)
	b.open()
	if err := b.meter.Sample(); err != nil {
		t.Fatal(err)
	}
	u, err := b.meter.Collect()
	if err != nil || len(u.Uses) == 0 {
		t.Fatal(err, u)
	}
	// The process dies right after the append.
	if _, err := b.spool.Append(api.RecordUsage, encode(t, u)); err != nil {
		t.Fatal(err)
	}
	b.close()
	b.start()
	b.wait("the interval is settled", func() bool { _, pending := b.meter.Pending(); return !pending })
	if _, last, _, _ := b.spool.Range(); last != 1 {
		t.Errorf("%d records of one interval", last)
	}
}

func TestEventsAreRecordedAndBounded(t *testing.T) {
	b := newBench(t)
	b.start()
	b.agent.Event(api.Event{Name: "app.started", Subject: "shop", Message: string(make([]byte, 100_000))})
	b.wait("the event is in the spool", func() bool { _, last, _, _ := b.spool.Range(); return last >= 1 })
}

// A box that knows another sealing key than the manifest names renews; one that knows it does not.
func TestSealingKeyIsLearnt(t *testing.T) {
	b := newBench(t)
	asked := make(chan struct{}, 16)
	b.tune = func(c *Config) { c.RenewTrust = func() { asked <- struct{}{} } }
	known := &b.id.Seal.PublicKey // any key will do
	b.id.Trust = &identity.Trust{Sealing: &x509.Certificate{PublicKey: known}}
	b.start()
	b.link.publish(1, b.id.ID(), map[string]manifest.Item{"setting/sealing": {Body: encode(t, identity.KID(known))}})
	b.link.publish(2, b.id.ID(), map[string]manifest.Item{})
	b.wait("the manifest is taken", func() bool { b.agent.mu.Lock(); defer b.agent.mu.Unlock(); return b.agent.outcome.of.gen == 2 })
	if len(asked) > 0 {
		t.Error("it renews for a key that it knows")
	}
	b.link.publish(3, b.id.ID(), map[string]manifest.Item{"setting/sealing": {Body: encode(t, []byte("another1"))}})
	wait.For(t, "it renews", asked)
}
