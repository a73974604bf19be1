// Package roster answers: which boxes are ours, by which keys do we know them, and how
// did they come in?
//
// It makes join tokens, turns a box that shows one into a Device object, approves and
// retires. It holds the keys of all devices in memory, for the link asks for them with
// every batch.
package roster

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Config is what a Roster is given; everything is needed.
type Config struct {
	Store interface {
		store.Store
		store.Boxes
		store.Events
	}
	// Fingerprint is the root certificate's, for join tokens.
	Fingerprint [32]byte
	// Restored is when the backup was made that this core comes from; zero when it comes
	// from none. A box with a certificate from about then or later may have enrolled since.
	Restored time.Time
	// Came is told of devices that may take part from now on, Gone of those that may no
	// more; both may be told again, and must not call the roster.
	Came func(api.DeviceID)
	Gone func(api.DeviceID)
	// Notes tells whether this core notes as events what others did; nil is yes. Of several on one
	// database one does.
	Notes func() bool
	// Actor tells who asks, for events; nil when nobody knows.
	Actor  func(context.Context) string
	Now    func() time.Time
	Random io.Reader
	Log    *slog.Logger
}

// Roster may be used from any goroutine.
type Roster struct {
	cfg Config

	entrance sync.Mutex // of Enrol

	// turn lets who changes a device note it first, since the change's echo from the store
	// does not tell who it was.
	turn sync.Mutex

	mu    sync.RWMutex
	boxes map[api.DeviceID]*box
	names map[api.Key]api.DeviceID // by the key of the Device object
}

// box is one device in memory.
type box struct {
	public, seal      *ecdsa.PublicKey
	key               api.Key
	token             string
	approved, retired bool
	seen              bool // the flags are those of its object, not their beginning
}

// active reports whether the device may take part.
func (b *box) active() bool { return b.approved && !b.retired }

// Open reads all devices.
func Open(ctx context.Context, cfg Config) (*Roster, error) {
	r := &Roster{cfg: cfg, boxes: map[api.DeviceID]*box{}, names: map[api.Key]api.DeviceID{}}
	err := cfg.Store.EachBox(ctx, func(b store.Box) error {
		e, err := open(b)
		if err != nil {
			return err
		}
		r.boxes[b.Device], r.names[e.key] = e, b.Device
		return nil
	})
	if err != nil {
		return nil, err
	}
	devices, _, _, err := cfg.Store.List(ctx, store.Query{Kind: api.KindDevice})
	if err != nil {
		return nil, err
	}
	return r, r.Reset(devices)
}

func open(b store.Box) (*box, error) {
	e := &box{key: api.Key{Tenant: b.Tenant, Kind: api.KindDevice, Name: b.Name}, token: b.Token}
	var err error
	if e.public, err = parseKey(b.PublicKey); err == nil {
		e.seal, err = parseKey(b.SealKey)
	}
	if err != nil {
		return nil, fmt.Errorf("keys of device %s: %w", b.Device, err)
	}
	return e, nil
}

func parseKey(der []byte) (*ecdsa.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %T", pub)
	}
	return key, nil
}

// Run keeps the roster in step with the Device objects until ctx ends.
func (r *Roster) Run(ctx context.Context) error {
	return store.Follow(ctx, r.cfg.Store, store.WatchQuery{Kinds: []string{api.KindDevice}, SpecOnly: true}, r)
}

// Reset implements store.Sink.
func (r *Roster) Reset(devices []*api.Object) error {
	there := map[api.Key]bool{}
	for _, o := range devices {
		there[o.Key()] = true
		if err := r.echo(o); err != nil {
			return err
		}
	}
	r.mu.RLock()
	var gone []api.Key
	for key := range r.names {
		if !there[key] {
			gone = append(gone, key)
		}
	}
	r.mu.RUnlock()
	for _, key := range gone {
		if err := r.forget(key); err != nil {
			return err
		}
	}
	return nil
}

