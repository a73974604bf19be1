package link_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
)

// grove is a tree whose frames the test carries by hand, so that it can stand between
// any two parties, and can have two boxes with one key.
type grove struct {
	t     *testing.T
	now   time.Time
	keys  *linksim.Keyring
	db    *linksim.Database
	core  *link.Core
	boxes []*growth
	// alarms is what the core told of single devices.
	alarms []link.Alarm
	// away is when those were last heard of whom the core told that they went.
	away map[api.DeviceID]time.Time
}

// growth is a box of a grove; a nil parent is the core.
type growth struct {
	*link.Relay
	id     api.DeviceID
	parent *growth
	// between sees what crosses the box's uplink, and gives what arrives instead.
	between func(up bool, frame []byte) []byte
}

func newGrove(t *testing.T) *grove {
	t.Helper()
	g := &grove{t: t, now: time.Unix(1_764_000_000, 0), keys: keyring(t), db: linksim.NewDatabase(), away: map[api.DeviceID]time.Time{}}
	var err error
	if g.core, err = link.NewCore(g.now, link.CoreConfig{Epoch: 1, Store: g.db, Keys: g.keys.Core()}); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *grove) add(id api.DeviceID, parent *growth, store link.Store, records link.Spool) *growth {
	g.t.Helper()
	r, err := link.NewRelay(g.now, link.RelayConfig{Self: id, Cert: linksim.Cert(id), Store: store, Spool: records, Keys: g.keys.Device(id)})
	if err != nil {
		g.t.Fatal(err)
	}
	b := &growth{Relay: r, id: id, parent: parent, between: func(_ bool, f []byte) []byte { return f }}
	g.boxes = append(g.boxes, b)
	if parent == nil {
		g.core.ChildUp(g.now, id, nil)
		r.ParentUp(g.now, api.DeviceID{})
	} else {
		parent.ChildUp(g.now, id, linksim.Cert(id))
		r.ParentUp(g.now, parent.id)
	}
	g.wait(10 * time.Second)
	return b
}

// remove takes a box away as a power cut does.
func (g *grove) remove(b *growth) {
	g.boxes = slices.DeleteFunc(g.boxes, func(o *growth) bool { return o == b })
}

// wait lets time pass, second by second.
func (g *grove) wait(d time.Duration) {
	g.t.Helper()
	for end := g.now.Add(d); g.now.Before(end); g.now = g.now.Add(time.Second) {
		g.core.Tick(g.now)
		for _, b := range g.boxes {
			b.Tick(g.now)
		}
		for g.carry() {
		}
	}
}

// carry does what the machines want, and reports whether there was anything.
func (g *grove) carry() (any bool) {
	g.t.Helper()
	for _, b := range slices.Clone(g.boxes) {
		eff := b.Take()
		for _, f := range eff.Up {
			any = true
			switch f := b.between(true, f.Bytes); {
			case f == nil:
			case b.parent == nil:
				g.core.FromChild(g.now, b.id, f)
			default:
				b.parent.FromChild(g.now, b.id, f)
			}
		}
		g.down(b, eff.Down)
	}
	eff := g.core.Take()
	g.alarms = append(g.alarms, eff.Alarms...)
	if err := g.db.ApplyState(eff.State); err != nil {
		g.t.Fatal(err)
	}
	g.down(nil, eff.Down)
	for _, p := range eff.Online {
		if !p.Online {
			g.away[p.Device] = p.Heard
		}
	}
	if len(eff.Batches) > 0 {
		results, err := g.db.AcceptBatches(eff.Batches)
		if err != nil {
			g.t.Fatal(err)
		}
		g.core.Counted(g.now, eff.Batches, results)
	}
	for _, id := range g.core.Asked() {
		p, err := g.db.Position(id)
		if err != nil {
			g.t.Fatal(err)
		}
		g.core.Answer(g.now, id, p)
	}
	return any || len(eff.State)+len(eff.Down)+len(eff.Batches) > 0
}

func (g *grove) down(from *growth, frames []link.DownFrame) {
	for _, f := range frames {
		for _, b := range g.boxes {
			if b.parent != from || b.id != f.Child {
				continue
			}
			if f := b.between(false, bytes.Clone(f.Bytes)); f != nil {
				b.FromParent(g.now, f)
			}
		}
	}
}

func (g *grove) report(b *growth, key, value string) {
	g.t.Helper()
	if err := b.Report(g.now, key, []byte(value)); err != nil {
		g.t.Fatal(err)
	}
	g.wait(5 * time.Second)
}

func (g *grove) want(d *linksim.Desired, id api.DeviceID, item string) {
	g.t.Helper()
	if err := d.Set(g.keys, id, 1, g.now.Unix(), map[string][]byte{item: {1}}); err != nil {
		g.t.Fatal(err)
	}
	g.core.Publish(g.now, d.Signed, d.Tombs)
	g.wait(5 * time.Second)
}

func (g *grove) append(b *growth, records link.Spool, payload string) {
	g.t.Helper()
	if _, err := records.Append(api.RecordEvent, []byte(payload)); err != nil {
		g.t.Fatal(err)
	}
	b.Appended(g.now, api.RecordEvent)
	g.wait(5 * time.Second)
}

