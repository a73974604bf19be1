package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Config is what the loop is given. All of it is needed but Settled.
type Config struct {
	Store interface {
		store.Store
		store.Rollouts
	}
	// Most is how many devices of the whole database may be interrupted at once.
	Most int
	// Settled is how long after a gift a device's word that it has its newest manifest counts for
	// nothing. Default 10 s.
	Settled time.Duration
	Now     func() time.Time
	Log     *slog.Logger
}

// Loop carries rollouts out. Two of them on one database share the work: what one has written the
// other finds, and of two that decide at once one writes.
//
// Reads: Rollouts, Sites, Fleets, Devices, and who was given what. Writes: who is given what, the
// budget's places, how far each device is, and the status of Rollouts.
type Loop struct {
	cfg  Config
	wake chan struct{}

	mu       sync.Mutex
	rollouts map[api.Key]*api.Object
	sites    map[api.Key]int // maxDisrupted
	devices  map[api.DeviceID]*fact
	names    map[api.Key]api.DeviceID
	ready    bool // devices are known
}

// New makes a loop.
func New(cfg Config) *Loop {
	if cfg.Settled == 0 {
		cfg.Settled = settled
	}
	return &Loop{cfg: cfg, wake: make(chan struct{}, 1), rollouts: map[api.Key]*api.Object{}, sites: map[api.Key]int{}}
}

// pause is how long changes are gathered before a look, and tick how often there is one without
// any: what waits for a time to come hears of nothing.
const (
	pause = 300 * time.Millisecond
	tick  = 2 * time.Second
)

// Run carries rollouts out until ctx ends. Devices are followed only while there is a rollout to
// carry out.
func (l *Loop) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	go func() {
		failed <- store.Follow(ctx, l.cfg.Store, store.WatchQuery{Kinds: []string{api.KindSite, api.KindRollout}}, plans{l})
	}()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case <-ticker.C:
		case <-l.wake:
		}
		due := l.due()
		switch {
		case len(due) > 0 && !l.following():
			stop = l.follow(ctx, failed)
		case len(due) == 0:
			stop()
			stop = func() {}
			l.forget()
			continue
		}
		if err := l.looks(ctx, due); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (l *Loop) looks(ctx context.Context, due []api.Key) error {
	for _, key := range due {
		err := l.look(ctx, key)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if code := api.CodeOf(err); err != nil && code != api.Conflict && code != api.NotFound {
			l.cfg.Log.Error("a rollout does not go on; it is tried again", "rollout", key.String(), "err", err)
		}
	}
	return nil
}

// follow begins to follow devices; what it returns ends that.
func (l *Loop) follow(ctx context.Context, failed chan<- error) func() {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	l.mu.Lock()
	l.devices, l.names = map[api.DeviceID]*fact{}, map[api.Key]api.DeviceID{}
	l.mu.Unlock()
	go func() {
		defer close(done)
		if err := store.Follow(ctx, l.cfg.Store, store.WatchQuery{Kinds: []string{api.KindDevice}}, facts{l}); ctx.Err() == nil {
			failed <- err
		}
	}()
	return func() { cancel(); <-done }
}

func (l *Loop) following() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.devices != nil
}

func (l *Loop) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.devices, l.names, l.ready = nil, nil, false
}

func (l *Loop) ring() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// due lists the rollouts that there is something to do for, the oldest first.
func (l *Loop) due() (keys []api.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, o := range l.rollouts {
		var s api.RolloutStatus
		if json.Unmarshal(o.Status, &s) == nil && open(&s) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b api.Key) int { return l.order(a, b) })
	return keys
}

func (l *Loop) order(a, b api.Key) int {
	x, y := l.rollouts[a].Metadata, l.rollouts[b].Metadata
	if c := x.Created.Compare(*y.Created); c != 0 {
		return c
	}
	return strings.Compare(a.String(), b.String())
}

// open tells whether a rollout is on its way, or brings up devices that were away.
func open(s *api.RolloutStatus) bool {
	switch s.Phase {
	case api.RolloutComplete:
		return s.Devices.Waiting+s.Devices.Given > 0
	case api.RolloutRolledBack:
		return s.Devices.Away+s.Devices.Restoring > 0
	}
	return !s.Phase.Ended()
}

// look reads, decides and writes.
func (l *Loop) look(ctx context.Context, key api.Key) error {
	v, err := l.read(ctx, key)
	if err != nil || v == nil {
		return err
	}
	var step *store.RolloutStep
	if v.status.Phase == "" || v.status.Phase == api.RolloutQueued {
		step, err = l.begin(ctx, v)
	} else {
		if step, err = l.join(ctx, v); err == nil && step == nil {
			devices, _ := v.devices()
			p, steps := Decide(&v.spec, v.progress(), devices, v.budget(), v.now)
			if p.Phase != v.status.Phase {
				l.cfg.Log.Info("a rollout goes on", "rollout", key.String(), "phase", p.Phase, "from", v.status.Phase, "wave", p.Wave+1, "why", p.Message)
			}
			step, err = v.step(p, steps)
		}
	}
	if err != nil || step == nil {
		return err
	}
	return l.cfg.Store.StepRollout(ctx, step)
}

