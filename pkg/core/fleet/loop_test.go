package fleet

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/tests/wait"
)

// core is a loop over a real store, with the link and the devices' reports replaced by
// maps.
type core struct {
	t      testing.TB
	db     *store.SQL
	signer *ecdsa.PrivateKey
	seal   *ecdsa.PrivateKey // every device's
	epoch  uint64

	mu        sync.Mutex
	published map[api.DeviceID]*manifest.Signed
	times     map[api.DeviceID]int
	reports   map[api.DeviceID]*Report
	loop      *Loop
	stop      func()
	change    func(*Config)
}

func newCore(t testing.TB, path string) *core {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{Place: path, Now: time.Now, NewUID: func() string { return "u" }})
	if err != nil {
		t.Fatal(err)
	}
	c := &core{t: t, db: db, epoch: 1, published: map[api.DeviceID]*manifest.Signed{}, times: map[api.DeviceID]int{}, reports: map[api.DeviceID]*Report{}, stop: func() {}, change: func(*Config) {}}
	for _, k := range []**ecdsa.PrivateKey{&c.signer, &c.seal} {
		if *k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { c.stop(); db.Close() })
	return c
}

// run starts the loop, as a process that starts would.
func (c *core) run() {
	c.stop()
	cfg := Config{Store: c.db, Epoch: c.epoch, Signer: func() (*ecdsa.PrivateKey, []byte) { return c.signer, nil },
		SealKey: func(api.DeviceID) (*ecdsa.PublicKey, bool) { return &c.seal.PublicKey, true },
		Publish: c.publish, Reports: c, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	c.change(&cfg)
	c.loop = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	if err := c.loop.Load(ctx); err != nil {
		c.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.loop.Run(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			c.t.Error("the loop ended: ", err)
		}
	})
}

func (c *core) publish(s *manifest.Signed, _ map[string]uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := s.Manifest.Device
	if old := c.published[id]; old != nil && old.Newer(s) {
		c.t.Errorf("published %d.%d after %d.%d", s.Manifest.Epoch, s.Manifest.Generation, old.Manifest.Epoch, old.Manifest.Generation)
	}
	c.published[id] = s
	c.times[id]++
	return nil
}

func (c *core) Reports(_ context.Context, ids []api.DeviceID) (map[api.DeviceID]*Report, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[api.DeviceID]*Report{}
	for _, id := range ids {
		if all[id] = c.reports[id]; all[id] == nil {
			all[id] = &Report{}
		}
	}
	return all, nil
}

func (c *core) report(id api.DeviceID, r *Report) {
	c.mu.Lock()
	c.reports[id] = r
	c.mu.Unlock()
	c.loop.Reported(id)
}

func (c *core) put(kind, name string, labels map[string]string, spec, status any) {
	c.t.Helper()
	raw, err := json.Marshal(spec)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.db.Put(c.t.Context(), &api.Object{Kind: kind, Metadata: api.Meta{Tenant: "default", Name: name, Labels: labels}, Spec: raw}, store.PutOptions{Status: status}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *core) device(n byte, labels map[string]string) api.DeviceID {
	id := api.DeviceID{n}
	c.put(api.KindDevice, fmt.Sprint("d", n), labels, api.DeviceSpec{Approved: true}, api.DeviceStatus{ID: id})
	return id
}

func (c *core) app(name string, version int, secrets ...string) {
	c.put(api.KindApp, name, nil, api.AppSpec{Compose: fmt.Sprint(version)}, api.AppObjectStatus{Repo: "default/" + name, Bundle: fmt.Sprintf("sha256:%064x", version), Secrets: secrets})
}

func (c *core) fleet(name, role string, apps ...string) {
	c.put(api.KindFleet, name, nil, api.FleetSpec{Selector: api.Selector{MatchLabels: map[string]string{"role": role}}, Apps: apps}, nil)
}

// until waits for a condition on what was published.
func (c *core) until(what string, ok func() bool) {
	c.t.Helper()
	wait.Until(c.t, what, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return ok()
	})
}