func severity(ws []api.Warning, name string) api.Severity {
	for _, w := range ws {
		if w.Name == name {
			return w.Severity
		}
	}
	return ""
}

var relayID, fieldID = api.DeviceID{1}, api.DeviceID{2}

func TestAlteredStateIsNotBelieved(t *testing.T) {
	g := newGrove(t)
	relay := g.add(relayID, nil, link.NewMemStore(), nil)
	field := g.add(fieldID, relay, link.NewMemStore(), nil)
	g.report(field, "door", "closed")
	altered := 0
	relay.between = func(up bool, f []byte) []byte {
		if up && bytes.Contains(f, []byte("opened")) {
			altered++
			return bytes.ReplaceAll(f, []byte("opened"), []byte("closed"))
		}
		return f
	}
	g.report(field, "door", "opened")
	if altered == 0 {
		t.Fatal("nothing was altered")
	}
	if got := severity(g.core.Warnings(), "bad-mac"); got != api.Critical {
		t.Errorf("bad-mac is %q: %v", got, g.core.Warnings())
	}
	if !slices.ContainsFunc(g.alarms, func(a link.Alarm) bool {
		return a.Device == fieldID && a.Name == "bad-mac" && a.Severity == api.Critical
	}) {
		t.Errorf("the core does not say whose state was altered: %v", g.alarms)
	}
	if got := g.db.States[fieldID]; got.Quarantined == 0 {
		t.Error("nothing was set aside")
	}
	relay.between = func(_ bool, f []byte) []byte { return f }
	g.wait(time.Hour)
	if got := string(g.db.States[fieldID].Entries["door"].Value); got != "opened" {
		t.Errorf("once nobody alters it any more, the core has %q", got)
	}
}

func TestWithheldManifestIsNoticed(t *testing.T) {
	g := newGrove(t)
	records, want := linksim.NewSpool(1), linksim.NewDesired(1)
	relay := g.add(relayID, nil, link.NewMemStore(), nil)
	field := g.add(fieldID, relay, link.NewMemStore(), records)
	g.want(want, fieldID, "config/a")
	field.between = func(up bool, f []byte) []byte {
		if !up && bytes.Contains(f, []byte("config/")) {
			return nil
		}
		return f
	}
	g.want(want, fieldID, "config/b")
	g.append(field, records, "the core answers this")
	if m := field.Manifest(); m == nil || m.Manifest.Generation != 1 {
		t.Fatalf("the field device has %+v", m)
	}
	if got := severity(field.Warnings(), "manifest-withheld"); got != "" {
		t.Errorf("it is called withheld at once")
	}
	g.wait(6 * time.Minute)
	if got := severity(field.Warnings(), "manifest-withheld"); got != api.Critical {
		t.Errorf("manifest-withheld is %q: %v", got, field.Warnings())
	}
	field.between = func(_ bool, f []byte) []byte { return f }
	g.append(field, records, "and this")
	g.wait(2 * time.Minute)
	if m := field.Manifest(); m.Manifest.Generation != 2 {
		t.Errorf("the field device still has generation %d", m.Manifest.Generation)
	}
	if got := severity(field.Warnings(), "manifest-withheld"); got != "" {
		t.Errorf("manifest-withheld stays when it came")
	}
}

func TestClonedDeviceIsNoticed(t *testing.T) {
	g := newGrove(t)
	one := g.add(relayID, nil, link.NewMemStore(), nil)
	other := g.add(api.DeviceID{3}, nil, link.NewMemStore(), nil)
	g.add(fieldID, one, link.NewMemStore(), nil)
	if got := severity(g.core.Warnings(), "cloned-device"); got != "" {
		t.Fatal("one device is called two")
	}
	g.add(fieldID, other, link.NewMemStore(), nil) // the same key on another disk
	if got := severity(g.core.Warnings(), "cloned-device"); got != api.Critical {
		t.Errorf("cloned-device is %q: %v", got, g.core.Warnings())
	}
}

func TestSecondHistoryIsNoticed(t *testing.T) {
	g := newGrove(t)
	store, records := link.NewMemStore(), linksim.NewSpool(7)
	relay := g.add(relayID, nil, link.NewMemStore(), nil)
	field := g.add(fieldID, relay, store, records)
	g.append(field, records, "truth")
	if _, _, acked, _ := records.Range(); acked != 1 {
		t.Fatalf("%d records are acknowledged", acked)
	}
	g.remove(field)
	copied := linksim.NewSpool(7)
	clone := g.add(fieldID, relay, store, copied)
	g.append(clone, copied, "another")
	g.append(clone, copied, "and one more")
	if got := severity(g.core.Warnings(), "record-fork"); got != api.Critical {
		t.Errorf("record-fork is %q: %v", got, g.core.Warnings())
	}
	if l := g.db.Ledger[fieldID]; len(l) != 1 || l[1].Count != 1 || l[1].Payload != "truth" {
		t.Errorf("the ledger has %v", l)
	}
}

