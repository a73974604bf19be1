package main

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/intake"
	"tributary.dev/tributary/pkg/core/lease"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/manifest"
)

// The devices directly below the core are divided into slots, each with all that is below it:
// what one of several cores takes in. Where a device lies never changes.
const slots = 8

func slotOf(child api.DeviceID) string {
	h := fnv.New32a()
	h.Write(child[:])
	return slotName(int(h.Sum32() % slots))
}

func slotName(n int) string { return fmt.Sprint("devices/", n) }

func slotNames() (names []string) {
	for n := range slots {
		names = append(names, slotName(n))
	}
	return names
}

// endpoint is the core's end of the link: its own part of the tree, and what other cores tell of
// theirs.
type endpoint struct {
	c *core

	mu     sync.Mutex
	now    *link.CoreEndpoint // nil between two of them
	own    lease.Held         // slots; nil: all
	places map[api.DeviceID]intake.Presence
	came   map[api.DeviceID]intake.Presence // of own devices, not yet written
	news   map[api.DeviceID]bool            // of which others wrote, not yet read
	wake   chan struct{}
}

func newEndpoint(c *core) *endpoint {
	return &endpoint{c: c, places: map[api.DeviceID]intake.Presence{}, came: map[api.DeviceID]intake.Presence{}, news: map[api.DeviceID]bool{}, wake: make(chan struct{}, 1)}
}

// make makes an end of the link of what the ledger holds.
func (e *endpoint) make() (*link.CoreEndpoint, error) {
	c := e.c
	return link.NewCoreEndpoint(link.CoreEndpointConfig{
		CoreConfig: link.CoreConfig{Config: link.Config{Rand: randomNumber, Log: c.log}, Epoch: c.epoch, Store: c.intake, Keys: &keys{c: c, state: map[api.DeviceID]stateKeys{}}},
		Downlink:   c.broker, Online: c.presence, Alarm: c.alarm,
	})
}

func (e *endpoint) set(end *link.CoreEndpoint, own lease.Held) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now, e.own = end, own
}

func (e *endpoint) get() *link.CoreEndpoint {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.now
}

// mine gives the end of the link that a device comes through, when it is this core's.
func (e *endpoint) mine(id api.DeviceID) (end *link.CoreEndpoint, ok bool) {
	e.mu.Lock()
	end, own := e.now, e.own
	e.mu.Unlock()
	if end == nil || own == nil {
		return end, end != nil
	}
	child, ok := end.Via(id)
	if ok {
		_, ok = own[slotOf(child)]
	}
	return end, ok
}

func (e *endpoint) place(id api.DeviceID) intake.Presence {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.places[id]
}

// Publish puts a manifest in force.
func (e *endpoint) Publish(s *manifest.Signed, tombs map[string]uint64) error {
	if end := e.get(); end != nil {
		return end.Publish(s, tombs)
	}
	return nil // the next one begins with all
}

// Reachable reports whether the way to a device is open as far as is known.
func (e *endpoint) Reachable(id api.DeviceID) bool {
	if end, ok := e.mine(id); ok {
		return end.Reachable(id)
	}
	return e.place(id).Online && e.c.roster.Active(id)
}

// Heard is when there was last a sign of a device, and whether it is there.
func (e *endpoint) Heard(id api.DeviceID) (at time.Time, reachable bool) {
	end, ok := e.mine(id)
	if ok {
		return end.Heard(id)
	}
	p := e.place(id)
	p.Online = p.Online && e.c.roster.Active(id)
	if end != nil && p.Online { // the child that it comes through vouches for it
		if child, ok := end.Via(id); ok {
			p.Heard = max(p.Heard, e.place(child).Heard)
		}
	}
	if p.Heard == 0 {
		return at, p.Online
	}
	return time.UnixMilli(p.Heard), p.Online
}

// Command sends a signed command towards a device: whether its part of the tree is this core's
// does not matter.
func (e *endpoint) Command(id api.DeviceID, raw []byte) error {
	end, ok := e.mine(id)
	if ok {
		return end.Command(id, raw)
	}
	if end != nil {
		if child, ok := end.Via(id); ok {
			return e.c.broker.Send(child, link.CommandFrame(id, raw), true)
		}
	}
	return &api.Error{Code: api.Unavailable, Message: "device " + id.String() + " is not reachable just now", Remedy: "try again in a few seconds"}
}

// Answer sends a device its position again, where this core takes it in.
func (e *endpoint) Answer(id api.DeviceID, p link.Position) {
	if end, ok := e.mine(id); ok {
		end.Answer(id, p)
	}
}

// Forget drops a retired device.
func (e *endpoint) Forget(id api.DeviceID) {
	if end := e.get(); end != nil {
		end.Forget(id)
	}
}

// Warnings and Stats are those of this core's part.
func (e *endpoint) Warnings() []api.Warning {
	if end := e.get(); end != nil {
		return end.Warnings()
	}
	return nil
}

