package linksim

import (
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
)

// Schedule is one run of chaos: a tree of three levels, a while in which everything goes
// wrong that can, a while of peace, and the question whether all agree.
type Schedule struct {
	Seed uint64
	Keys *Keyring
	// Trouble is how long things go wrong; Peace bounds how long it may take to agree.
	Trouble, Peace time.Duration
	// Hostile has relays lie until peace comes.
	Hostile bool
	Trace   func(format string, args ...any)
}

// Run plays the schedule and returns the broken invariants.
func (s Schedule) Run() []string {
	if s.Trouble == 0 {
		s.Trouble = 4 * time.Minute
	}
	if s.Peace == 0 {
		s.Peace = 2 * time.Hour
	}
	w := New(s.Seed, s.Keys, link.Config{})
	w.Trace = s.Trace
	c := &chaos{World: w}
	c.plant()
	w.Run(20 * time.Second)
	w.chaos = true
	c.weather(s)
	for end := w.Now.Add(s.Trouble); w.Now.Before(end) && len(w.Failures) == 0; {
		w.Run(time.Duration(w.Rand.Int64N(int64(3 * time.Second))))
		c.act()
	}
	w.chaos = false
	c.mend()
	for end := w.Now.Add(s.Peace); w.Now.Before(end) && len(w.Failures) == 0; {
		w.Run(time.Minute)
		if len(w.Differences()) == 0 {
			break
		}
	}
	w.Failures = append(w.Failures, w.Differences()...)
	w.bounded()
	if len(w.Failures) > 0 && w.Trace != nil {
		w.dump()
	}
	return w.Failures
}

// dump traces what every party knows.
func (w *World) dump() {
	for _, b := range w.boxes() {
		if b.Relay != nil {
			for _, line := range b.Relay.Dump() {
				w.trace("%s (%s): %s", b.Name, b.ID, line)
			}
		}
	}
	if w.Core.Link != nil {
		for _, line := range w.Core.Link.Dump() {
			w.trace("core: %s", line)
		}
	}
}

type chaos struct {
	*World
	aggs, access, fields []*Box
	backup               *Database
	count                int
}

func (c *chaos) plant() {
	for i := range 2 {
		c.aggs = append(c.aggs, c.Add(fmt.Sprintf("agg%d", i), api.DeviceID{}))
	}
	for i := range 3 {
		c.access = append(c.access, c.Add(fmt.Sprintf("access%d", i), c.aggs[i%2].ID, c.aggs[(i+1)%2].ID))
	}
	for i := range 7 {
		p := []api.DeviceID{c.access[i%3].ID, c.access[(i+1)%3].ID}
		if i == 6 {
			p = []api.DeviceID{c.aggs[0].ID, {}}
		}
		c.fields = append(c.fields, c.Add(fmt.Sprintf("field%d", i), p...))
	}
	for _, b := range c.boxes() {
		b.Report("hardware", b.Name)
		c.Want(b.ID, map[string][]byte{"config/base": {0x01}, "config/" + b.Name: {0x02}})
	}
}

func (w *World) boxes() (out []*Box) {
	for _, id := range sortedIDs(w.Boxes) {
		out = append(out, w.Boxes[id])
	}
	return out
}

// weather decides how bad the links are in this schedule.
func (c *chaos) weather(s Schedule) {
	pick := func(ps ...float64) float64 { return ps[c.Rand.IntN(len(ps))] }
	c.Net = Net{Drop: pick(0, 0, 0.02, 0.2), Duplicate: pick(0, 0.05, 0.3), CrashAt: pick(0, 0.001, 0.01),
		Min: time.Millisecond, Max: time.Duration(pick(1, 50, 900)) * time.Millisecond, InOrder: c.Rand.IntN(2) == 0}
	if s.Hostile {
		for range 1 + c.Rand.IntN(2) {
			c.SetLiar(c.liar(), NewLiar(c.World, pick(0.1, 0.5, 1)))
		}
	}
}

// liar is a relay that carries others.
func (c *chaos) liar() *Box { return pick(c, append(c.aggs[:2:2], c.access...)) }

func pick[T any](c *chaos, of []T) T { return of[c.Rand.IntN(len(of))] }

// act does one thing that can happen to a tree.
func (c *chaos) act() {
	c.count++
	boxes := c.boxes()
	b := pick(c, boxes)
	switch n := c.Rand.IntN(100); {
	case n < 25:
		b.Report(fmt.Sprintf("key/%d", c.Rand.IntN(6)), fmt.Sprintf("value %d", c.count))
	case n < 30:
		b.Report(fmt.Sprintf("key/%d", c.Rand.IntN(6)), "")
	case n < 48:
		b.Append(api.RecordKind(1+c.Rand.IntN(4)), fmt.Sprintf("%s %d", b.Name, c.count))
	case n < 62:
		items := map[string][]byte{fmt.Sprintf("config/c%d", c.Rand.IntN(5)): {byte(c.count)}}
		if c.Rand.IntN(3) == 0 {
			items[fmt.Sprintf("config/c%d", c.Rand.IntN(5))] = nil
		}
		c.Want(b.ID, items)
	case n < 70:
		b.SetCut(!b.Cut)
	case n < 76:
		b.Crash()
		c.After(time.Duration(c.Rand.Int64N(int64(20*time.Second))), b.Start)
	case n < 79:
		c.CrashCore()
		c.After(time.Duration(c.Rand.Int64N(int64(10*time.Second))), c.StartCore)
	case n < 82:
		c.backup = c.DB.Backup()
	case n < 84:
		if c.backup != nil {
			c.RestoreCore(c.backup)
			c.backup = nil
		}
	case n < 88:
		f := pick(c, c.fields)
		f.Move(pick(c, append(c.aggs[:2:2], c.access...)).ID, pick(c, c.access).ID)
	case n < 90:
		a := pick(c, c.access)
		a.Move(pick(c, c.aggs).ID, c.aggs[0].ID, c.aggs[1].ID)
	case n < 92:
		c.replaceRelay()
	case n < 95:
		b.Wall += time.Duration(c.Rand.Int64N(int64(48*time.Hour))) - 24*time.Hour
	default:
		c.adversary(b)
	}
}

