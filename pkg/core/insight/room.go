package insight

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Store is what the room reads and writes.
type Store interface {
	store.Store
	// Noted and Note keep a number for the room, across restarts.
	Noted(ctx context.Context, name string) (int64, error)
	Note(ctx context.Context, name string, v int64) error
}

// Config is what a Room is made of; all of it is needed.
type Config struct {
	Store Store
	// Findings gives what devices found that came after a place in the order of coming, and the place of
	// the last one.
	Findings func(ctx context.Context, after int64, limit int) (list []Finding, last int64, err error)
	Rules    Rules
	Now      func() time.Time
	Log      *slog.Logger
}

// Room raises and closes incidents.
type Room struct {
	cfg Config

	mu        sync.Mutex
	ready     bool
	nodes     map[api.DeviceID]Node
	ids       map[api.Key]api.DeviceID
	incidents map[api.Key]Incident

	read map[record]bool // findings of the last look; nil before the first
}

// record names a finding.
type record struct {
	device api.DeviceID
	at     api.RecordPosition
}

// New makes a room; Run does the work.
func New(cfg Config) *Room {
	r := &Room{cfg: cfg}
	r.forget()
	return r
}

func (r *Room) forget() {
	r.nodes, r.ids, r.incidents = map[api.DeviceID]Node{}, map[api.Key]api.DeviceID{}, map[api.Key]Incident{}
}

const (
	// pace is how often the room looks.
	pace = 2 * time.Second
	// page is how many findings are read at once; more than overlap, or nothing new would be among them.
	page = 2000
	// overlap is how many of the numbers by which events are ordered are read again: two cores that share
	// a ledger may commit in another order than they took numbers. What was read before is passed over.
	overlap = 1000
	cursor  = "insight.findings"
)

// Run reads devices, incidents and what devices found; it writes incidents, until ctx ends.
func (r *Room) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- store.Follow(ctx, r.cfg.Store, store.WatchQuery{Kinds: []string{api.KindDevice, api.KindIncident}}, r)
	}()
	started := r.cfg.Now()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
		}
		if r.cfg.Now().Sub(started) < r.cfg.Rules.Patience {
			continue // after a start all devices are away, until they are heard of
		}
		if err := r.look(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("incidents are not up to date", "err", err)
		}
	}
}

// look decides once, and does it.
func (r *Room) look(ctx context.Context) error {
	at, err := r.cfg.Store.Noted(ctx, cursor)
	if err != nil {
		return err
	}
	from := at
	if r.read != nil {
		from = max(0, at-overlap)
	}
	page, last, err := r.cfg.Findings(ctx, from, page)
	if err != nil {
		return err
	}
	read, found := map[record]bool{}, []Finding(nil)
	for _, f := range page {
		of := record{f.Device, f.At}
		if read[of] = true; !r.read[of] {
			found = append(found, f)
		}
	}
	r.mu.Lock()
	if !r.ready {
		r.mu.Unlock()
		return nil
	}
	plan := Decide(r.nodes, r.incidents, found, r.cfg.Now(), r.cfg.Rules)
	r.mu.Unlock()
	if err := r.do(ctx, plan); err != nil {
		return err
	}
	if last > at {
		if err := r.cfg.Store.Note(ctx, cursor, last); err != nil {
			return err
		}
	}
	r.read = read
	return nil
}

// do writes a plan. What another core wrote first is heard of by the watch.
func (r *Room) do(ctx context.Context, p Plan) error {
	for _, i := range p.Create {
		o := &api.Object{APIVersion: api.Version, Kind: api.KindIncident, Metadata: api.Meta{Tenant: i.Key.Tenant, Name: i.Key.Name}, Spec: json.RawMessage("{}")}
		_, err := r.cfg.Store.Put(ctx, o, store.PutOptions{Create: true, Status: i.Status})
		if err != nil && api.CodeOf(err) != api.Conflict {
			return err
		}
		if err == nil {
			r.cfg.Log.Info("an incident", "incident", i.Key.String(), "what", i.Status.Message)
		}
		r.know(i)
	}
	for _, i := range p.Update {
		if err := r.cfg.Store.PutStatus(ctx, i.Key, i.Status); err != nil && api.CodeOf(err) != api.NotFound {
			return err
		}
		r.know(i)
	}
	for _, key := range p.Delete {
		if err := r.cfg.Store.Delete(ctx, key, 0); err != nil && api.CodeOf(err) != api.NotFound {
			return err
		}
	}
	return nil
}

// know keeps what was written until the watch tells of it.
func (r *Room) know(i Incident) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i.Spec = r.incidents[i.Key].Spec
	r.incidents[i.Key] = i
}

// Reset implements store.Sink.
func (r *Room) Reset(objects []*api.Object) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget()
	for _, o := range objects {
		r.take(o)
	}
	r.ready = true
	return nil
}

// Apply implements store.Sink.
func (r *Room) Apply(events []store.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		if e.Type != store.Deleted {
			r.take(e.Object)
			continue
		}
		key := e.Object.Key()
		delete(r.incidents, key)
		if id, ok := r.ids[key]; ok {
			delete(r.nodes, id)
			delete(r.ids, key)
		}
	}
	return nil
}

func (r *Room) take(o *api.Object) {
	key := o.Key()
	if o.Kind == api.KindIncident {
		i := Incident{Key: key}
		if err := json.Unmarshal(o.Spec, &i.Spec); err != nil {
			r.cfg.Log.Error("an incident cannot be read", "incident", key.String(), "err", err)
			return
		}
		if len(o.Status) > 0 {
			if err := json.Unmarshal(o.Status, &i.Status); err != nil {
				r.cfg.Log.Error("an incident cannot be read", "incident", key.String(), "err", err)
				return
			}
		}
		r.incidents[key] = i
		return
	}
	n, err := nodeOf(o)
	if err != nil {
		r.cfg.Log.Error("a device cannot be read", "device", key.String(), "err", err)
		return
	}
	if n == nil {
		if id, ok := r.ids[key]; ok {
			delete(r.nodes, id)
		}
		return
	}
	r.nodes[n.ID], r.ids[key] = *n, n.ID
}

// nodeOf reads a device; nil for one that nobody waits for.
func nodeOf(o *api.Object) (*Node, error) {
	var spec api.DeviceSpec
	var status api.DeviceStatus
	if err := json.Unmarshal(o.Spec, &spec); err != nil {
		return nil, err
	}
	if len(o.Status) > 0 {
		if err := json.Unmarshal(o.Status, &status); err != nil {
			return nil, err
		}
	}
	if spec.Retired || !spec.Approved || status.ID.IsZero() {
		return nil, nil
	}
	n := &Node{ID: status.ID, Key: o.Key(), Site: spec.Site, Online: status.Online}
	if status.LastSeen != nil {
		n.Seen = *status.LastSeen
	}
	if parent, err := api.ParseDeviceID(status.Parent); err == nil {
		n.Parent = parent
	}
	return n, nil
}

// Open counts the incidents that are open.
func (r *Room) Open() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range maps.Values(r.incidents) {
		if i.Status.State == api.IncidentOpen {
			n++
		}
	}
	return n
}
