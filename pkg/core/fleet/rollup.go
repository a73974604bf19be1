package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/report"
)

// Report is what is known of a device from below.
type Report struct {
	// Entries is its reported state: CBOR by key.
	Entries map[string][]byte
	// Parent is whom it signed its attachment to: a device id, "core", or "" for nobody.
	Parent string
	// Online tells whether it is heard of now, LastSeen when it was last (zero: never).
	Online   bool
	LastSeen time.Time
}

// Reports tells what devices reported.
type Reports interface {
	// Reports gives what is known of devices; every id is in it, with an empty report when
	// it never reported.
	Reports(ctx context.Context, ids []api.DeviceID) (map[api.DeviceID]*Report, error)
}

// The keys of reported state that make up a status; those of apps are pkg/report's.
const (
	keyHealth    = "health"
	keyHardware  = "hardware"
	keyLabels    = "labels"
	keyApplied   = "applied" // [epoch, generation]
	keyVersion   = "version"
	keyAddresses = "addresses"
	keyRelay     = "relay"
	keyBoot      = "boot"
	keyRelease   = "release"
)

// StatusOf turns a report into the status of a device, on top of the one before: a
// device tells what changed, and what it never told keeps its value from enrolment.
// desired is the manifest it should have. Entries that do not decode are passed over and
// named in bad.
func StatusOf(before api.DeviceStatus, r *Report, tier int, epoch, desired uint64, warnings []api.Warning) (s api.DeviceStatus, labels map[string]string, bad []string) {
	s = api.DeviceStatus{ID: before.ID, Relay: before.Relay, Addresses: before.Addresses, Hardware: before.Hardware, Version: before.Version, Release: before.Release,
		Tier: tier, Parent: r.Parent, Online: r.Online, Epoch: epoch, Desired: desired, LastSeen: before.LastSeen}
	if !r.LastSeen.IsZero() {
		seen := r.LastSeen.UTC().Truncate(time.Second)
		s.LastSeen = &seen
	}
	take := func(key string, into any) {
		raw, ok := r.Entries[key]
		if !ok {
			return
		}
		if err := decMode.Unmarshal(raw, into); err != nil {
			bad = append(bad, key)
		}
	}
	var applied [2]uint64
	take(keyHealth, &s.Health)
	take(keyVersion, &s.Version)
	take(keyRelay, &s.Relay)
	take(keyRelease, &s.Release)
	take(keyApplied, &applied)
	take(keyLabels, &labels)
	if _, ok := r.Entries[keyAddresses]; ok {
		s.Addresses = nil
		take(keyAddresses, &s.Addresses)
	}
	if _, ok := r.Entries[keyHardware]; ok {
		s.Hardware = &api.Hardware{}
		take(keyHardware, s.Hardware)
	}
	if applied[0] == epoch {
		s.Applied = applied[1]
	}
	var unread []string
	s.Apps, unread = report.Join(r.Entries)
	bad = append(bad, unread...)
	s.Health = append(s.Health, warnings...)
	slices.Sort(bad)
	for key := range labels {
		if !strings.HasPrefix(key, api.Reserved) {
			delete(labels, key) // a device speaks of nothing but itself
		}
	}
	return s, labels, bad
}

var decMode = func() cbor.DecMode {
	m, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, MaxNestedLevels: 8, MaxArrayElements: 4096, MaxMapPairs: 4096}.DecMode()
	if err != nil {
		panic(err) // constants of the library
	}
	return m
}()

// running lists the apps that run on a device, by name.
func running(s *api.DeviceStatus) (names []string) {
	for _, a := range s.Apps {
		if a.State == api.Running || a.State == api.Exited {
			names = append(names, a.Name)
		}
	}
	return names
}

// rejected lists the apps whose wanted version a device rejected, by name.
func rejected(s *api.DeviceStatus) (names []string) {
	for _, a := range s.Apps {
		if a.Rejected != "" {
			names = append(names, a.Name)
		}
	}
	return names
}

// count takes a device into the sum of a fleet that picks it: what other fleets have it
// run does not matter.
func count(s *api.FleetStatus, apps []string, current bool, running, rejected []string) {
	s.Devices++
	if current {
		s.Current++
	}
	if slices.ContainsFunc(apps, func(app string) bool { return slices.Contains(rejected, app) }) {
		s.Rejected++
	}
	for _, app := range apps {
		if !slices.Contains(running, app) {
			return
		}
	}
	if len(apps) > 0 {
		s.Running++
	}
}

// maxDepth bounds the walk up the tree; attachments of two boxes to each other make no
// endless one.
const maxDepth = 16

// tierOf counts from the core: 1 is attached to it; 0 when the way up is not known.
func (w *worlds) tierOf(parent string) int {
	for tier := 1; tier <= maxDepth; tier++ {
		if parent == "core" {
			return tier
		}
		id, err := api.ParseDeviceID(parent)
		if err != nil || w.byID[id] == nil {
			return 0
		}
		parent = w.byID[id].parent
	}
	return 0
}

