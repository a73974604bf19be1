package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/manifest"
)

// Config is what the loops are given. Everything but Reports is needed.
type Config struct {
	Store interface {
		store.Store
		store.Manifests
		store.Events
		store.Revisions
	}
	// Epoch is the core's; manifests of a lower one are rendered anew.
	Epoch uint64
	// Signer is the online key and its key id, asked for with every manifest.
	Signer func() (key *ecdsa.PrivateKey, kid []byte)
	// SealKey finds the key to which a device's secrets are sealed.
	SealKey func(api.DeviceID) (*ecdsa.PublicKey, bool)
	// Unlock is the owner's unlock key, signed: an item of every manifest. Nil, or an empty one,
	// leaves it out.
	Unlock func() []byte
	// Sealing names the core's sealing key, likewise.
	Sealing func() []byte
	// Publish hands a device's newest manifest to the link; it is durable by then, and
	// may be handed over again after a restart.
	Publish func(s *manifest.Signed, tombstones map[string]uint64) error
	// Reports tells what devices reported; nil when nobody does.
	Reports Reports
	// Attested tells whether a device's TPM shows what it should, and if not, why; Attestation
	// is what people see of that. Both may be nil: then nothing is attested.
	Attested    func(api.DeviceID) (ok bool, why string)
	Attestation func(api.DeviceID) *api.Attestation
	// Booted is told of devices that started anew, by the name that they give the start, and of
	// each when it is first heard of; it returns at once. May be nil.
	Booted func(id api.DeviceID, boot string)
	// Following: other cores have these fleets, too, and nothing is written but while Lead runs.
	Following bool
	// Homecoming is how long after the start a device may stay away before that is an
	// event, and Quiet how long an alarm stands after it was raised last. Zero is the
	// default: 2 and 15 minutes.
	Homecoming, Quiet time.Duration

	Now func() time.Time
	Log *slog.Logger
}

// Loop renders and sums up. Make it with New, call Load, then Run.
type Loop struct {
	cfg   Config
	ready chan struct{} // closed when everything was rendered once

	mu     sync.Mutex
	worlds *worlds
	shared shared
	turned dirty // whether they are relays has changed; of mu

	lead    bool                            // Lead runs; of mu
	leading bool                            // it writes: Lead runs, and all is known; of mu
	under   atomic.Pointer[context.Context] // Lead's, whose values writing has
	anew    chan struct{}                   // Run begins anew

	news   *news
	alarms *alarms

	started  time.Time
	told     map[api.DeviceID]bool // whether the last event said that a device is there; of mu
	awaited  map[api.DeviceID]bool // not back yet since the start; of mu
	eventsMu sync.Mutex
	events   []store.DeviceEvent // not written yet
}

// New makes a loop.
func New(cfg Config) *Loop {
	if cfg.Homecoming == 0 {
		cfg.Homecoming = homecoming
	}
	if cfg.Quiet == 0 {
		cfg.Quiet = quiet
	}
	return &Loop{cfg: cfg, leading: !cfg.Following, anew: make(chan struct{}, 1), turned: dirty{}, ready: make(chan struct{}), worlds: newWorlds(), news: newNews(), started: cfg.Now(), told: map[api.DeviceID]bool{}, awaited: map[api.DeviceID]bool{},
		alarms: &alarms{quiet: cfg.Quiet, byID: map[api.DeviceID]map[string]*alarm{}}}
}

// Run reads fleets, apps, configs, secrets and devices; it writes manifests, and the
// status of devices and fleets; until ctx ends. While the store does not answer it waits:
// what was half done then is done anew from the whole.
func (l *Loop) Run(ctx context.Context) error {
	for {
		again, err := l.runUntilAnew(ctx)
		if again {
			continue
		}
		if err == nil || ctx.Err() != nil || api.CodeOf(err) != api.Unavailable {
			return err
		}
		l.cfg.Log.Warn("fleets wait for the store", "err", err)
		wait := time.NewTimer(away)
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
}

// away is how long the loops leave a store alone that does not answer.
const away = time.Second

// runUntilAnew runs until it fails, or Lead wants everything begun anew.
func (l *Loop) runUntilAnew(ctx context.Context) (again bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- l.run(ctx) }()
	select {
	case err = <-done:
		return false, err
	case <-l.anew:
	}
	cancel()
	<-done
	return true, nil
}

// Lead renders and writes until ctx ends, as this core alone does of those that have the
// fleets: what others rendered is read first. Run runs beside it.
func (l *Loop) Lead(ctx context.Context) error {
	l.mu.Lock()
	l.under.Store(&ctx)
	l.worlds, l.turned, l.awaited, l.started = newWorlds(), dirty{}, map[api.DeviceID]bool{}, l.cfg.Now()
	err := l.load(ctx, func(*manifest.Signed, map[string]uint64) error { return nil })
	l.lead = err == nil
	l.mu.Unlock()
	if err != nil {
		return err
	}
	poke(l.anew)
	<-ctx.Done()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lead, l.leading = false, false
	return ctx.Err()
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Rendering tells whether this core renders and writes.
func (l *Loop) Rendering() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leading
}