// Relays carry messages of types that they do not know, from the routed ranges, and only
// those.
func TestUnknownMessagesPass(t *testing.T) {
	g := newGrove(t)
	relay := g.add(relayID, nil, link.NewMemStore(), nil)
	field := g.add(fieldID, relay, link.NewMemStore(), nil)
	message := func(kind byte) []byte { // [kind, device, {"later": [1.5, null]}]
		m := append([]byte{0x83, 0x18, kind, 0x48}, fieldID[:]...)
		return append(m, 0xa1, 0x65, 'l', 'a', 't', 'e', 'r', 0x82, 0xf9, 0x3e, 0x00, 0xf6)
	}
	frame := func(kinds ...byte) []byte {
		f := []byte{0x10}
		for _, k := range kinds {
			f = append(f, message(k)...)
		}
		return f
	}
	var up, down [][]byte
	relay.between = func(isUp bool, f []byte) []byte {
		if isUp {
			up = append(up, f)
		}
		return f
	}
	field.between = func(isUp bool, f []byte) []byte {
		if !isUp {
			down = append(down, f)
		}
		return f
	}
	relay.FromChild(g.now, fieldID, frame(100, 128, 191))
	relay.FromParent(g.now, frame(100, 192, 255))
	for g.carry() {
	}
	if len(up) != 1 || !bytes.Equal(up[0], frame(128, 191)) {
		t.Errorf("upwards came %x", up)
	}
	if len(down) != 1 || !bytes.Equal(down[0], frame(192, 255)) {
		t.Errorf("downwards came %x", down)
	}
	for _, ws := range [][]api.Warning{g.core.Warnings(), relay.Warnings(), field.Warnings()} {
		if len(ws) > 0 {
			t.Errorf("someone minds: %v", ws)
		}
	}
}

// A warning ends when nothing more was found for a while.
func TestWarningsEnd(t *testing.T) {
	g := newGrove(t)
	relay := g.add(relayID, nil, link.NewMemStore(), nil)
	field := g.add(fieldID, relay, link.NewMemStore(), nil)
	relay.FromChild(g.now, fieldID, []byte{0xff})
	g.wait(14 * time.Minute)
	if severity(relay.Warnings(), "bad-frame") == "" {
		t.Fatal("the warning ends too soon, or never stood")
	}
	relay.FromChild(g.now, fieldID, []byte{0xff})
	g.wait(14 * time.Minute)
	if severity(relay.Warnings(), "bad-frame") == "" {
		t.Error("the warning ends though it was raised again")
	}
	g.wait(2 * time.Minute)
	if got := relay.Warnings(); len(got) > 0 {
		t.Errorf("after a quiet while there is %v", got)
	}
	if got := field.Warnings(); len(got) > 0 {
		t.Errorf("the field device minds: %v", got)
	}
}

// A device that moves, and records something at the same moment, raises no warning.
func TestMovesAreNoLies(t *testing.T) {
	for seed := range uint64(20) {
		w := linksim.New(seed, keyring(t), link.Config{})
		agg := w.Add("agg", api.DeviceID{})
		one, two := w.Add("one", agg.ID), w.Add("two", agg.ID)
		field := w.Add("field", one.ID)
		w.Run(time.Minute)
		for i, to := range []*linksim.Box{two, one, agg, two} {
			field.Append(api.RecordEvent, "before")
			field.Move(to.ID)
			for range 40 {
				field.Append(api.RecordEvent, "meanwhile")
				w.Run(100 * time.Millisecond)
			}
			w.Run(2 * time.Minute)
			for name, ws := range map[string][]api.Warning{"core": w.Core.Link.Warnings(), "agg": agg.Relay.Warnings(), "one": one.Relay.Warnings(), "two": two.Relay.Warnings()} {
				if len(ws) > 0 {
					t.Errorf("seed %d, move %d: %s warns: %v", seed, i+1, name, ws)
				}
			}
		}
		for _, d := range w.Differences() {
			t.Errorf("seed %d: %s", seed, d)
		}
	}
}

// Records past a child's window are dropped and counted; it is a warning when nothing is
// acknowledged meanwhile.
func TestFullWindowIsNamed(t *testing.T) {
	g := newGrove(t)
	relay := g.add(relayID, nil, link.NewMemStore(), nil)
	g.add(fieldID, relay, link.NewMemStore(), nil)
	big := make([]byte, 60<<10)
	for i := range big {
		big[i] = byte(i * i >> 3)
	}
	raw := func(i int) []byte {
		return lie(t, 8, fieldID[:], append([]byte{byte(i)}, big...))
	}
	for i := range 80 { // 4.8 MB
		relay.FromChild(g.now, fieldID, raw(i))
	}
	relay.Take()
	if got := relay.Stats().Dropped; got == 0 || got > 80-60 {
		t.Errorf("%d batches were dropped", got)
	}
	if got := severity(relay.Warnings(), "window-full"); got != "" {
		t.Error("a full window is a warning at once")
	}
	g.now = g.now.Add(40 * time.Second)
	relay.FromChild(g.now, fieldID, raw(0))
	if got := severity(relay.Warnings(), "window-full"); got != api.Degraded {
		t.Errorf("window-full is %q: %v", got, relay.Warnings())
	}
}