// Apply implements store.Sink.
func (r *Roster) Apply(events []store.Event) error {
	for _, e := range events {
		var err error
		if e.Type == store.Deleted {
			err = r.forget(e.Object.Key())
		} else {
			err = r.echo(e.Object)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// echo learns what the store tells.
func (r *Roster) echo(o *api.Object) error {
	ctx := context.Background()
	r.turn.Lock()
	defer r.turn.Unlock()
	if err := r.meet(ctx, o.Key()); err != nil {
		return err
	}
	events, err := r.learn(ctx, o)
	if err != nil || r.cfg.Notes != nil && !r.cfg.Notes() {
		return err
	}
	// Who did it by another core is noted with the change itself.
	since := time.Time{}
	if at := o.Metadata.Updated; at != nil {
		since = at.Add(-echoSlack)
	}
	return r.cfg.Store.AppendNew(ctx, events, since)
}

// echoSlack is how much earlier than its object's change an event of it may be noted.
const echoSlack = time.Second

// meet takes in a device that enrolled at another core.
func (r *Roster) meet(ctx context.Context, key api.Key) error {
	r.mu.RLock()
	_, known := r.names[key]
	r.mu.RUnlock()
	if known {
		return nil
	}
	b, err := r.cfg.Store.BoxOf(ctx, key.Tenant, key.Name)
	if err != nil || b == nil {
		return err // a Device that nobody enrolled as yet
	}
	e, err := open(*b)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.boxes[b.Device], r.names[key] = e, b.Device
	return nil
}

// learn takes in what people decided about a device, and tells what is new of it. The
// caller holds turn.
func (r *Roster) learn(ctx context.Context, o *api.Object) ([]store.DeviceEvent, error) {
	var spec api.DeviceSpec
	if err := json.Unmarshal(o.Spec, &spec); err != nil {
		return nil, fmt.Errorf("spec of %s: %w", o.Key(), err)
	}
	r.mu.Lock()
	id := r.names[o.Key()]
	b := r.boxes[id]
	var before, after bool
	events := r.newsOf(ctx, id, b, o.Metadata.Name, &spec)
	if b != nil {
		before = b.active()
		b.approved, b.retired, b.seen = spec.Approved, spec.Retired, true
		after = b.active()
	}
	r.mu.Unlock()
	r.tell(id, before, after)
	return events, nil
}

// newsOf is what a spec says of a device that is worth an event. The caller holds mu.
func (r *Roster) newsOf(ctx context.Context, id api.DeviceID, b *box, label string, spec *api.DeviceSpec) (events []store.DeviceEvent) {
	if b == nil || !b.seen {
		return nil
	}
	if spec.Approved && !b.approved {
		events = append(events, r.event(ctx, id, label, store.EventApproved, ""))
	}
	if spec.Retired && !b.retired {
		events = append(events, r.event(ctx, id, label, store.EventRetired, ""))
	}
	return events
}

func (r *Roster) event(ctx context.Context, id api.DeviceID, label, name, message string) store.DeviceEvent {
	e := store.DeviceEvent{Device: id, Label: label, Event: api.Event{Time: r.cfg.Now().UnixMilli(), Name: name, Message: message}}
	if r.cfg.Actor != nil {
		e.Actor = r.cfg.Actor(ctx)
	}
	return e
}

func (r *Roster) tell(id api.DeviceID, before, after bool) {
	switch {
	case after && !before:
		r.cfg.Came(id)
	case before && !after:
		r.cfg.Gone(id)
	}
}

// forget drops a device whose object is gone. It looks again: what told of that may be
// older than an enrolment.
func (r *Roster) forget(key api.Key) error {
	if _, err := r.cfg.Store.Get(context.Background(), key); api.CodeOf(err) != api.NotFound || err == nil {
		return err
	}
	r.mu.Lock()
	id, ok := r.names[key]
	delete(r.names, key)
	delete(r.boxes, id)
	r.mu.Unlock()
	if !ok {
		return nil
	}
	r.cfg.Gone(id)
	return r.cfg.Store.DeleteBox(context.Background(), id)
}

// PublicKey finds the key of a device that may take part: enrolled, approved, not
// retired.
func (r *Roster) PublicKey(id api.DeviceID) (*ecdsa.PublicKey, bool) {
	b, ok := r.active(id)
	return b.public, ok
}

// SealKey finds the key to which secrets of a device are sealed, and from which its
// state key comes; of any device that is known.
func (r *Roster) SealKey(id api.DeviceID) (*ecdsa.PublicKey, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	b := r.boxes[id]
	if b == nil {
		return nil, false
	}
	return b.seal, true
}

// Active reports whether a device may take part.
func (r *Roster) Active(id api.DeviceID) bool {
	_, ok := r.active(id)
	return ok
}

func (r *Roster) active(id api.DeviceID) (box, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	b := r.boxes[id]
	if b == nil || !b.active() {
		return box{}, false
	}
	return *b, true
}

// AllActive lists the devices that may take part.
func (r *Roster) AllActive() []api.DeviceID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var ids []api.DeviceID
	for id, b := range r.boxes {
		if b.active() {
			ids = append(ids, id)
		}
	}
	return ids
}

// Refused reports whether a device is to be turned away: unknown, waiting for approval,
// or retired.
func (r *Roster) Refused(id api.DeviceID) bool { return !r.Active(id) }

// TurnedAway reports whether a device is known, and may not take part.
func (r *Roster) TurnedAway(id api.DeviceID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	b := r.boxes[id]
	return b != nil && !b.active()
}

// ObjectOf names the Device object of an id.
func (r *Roster) ObjectOf(id api.DeviceID) (api.Key, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	b := r.boxes[id]
	if b == nil {
		return api.Key{}, false
	}
	return b.key, true
}

// IDOf finds the id of a Device object.
func (r *Roster) IDOf(key api.Key) (api.DeviceID, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	id, ok := r.names[key]
	return id, ok
}

// OfTenant lists the devices of a tenant, retired ones too; it is never nil.
func (r *Roster) OfTenant(tenant string) []api.DeviceID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	ids := []api.DeviceID{}
	for id, b := range r.boxes {
		if b.key.Tenant == tenant {
			ids = append(ids, id)
		}
	}
	return ids
}

// Len counts the devices that ever enrolled and were not deleted.
func (r *Roster) Len() int { r.mu.RLock(); defer r.mu.RUnlock(); return len(r.boxes) }

// Approve lets a device take part. It may be repeated.
func (r *Roster) Approve(ctx context.Context, key api.Key) (*api.Object, error) {
	return r.change(ctx, key, func(spec *api.DeviceSpec) error {
		if spec.Retired {
			return &api.Error{Code: api.Conflict, Field: "spec.retired", Message: "the device is retired, for good", Remedy: "let the box enrol anew; it gets a new identity"}
		}
		spec.Approved = true
		return nil
	})
}

// Retire revokes a device for good: nothing is taken from it or given to it any more. It
// may be repeated.
func (r *Roster) Retire(ctx context.Context, key api.Key) (*api.Object, error) {
	return r.change(ctx, key, func(spec *api.DeviceSpec) error { spec.Retired = true; return nil })
}

// Uncordon notes a person's word that a card or slice is well, whatever was found of it until
// then (Unix seconds, as the device told it). It may be repeated.
func (r *Roster) Uncordon(ctx context.Context, key api.Key, id string, until int64) (*api.Object, error) {
	o, err := r.change(ctx, key, func(spec *api.DeviceSpec) error {
		if spec.Settings == nil {
			spec.Settings = new(api.DeviceSettings)
		}
		spec.Settings.Uncordon = api.Said(spec.Settings.Uncordon, api.Uncordon{ID: id, Until: until})
		return nil
	})
	if err != nil {
		return nil, err
	}
	device, _ := r.IDOf(key)
	e := r.event(ctx, device, key.Name, store.EventUncordoned, "what was found of it until "+time.Unix(until, 0).UTC().Format(time.RFC3339)+" is ended")
	e.Subject = id
	return o, r.cfg.Store.AppendEvents(ctx, []store.DeviceEvent{e})
}

func (r *Roster) change(ctx context.Context, key api.Key, f func(*api.DeviceSpec) error) (*api.Object, error) {
	r.turn.Lock()
	defer r.turn.Unlock()
	for {
		o, err := r.cfg.Store.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		var spec api.DeviceSpec
		if err := json.Unmarshal(o.Spec, &spec); err != nil {
			return nil, err
		}
		if err := f(&spec); err != nil {
			return nil, err
		}
		if o.Spec, err = json.Marshal(spec); err != nil {
			return nil, err
		}
		r.mu.RLock()
		id := r.names[key]
		events := r.newsOf(ctx, id, r.boxes[id], key.Name, &spec)
		r.mu.RUnlock()
		out, err := r.cfg.Store.Put(ctx, o, store.PutOptions{Update: true, Events: events})
		if api.CodeOf(err) == api.Conflict && err != nil {
			continue // somebody wrote in between; each round somebody gets on
		}
		if err != nil {
			return nil, err
		}
		_, err = r.learn(ctx, out)
		return out, err
	}
}

// MayDelete refuses to delete a device that is not retired: its box would go on.
func (r *Roster) MayDelete(o *api.Object) error {
	var spec api.DeviceSpec
	if err := json.Unmarshal(o.Spec, &spec); err != nil {
		return err
	}
	if !spec.Retired {
		return &api.Error{Code: api.Conflict, Field: "spec.retired", Message: "the device is not retired", Remedy: "retire it first: `edgectl device retire " + o.Metadata.Name + "`"}
	}
	return nil
}