// writing gives a context the values of Lead's, by which what is written is fenced.
func (l *Loop) writing(ctx context.Context) context.Context {
	if under := l.under.Load(); under != nil {
		return fenced{ctx, *under}
	}
	return ctx
}

// fenced is a context with the values of another, too.
type fenced struct {
	context.Context
	under context.Context
}

// Value implements context.Context.
func (f fenced) Value(key any) any {
	if v := f.under.Value(key); v != nil {
		return v
	}
	return f.Context.Value(key)
}

func (l *Loop) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 2)
	go func() {
		// Apps before fleets before devices: rendering begins when all is known.
		kinds := []string{api.KindConfig, api.KindSecret, api.KindApp, api.KindRelease, api.KindTenant, api.KindFlowPolicy, api.KindNetworkPolicy, api.KindFleet, api.KindExpectedDevice, api.KindDevice, api.KindRollout}
		done <- store.Follow(ctx, l.cfg.Store, store.WatchQuery{Kinds: kinds, SpecOnly: true}, sink{l, ctx})
	}()
	go func() { done <- l.rollup(ctx) }()
	err := <-done
	cancel()
	<-done
	return err
}

// Ready is closed when every manifest is up to date for the first time: before that,
// devices are better not let in.
func (l *Loop) Ready() <-chan struct{} { return l.ready }

// Load reads what an earlier run signed, and publishes it. Call it once, before Run.
func (l *Loop) Load(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.load(ctx, l.cfg.Publish)
}

// load reads what was signed, and publishes it. The caller holds mu.
func (l *Loop) load(ctx context.Context, publish func(*manifest.Signed, map[string]uint64) error) error {
	var err error
	if l.told, err = l.cfg.Store.LastPresence(ctx); err != nil {
		return err
	}
	return l.cfg.Store.EachManifest(ctx, func(r *store.ManifestRecord) error {
		signed, err := manifest.Parse(r.Raw)
		if err != nil {
			return fmt.Errorf("device %s: %w", r.Device, err)
		}
		m := &signed.Manifest
		l.worlds.byID[r.Device] = &entry{Device: Device{ID: r.Device}, state: l.shared.state(State{Epoch: m.Epoch, Generation: m.Generation, Items: m.Items, Tombstones: r.Tombstones, Seals: r.Seals}, nil)}
		if r.Epoch != l.cfg.Epoch {
			return nil // a manifest of an earlier epoch is a base for the next one only
		}
		return publish(signed, r.Tombstones)
	})
}

// Touch renders one device again, e.g. because its seal key is new.
func (l *Loop) Touch(ctx context.Context, id api.DeviceID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.worlds.byID[id]; e != nil && e.Name != "" {
		return l.render(ctx, dirty{e: true})
	}
	return nil
}

// TouchAll renders all devices anew, after a change of what is in every manifest.
func (l *Loop) TouchAll(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := dirty{}
	for _, e := range l.worlds.byID {
		if e.Name != "" {
			all[e] = true
		}
	}
	return l.render(ctx, all)
}

// sink takes the store's changes in.
type sink struct {
	l   *Loop
	ctx context.Context
}

// Reset implements store.Sink.
func (s sink) Reset(objects []*api.Object) error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.l.leading = s.l.leading || s.l.lead
	old := s.l.worlds
	s.l.worlds = newWorlds()
	for id, e := range old.byID { // manifests outlive what is known of their devices
		e.Device = Device{ID: id}
		s.l.worlds.byID[id] = e
	}
	given, err := s.l.cfg.Store.GivenOf(s.ctx, nil)
	if err != nil {
		return fmt.Errorf("read who has what: %w", err)
	}
	d := dirty{}
	for _, o := range objects {
		s.l.take(o, given, d)
	}
	for id, e := range s.l.worlds.byID {
		if e.Name == "" { // deleted while nobody looked
			if err := s.l.drop(s.ctx, e); err != nil {
				return err
			}
			delete(s.l.worlds.byID, id)
		}
	}
	s.l.worlds.settle(d)
	s.l.worlds.place(s.l.cfg.Now(), d)
	if err := s.l.render(s.ctx, d); err != nil {
		return err
	}
	select {
	case <-s.l.ready: // it was listed again
	default:
		close(s.l.ready)
	}
	return nil
}