// read gives a look its facts; nil while devices are not known.
func (l *Loop) read(ctx context.Context, key api.Key) (*look, error) {
	l.mu.Lock()
	o := l.rollouts[key]
	known, ready := maps.Clone(l.devices), l.ready
	sites := maps.Clone(l.sites)
	l.mu.Unlock()
	if o == nil || !ready {
		return nil, nil
	}
	return readWith(ctx, l.cfg, key, known, sites)
}

func readWith(ctx context.Context, cfg Config, key api.Key, known map[api.DeviceID]*fact, sites map[api.Key]int) (*look, error) {
	o, err := cfg.Store.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	var status api.RolloutStatus
	if len(o.Status) > 0 {
		if err := json.Unmarshal(o.Status, &status); err != nil {
			return nil, err
		}
	}
	keys := keysOf(key.Tenant, status.Change)
	state, err := cfg.Store.RolloutState(ctx, key, keys)
	if err != nil {
		return nil, err
	}
	v, err := readLook(state, known, cfg.Now())
	if err != nil {
		return nil, err
	}
	v.most, v.maxAt, v.settle = cfg.Most, maxAt(known, sites), cfg.Settled
	for i, c := range v.status.Change { // what nobody has yet, or no more, is not in what is given
		for _, number := range []int64{c.Revision, c.Before} {
			if g := v.given(i); number != 0 && g.Revisions[number] == nil {
				r, err := cfg.Store.Revision(ctx, v.keys[i], number)
				if api.CodeOf(err) == api.NotFound && err != nil {
					continue
				}
				if err != nil {
					return nil, err
				}
				if g.Revisions == nil {
					g.Revisions = map[int64]*store.Revision{}
					v.state.Given[v.keys[i]] = g
				}
				g.Revisions[number] = r
			}
		}
	}
	return v, nil
}

// maxAt tells each site's budget: what was said of it, or a quarter of its devices.
func maxAt(known map[api.DeviceID]*fact, sites map[api.Key]int) func(tenant, site string) int {
	count := map[api.Key]int{}
	for _, f := range known {
		count[api.Key{Tenant: f.key.Tenant, Kind: api.KindSite, Name: f.site}]++
	}
	return func(tenant, site string) int {
		key := api.Key{Tenant: tenant, Kind: api.KindSite, Name: site}
		if n := sites[key]; n > 0 {
			return n
		}
		return max(1, count[key]/4)
	}
}

// begin starts a rollout that waited, when nobody else has what it changes, and no older one waits
// for that.
func (l *Loop) begin(ctx context.Context, v *look) (*store.RolloutStep, error) {
	step := &store.RolloutStep{Key: v.state.Object.Key(), Revision: v.state.Object.Metadata.Revision, Devices: map[api.DeviceID]json.RawMessage{}, Most: v.most, MostAt: v.maxAt}
	if why := l.waitsFor(v); why != "" {
		if v.status.Phase == api.RolloutQueued && v.status.Message == why {
			return nil, nil
		}
		v.status.Phase, v.status.Message = api.RolloutQueued, why
		step.Status = v.status
		return step, nil
	}
	fleet, err := fleetOf(ctx, l.cfg, v.tenant, v.spec.Target.Fleet)
	if err != nil {
		return nil, err
	}
	picked := targets(v.tenant, &v.spec, fleet, v.facts)
	waves := Assign(&v.spec, v.state.Object.Metadata.Name, candidates(picked))
	for id, f := range picked {
		k := kept{Name: f.key.Name, Site: f.site, Relay: f.relay, Wave: waves[id.String()], State: Waiting, Since: v.now}
		v.rows[id] = k
		if step.Devices[id], err = json.Marshal(k); err != nil {
			return nil, err
		}
	}
	for i := range v.status.Change {
		v.status.Change[i].Before = v.given(i).All
	}
	v.status.Started = &v.now
	v.sum(Progress{Phase: api.RolloutRunning, WaveSince: v.now})
	step.Status, step.Take = v.status, v.keys
	l.cfg.Log.Info("a rollout begins", "rollout", step.Key.String(), "devices", len(picked), "waves", Waves(&v.spec))
	return step, nil
}

func candidates(picked map[api.DeviceID]*fact) []Candidate {
	out := make([]Candidate, 0, len(picked))
	for id, f := range picked {
		out = append(out, Candidate{ID: id.String(), Site: f.site, Labels: f.labels})
	}
	return out
}