func (e *endpoint) Stats() (s link.Stats) {
	if end := e.get(); end != nil {
		s = end.Stats()
	}
	return s
}

// serveDevices takes in what comes from the devices of slots, until ctx ends.
func (c *core) serveDevices(ctx context.Context, held lease.Held) error {
	end := c.end.get()
	if c.shared() {
		c.intake.Work(ctx)
		c.external.Only(func(id api.DeviceID) bool { _, ok := held[slotOf(id)]; return ok })
		var err error
		if end, err = c.end.make(); err != nil {
			return err
		}
		c.end.set(end, held)
		defer c.end.set(nil, lease.Held{})
		if err := c.publish(ctx, nil); err != nil {
			return err
		}
		settled := time.AfterFunc(homecoming, func() { c.end.review() })
		defer settled.Stop()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.fleet.Ready():
	}
	err := end.Run(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// publish hands manifests of devices to the link, as the store has them; of all for nil.
func (c *core) publish(ctx context.Context, ids []api.DeviceID) error {
	return c.store.EachManifestOf(ctx, ids, func(r *store.ManifestRecord) error {
		if r.Epoch != c.epoch {
			return nil // a base for the next one only
		}
		signed, err := manifest.Parse(r.Raw)
		if err != nil {
			return fmt.Errorf("device %s: %w", r.Device, err)
		}
		return c.end.Publish(signed, r.Tombstones)
	})
}

// homecoming is how long devices have to come to the core that took them over, before they count
// as away.
const homecoming = 25 * time.Second

// review has devices count as away that others say are there, and do not come to this core, whose
// they are.
func (e *endpoint) review() {
	e.mu.Lock()
	ids := make([]api.DeviceID, 0, len(e.places))
	for id, p := range e.places {
		if p.Online {
			ids = append(ids, id)
		}
	}
	e.mu.Unlock()
	for _, id := range ids {
		if end, ok := e.mine(id); ok && !end.Reachable(id) {
			e.note(intake.Presence{Device: id, Heard: e.place(id).Heard})
		}
	}
}

// note has others told who came or went.
func (e *endpoint) note(p intake.Presence) {
	e.mu.Lock()
	e.came[p.Device] = p
	e.mu.Unlock()
	e.poke()
}

// learn has what others wrote of devices read.
func (e *endpoint) learn(ids []api.DeviceID) {
	e.mu.Lock()
	for _, id := range ids {
		e.news[id] = true
	}
	e.mu.Unlock()
	e.poke()
}

func (e *endpoint) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

const (
	// gathering is how long news of presence is gathered, and beat how often it is told who was
	// heard, for all devices that are heard all the time.
	gathering = 100 * time.Millisecond
	beat      = 10 * time.Second
)

// run tells others of own devices, and reads what they tell of theirs, until ctx ends. What
// cannot be written or read now is later.
func (e *endpoint) run(ctx context.Context) error {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	since := time.Now().Add(-time.Minute)
	for {
		again := time.Duration(0)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			began := time.Now()
			if err := e.vouch(ctx, since.Add(-beat)); err != nil {
				e.c.log.Warn("who was heard is not told", "err", err)
			} else {
				since = began
			}
			continue
		case <-e.wake:
			again = gathering
		}
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		if err := e.exchange(ctx); err != nil && ctx.Err() == nil {
			e.c.log.Warn("where devices are is not told", "err", err)
			time.AfterFunc(time.Second, e.poke)
		}
	}
}

// exchange writes who came and went here, and reads where others' devices are.
func (e *endpoint) exchange(ctx context.Context) error {
	e.mu.Lock()
	came, news := e.came, e.news
	e.came, e.news = map[api.DeviceID]intake.Presence{}, map[api.DeviceID]bool{}
	e.mu.Unlock()
	back := func(err error) error {
		e.mu.Lock()
		defer e.mu.Unlock()
		for id, p := range came {
			if _, newer := e.came[id]; !newer {
				e.came[id] = p
			}
		}
		for id := range news {
			e.news[id] = true
		}
		return err
	}
	list := make([]intake.Presence, 0, len(came))
	for id, p := range came {
		end, ok := e.mine(id)
		if ok {
			p.Online = end.Reachable(id)
		} else if p.Online = false; e.c.roster.Active(id) {
			continue // what another core hears of since is its to tell
		}
		list = append(list, p)
	}
	if err := e.c.intake.PutPresence(ctx, list, true); err != nil {
		return back(err)
	}
	clear(came)
	ids := make([]api.DeviceID, 0, len(news))
	for id := range news {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil
	}
	if err := e.read(ctx, ids); err != nil {
		return back(err)
	}
	return nil
}

// read takes in where devices are, all for nil.
func (e *endpoint) read(ctx context.Context, ids []api.DeviceID) error {
	places, err := e.c.intake.Places(ctx, ids)
	if err != nil {
		return err
	}
	end := e.get()
	for _, p := range places {
		e.mu.Lock()
		e.places[p.Device] = p.Presence
		e.mu.Unlock()
		if end != nil && p.Attachment != nil {
			end.Learn(p.Attachment)
		}
		if own, ok := e.mine(p.Device); ok && own.Reachable(p.Device) && !p.Online {
			e.note(intake.Presence{Device: p.Device, Heard: p.Heard}) // another core was late
		}
		e.c.fleet.Reported(p.Device)
	}
	return nil
}

// vouch tells which own children were heard, and reads which others' were.
func (e *endpoint) vouch(ctx context.Context, since time.Time) error {
	var list []intake.Presence
	for _, id := range e.c.roster.AllActive() {
		end, ok := e.mine(id)
		if !ok {
			continue
		}
		if child, _ := end.Via(id); child != id {
			continue
		}
		if at, there := end.Heard(id); there && !at.IsZero() {
			list = append(list, intake.Presence{Device: id, Online: true, Heard: at.UnixMilli()})
		}
	}
	if err := e.c.intake.PutPresence(ctx, list, false); err != nil {
		return err
	}
	heard, err := e.c.intake.HeardSince(ctx, since)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range heard {
		e.places[p.Device] = p
	}
	return nil
}

// What is said to other cores, beside what rooms say.
const (
	saidTouch = "touch" // render devices anew
	saidAlarm = "alarm" // something is wrong about a device
)

// alarmed is an alarm as it is told.
type alarmed struct {
	Device  api.DeviceID `json:"device"`
	Warning api.Warning  `json:"warning"`
}

// hear takes in what other cores say, until ctx ends.
func (c *core) hear(ctx context.Context) error {
	c.store.Database().Hear(ctx, func(ctx context.Context) { c.heard(ctx, "", "") }, c.heard)
	return ctx.Err()
}

// heard takes in one saying; without a kind, whatever may have been said. What cannot be read
// now is read with the next of its kind.
func (c *core) heard(ctx context.Context, kind, text string) {
	ids, missed := database.Said(text), kind == ""
	var err error
	if kind == intake.Said && ids != nil {
		c.end.learn(ids)
	} else if missed || kind == intake.Said {
		err = c.end.read(ctx, nil)
	}
	if err == nil && (missed || kind == store.SaidManifest) {
		err = c.publish(ctx, ids)
	}
	if err == nil && (missed || kind == store.SaidAttestation) {
		err = c.attest.Refresh(ctx, ids)
	}
	if err == nil && (missed || kind == intake.SaidSafe) {
		err = c.hearSafe(ctx, ids)
	}
	if kind == saidTouch && c.fleet.Rendering() {
		for _, id := range ids {
			if err == nil {
				err = c.fleet.Touch(ctx, id)
			}
		}
	}
	if kind == saidAlarm && c.fleet.Rendering() {
		var a alarmed
		if err = json.Unmarshal([]byte(text), &a); err == nil {
			c.fleet.Alarm(a.Device, a.Warning)
		}
	}
	if err != nil && ctx.Err() == nil {
		c.log.Warn("what another core said is not taken in", "kind", kind, "err", err)
	}
}

// hearSafe tells own devices what a backup holds of them that another core noted.
func (c *core) hearSafe(ctx context.Context, ids []api.DeviceID) error {
	backed, err := c.store.BackedUp(ctx)
	if err != nil || !backed && ids == nil {
		return err
	}
	c.intake.Keep()
	for _, id := range ids {
		p, err := c.intake.Position(id)
		if err != nil {
			return err
		}
		c.end.Answer(id, p)
	}
	return nil
}

// touch has a device rendered anew, here or where that is done.
func (c *core) touch(ctx context.Context, id api.DeviceID) error {
	if !c.shared() || c.fleet.Rendering() {
		return c.fleet.Touch(ctx, id)
	}
	return c.store.Say(ctx, saidTouch, []api.DeviceID{id})
}

// raise notes an alarm, here or where that is done. It returns at once.
func (c *core) raise(id api.DeviceID, w api.Warning) {
	if !c.shared() || c.fleet.Rendering() {
		c.fleet.Alarm(id, w)
		return
	}
	text, err := json.Marshal(alarmed{id, w})
	if err != nil || len(text) > 7000 {
		return // a message of ours is shorter
	}
	select {
	case c.orders <- func(ctx context.Context) {
		if err := c.store.Tell(ctx, saidAlarm, string(text)); err != nil {
			c.log.Warn("an alarm is not told; it is raised again", "device", id, "err", err)
		}
	}:
	default: // it is raised again
	}
}

// markOf is what sessions of a replica's streams begin with.
func markOf(replica string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(replica))
	return max(h.Sum32(), 1)
}