// now tells whether a condition on what was published holds at this moment.
func (c *core) now(ok func() bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ok()
}

// newest is what was published for a device last; nil for nothing.
func (c *core) newest(id api.DeviceID) (s *manifest.Signed) {
	c.now(func() bool { s = c.published[id]; return true })
	return s
}

// has is such a condition: under the lock, as until and now call it.
func (c *core) has(id api.DeviceID, items ...string) func() bool {
	return func() bool {
		s := c.published[id]
		if s == nil || len(s.Manifest.Items) != len(items) {
			return false
		}
		for _, i := range items {
			if _, ok := s.Manifest.Items[i]; !ok {
				return false
			}
		}
		return true
	}
}

func TestLoop(t *testing.T) {
	c := newCore(t, "")
	field, relay := c.device(1, map[string]string{"role": "field"}), c.device(2, map[string]string{"role": "relay"})
	c.put(api.KindSecret, "key", nil, api.SecretSpec{Data: map[string]string{"k": "canary"}}, nil)
	c.put(api.KindDevice, "waiting", map[string]string{"role": "field"}, api.DeviceSpec{}, api.DeviceStatus{ID: api.DeviceID{3}})
	c.run()
	c.until("empty manifests", func() bool { return c.has(field)() && c.has(relay)() })
	c.app("web", 1, "key")
	c.fleet("field", "field", "web")
	c.until("the app at the field device", c.has(field, "app/web", "secret/key"))

	item := c.newest(field).Manifest.Items["secret/key"]
	plain, err := identity.Open(c.seal, identity.SealInfo{Device: field, Name: "key", Generation: item.Gen}, item.Body)
	var data api.ConfigData
	if err != nil || decMode.Unmarshal(plain, &data) != nil || string(data.Files["k"]) != "canary" {
		t.Fatalf("the secret opens to %q, %v", plain, err)
	}
	c.app("web", 2, "key")
	c.until("the new version", func() bool { return c.published[field].Manifest.Items["app/web"].Refs[0].Digest == ref(2).Digest })
	if again := c.newest(field).Manifest.Items["secret/key"]; string(again.Body) != string(item.Body) || again.Gen != item.Gen {
		t.Error("an unchanged secret was sealed again")
	}
	c.put(api.KindSecret, "key", nil, api.SecretSpec{Data: map[string]string{"k": "other"}}, nil)
	c.until("the new secret", func() bool { return string(c.published[field].Manifest.Items["secret/key"].Body) != string(item.Body) })
	c.mu.Lock()
	if c.times[relay] != 1 || c.published[api.DeviceID{3}] != nil {
		t.Errorf("the relay was rendered %d times, the unapproved device %v", c.times[relay], c.published[api.DeviceID{3}])
	}
	c.mu.Unlock()

	// A restart publishes the same; a new epoch renews everything under it.
	before := c.newest(field)
	c.stop()
	c.published = map[api.DeviceID]*manifest.Signed{}
	c.run()
	c.until("the same after a restart", func() bool { s := c.published[field]; return s != nil && string(s.Raw) == string(before.Raw) })
	c.epoch = 9
	c.run()
	c.until("the new epoch", func() bool { s := c.published[field]; return s != nil && s.Manifest.Epoch == 9 })
	now := c.newest(field).Manifest
	if now.Generation != before.Manifest.Generation+1 || now.Items["app/web"].Gen != now.Generation || string(now.Items["secret/key"].Body) == string(before.Manifest.Items["secret/key"].Body) {
		t.Errorf("after the new epoch: %+v", now)
	}

	// What is taken away goes.
	if err := c.db.Delete(t.Context(), api.Key{Tenant: "default", Kind: api.KindFleet, Name: "field"}, 0); err != nil {
		t.Fatal(err)
	}
	c.until("an empty manifest", c.has(field))
	if err := c.db.Delete(t.Context(), api.Key{Tenant: "default", Kind: api.KindDevice, Name: "d1"}, 0); err != nil {
		t.Fatal(err)
	}
	c.until("no manifest kept of a deleted device", func() bool {
		n := 0
		_ = c.db.EachManifest(t.Context(), func(r *store.ManifestRecord) error { n++; return nil })
		return n == 1
	})
}