// news collects what is to be summed up, from any goroutine.
type news struct {
	mu      sync.Mutex
	devices map[api.DeviceID]bool
	later   map[api.DeviceID]bool // to join devices in a while
	fleet   bool
	wake    chan struct{}
}

func newNews() *news {
	return &news{devices: map[api.DeviceID]bool{}, later: map[api.DeviceID]bool{}, wake: make(chan struct{}, 1)}
}

func (n *news) device(id api.DeviceID) {
	n.mu.Lock()
	n.devices[id] = true
	n.mu.Unlock()
	n.ring()
}

// patience is how long the status of devices with a new manifest may wait for their
// reports when they are many; fleets show at once that they are not current.
const patience = 2 * time.Second

// rendered notes a device with a new manifest, which will report soon.
func (n *news) rendered(id api.DeviceID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.later) == 0 {
		time.AfterFunc(patience, n.waited)
	}
	n.later[id] = true
}

func (n *news) waited() {
	n.mu.Lock()
	for id := range n.later {
		n.devices[id] = true
	}
	n.later = map[api.DeviceID]bool{}
	n.mu.Unlock()
	n.ring()
}

func (n *news) fleets() {
	n.mu.Lock()
	n.fleet = true
	n.mu.Unlock()
	n.ring()
}

func (n *news) ring() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *news) take() (devices map[api.DeviceID]bool, fleets bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	devices, fleets = n.devices, n.fleet
	n.devices, n.fleet = map[api.DeviceID]bool{}, false
	for id := range devices {
		delete(n.later, id)
	}
	return devices, fleets
}

// Reported tells that a device's report changed. It returns at once and may be called from
// any goroutine.
func (l *Loop) Reported(id api.DeviceID) { l.news.device(id) }

// pause is how long changes are gathered before they are summed up: people do not look
// faster, and a fleet that starts an app reports a dozen changes per device.
const pause = 200 * time.Millisecond

// longPause bounds pauses that grow: after a long sum as much time is left to rendering
// and to what comes in, which also folds more of it into the next.
const longPause = time.Second

func (l *Loop) rollup(ctx context.Context) error {
	tick := time.NewTicker(min(look, l.cfg.Quiet/4, l.cfg.Homecoming/4))
	defer tick.Stop()
	for wait := pause; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			now := l.cfg.Now()
			for _, id := range append(l.alarms.expire(now), l.late(now)...) {
				l.news.device(id)
			}
			if err := l.review(ctx); err != nil {
				return err
			}
			continue
		case <-l.news.wake:
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		began := time.Now()
		devices, fleets := l.news.take()
		if !l.Rendering() {
			continue // who leads sums up
		}
		ctx := l.writing(ctx)
		if err := l.sum(ctx, devices); err != nil {
			return err
		}
		if err := l.keepEvents(ctx); err != nil {
			return err
		}
		if fleets || len(devices) > 0 {
			if err := l.sumFleets(ctx); err != nil {
				return err
			}
		}
		wait = min(max(pause, time.Since(began)), longPause)
	}
}

// keepEvents writes what is new; what cannot be written is written later.
func (l *Loop) keepEvents(ctx context.Context) error {
	events := l.takeEvents()
	err := l.cfg.Store.AppendEvents(ctx, events)
	if err == nil {
		return nil
	}
	l.eventsMu.Lock()
	defer l.eventsMu.Unlock()
	l.events = append(events, l.events...)
	return fmt.Errorf("keep events: %w", err)
}

// sum writes the status of devices, in parts.
func (l *Loop) sum(ctx context.Context, devices map[api.DeviceID]bool) error {
	if l.cfg.Reports == nil {
		return nil
	}
	ids := make([]api.DeviceID, 0, len(devices))
	for id := range devices {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b api.DeviceID) int { return slices.Compare(a[:], b[:]) })
	for part := range slices.Chunk(ids, batch) {
		probed, err := l.statuses(ctx, part)
		if err != nil {
			return err
		}
		if err := l.cfg.Store.PutProbed(ctx, probed); err != nil {
			return fmt.Errorf("keep statuses: %w", err)
		}
	}
	return l.renderTurned(ctx)
}

// review looks at placements again that wait.
func (l *Loop) review(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := dirty{}
	if !l.worlds.review() {
		return nil
	}
	l.worlds.place(l.cfg.Now(), d)
	return l.render(ctx, d)
}

// renderTurned renders devices that became relays, or are none any more, and those that get
// or lose an app by what was reported.
func (l *Loop) renderTurned(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := dirty{}
	for e := range l.turned {
		if l.worlds.byID[e.ID] == e && e.Name != "" {
			d[e] = true
		}
	}
	clear(l.turned)
	l.worlds.place(l.cfg.Now(), d)
	if len(d) == 0 {
		return nil
	}
	return l.render(ctx, d)
}