// Apply implements store.Sink.
func (s sink) Apply(events []store.Event) error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	given, err := s.l.cfg.Store.GivenOf(s.ctx, givenBy(events))
	if err != nil {
		return fmt.Errorf("read who has what: %w", err)
	}
	d := dirty{}
	for _, e := range events {
		if e.Type == store.Deleted {
			if api.HasRevisions(e.Object.Kind) {
				if err := s.l.worlds.give(e.Object.Key(), nil, d); err != nil {
					return err
				}
			}
			if gone := s.l.worlds.unset(e.Object.Key(), d); gone != nil {
				if err := s.l.drop(s.ctx, gone); err != nil {
					gone.Device = Device{ID: gone.ID}
					s.l.worlds.byID[gone.ID] = gone // for the next Reset to drop
					return err
				}
			}
			s.l.news.fleets()
			continue
		}
		s.l.take(e.Object, given, d)
		if e.Object.Kind == api.KindFleet || e.Object.Kind == api.KindApp {
			s.l.news.fleets()
		}
	}
	s.l.worlds.settle(d)
	s.l.worlds.place(s.l.cfg.Now(), d)
	return s.l.render(s.ctx, d)
}

func (l *Loop) drop(ctx context.Context, e *entry) error {
	delete(l.told, e.ID)
	if !l.leading {
		return nil
	}
	return l.cfg.Store.DeleteManifest(l.writing(ctx), e.ID)
}

// batch is how many manifests are signed, kept in one transaction, then published. It
// bounds how long the first device waits for the last.
const batch = 512

// many is from how many devices on their status waits for their reports.
const many = 256

// result is one device rendered.
type result struct {
	e      *entry
	fleets []string
	next   State
	signed *manifest.Signed // nil: nothing changed
	held   []api.Warning    // about secrets that were withheld
	err    error
}

// render brings the manifests of devices up to date. Faults of one device do not stop
// the others; a fault of the store does.
func (l *Loop) render(ctx context.Context, d dirty) error {
	if !l.leading {
		return nil // who leads does
	}
	ctx = l.writing(ctx)
	start, changed := l.cfg.Now(), 0
	todo := make([]*entry, 0, len(d))
	for e := range d {
		if e.rendered() {
			todo = append(todo, e)
		}
	}
	slices.SortFunc(todo, func(a, b *entry) int { return strings.Compare(a.Name, b.Name) })
	for _, e := range todo {
		l.worlds.tenants[e.Tenant].viewOf(e) // made here: devices are rendered side by side
	}
	revoked := l.worlds.revoked()
	if len(revoked) > link.MaxRevoked {
		l.cfg.Log.Error("too many retired devices for relays to know; delete those whose certificates have ended", "retired", len(revoked))
		revoked = revoked[:link.MaxRevoked]
	}
	for part := range slices.Chunk(todo, batch) {
		results := l.renderAll(part, revoked)
		n, err := l.commit(ctx, results)
		if err != nil {
			return err
		}
		changed += n
	}
	for e := range d {
		if len(todo) > many && e.rendered() {
			l.news.rendered(e.ID)
		} else {
			l.news.device(e.ID)
		}
	}
	if changed > 0 {
		l.cfg.Log.Info("manifests rendered", "devices", changed, "looked at", len(todo), "ms", l.cfg.Now().Sub(start).Milliseconds())
		l.news.fleets()
	}
	return nil
}

// renderAll decides, seals and signs on all processors. It only reads what the loop owns.
func (l *Loop) renderAll(part []*entry, revoked []api.DeviceID) []result {
	results := make([]result, len(part))
	var wg sync.WaitGroup
	workers := min(runtime.GOMAXPROCS(0), len(part))
	for n := range workers {
		wg.Go(func() {
			for i := n; i < len(part); i += workers {
				results[i] = l.renderOne(part[i], revoked)
			}
		})
	}
	wg.Wait()
	return results
}

