// Package linksim answers: what does a whole tree do, frame by frame, when everything
// around it goes wrong in an order that a seed decides?
//
// A World holds a core, relays and devices in one goroutine with one virtual clock. The
// state machines are the real ones; only disks, sockets and time are made here. The same
// world counts bytes for the benches.
package linksim

import (
	"container/heap"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/manifest"
)

// Net is how badly the links behave.
type Net struct {
	Drop, Duplicate float64 // chance of each frame
	// Latency is uniform between Min and Max, for each frame by itself: a difference
	// reorders. In Order keeps the order of a session, as MQTT does.
	Min, Max time.Duration
	InOrder  bool
	// CrashAt is the chance that a party dies around a commit.
	CrashAt float64
}

// World is everything.
type World struct {
	Net  Net
	Link link.Config
	Keys *Keyring
	Now  time.Time
	Rand *rand.Rand
	DB   *Database
	Core *Core
	// Boxes by id, relays and devices alike.
	Boxes map[api.DeviceID]*Box
	// Failures are broken invariants.
	Failures []string
	// OnFrame sees each frame that is handed to a link.
	OnFrame func(child api.DeviceID, up bool, frame link.Frame)
	// OnSession sees each new session, before its first frame.
	OnSession func(child api.DeviceID)
	// Trace, when set, is told what happens.
	Trace func(format string, args ...any)

	events events
	order  uint64
	next   uint64
	links  map[api.DeviceID]*session
	// captured are old frames that an adversary may play again.
	captured []capturedFrame
	chaos    bool
	// Alarms counts what the core found wrong, by name.
	Alarms map[string]int
	liars  map[api.DeviceID]*Liar
	lied   bool
	// views are all that each box ever reported, as a whole.
	views map[api.DeviceID]map[string]bool
}

type capturedFrame struct {
	child api.DeviceID
	up    bool
	bytes []byte
}

// session is a child's session with a parent.
type session struct {
	child, parent api.DeviceID
	open          bool
	lastUp        time.Time
	lastDown      time.Time
}

// Core is the core's process; Link is nil while it is down.
type Core struct {
	w    *World
	Link *link.Core
	wake time.Time
}

// Box is a box of the tree.
type Box struct {
	w     *World
	ID    api.DeviceID
	Name  string
	Relay *link.Relay // nil while it is down
	Store *link.MemStore
	Spool *Spool
	// Parents are whom it may attach to, best first; zero is the core.
	Parents []api.DeviceID
	// Cut means that its uplink carries nothing.
	Cut bool
	// Gone means that it never comes back.
	Gone bool
	// Reported is what its programs have durably reported, Appended what they recorded.
	Reported map[string]string
	Appended []string
	// Applied is the newest manifest that was put in force, across restarts.
	Applied  [2]uint64
	Wall     time.Duration // error of its wall clock
	Commands int

	wake   time.Time
	tries  int
	choice int
}

type event struct {
	at time.Time
	n  uint64
	do func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	old[len(old)-1] = event{}
	*e = old[:len(old)-1]
	return x
}

// New makes a world with a running core and nothing else.
func New(seed uint64, keys *Keyring, cfg link.Config) *World {
	w := &World{Keys: keys, Link: cfg, Now: time.Unix(1_764_000_000, 0), Rand: rand.New(rand.NewPCG(seed, 7)), DB: NewDatabase(),
		Alarms: map[string]int{}, liars: map[api.DeviceID]*Liar{}, views: map[api.DeviceID]map[string]bool{},
		Boxes: map[api.DeviceID]*Box{}, links: map[api.DeviceID]*session{}, Net: Net{Min: time.Millisecond, Max: time.Millisecond, InOrder: true}}
	w.Link.Rand = w.Rand.Uint64
	w.Core = &Core{w: w}
	w.StartCore()
	return w
}

// Fail notes a broken invariant.
func (w *World) Fail(format string, args ...any) {
	if len(w.Failures) < 10 {
		w.Failures = append(w.Failures, fmt.Sprintf("%s: ", w.Now.Format("15:04:05.000"))+fmt.Sprintf(format, args...))
	}
}

