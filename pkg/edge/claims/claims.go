// Package claims answers: which device of this box belongs to which service?
//
// pkg/claim decides, as a plain function. The Book keeps the answers: an answer is on
// the disk before a container sees its device, stays the same over crashes and reboots
// while the service is wanted, and is given back when its last container is gone. cdi.go
// writes what each device means to a container, in the files by which other programs on
// the box see the same devices (Container Device Interface).
//
// The book knows no hardware. Rooms that do offer their devices as Providers.
package claims

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/claim"
	"tributary.dev/tributary/pkg/natural"
)

// The decision's own words.
type (
	Owner   = claim.Owner
	Grant   = claim.Grant
	Missing = claim.Missing
)

// Provider is a room that has devices to give.
type Provider interface {
	// Claimables lists the devices as they are now, those that are held among them.
	Claimables() []api.Claimable
	// Prepare makes one of its devices, or units of it, ready for a container and tells what
	// the container needs. It may be repeated.
	Prepare(ctx context.Context, id string, units int, claim api.Claim) (api.DeviceEdits, error)
	// Restore leaves a device as it was found before Prepare. It may be repeated, also for a
	// device that is gone.
	Restore(ctx context.Context, id string) error
}

// Maker is a Provider that can make devices out of others, such as slices of a card.
type Maker interface {
	Provider
	// Make tries to have the devices that the need's claims lack, and leaves those that are
	// held as they are. True means that Claimables changed.
	Make(ctx context.Context, need api.Need) (bool, error)
	// Room lists what it could make now, for people and for who places apps.
	Room() []api.DeviceUse
}

// Store keeps values under keys, on disk before Put returns; an empty value removes.
type Store interface {
	Load(bucket string, fn func(key, value []byte) error) error
	Put(bucket, key string, value []byte) error
}

const bucket = "claims"

// Book keeps who holds what. Its methods may be called from any goroutine.
type Book struct {
	store     Store
	providers []Provider
	specs     *Specs
	log       *slog.Logger

	changed chan struct{}

	mu     sync.Mutex
	held   map[Owner][]Grant
	wanted func() map[Owner][]api.Claim
}

// Open reads the book. A record that cannot be read is dropped with a word in the log: its
// service asks again.
func Open(store Store, specs *Specs, log *slog.Logger, providers ...Provider) (*Book, error) {
	b := &Book{store: store, providers: providers, specs: specs, log: log, changed: make(chan struct{}, 1), held: map[Owner][]Grant{}}
	var torn []string
	err := store.Load(bucket, func(key, value []byte) error {
		owner, grants, err := decode(key, value)
		if err != nil {
			torn = append(torn, string(key))
			log.Warn("a record of held devices cannot be read and is dropped", "key", string(key), "err", err)
			return nil
		}
		b.held[owner] = grants
		return nil
	})
	for _, key := range torn {
		err = errors.Join(err, store.Put(bucket, key, nil))
	}
	ids := map[api.ClaimClass][]string{}
	for _, grants := range b.held {
		for _, g := range grants {
			ids[g.Class] = append(ids[g.Class], g.ID)
		}
	}
	if kerr := specs.Keep(ids); kerr != nil {
		log.Warn("the files for other programs' devices are not as they should be", "err", kerr)
	}
	return b, err
}

// Expect has the book ask which services are wanted with claims, those among them that hold
// nothing yet included: what is made for one leaves room for them. wanted is called while the
// book is locked.
func (b *Book) Expect(wanted func() map[Owner][]api.Claim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanted = wanted
}

// maxRecord bounds the record of one service.
const maxRecord = 1 << 20

func decode(key, value []byte) (Owner, []Grant, error) {
	app, service, ok := strings.Cut(string(key), "/")
	if !ok || app == "" || service == "" || len(value) > maxRecord {
		return Owner{}, nil, fmt.Errorf("it is of %d bytes under %q", len(value), key)
	}
	var grants []Grant
	if err := json.Unmarshal(value, &grants); err != nil {
		return Owner{}, nil, err
	}
	for _, g := range grants {
		if g.Units < 1 || g.ID == "" || g.Class == "" {
			return Owner{}, nil, fmt.Errorf("a grant of %d units of %q", g.Units, g.ID)
		}
	}
	return Owner{App: app, Service: service}, grants, nil
}

func (b *Book) devices() []api.Claimable {
	var all []api.Claimable
	for _, p := range b.providers {
		all = append(all, p.Claimables()...)
	}
	return all
}

