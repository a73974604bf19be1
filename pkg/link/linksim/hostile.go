package linksim

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
)

// Lie is one way in which a relay may treat the reported state and the records of those
// below it.
type Lie int

// The lies.
const (
	DropEntry    Lie = iota // one key is left out, the number stays
	DropEntries             // all keys are left out
	AlterValue              // a key gets another value
	ReplayEntry             // an entry of before comes again in the place of a newer one
	ReplayAhead             // one entry of before is said to be all, under the next number
	SwapMACs                // two entries change their MACs
	SwapNumbers             // two entries change their places
	SwapDevices             // entries are said to be of another device
	StripProof              // the extra fields of all entries go
	AlterRecords            // a batch of records is altered
	lies
)

func (l Lie) String() string {
	return [...]string{"drop entry", "drop entries", "alter value", "replay entry", "replay ahead", "swap macs", "swap numbers", "swap devices", "strip proof", "alter records"}[l]
}

// Messages of a child, see pkg/link's frame.go.
const (
	typeState = 2
	typePatch = 3
	typeBatch = 8
)

// Liar is what a hostile relay does to the frames that it sends to its parent.
type Liar struct {
	World *World
	// Chance is that of each group of state and each batch.
	Chance float64
	// Lies are those that it tells.
	Lies []Lie
	// Told counts them.
	Told int

	old map[string][]cbor.RawMessage // entries that passed, by device
}

// NewLiar makes one that tells the lies, or all of them when there are none.
func NewLiar(w *World, chance float64, tell ...Lie) *Liar {
	if len(tell) == 0 {
		for l := range lies {
			tell = append(tell, l)
		}
	}
	return &Liar{World: w, Chance: chance, Lies: tell, old: map[string][]cbor.RawMessage{}}
}

// alter returns what the relay sends in the place of a frame.
func (l *Liar) alter(frame []byte) []byte {
	out, err := link.Alter(frame, func(typ uint64, raw []byte) []byte {
		var m []cbor.RawMessage
		if typ != typeState && typ != typePatch && typ != typeBatch || cbor.Unmarshal(raw, &m) != nil {
			return raw
		}
		switch typ {
		case typeBatch:
			l.batch(m)
		case typeState:
			for i := range m[3:] {
				m[3+i] = l.group(m[3+i])
			}
		default:
			for i := range m[1:] {
				m[1+i] = l.group(m[1+i])
			}
		}
		return encode(m)
	})
	if err != nil {
		l.World.Fail("a frame cannot be altered: %v", err)
		return frame
	}
	return out
}

func encode(v any) cbor.RawMessage {
	b, err := cbor.Marshal(v)
	if err != nil {
		return nil // what was decoded a moment ago is encoded
	}
	return b
}

func (l *Liar) pick() Lie {
	if l.World.Rand.Float64() >= l.Chance {
		return -1
	}
	return l.Lies[l.World.Rand.IntN(len(l.Lies))]
}

func (l *Liar) batch(m []cbor.RawMessage) {
	var raw []byte
	if l.pick() != AlterRecords || len(m) < 3 || cbor.Unmarshal(m[2], &raw) != nil || len(raw) == 0 {
		return
	}
	raw[l.World.Rand.IntN(len(raw))] ^= 1 << l.World.Rand.IntN(8)
	m[2] = encode(raw)
	l.Told++
}

// group lies about a group: device, epoch, number, how far back, forgotten if that is
// all the way, entries.
func (l *Liar) group(raw cbor.RawMessage) cbor.RawMessage {
	var g []cbor.RawMessage
	var id api.DeviceID
	var idBytes []byte
	var top, back uint64
	if cbor.Unmarshal(raw, &g) != nil || len(g) < 4 || cbor.Unmarshal(g[0], &idBytes) != nil || cbor.Unmarshal(g[2], &top) != nil || cbor.Unmarshal(g[3], &back) != nil {
		l.World.Fail("a group cannot be read: %x", []byte(raw))
		return raw
	}
	copy(id[:], idBytes)
	at := 4
	if back == top {
		at = 5
	}
	entries := slices.Clone(g[at:])
	lie := l.pick()
	told := l.entries(lie, id, &entries)
	out := append(slices.Clone(g[:at]), entries...)
	switch {
	case lie == ReplayAhead && len(l.old[string(id[:])]) > 0:
		// A genuine entry keeps its number: it is told as the distance below the top.
		e := fields(l.old[string(id[:])][0])
		var was uint64
		if cbor.Unmarshal(e[4], &was) != nil || was > top {
			break
		}
		out = []cbor.RawMessage{g[0], g[1], encode(top + 1), encode(top + 1), encode(0), encode(append(append(slices.Clone(e[:2]), encode(top+1-was), e[3]), e[5:]...))}
		told = true
	case lie == SwapDevices:
		other := pickBox(l.World).ID
		out[0], told = encode(other[:]), other != id
	}
	if told {
		l.Told++
	}
	l.remember(id, top, g[at:])
	return encode(out)
}