func (w *World) trace(format string, args ...any) {
	if w.Trace != nil {
		w.Trace(w.Now.Format("15:04:05.000 ")+format, args...)
	}
}

// After schedules something.
func (w *World) After(d time.Duration, do func()) {
	w.order++
	heap.Push(&w.events, event{w.Now.Add(d), w.order, do})
}

// Run lets time pass.
func (w *World) Run(d time.Duration) {
	end := w.Now.Add(d)
	for len(w.events) > 0 && !w.events[0].at.After(end) {
		e, _ := heap.Pop(&w.events).(event)
		w.Now = e.at
		e.do()
	}
	w.Now = end
}

// chance is true with a probability, while chaos rules.
func (w *World) chance(p float64) bool { return w.chaos && p > 0 && w.Rand.Float64() < p }

// Add makes a box and starts it. Its parents are tried in order.
func (w *World) Add(name string, parents ...api.DeviceID) *Box {
	w.next++
	id := api.DeviceID{byte(w.Rand.Uint32()), byte(w.Rand.Uint32()), byte(w.next >> 8), byte(w.next)}
	b := &Box{w: w, ID: id, Name: name, Store: link.NewMemStore(), Spool: NewSpool(uint64(w.Now.Unix())), Parents: parents, Reported: map[string]string{}}
	w.Boxes[id] = b
	w.said(b)
	b.Start()
	return b
}

// Start starts a box's process.
func (b *Box) Start() {
	w := b.w
	if b.Relay != nil || b.Gone {
		return
	}
	cfg := w.Link
	cfg.Wall = func(now time.Time) int64 { return now.Add(b.Wall).Unix() }
	r, err := link.NewRelay(w.Now, link.RelayConfig{Config: cfg, Self: b.ID, Cert: certOf(b.ID), Store: b.Store, Spool: b.Spool, Keys: deviceKeys{w.Keys, b.ID}})
	if err != nil {
		w.Fail("%s does not start: %v", b.Name, err)
		return
	}
	w.trace("%s starts", b.Name)
	b.Relay, b.wake = r, time.Time{}
	b.run()
	b.dialSoon(time.Duration(w.Rand.Int64N(int64(time.Second))))
}

// Crash kills a box's process; what was not synced may be gone.
func (b *Box) Crash() {
	if b.Relay == nil {
		return
	}
	b.w.trace("%s crashes", b.Name)
	b.Relay = nil
	b.Store.Crash(b.w.Rand.IntN(4))
	b.w.hangUp(b.ID)
	for _, id := range sortedIDs(b.w.links) {
		if s := b.w.links[id]; s.parent == b.ID {
			b.w.hangUp(id)
		}
	}
}

func (b *Box) dialSoon(d time.Duration) {
	b.w.After(d, b.dial)
}

// dial makes a session with the next parent, if there is none.
func (b *Box) dial() {
	w := b.w
	if s := w.links[b.ID]; b.Relay == nil || len(b.Parents) == 0 || s != nil && s.open {
		return
	}
	parent := b.Parents[b.choice%len(b.Parents)]
	if b.Cut || !w.alive(parent) {
		if b.tries++; b.tries%4 == 0 {
			b.choice++
		}
		b.dialSoon(time.Second + time.Duration(w.Rand.Int64N(int64(4*time.Second))))
		return
	}
	b.tries = 0
	w.links[b.ID] = &session{child: b.ID, parent: parent, open: true, lastUp: w.Now, lastDown: w.Now}
	w.trace("%s attaches to %s", b.Name, w.name(parent))
	if w.OnSession != nil {
		w.OnSession(b.ID)
	}
	if parent.IsZero() {
		w.Core.Link.ChildUp(w.Now, b.ID, nil)
		w.Core.run()
	} else {
		p := w.Boxes[parent]
		p.Relay.ChildUp(w.Now, b.ID, certOf(b.ID))
		p.run()
	}
	if b.Relay != nil && w.links[b.ID].open {
		b.Relay.ParentUp(w.Now, parent)
		b.run()
	}
}