type counts struct {
	devices, current, running int
	missing                   string
}

func (c *core) counts(fleet string) counts {
	o, err := c.db.Get(c.t.Context(), api.Key{Tenant: "default", Kind: api.KindFleet, Name: fleet})
	if err != nil {
		c.t.Fatal(err)
	}
	var s api.FleetStatus
	_ = json.Unmarshal(o.Status, &s)
	return counts{s.Devices, s.Current, s.Running, strings.Join(s.Missing, ",")}
}

// A fleet counts its own apps: what another has the same device run, and how it fares,
// does not matter; a fleet without apps runs nothing; an app that does not exist is named.
func TestRollupPerFleet(t *testing.T) {
	c := newCore(t, "")
	field := c.device(1, map[string]string{"role": "field"})
	c.app("web", 1)
	c.app("bad", 2)
	c.fleet("good", "field", "web")
	c.fleet("broken", "field", "bad")
	c.fleet("ghost", "field", "web", "nothing", "never")
	c.fleet("bare", "field")
	c.run()
	c.until("the apps", c.has(field, "app/bad", "app/web"))
	m := c.newest(field).Manifest
	c.report(field, &Report{Parent: "core", Online: true, Entries: map[string][]byte{"applied": encode([2]uint64{m.Epoch, m.Generation}),
		"app/web": encode(api.AppStatus{Name: "web", State: api.Running}), "app/bad": encode(api.AppStatus{Name: "bad", State: api.Backoff})}})
	for fleet, want := range map[string]counts{"good": {1, 1, 1, ""}, "broken": {1, 1, 0, ""}, "ghost": {1, 1, 0, "nothing,never"}, "bare": {1, 1, 0, ""}} {
		c.until("the sum of "+fleet, func() bool { return c.counts(fleet) == want })
	}
	c.app("nothing", 3)
	c.until("one missing app less", func() bool { return c.counts("ghost").missing == "never" })
	if err := c.db.Delete(t.Context(), api.Key{Tenant: "default", Kind: api.KindApp, Name: "web"}, 0); err != nil {
		t.Fatal(err)
	}
	c.until("a deleted app missed", func() bool { return c.counts("good").missing == "web" })
}