func fleetOf(ctx context.Context, cfg Config, tenant, name string) (*api.FleetSpec, error) {
	if name == "" {
		return nil, nil
	}
	o, err := cfg.Store.Get(ctx, api.Key{Tenant: tenant, Kind: api.KindFleet, Name: name})
	if err != nil {
		if api.CodeOf(err) == api.NotFound {
			return nil, nil // it picks nobody
		}
		return nil, err
	}
	spec := &api.FleetSpec{}
	return spec, json.Unmarshal(o.Spec, spec)
}

// waitsFor names another rollout that has what one would change, or is before it in the queue.
func (l *Loop) waitsFor(v *look) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range slices.SortedFunc(maps.Keys(l.rollouts), l.order) {
		o := l.rollouts[key]
		if key.Tenant != v.tenant {
			continue
		}
		var s api.RolloutStatus
		if json.Unmarshal(o.Status, &s) != nil || s.Phase.Ended() {
			continue
		}
		older := l.order(key, v.state.Object.Key()) < 0
		for _, k := range keysOf(v.tenant, s.Change) {
			if slices.Contains(v.keys, k) && (v.state.Busy[k] == o.Metadata.UID || older) {
				return fmt.Sprintf("it waits for rollout %s, which changes %s %s", key.Name, k.Kind, k.Name)
			}
		}
	}
	for k := range v.state.Busy {
		return fmt.Sprintf("it waits for %s %s, which another rollout has", k.Kind, k.Name)
	}
	return ""
}

// join takes devices in that came since the rollout began: into its last wave. nil: there are none.
func (l *Loop) join(ctx context.Context, v *look) (*store.RolloutStep, error) {
	if v.status.Phase.Ended() || v.status.Phase == api.RolloutRollingBack {
		return nil, nil
	}
	fleet, err := fleetOf(ctx, l.cfg, v.tenant, v.spec.Target.Fleet)
	if err != nil {
		return nil, err
	}
	var step *store.RolloutStep
	for id, f := range targets(v.tenant, &v.spec, fleet, v.facts) {
		if _, has := v.rows[id]; has {
			continue
		}
		if step == nil {
			step = &store.RolloutStep{Key: v.state.Object.Key(), Revision: v.state.Object.Metadata.Revision, Devices: map[api.DeviceID]json.RawMessage{}, Most: v.most, MostAt: v.maxAt}
		}
		k := kept{Name: f.key.Name, Site: f.site, Relay: f.relay, Wave: Waves(&v.spec) - 1, State: Waiting, Since: v.now}
		v.rows[id] = k
		if step.Devices[id], err = json.Marshal(k); err != nil {
			return nil, err
		}
	}
	if step != nil {
		v.sum(v.progress())
		step.Status = v.status
	}
	return step, nil
}

// plans follows rollouts and the budgets of sites.
type plans struct{ l *Loop }

// Reset implements store.Sink.
func (s plans) Reset(objects []*api.Object) error {
	s.l.mu.Lock()
	clear(s.l.rollouts)
	clear(s.l.sites)
	for _, o := range objects {
		s.set(o)
	}
	s.l.mu.Unlock()
	s.l.ring()
	return nil
}

// Apply implements store.Sink.
func (s plans) Apply(events []store.Event) error {
	s.l.mu.Lock()
	for _, e := range events {
		if e.Type == store.Deleted {
			delete(s.l.rollouts, e.Object.Key())
			delete(s.l.sites, e.Object.Key())
			continue
		}
		s.set(e.Object)
	}
	s.l.mu.Unlock()
	s.l.ring()
	return nil
}

func (s plans) set(o *api.Object) {
	if o.Kind == api.KindRollout {
		s.l.rollouts[o.Key()] = o
		return
	}
	var spec api.SiteSpec
	if len(o.Spec) > 0 {
		_ = json.Unmarshal(o.Spec, &spec) // decoded and checked when it was written
	}
	s.l.sites[o.Key()] = spec.MaxDisrupted
}

// facts follows devices.
type facts struct{ l *Loop }

// Reset implements store.Sink.
func (s facts) Reset(objects []*api.Object) error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.l.devices == nil { // nobody asks any more
		return nil
	}
	clear(s.l.devices)
	clear(s.l.names)
	for _, o := range objects {
		s.set(o)
	}
	s.l.ready = true
	s.l.ring()
	return nil
}

// Apply implements store.Sink.
func (s facts) Apply(events []store.Event) error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	for _, e := range events {
		if e.Type != store.Deleted {
			s.set(e.Object)
		} else if id, ok := s.l.names[e.Object.Key()]; ok {
			delete(s.l.devices, id)
			delete(s.l.names, e.Object.Key())
		}
	}
	s.l.ring()
	return nil
}

func (s facts) set(o *api.Object) {
	id, f, err := factOf(o)
	if err != nil || id.IsZero() || s.l.devices == nil {
		return
	}
	s.l.devices[id], s.l.names[o.Key()] = f, id
}