func (w *World) alive(id api.DeviceID) bool {
	if id.IsZero() {
		return w.Core.Link != nil
	}
	b := w.Boxes[id]
	return b != nil && b.Relay != nil
}

func (w *World) name(id api.DeviceID) string {
	if id.IsZero() {
		return "core"
	}
	if b := w.Boxes[id]; b != nil {
		return b.Name
	}
	return id.String()
}

// hangUp ends a child's session; both ends notice a little later, each for itself.
func (w *World) hangUp(child api.DeviceID) {
	s := w.links[child]
	if s == nil || !s.open {
		return
	}
	s.open = false
	b := w.Boxes[child]
	if b.Relay != nil {
		b.Relay.ParentDown(w.Now)
		b.run()
		b.dialSoon(time.Duration(w.Rand.Int64N(int64(2 * time.Second))))
	}
	if s.parent.IsZero() {
		if w.Core.Link != nil {
			w.Core.Link.ChildDown(w.Now, child)
			w.Core.run()
		}
	} else if p := w.Boxes[s.parent]; p != nil && p.Relay != nil {
		p.Relay.ChildDown(w.Now, child)
		p.run()
	}
}

// SetCut cuts or mends a box's uplink.
func (b *Box) SetCut(cut bool) {
	b.w.trace("%s cut=%v", b.Name, cut)
	if b.Cut = cut; cut {
		b.w.hangUp(b.ID)
	}
}

// Move gives a box other parents.
func (b *Box) Move(parents ...api.DeviceID) {
	b.w.trace("%s moves", b.Name)
	b.Parents, b.choice = parents, 0
	if s := b.w.links[b.ID]; s != nil && s.open && s.parent != parents[0] {
		b.w.hangUp(b.ID)
	}
}

// send hands a frame to a link.
func (w *World) send(child api.DeviceID, up bool, f link.Frame) {
	s := w.links[child]
	if s == nil || !s.open {
		return
	}
	if w.Trace != nil {
		w.trace("%s up=%v %s", w.name(child), up, link.Describe(f.Bytes))
	}
	if w.OnFrame != nil {
		w.OnFrame(child, up, f)
	}
	if l := w.liars[child]; up && l != nil {
		f.Bytes = l.alter(f.Bytes)
	}
	if len(f.Bytes) > link.MaxFrame {
		w.Fail("a frame of %d bytes", len(f.Bytes))
	}
	if w.chaos && len(w.captured) < 400 {
		w.captured = append(w.captured, capturedFrame{child, up, append([]byte(nil), f.Bytes...)})
	}
	if w.chance(w.Net.Drop) {
		return
	}
	copies := 1
	if w.chance(w.Net.Duplicate) {
		copies = 2
	}
	for range copies {
		d := w.Net.Min + time.Duration(w.Rand.Int64N(int64(w.Net.Max-w.Net.Min)+1))
		if w.Net.InOrder || !w.chaos {
			last := &s.lastUp
			if !up {
				last = &s.lastDown
			}
			if at := w.Now.Add(d); at.Before(*last) {
				d = last.Sub(w.Now)
			}
			*last = w.Now.Add(d)
		}
		b := append([]byte(nil), f.Bytes...)
		w.After(d, func() {
			if s.open {
				w.deliver(s, up, b)
			}
		})
	}
}

func (w *World) deliver(s *session, up bool, frame []byte) {
	switch {
	case !up:
		if b := w.Boxes[s.child]; b.Relay != nil {
			b.Relay.FromParent(w.Now, frame)
			b.run()
		}
	case s.parent.IsZero():
		if w.Core.Link != nil {
			w.Core.Link.FromChild(w.Now, s.child, frame)
			w.Core.run()
		}
	default:
		if p := w.Boxes[s.parent]; p.Relay != nil {
			p.Relay.FromChild(w.Now, s.child, frame)
			p.run()
		}
	}
}

// Inject delivers bytes to a box as if its parent had sent them.
func (b *Box) Inject(frame []byte) {
	b.w.trace("%s gets injected %s", b.Name, link.Describe(frame))
	if s := b.w.links[b.ID]; s != nil && s.open {
		b.w.deliver(s, false, frame)
	}
}