func pickBox(w *World) *Box { bs := w.boxes(); return bs[w.Rand.IntN(len(bs))] }

func fields(e cbor.RawMessage) (out []cbor.RawMessage) {
	if cbor.Unmarshal(e, &out) != nil {
		return nil
	}
	return out
}

// remember keeps entries with their numbers, as a fifth field.
func (l *Liar) remember(id api.DeviceID, top uint64, entries []cbor.RawMessage) {
	for _, e := range entries {
		f := fields(e)
		var back uint64
		if old := l.old[string(id[:])]; len(f) < 4 || len(old) >= 64 || cbor.Unmarshal(f[2], &back) != nil {
			continue
		}
		f = append(append(slices.Clone(f[:4]), encode(top-back)), f[4:]...)
		l.old[string(id[:])] = append(l.old[string(id[:])], encode(f))
	}
}

// entries lies about the entries of a group, and reports whether it did.
func (l *Liar) entries(lie Lie, id api.DeviceID, es *[]cbor.RawMessage) bool {
	r := l.World.Rand
	n := len(*es)
	if n == 0 {
		return false
	}
	i, j := r.IntN(n), r.IntN(n)
	a, b := fields((*es)[i]), fields((*es)[j])
	swap := func(field int) bool {
		if i == j || len(a) < 4 || len(b) < 4 || bytes.Equal(a[field], b[field]) {
			return false
		}
		a[field], b[field] = b[field], a[field]
		(*es)[i], (*es)[j] = encode(a), encode(b)
		return true
	}
	switch lie {
	case DropEntry:
		*es = slices.Delete(*es, i, i+1)
	case DropEntries:
		*es = nil
	case AlterValue:
		a[1] = encode([]byte(fmt.Sprint("forged ", r.IntN(100))))
		(*es)[i] = encode(a)
	case ReplayEntry:
		old := l.old[string(id[:])]
		if len(old) == 0 {
			return false
		}
		o := fields(old[r.IntN(len(old))])
		(*es)[i] = encode(append(append(slices.Clone(o[:2]), a[2], o[3]), o[5:]...)) // under the newer number
	case SwapMACs:
		return swap(3)
	case SwapNumbers:
		return swap(2)
	case StripProof:
		for i, e := range *es {
			(*es)[i] = encode(fields(e)[:4])
		}
	default:
		return false
	}
	return true
}

// said notes what a box reports now: the core must never hold anything else of it.
func (w *World) said(b *Box) {
	if w.views[b.ID] == nil {
		w.views[b.ID] = map[string]bool{}
	}
	w.views[b.ID][viewOf(b.Reported, func(v string) (string, bool) { return v, true })] = true
}

func viewOf[V any](m map[string]V, value func(V) (string, bool)) string {
	var parts []string
	for k, v := range m {
		if s, ok := value(v); ok {
			parts = append(parts, k+"="+s)
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, "\x00")
}

// heard checks that what the core holds of devices is, whole, what they once reported.
func (w *World) heard(changes []link.StateChange) {
	for _, c := range changes {
		views := w.views[c.Device]
		if views == nil || len(c.Entries) == 0 {
			continue
		}
		got := viewOf(w.DB.state(c.Device).Entries, func(e link.Entry) (string, bool) { return string(e.Value), !e.Deleted })
		if !views[got] {
			w.Fail("the core holds of %s what it never reported: %q", w.name(c.Device), got)
		}
	}
}

// alarmed checks that the core finds lies only where they are told.
func (w *World) alarmed(alarms []link.Alarm) {
	for _, a := range alarms {
		w.Alarms[a.Name]++
		switch a.Name {
		case "bad-mac", "state-incomplete", "unproven-state", "bad-batch":
			if !w.lied {
				w.Fail("nobody lies, and the core warns of %s: %s", a.Name, a.Message)
			}
		}
	}
}

// SetLiar has a box lie to its parent; nil ends it.
func (w *World) SetLiar(b *Box, l *Liar) {
	w.trace("%s lies=%v", b.Name, l != nil)
	if l == nil {
		delete(w.liars, b.ID)
		return
	}
	w.lied, w.liars[b.ID] = true, l
}
