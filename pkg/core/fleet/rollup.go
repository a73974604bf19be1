package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
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
	// Report gives what is known of one device; it is empty for one that never reported.
	Report(ctx context.Context, id api.DeviceID) (*Report, error)
}

// The keys of reported state that make up a status.
const (
	keyApp       = "app/" // and the app's name: api.AppStatus
	keyHealth    = "health"
	keyHardware  = "hardware"
	keyLabels    = "labels"
	keyApplied   = "applied" // [epoch, generation]
	keyVersion   = "version"
	keyAddresses = "addresses"
	keyRelay     = "relay"
)

// StatusOf turns a report into the status of a device, on top of the one before: a
// device tells what changed, and what it never told keeps its value from enrolment.
// desired is the manifest it should have. Entries that do not decode are passed over and
// named in bad.
func StatusOf(before api.DeviceStatus, r *Report, tier int, epoch, desired uint64, warnings []api.Warning) (s api.DeviceStatus, labels map[string]string, bad []string) {
	s = api.DeviceStatus{ID: before.ID, Relay: before.Relay, Addresses: before.Addresses, Hardware: before.Hardware, Version: before.Version,
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
	for key := range r.Entries {
		if name, ok := strings.CutPrefix(key, keyApp); ok {
			app := api.AppStatus{Name: name}
			take(key, &app)
			s.Apps = append(s.Apps, app)
		}
	}
	slices.SortFunc(s.Apps, func(a, b api.AppStatus) int { return strings.Compare(a.Name, b.Name) })
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

// isRunning reports whether a device runs all its apps.
func isRunning(s *api.DeviceStatus) bool {
	for _, a := range s.Apps {
		if a.State != api.Running && a.State != api.Exited {
			return false
		}
	}
	return len(s.Apps) > 0
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
	fleet   bool
	wake    chan struct{}
}

func newNews() *news {
	return &news{devices: map[api.DeviceID]bool{}, wake: make(chan struct{}, 1)}
}

func (n *news) device(id api.DeviceID) {
	n.mu.Lock()
	n.devices[id] = true
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
	return devices, fleets
}

// Reported tells that a device's report changed. It returns at once and may be called from
// any goroutine.
func (l *Loop) Reported(id api.DeviceID) { l.news.device(id) }

// pause is how long changes are gathered before they are summed up: people do not look
// faster, and a fleet that starts an app reports a dozen changes per device.
const pause = 200 * time.Millisecond

func (l *Loop) rollup(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.news.wake:
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		devices, fleets := l.news.take()
		if err := l.sum(ctx, devices); err != nil {
			return err
		}
		if fleets || len(devices) > 0 {
			if err := l.sumFleets(ctx); err != nil {
				return err
			}
		}
	}
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
	for part := range slices.Chunk(ids, batch) {
		statuses := make(map[api.Key]any, len(part))
		for _, id := range part {
			if err := l.status(ctx, id, statuses); err != nil {
				return fmt.Errorf("status of device %s: %w", id, err)
			}
		}
		if err := l.cfg.Store.PutStatuses(ctx, statuses); err != nil {
			return fmt.Errorf("keep statuses: %w", err)
		}
	}
	return nil
}

// status works out one device's status, and writes its probed labels when they changed.
func (l *Loop) status(ctx context.Context, id api.DeviceID, out map[api.Key]any) error {
	report, err := l.cfg.Reports.Report(ctx, id)
	if err != nil {
		return err
	}
	key, ok := l.keyOf(id)
	if !ok {
		return nil
	}
	obj, err := l.cfg.Store.Get(ctx, key)
	if err != nil {
		if api.CodeOf(err) == api.NotFound {
			return nil
		}
		return err
	}
	var before api.DeviceStatus
	if err := decode(obj.Status, &before); err != nil {
		return err
	}
	s, labels, bad := l.digest(id, before, report)
	if len(bad) > 0 {
		l.cfg.Log.Warn("a device reported what cannot be read", "device", key.Name, "keys", bad)
	}
	out[key] = s
	if _, told := report.Entries[keyLabels]; told {
		return l.relabel(ctx, obj, labels)
	}
	return nil
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
	var desired uint64
	if e.signed != nil {
		desired = e.signed.Manifest.Generation
	}
	s, labels, bad := StatusOf(before, r, l.worlds.tierOf(r.Parent), l.cfg.Epoch, desired, e.warnings)
	e.relay, e.online, e.running, e.current = s.Relay, s.Online, isRunning(&s), desired > 0 && s.Applied == desired
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

// relabel writes the labels that a device found out about itself.
func (l *Loop) relabel(ctx context.Context, obj *api.Object, probed map[string]string) error {
	next, changed := relabelled(obj.Metadata.Labels, probed)
	if !changed {
		return nil
	}
	c := *obj
	c.Metadata.Labels = next
	_, err := l.cfg.Store.Put(ctx, &c, store.PutOptions{Update: true})
	var e *api.Error
	if errors.As(err, &e) && (e.Code == api.Conflict || e.Code == api.NotFound) {
		l.news.device(statusID(obj)) // somebody wrote in between: look again
		return nil
	}
	return err
}

func statusID(o *api.Object) api.DeviceID {
	var s api.DeviceStatus
	_ = decode(o.Status, &s) // it decoded a moment ago
	return s.ID
}

// relabelled replaces the probed part of a device's labels.
func relabelled(labels, probed map[string]string) (next map[string]string, changed bool) {
	next = map[string]string{}
	for k, v := range labels {
		if !strings.HasPrefix(k, api.Reserved) {
			next[k] = v
		} else if probed[k] != v {
			changed = true
		}
	}
	for k, v := range probed {
		if old, had := labels[k]; !had || old != v {
			changed = true
		}
		next[k] = v
	}
	return next, changed
}

// sumFleets writes the status of all fleets; those that did not change cost no write.
func (l *Loop) sumFleets(ctx context.Context) error {
	statuses := map[api.Key]any{}
	l.mu.Lock()
	for name, t := range l.worlds.tenants {
		counts := map[string]*api.FleetStatus{}
		for fleet := range t.Fleets {
			counts[fleet] = &api.FleetStatus{}
		}
		for _, e := range t.devices {
			for _, fleet := range e.fleets {
				if c := counts[fleet]; c != nil && e.rendered() {
					c.Devices++
					if e.current {
						c.Current++
					}
					if e.running {
						c.Running++
					}
				}
			}
		}
		for fleet, c := range counts {
			statuses[api.Key{Tenant: name, Kind: api.KindFleet, Name: fleet}] = c
		}
	}
	l.mu.Unlock()
	if err := l.cfg.Store.PutStatuses(ctx, statuses); err != nil {
		return fmt.Errorf("keep the status of fleets: %w", err)
	}
	return nil
}