// run does what a box's last input led to.
func (b *Box) run() {
	w := b.w
	r := b.Relay
	eff := r.Take()
	if len(eff.Ops) > 0 {
		if w.chance(w.Net.CrashAt) {
			b.dieAndReturn()
			return
		}
		if err := b.Store.Commit(eff.Ops, eff.Sync); err != nil {
			w.Fail("commit: %v", err)
		}
		if eff.Manifest != nil {
			b.applied(eff.Manifest)
		}
		if w.chance(w.Net.CrashAt) {
			b.dieAndReturn()
			return
		}
	} else if eff.Manifest != nil {
		b.applied(eff.Manifest)
	}
	b.Commands += len(eff.Commands)
	if eff.ResetUp {
		w.After(0, func() { w.hangUp(b.ID) })
	}
	for _, f := range eff.Up {
		w.send(b.ID, true, f)
	}
	for _, f := range eff.Down {
		if s := w.links[f.Child]; s != nil && s.parent == b.ID {
			w.send(f.Child, false, f.Frame)
		}
	}
	if b.Relay != nil && eff.Manifest != nil {
		b.Report("applied", fmt.Sprint(b.Applied))
	}
	b.plan()
}

func (b *Box) applied(s *manifest.Signed) {
	v := [2]uint64{s.Manifest.Epoch, s.Manifest.Generation}
	if s.Manifest.Device != b.ID {
		b.w.Fail("%s applied a manifest of %s", b.Name, b.w.name(s.Manifest.Device))
	}
	if v[0] < b.Applied[0] || v[0] == b.Applied[0] && v[1] <= b.Applied[1] {
		b.w.Fail("%s applied %v after %v", b.Name, v, b.Applied)
	}
	b.Applied = v
}

// plan makes sure of a tick when the box wants one.
func (b *Box) plan() {
	if b.Relay == nil {
		return
	}
	at := b.Relay.Next()
	if at.IsZero() || !b.wake.IsZero() && !b.wake.After(at) && b.wake.After(b.w.Now) {
		return
	}
	b.wake = at
	r := b.Relay
	b.w.After(max(at.Sub(b.w.Now), 0), func() {
		if b.Relay != r || b.wake != at {
			return
		}
		b.wake = time.Time{}
		r.Tick(b.w.Now)
		b.run()
	})
}

func (b *Box) dieAndReturn() {
	b.Crash()
	b.w.After(time.Duration(b.w.Rand.Int64N(int64(5*time.Second))), b.Start)
}

// Report is what a program on the box reports.
func (b *Box) Report(key, value string) {
	if b.Relay == nil {
		return
	}
	var v []byte
	if value != "" {
		v = []byte(value)
	}
	r := b.Relay
	if err := r.Report(b.w.Now, key, v); err != nil {
		b.w.Fail("%s: report: %v", b.Name, err)
		return
	}
	before := maps.Clone(b.Reported)
	if v == nil {
		delete(b.Reported, key)
	} else {
		b.Reported[key] = value
	}
	b.w.said(b) // before the core can hear of it
	b.Reported = before
	b.run()
	if b.Relay != r {
		// It died in the commit: the program does not know. Neither does the test: it asks
		// the disk.
		b.reread(key)
		return
	}
	if v == nil {
		delete(b.Reported, key)
	} else {
		b.Reported[key] = value
	}
}

func (b *Box) reread(key string) {
	delete(b.Reported, key)
	for k, v := range link.StoredState(b.Store, b.ID) {
		if k == key {
			b.Reported[k] = string(v)
		}
	}
	b.w.said(b)
}

// Append is what a program on the box records.
func (b *Box) Append(kind api.RecordKind, payload string) {
	if b.Relay == nil {
		return
	}
	if _, err := b.Spool.Append(kind, []byte(payload)); err != nil {
		b.w.Fail("append: %v", err)
	}
	b.Appended = append(b.Appended, payload)
	b.w.trace("%s appends record %d", b.Name, len(b.Appended))
	b.Relay.Appended(b.w.Now, kind)
	b.run()
}