func TestRollup(t *testing.T) {
	c := newCore(t, "")
	relay, field := c.device(1, map[string]string{"role": "relay"}), c.device(2, map[string]string{"role": "field"})
	c.app("web", 1)
	c.fleet("field", "field", "web")
	c.run()
	c.until("the app", c.has(field, "app/web"))
	status := func(name string) (s api.DeviceStatus) {
		o, err := c.db.Get(t.Context(), api.Key{Tenant: "default", Kind: api.KindDevice, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		_ = json.Unmarshal(o.Status, &s)
		return s
	}
	fleet := func() counts { return c.counts("field") }
	c.until("the count of the fleet", func() bool { return fleet() == counts{devices: 1} })
	m := c.newest(field).Manifest
	c.report(field, &Report{Parent: relay.String(), Online: true, LastSeen: time.Unix(9, 0), Entries: map[string][]byte{
		"app/web": encode(api.AppStatus{Name: "web", State: api.Running}), "applied": encode([2]uint64{m.Epoch, m.Generation}), "labels": encode(map[string]string{api.Reserved + "arch": "arm64"})}})
	c.until("the field device's status", func() bool { s := status("d2"); return s.Online && s.Applied == s.Desired && s.Tier == 0 })
	c.report(relay, &Report{Parent: "core", Online: true, Entries: map[string][]byte{"relay": encode(true)}})
	c.until("tiers", func() bool { return status("d1").Tier == 1 && status("d2").Tier == 2 })
	c.until("the fleet", func() bool { return fleet() == counts{1, 1, 1, ""} })
	c.until("the probed label", func() bool {
		o, _ := c.db.Get(t.Context(), api.Key{Tenant: "default", Kind: api.KindDevice, Name: "d2"})
		return o.Metadata.Labels[api.Reserved+"arch"] == "arm64" && o.Metadata.Labels["role"] == "field"
	})
	// The relay moves below another: everything under it is one further down.
	other := c.device(3, nil)
	c.report(other, &Report{Parent: "core", Entries: map[string][]byte{"relay": encode(true)}})
	c.until("the other relay", func() bool { return status("d3").Tier == 1 })
	c.report(relay, &Report{Parent: other.String(), Online: true, Entries: map[string][]byte{"relay": encode(true)}})
	c.until("tiers after the move", func() bool { return status("d1").Tier == 2 && status("d2").Tier == 3 })
	for _, l := range []struct {
		by, relay api.DeviceID
		want      bool
	}{{relay, relay, true}, {other, relay, true}, {relay, other, false}, {api.DeviceID{9}, relay, false}, {other, api.DeviceID{9}, false}} {
		if got := c.loop.Leads(l.by, l.relay); got != l.want {
			t.Errorf("%v above %v: %v", l.by, l.relay, got)
		}
	}
}

// BenchmarkFleet10k is one change of a fleet of 10,000 devices: rendered, signed, kept and
// published.
func BenchmarkFleet10k(b *testing.B) {
	const n = 10_000
	c := newCore(b, filepath.Join(b.TempDir(), "core.db"))
	var before, after runtime.MemStats
	for i := range n {
		id := api.DeviceID{byte(i), byte(i >> 8), 1}
		c.put(api.KindDevice, fmt.Sprint("d", i), map[string]string{"role": "field", api.Reserved + "arch": "arm64"}, api.DeviceSpec{Approved: true}, api.DeviceStatus{ID: id})
	}
	c.app("web", 1)
	c.fleet("field", "field", "web")
	runtime.GC()
	runtime.ReadMemStats(&before)
	c.run()
	all := func(version int) func() bool {
		return func() bool {
			if len(c.published) < n {
				return false
			}
			for _, s := range c.published {
				if a := s.Manifest.Items["app/web"]; len(a.Refs) == 0 || a.Refs[0].Digest != ref(version).Digest {
					return false
				}
			}
			return true
		}
	}
	c.until("the first version", all(1))
	version := 1
	for b.Loop() {
		version++
		c.app("web", version)
		c.until("the next version", all(version))
	}
	b.StopTimer()
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/device")
}

// BenchmarkRollup10k is one report of each of 10,000 devices, as after a change of their
// fleet, until all their statuses are kept.
func BenchmarkRollup10k(b *testing.B) {
	const n = 10_000
	c := newCore(b, filepath.Join(b.TempDir(), "core.db"))
	ids := make([]api.DeviceID, n)
	for i := range n {
		ids[i] = api.DeviceID{byte(i), byte(i >> 8), 1}
		c.put(api.KindDevice, fmt.Sprint("d", i), map[string]string{"role": "field"}, api.DeviceSpec{Approved: true}, api.DeviceStatus{ID: ids[i]})
	}
	c.app("web", 1)
	c.fleet("field", "field", "web")
	c.run()
	fleet := func() (s api.FleetStatus) {
		o, _ := c.db.Get(b.Context(), api.Key{Tenant: "default", Kind: api.KindFleet, Name: "field"})
		_ = decode(o.Status, &s)
		return s
	}
	c.until("the fleet", func() bool { return fleet().Devices == n })
	running := false
	for b.Loop() {
		running = !running
		state := map[bool]api.AppState{true: api.Running, false: api.Pulling}[running]
		r := &Report{Parent: "core", Online: true, Entries: map[string][]byte{"app/web": encode(api.AppStatus{Name: "web", State: state}), "version": encode("v"),
			"hardware": encode(api.Hardware{Arch: "arm64", CPUs: 4}), "labels": encode(map[string]string{api.Reserved + "arch": "arm64"})}}
		for _, id := range ids {
			c.report(id, r)
		}
		c.until("the sum", func() bool { return fleet().Running == map[bool]int{true: n}[running] })
	}
}

// Relays, and they alone, are told which devices are retired; a box that becomes a relay
// learns it too, and a device whose object goes is no longer named.
func TestRelaysLearnOfRetired(t *testing.T) {
	c := newCore(t, "")
	relay, retired, field := c.device(1, nil), c.device(2, nil), c.device(3, nil)
	c.run()
	c.until("all manifests", func() bool {
		return c.published[relay] != nil && c.published[retired] != nil && c.published[field] != nil
	})
	c.report(relay, &Report{Parent: "core", Online: true, Entries: map[string][]byte{"relay": encode(true)}})
	c.until("the relay", func() bool { return c.status("d1").Relay })
	c.put(api.KindDevice, "d2", nil, api.DeviceSpec{Approved: true, Retired: true}, nil)
	c.until("the retired device's name", c.has(relay, manifest.KeyRevoked))
	if body := c.newest(relay).Manifest.Items[manifest.KeyRevoked].Body; !bytes.Equal(body, link.EncodeRevoked([]api.DeviceID{retired})) {
		t.Errorf("the relay is told %x", body)
	}
	if len(c.newest(field).Manifest.Items) > 0 {
		t.Errorf("a device that is no relay gets %v", c.newest(field).Manifest.Items)
	}
	c.report(field, &Report{Parent: "core", Online: true, Entries: map[string][]byte{"relay": encode(true)}})
	c.until("the other relay learns it", c.has(field, manifest.KeyRevoked))
	generation := c.newest(relay).Manifest.Generation
	c.run() // a core that begins again knows its relays
	<-c.loop.Ready()
	c.report(field, &Report{Parent: "core", Online: true, Entries: map[string][]byte{"relay": encode(true)}})
	if got := c.newest(relay).Manifest.Generation; got != generation {
		t.Errorf("a restart makes generation %d of %d", got, generation)
	}
	if err := c.db.Delete(t.Context(), api.Key{Tenant: "default", Kind: api.KindDevice, Name: "d2"}, 0); err != nil {
		t.Fatal(err)
	}
	c.until("the list to go", c.has(relay))
}

// Relays of a site learn that other boxes are expected there: of those with a voucher, and of no change in how far
// these have come.
func TestRelaysLearnOfExpected(t *testing.T) {
	c := newCore(t, "")
	relay, far, field := c.device(1, nil), c.device(2, nil), c.device(3, nil)
	c.put(api.KindDevice, "d1", nil, api.DeviceSpec{Approved: true, Site: "north"}, nil)
	c.put(api.KindDevice, "d2", nil, api.DeviceSpec{Approved: true, Site: "south"}, nil)
	c.run()
	for _, id := range []api.DeviceID{relay, far} {
		c.report(id, &Report{Parent: "core", Online: true, Entries: map[string][]byte{"relay": encode(true)}})
	}
	c.until("the relays", func() bool { return c.status("d1").Relay && c.status("d2").Relay })
	word := func(id api.DeviceID) string {
		if s := c.published[id]; s != nil {
			return string(s.Manifest.Items[manifest.KeyExpected].Body)
		}
		return ""
	}
	c.put(api.KindExpectedDevice, "shown", nil, api.ExpectedDeviceSpec{Serial: "SN-0", Code: "7K2M-9QXA-4HTR"}, nil) // nobody can greet it ahead
	c.put(api.KindExpectedDevice, "one", nil, api.ExpectedDeviceSpec{Serial: "SN-1", Voucher: "AAAA", Site: "north"}, nil)
	c.until("the relay of the site learns it", c.has(relay, manifest.KeyExpected))
	c.mu.Lock()
	first := word(relay)
	if len(c.published[far].Manifest.Items) > 0 || c.published[field] != nil && len(c.published[field].Manifest.Items) > 0 {
		t.Error("another site's relay, or a device that is none, is told")
	}
	generation := c.published[relay].Manifest.Generation
	c.mu.Unlock()
	c.put(api.KindExpectedDevice, "one", nil, api.ExpectedDeviceSpec{Serial: "SN-1", Voucher: "AAAA", Site: "north"}, api.ExpectedDeviceStatus{Progress: "bootstrap-initiated"})
	c.put(api.KindExpectedDevice, "two", nil, api.ExpectedDeviceSpec{Serial: "SN-2", Voucher: "BBBB"}, nil) // it may come anywhere
	c.until("every site learns it", c.has(far, manifest.KeyExpected))
	c.until("the first relay does too", func() bool { w := word(relay); return w != "" && w != first })
	c.until("one change is one generation", func() bool { return c.published[relay].Manifest.Generation == generation+1 })
	// So they do when fleets have something else for such a box, and of nothing that is not for it.
	c.put(api.KindExpectedDevice, "three", nil, api.ExpectedDeviceSpec{Serial: "SN-3", Voucher: "CCCC", Site: "north", Labels: map[string]string{"role": "field"}}, nil)
	wait.Until(t, "the third box", func() bool { return len(c.loop.AwaitedAt(relay)) == 3 && len(c.loop.AwaitedAt(far)) == 1 })
	fleet := func(config string) {
		t.Helper()
		c.put(api.KindConfig, config, nil, api.ConfigSpec{Env: map[string]string{"A": config}}, nil)
		c.put(api.KindFleet, "field", nil, api.FleetSpec{Selector: api.Selector{MatchLabels: map[string]string{"role": "field"}}, Configs: []string{config}}, nil)
	}
	c.mu.Lock()
	before, elsewhere := word(relay), word(far)
	c.mu.Unlock()
	fleet("a")
	c.until("a fleet that picks it is told of", func() bool { w := word(relay); return w != "" && w != before })
	c.mu.Lock()
	before = word(relay)
	c.mu.Unlock()
	tags := c.loop.AwaitedAt(relay)
	c.put(api.KindFleet, "others", nil, api.FleetSpec{Selector: api.Selector{MatchLabels: map[string]string{"role": "other"}}, Configs: []string{"a"}}, nil)
	fleet("b")
	c.until("a change of the fleet too", func() bool { w := word(relay); return w != before })
	if now := c.loop.AwaitedAt(relay); now[0] != tags[0] || now[1] != tags[1] || now[2].Tag == tags[2].Tag || now[2].Serial != "SN-3" {
		t.Errorf("before %x, now %x", tags, now)
	}
	c.mu.Lock()
	if word(far) != elsewhere {
		t.Error("another site's relay is told of a change that is not for its boxes")
	}
	c.mu.Unlock()
	if c.loop.AwaitedAt(api.DeviceID{9}) != nil {
		t.Error("somebody unknown is told")
	}
	for _, name := range []string{"one", "two", "three"} {
		if err := c.db.Delete(t.Context(), api.Key{Tenant: "default", Kind: api.KindExpectedDevice, Name: name}, 0); err != nil {
			t.Fatal(err)
		}
	}
	c.until("nobody is expected", c.has(relay))
}

// All devices are told of a sealing key that is another, when they are rendered anew.
func TestSealingKeyIsNamed(t *testing.T) {
	c := newCore(t, "")
	var name atomic.Pointer[[]byte]
	name.Store(new([]byte))
	c.change = func(cfg *Config) { cfg.Sealing = func() []byte { return *name.Load() } }
	id := c.device(1, nil)
	c.run()
	c.until("a manifest without", c.has(id))
	key := []byte("kid")
	name.Store(&key)
	if err := c.loop.TouchAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.until("the key's name", c.has(id, manifest.KeySealing))
}

// A device that a rollout gave a revision has that one, whatever the others have, with its permit;
// what is held nobody gets, and a plain apply reaches all but those that are pinned.
func TestRevisionsOfTheirOwn(t *testing.T) {
	c := newCore(t, "")
	one, two, pinned := c.device(1, map[string]string{"role": "field"}), c.device(2, map[string]string{"role": "field"}), c.device(3, map[string]string{"role": "field"})
	c.app("web", 1)
	c.fleet("field", "field", "web")
	c.put(api.KindRollout, "r", nil, struct{}{}, nil)
	c.run()
	runs := func(id api.DeviceID, version int) bool {
		s := c.published[id]
		return s != nil && len(s.Manifest.Items["app/web"].Refs) > 0 && s.Manifest.Items["app/web"].Refs[0].Digest == ref(version).Digest
	}
	c.until("all have the first", func() bool { return runs(one, 1) && runs(two, 1) && runs(pinned, 1) })

	raw, _ := json.Marshal(api.AppSpec{Compose: "2"})
	key := api.Key{Tenant: "default", Kind: api.KindApp, Name: "web"}
	if _, err := c.db.Put(t.Context(), &api.Object{Kind: api.KindApp, Metadata: api.Meta{Tenant: "default", Name: "web"}, Spec: raw},
		store.PutOptions{Hold: true, Status: api.AppObjectStatus{Repo: "default/web", Bundle: ref(2).Digest}}); err != nil {
		t.Fatal(err)
	}
	step := func(gifts ...store.Gift) {
		t.Helper()
		o, err := c.db.Get(t.Context(), api.Key{Tenant: "default", Kind: api.KindRollout, Name: "r"})
		if err != nil {
			t.Fatal(err)
		}
		status := api.RolloutStatus{Change: []api.RolloutChange{{RevisionRef: api.RevisionRef{Kind: api.KindApp, Name: "web", Revision: 2}}}}
		if err := c.db.StepRollout(t.Context(), &store.RolloutStep{Key: o.Key(), Revision: o.Metadata.Revision, Status: status, Give: gifts}); err != nil {
			t.Fatal(err)
		}
	}
	permit := &api.Permit{Rollout: "r", Until: 1_900_000_000, Hours: "22:00-04:30"}
	step(store.Gift{Device: one, Key: key, OwnRevision: store.OwnRevision{Number: 2, Rollout: "u", Permit: permit}})
	c.until("one has the second", func() bool { return runs(one, 2) })
	if !c.now(func() bool { return runs(two, 1) && runs(pinned, 1) }) {
		t.Fatal("the others have what was held")
	}
	var permits map[string]api.Permit
	if err := decMode.Unmarshal(c.newest(one).Manifest.Items[manifest.KeyPermits].Body, &permits); err != nil || permits["app/web"] != *permit {
		t.Fatalf("%v %v", permits, err)
	}
	c.run() // another process finds it so
	c.until("it is the same after a start", func() bool { return runs(one, 2) && runs(two, 1) })

	step(store.Gift{Device: one, Key: key, Follow: true})
	c.until("it is as all again", func() bool { return runs(one, 1) && c.has(one, "app/web")() })

	step(store.Gift{Device: one, Key: key, OwnRevision: store.OwnRevision{Number: 2, Rollout: "u"}})
	if err := c.db.PinDevice(t.Context(), store.Gift{Device: pinned, Key: key, OwnRevision: store.OwnRevision{Number: 2}}); err != nil {
		t.Fatal(err)
	}
	c.until("two have the second", func() bool { return runs(one, 2) && runs(pinned, 2) })
	c.app("web", 3)
	c.until("a plain apply reaches all that are not pinned", func() bool { return runs(one, 3) && runs(two, 3) })
	if !c.now(func() bool { return runs(pinned, 2) }) {
		t.Fatal("a plain apply overruled a pin")
	}
	if err := c.db.Delete(t.Context(), api.Key{Tenant: "default", Kind: api.KindApp, Name: "web"}, 0); err != nil {
		t.Fatal(err)
	}
	c.until("it is gone everywhere", func() bool { return c.has(one)() && c.has(two)() && c.has(pinned)() })
}