func (l *Loop) renderOne(e *entry, revoked []api.DeviceID) result {
	t := l.worlds.tenants[e.Tenant]
	w := t.viewOf(e)
	r := result{e: e, fleets: w.Selected(e.Labels)}
	want := Desire(&e.Device, w, r.fleets)
	if permits := t.permits(e); len(permits) > 0 {
		want[manifest.KeyPermits] = Want{Body: encode(permits)}
	}
	if l.cfg.Unlock != nil {
		if body := l.cfg.Unlock(); body != nil {
			want[manifest.KeyUnlock] = Want{Body: body}
		}
	}
	if l.cfg.Sealing != nil {
		if name := l.cfg.Sealing(); name != nil {
			want[manifest.KeySealing] = Want{Body: encode(name)}
		}
	}
	if e.relay && len(revoked) > 0 {
		want[manifest.KeyRevoked] = Want{Body: link.EncodeRevoked(revoked)}
	}
	if e.relay {
		if body := w.Awaited(e.Spec.Site); body != nil {
			want[manifest.KeyExpected] = Want{Body: body}
		}
	}
	recipient, known := l.cfg.SealKey(e.ID)
	var recipientBytes []byte
	if known {
		if recipientBytes, r.err = recipient.Bytes(); r.err != nil {
			return r
		}
	}
	fingerprint := func(plain []byte) [32]byte {
		h := sha256.New()
		h.Write(recipientBytes) // of fixed length
		h.Write(plain)
		return [32]byte(h.Sum(nil))
	}
	r.held = l.holdSecrets(e, w, r.fleets, want, fingerprint)
	next, seal, changed := Next(e.state, l.cfg.Epoch, want, fingerprint)
	if !changed {
		return r
	}
	for _, key := range seal {
		if !known {
			r.err = api.Errorf(api.Internal, "the seal key of device %s is not known", e.Name)
			return r
		}
		item := next.Items[key]
		info := identity.SealInfo{Device: e.ID, Name: strings.TrimPrefix(key, manifest.PrefixSecret), Generation: item.Gen}
		if item.Body, r.err = identity.Seal(recipient, info, want[key].Plain); r.err != nil {
			return r
		}
		next.Items[key] = item
	}
	signer, kid := l.cfg.Signer()
	r.next = next
	r.signed, r.err = manifest.Sign(manifest.Manifest{Version: 1, Device: e.ID, Tenant: e.Tenant, Name: e.Name, Epoch: next.Epoch, Generation: next.Generation,
		Time: l.cfg.Now().Unix(), Items: next.Items}, signer, kid)
	return r
}

// commit keeps what was signed, then publishes it.
func (l *Loop) commit(ctx context.Context, results []result) (changed int, err error) {
	var records []*store.ManifestRecord
	for _, r := range results {
		r.e.warnings = r.held
		if r.err != nil {
			l.cfg.Log.Error("no manifest for a device; it keeps the one it has", "device", r.e.Name, "tenant", r.e.Tenant, "err", r.err)
			r.e.warnings = []api.Warning{{Name: "manifest-refused", Severity: api.Degraded, Message: "the core cannot make the manifest: " + r.err.Error(), Since: l.cfg.Now().Unix()}}
			continue
		}
		r.e.fleets = l.shared.list(r.fleets)
		if r.signed != nil {
			records = append(records, &store.ManifestRecord{Device: r.e.ID, Epoch: r.next.Epoch, Generation: r.next.Generation, Raw: r.signed.Raw, Tombstones: r.next.Tombstones, Seals: r.next.Seals})
		}
	}
	if len(records) == 0 {
		return 0, nil
	}
	if err := l.cfg.Store.SaveManifests(ctx, records); err != nil {
		return 0, fmt.Errorf("keep manifests: %w", err)
	}
	for _, r := range results {
		if r.err != nil || r.signed == nil {
			continue
		}
		r.e.state, r.e.current = l.shared.state(r.next, r.fleets), false
		if err := l.cfg.Publish(r.signed, r.next.Tombstones); err != nil {
			return changed, fmt.Errorf("publish the manifest of %s: %w", r.e.Name, err)
		}
		changed++
	}
	return changed, nil
}

// shared makes equal things one, since thousands of devices have them.
type shared struct {
	lists  map[string][]string
	states map[string]State
}

// maxShared bounds how many things are looked through for an equal one.
const maxShared = 1024

func (s *shared) list(list []string) []string {
	key := strings.Join(list, "\x00")
	if one, ok := s.lists[key]; ok {
		return one
	}
	if len(s.lists) >= maxShared || s.lists == nil {
		s.lists = map[string][]string{}
	}
	s.lists[key] = list
	return list
}

// state shares the maps of states; nobody writes to them. Sealed bodies are never equal.
func (s *shared) state(st State, fleets []string) State {
	if len(st.Seals) > 0 {
		return st
	}
	key := fmt.Sprint(st.Generation, strings.Join(fleets, "\x00"))
	one, ok := s.states[key]
	if ok && one.Epoch == st.Epoch && maps.Equal(one.Tombstones, st.Tombstones) && maps.EqualFunc(one.Items, st.Items, equalItems) {
		return one
	}
	if len(s.states) >= maxShared || s.states == nil {
		s.states = map[string]State{}
	}
	s.states[key] = st
	return st
}

func equalItems(a, b manifest.Item) bool {
	return a.Gen == b.Gen && slices.Equal(a.Refs, b.Refs) && string(a.Body) == string(b.Body)
}

// Counts tells how many devices there are, are heard of now, and have the manifest that
// they should.
func (l *Loop) Counts() (devices, online, current int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.worlds.byID {
		devices++
		if e.online {
			online++
		}
		if e.current {
			current++
		}
	}
	return devices, online, current
}