// Take answers the claims of a service and makes its devices ready: what it held before
// wherever that still answers. An error of type *Missing says in words what the box lacks.
func (b *Book) Take(ctx context.Context, app, service string, wanted []api.Claim) ([]api.HeldDevice, error) {
	owner := Owner{App: app, Service: service}
	b.mu.Lock()
	defer b.mu.Unlock()
	grants, err := b.allocate(ctx, owner, wanted)
	if err != nil {
		return nil, err
	}
	before := b.held[owner]
	// What goes to this owner is written down before it is touched, and what it no longer
	// has is given back before others may have it.
	if err := b.write(owner, union(before, grants)); err != nil {
		return nil, err
	}
	if err := b.restore(ctx, without(before, grants)); err != nil {
		return nil, err
	}
	if err := b.write(owner, grants); err != nil {
		return nil, err
	}
	var out []api.HeldDevice
	for _, g := range grants {
		p := b.providerOf(g)
		if p == nil {
			return nil, &Missing{Claim: g.Claim, Words: g.ID + " is gone"}
		}
		edits, err := p.Prepare(ctx, g.ID, g.Units, wanted[g.Claim])
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", g.Class, g.ID, err)
		}
		out = append(out, api.HeldDevice{Class: g.Class, ID: g.ID, Units: g.Units, Edits: edits})
		if err := b.specs.Write(g.Class, g.ID, edits); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// allocate decides, and has further devices made where none is free.
func (b *Book) allocate(ctx context.Context, owner Owner, wanted []api.Claim) ([]Grant, error) {
	for range 1 + maxMade {
		grants, err := claim.Allocate(b.devices(), b.held, owner, wanted)
		var missing *Missing
		if err == nil || !errors.As(err, &missing) {
			return grants, err
		}
		// What the service held for other claims than it has now may be in the way.
		if stale := b.stale(owner, wanted); len(stale) > 0 {
			if err := b.restore(ctx, stale); err != nil {
				return nil, err
			}
			if err := b.write(owner, without(b.held[owner], stale)); err != nil {
				return nil, err
			}
			continue
		}
		made, merr := b.make(ctx, owner, wanted)
		if merr != nil {
			return nil, &Missing{Claim: missing.Claim, Words: missing.Words + "; none could be made: " + merr.Error()}
		}
		if !made {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%d devices were made and the claims of %s are still not met", maxMade, owner)
}

// maxMade bounds how often devices are made for one service at once.
const maxMade = 64

// stale are the grants of a service that answer none of its claims any more, or may be given
// to no one: what waits for other devices holds none that fails.
func (b *Book) stale(owner Owner, wanted []api.Claim) (out []Grant) {
	devices := b.devices()
	for _, g := range b.held[owner] {
		if i := find(devices, g); i >= 0 && (devices[i].Cordoned || !slices.ContainsFunc(wanted, func(c api.Claim) bool { return c.Fits(&devices[i]) == "" })) {
			out = append(out, g)
		}
	}
	return out
}

func find(devices []api.Claimable, g Grant) int {
	return slices.IndexFunc(devices, func(d api.Claimable) bool { return d.Class == g.Class && d.ID == g.ID })
}

func (b *Book) make(ctx context.Context, owner Owner, wanted []api.Claim) (bool, error) {
	need := b.need(owner, wanted)
	for _, p := range b.providers {
		maker, ok := p.(Maker)
		if !ok {
			continue
		}
		if made, err := maker.Make(ctx, need); made || err != nil {
			return made, err
		}
	}
	return false, nil
}

// need is what a service lacks beside what it holds, and who else there is.
func (b *Book) need(owner Owner, wanted []api.Claim) (n api.Need) {
	devices := b.devices()
	have := make([]int, len(wanted))
	for _, g := range b.held[owner] {
		if i := find(devices, g); i >= 0 && g.Claim >= 0 && g.Claim < len(wanted) && devices[i].Fault == "" && wanted[g.Claim].Fits(&devices[i]) == "" {
			have[g.Claim] += g.Units
		}
	}
	for i, c := range wanted {
		if lack := max(c.Count, 1) - have[i]; lack > 0 {
			c.Count = lack
			n.Claims = append(n.Claims, c)
		}
	}
	for _, grants := range b.held {
		for _, g := range grants {
			n.Held = append(n.Held, g.ID)
		}
	}
	slices.Sort(n.Held)
	if b.wanted == nil {
		return n
	}
	coming := b.wanted()
	for _, other := range slices.SortedFunc(maps.Keys(coming), claim.CompareOwners) {
		if len(b.held[other]) > 0 || other == owner {
			continue
		}
		for _, c := range coming[other] {
			for range min(max(c.Count, 1), maxComing) {
				one := c
				one.Count = 1
				n.Expected = append(n.Expected, one)
			}
		}
	}
	n.Expected = n.Expected[:min(len(n.Expected), maxComing)]
	return n
}

// maxComing bounds the devices to come that are told of.
const maxComing = 64

func (b *Book) providerOf(g Grant) Provider {
	for _, p := range b.providers {
		if slices.ContainsFunc(p.Claimables(), func(d api.Claimable) bool { return d.Class == g.Class && d.ID == g.ID }) {
			return p
		}
	}
	return nil
}

// Retain gives back what services hold that are not wanted and have no container. It is
// told of all that may still hold something.
func (b *Book) Retain(ctx context.Context, keep func(app, service string) bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, owner := range slices.SortedFunc(maps.Keys(b.held), claim.CompareOwners) {
		if keep(owner.App, owner.Service) {
			continue
		}
		if err := b.restore(ctx, b.held[owner]); err != nil {
			errs = append(errs, fmt.Errorf("devices of %s: %w", owner, err))
			continue // held until they are given back
		}
		errs = append(errs, b.write(owner, nil))
	}
	return errors.Join(errs...)
}

// restore gives devices back that nobody else holds. Every provider is asked for what is
// gone from all of them, since it may know what it did to it.
func (b *Book) restore(ctx context.Context, grants []Grant) error {
	var errs []error
	for _, g := range grants {
		if b.holders(g) > 1 {
			continue
		}
		if p := b.providerOf(g); p != nil {
			if err := p.Restore(ctx, g.ID); err != nil {
				errs = append(errs, fmt.Errorf("%s %s: %w", g.Class, g.ID, err))
				continue
			}
		} else {
			for _, p := range b.providers {
				errs = append(errs, p.Restore(ctx, g.ID))
			}
		}
		errs = append(errs, b.specs.Remove(g.Class, g.ID))
	}
	return errors.Join(errs...)
}

// holders counts the services that hold a device.
func (b *Book) holders(g Grant) int {
	n := 0
	for _, grants := range b.held {
		if slices.ContainsFunc(grants, func(o Grant) bool { return o.Class == g.Class && o.ID == g.ID }) {
			n++
		}
	}
	return n
}

func (b *Book) write(owner Owner, grants []Grant) error {
	if len(grants) == 0 {
		if _, ok := b.held[owner]; !ok {
			return nil
		}
		if err := b.store.Put(bucket, owner.String(), nil); err != nil {
			return err
		}
		delete(b.held, owner)
		b.tell()
		return nil
	}
	if slices.Equal(b.held[owner], grants) {
		return nil
	}
	raw, err := json.Marshal(grants)
	if err != nil {
		return err
	}
	if err := b.store.Put(bucket, owner.String(), raw); err != nil {
		return err
	}
	b.held[owner] = grants
	b.tell()
	return nil
}

// Uses lists every device and who holds it, devices that are gone and still held among
// them.
func (b *Book) Uses() []api.DeviceUse {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := map[deviceKey]int{}
	var out []api.DeviceUse
	for _, p := range b.providers {
		for _, d := range p.Claimables() {
			at[deviceKey{d.Class, d.ID}] = len(out)
			out = append(out, api.DeviceUse{Claimable: d})
		}
		if maker, ok := p.(Maker); ok {
			out = append(out, maker.Room()...)
		}
	}
	for _, owner := range slices.SortedFunc(maps.Keys(b.held), claim.CompareOwners) {
		for _, g := range b.held[owner] {
			i, ok := at[deviceKey{g.Class, g.ID}]
			if !ok {
				i = len(out)
				at[deviceKey{g.Class, g.ID}] = i
				out = append(out, api.DeviceUse{Claimable: api.Claimable{Class: g.Class, ID: g.ID, NUMA: -1, Units: 1, Fault: api.DeviceGone}})
			}
			hold(&out[i], owner, g.Units)
		}
	}
	slices.SortStableFunc(out, func(a, b api.DeviceUse) int {
		return cmp.Or(strings.Compare(string(a.Class), string(b.Class)), natural.Compare(a.ID, b.ID))
	})
	return out
}

// hold adds a holder, once for each service: a service may hold parts of a device by
// several of its claims.
func hold(u *api.DeviceUse, owner Owner, units int) {
	for i := range u.Holders {
		if h := &u.Holders[i]; h.App == owner.App && h.Service == owner.Service {
			h.Units += units
			return
		}
	}
	u.Holders = append(u.Holders, api.DeviceHolder{App: owner.App, Service: owner.Service, Units: units})
}

type deviceKey struct {
	class api.ClaimClass
	id    string
}

// Changed is told of after a change of who holds what.
func (b *Book) Changed() <-chan struct{} { return b.changed }

// Poke tells who listens to Changed that a room's devices are others.
func (b *Book) Poke() { b.tell() }

func (b *Book) tell() {
	select {
	case b.changed <- struct{}{}:
	default: // it is known already
	}
}

// union joins grants, each once.
func union(a, b []Grant) []Grant {
	out := slices.Clone(a)
	for _, g := range b {
		if !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	return out
}

// without lists the grants of devices that are not among those of b.
func without(a, b []Grant) []Grant {
	return slices.DeleteFunc(slices.Clone(a), func(g Grant) bool {
		return slices.ContainsFunc(b, func(o Grant) bool { return o.Class == g.Class && o.ID == g.ID })
	})
}