// statuses works out the status of devices, and the labels that they found out about
// themselves.
func (l *Loop) statuses(ctx context.Context, ids []api.DeviceID) ([]store.Probed, error) {
	keys, named := make([]api.Key, 0, len(ids)), make([]api.DeviceID, 0, len(ids))
	for _, id := range ids {
		if key, ok := l.keyOf(id); ok {
			keys, named = append(keys, key), append(named, id)
		}
	}
	objects, err := l.cfg.Store.GetMany(ctx, keys)
	if err != nil {
		return nil, err
	}
	reports, err := l.cfg.Reports.Reports(ctx, named)
	if err != nil {
		return nil, fmt.Errorf("read the reports of devices: %w", err)
	}
	out := make([]store.Probed, 0, len(keys))
	for i, key := range keys {
		obj := objects[key]
		if obj == nil {
			continue
		}
		var before api.DeviceStatus
		if err := decode(obj.Status, &before); err != nil {
			return nil, fmt.Errorf("status of %s: %w", key, err)
		}
		report := reports[named[i]]
		s, labels, bad := l.digest(named[i], before, report)
		if len(bad) > 0 {
			l.cfg.Log.Warn("a device reported what cannot be read", "device", key.Name, "keys", bad)
		}
		_, told := report.Entries[keyLabels]
		out = append(out, store.Probed{Key: key, Status: s, Labels: labels, Relabel: told})
	}
	return out, nil
}

func (l *Loop) keyOf(id api.DeviceID) (api.Key, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.worlds.byID[id]
	if e == nil || e.Name == "" {
		return api.Key{}, false
	}
	return api.Key{Tenant: e.Tenant, Kind: api.KindDevice, Name: e.Name}, true
}

// digest updates what the loop keeps of a device, and gives its status.
func (l *Loop) digest(id api.DeviceID, before api.DeviceStatus, r *Report) (api.DeviceStatus, map[string]string, []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.worlds.byID[id]
	if e == nil {
		return before, nil, nil
	}
	moved := e.parent != r.Parent
	e.parent = r.Parent
	desired := e.state.Generation
	s, labels, bad := StatusOf(before, r, l.worlds.tierOf(r.Parent), l.cfg.Epoch, desired, append(slices.Clip(e.warnings), l.alarms.of(id)...))
	if raw := r.Entries[keyBoot]; l.cfg.Booted != nil && string(raw) != e.boot {
		var boot string
		if e.boot = string(raw); decMode.Unmarshal(raw, &boot) == nil {
			l.cfg.Booted(id, boot)
		}
	}
	if l.cfg.Attestation != nil {
		s.Attestation = l.cfg.Attestation(id)
	}
	if e.relay != s.Relay {
		l.turned[e] = true
	}
	changed, unread := e.claimed(r.Entries)
	bad = append(bad, unread...)
	s.Capacity, e.lacks = api.CapacityOf(e.uses), lacks(&s)
	now := l.shared.list(running(&s))
	if t := l.worlds.tenants[e.Tenant]; t != nil && (changed || e.online != s.Online || !slices.Equal(e.running, now)) {
		t.unplaced = true
	}
	e.relay, e.online, e.current = s.Relay, s.Online, desired > 0 && s.Applied == desired
	e.running, e.rejected = now, l.shared.list(rejected(&s))
	l.present(e, s.LastSeen)
	if moved && e.relay {
		l.below(id, maxDepth)
	}
	return s, labels, bad
}

// below puts everything under a relay that moved on the list: all their tiers changed.
func (l *Loop) below(relay api.DeviceID, depth int) {
	text := relay.String()
	for child, e := range l.worlds.byID {
		if e.parent != text {
			continue
		}
		l.news.device(child)
		if e.relay && depth > 1 {
			l.below(child, depth-1)
		}
	}
}

// sumFleets writes the status of all fleets; those that did not change cost no write.
func (l *Loop) sumFleets(ctx context.Context) error {
	statuses := map[api.Key]any{}
	l.mu.Lock()
	for name, t := range l.worlds.tenants {
		counts := map[string]*api.FleetStatus{}
		for fleet, spec := range t.Fleets {
			counts[fleet] = &api.FleetStatus{}
			for _, p := range spec.Placed {
				counts[fleet].Placed = append(counts[fleet].Placed, api.PlacementStatus{App: p.App, Replicas: p.Replicas, Message: t.short[fleet][p.App]})
			}
			for _, app := range spec.AllApps() {
				if t.Apps[app] == nil {
					counts[fleet].Missing = append(counts[fleet].Missing, app)
				}
			}
		}
		for _, e := range t.devices {
			for _, fleet := range e.fleets {
				if c := counts[fleet]; c != nil && e.rendered() {
					apps := e.expected(t.Fleets[fleet])
					count(c, apps, e.current, e.running, e.rejected)
					countPlaced(c.Placed, e)
					c.Lacking = countLacks(c.Lacking, e, apps)
				}
			}
		}
		for fleet, c := range counts {
			settleLacks(c.Lacking)
			statuses[api.Key{Tenant: name, Kind: api.KindFleet, Name: fleet}] = c
		}
	}
	l.mu.Unlock()
	if err := l.cfg.Store.PutStatuses(ctx, statuses); err != nil {
		return fmt.Errorf("keep the status of fleets: %w", err)
	}
	return nil
}