// replaceRelay throws an access relay away and puts a new box in its place.
func (c *chaos) replaceRelay() {
	i := c.Rand.IntN(len(c.access))
	old := c.access[i]
	old.Crash()
	old.Gone = true
	delete(c.Boxes, old.ID)
	c.Ledgerless(old.ID)
	nu := c.Add(old.Name+"'", old.Parents...)
	c.access[i] = nu
	c.Want(nu.ID, map[string][]byte{"config/base": {0x01}})
	for _, f := range c.boxes() {
		for k, p := range f.Parents {
			if p == old.ID {
				f.Parents[k] = nu.ID
			}
		}
	}
}

// adversary plays old frames again, or forges an acknowledgement.
func (c *chaos) adversary(b *Box) {
	if c.Rand.IntN(2) == 0 && len(c.captured) > 0 {
		for range 1 + c.Rand.IntN(6) {
			f := pick(c, c.captured)
			if b := c.Boxes[f.child]; b != nil && !f.up {
				b.Inject(f.bytes)
			}
		}
		return
	}
	_, last, acked, _ := b.Spool.Range()
	if last == acked {
		return
	}
	sign := func(aad, payload []byte) ([]byte, error) { return seal(api.DeviceID{1}, kidHeader, aad, payload) }
	raw, err := record.SealAck(sign, b.ID, record.Ack{CoreEpoch: c.DB.Epoch, SpoolEpoch: b.Spool.epoch, Acked: last, Safe: last, Time: c.Now.Unix(), Explicit: true})
	if err != nil {
		c.Fail("forge: %v", err)
		return
	}
	b.Inject(link.AckFrame(b.ID, raw))
}

// Ledgerless forgets what the core is owed by a box that is gone for good.
func (w *World) Ledgerless(id api.DeviceID) { delete(w.DB.Fleet, id) }

// mend ends all trouble.
func (c *chaos) mend() {
	c.Net = Net{Min: time.Millisecond, Max: 5 * time.Millisecond, InOrder: true}
	clear(c.liars)
	c.StartCore()
	for _, b := range c.boxes() {
		b.Cut = false
		b.Start()
		b.dialSoon(time.Second)
	}
}

// Differences lists what the ends do not agree on.
func (w *World) Differences() (out []string) {
	if w.Core.Link == nil {
		return []string{"the core is down"}
	}
	for _, b := range w.boxes() {
		if b.Relay == nil {
			out = append(out, b.Name+" is down")
			continue
		}
		out = append(out, w.boxDiffers(b)...)
	}
	return out
}

func (w *World) boxDiffers(b *Box) (out []string) {
	differ := func(format string, args ...any) {
		out = append(out, b.Name+": "+fmt.Sprintf(format, args...))
	}
	if d := w.DB.Fleet[b.ID]; d != nil && b.Applied != [2]uint64{d.Epoch, d.Gen} {
		differ("applied manifest %v, the core wants %v", b.Applied, [2]uint64{d.Epoch, d.Gen})
	}
	st := w.DB.state(b.ID)
	live := 0
	for k, e := range st.Entries {
		if e.Deleted {
			continue
		}
		live++
		if v, ok := b.Reported[k]; !ok || v != string(e.Value) {
			differ("the core holds %s=%q, the device %q (there: %v)", k, e.Value, v, ok)
		}
	}
	if live != len(b.Reported) {
		differ("the core holds %d keys, the device %d", live, len(b.Reported))
		for k := range b.Reported {
			if e, ok := st.Entries[k]; !ok || e.Deleted {
				differ("the core lacks %q (state %d.%d there)", k, st.Epoch, st.Seq)
			}
		}
	}
	if st.Quarantined > 0 && !w.lied {
		differ("%d entries in quarantine", st.Quarantined)
	}
	ledger := w.DB.Ledger[b.ID]
	for i, payload := range b.Appended {
		switch l := ledger[uint64(i+1)]; {
		case l == nil:
			differ("record %d is not counted", i+1)
		case l.Count != 1:
			differ("record %d is counted %d times", i+1, l.Count)
		case l.Payload != payload:
			differ("record %d is counted as %q", i+1, l.Payload)
		}
	}
	if len(ledger) != len(b.Appended) {
		differ("%d records are counted, %d were made", len(ledger), len(b.Appended))
	}
	if !w.Core.Link.Reachable(b.ID) {
		differ("the core thinks it is away")
	}
	return out
}

// bounded checks that nobody holds more than the tree needs.
func (w *World) bounded() {
	check := func(name string, h link.Held) {
		if h.Rows > 2*len(w.Boxes)+32 || h.Waiting > len(w.Boxes) || h.Queued > 0 || h.Tombs > 200*h.Rows {
			w.Fail("%s holds too much: %+v", name, h)
		}
	}
	for _, b := range w.boxes() {
		if b.Relay != nil {
			check(b.Name, b.Relay.Held())
		}
	}
	if w.Core.Link != nil {
		check("core", w.Core.Link.Held())
	}
}
