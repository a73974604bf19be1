package eventlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/tests/mutation"
)

// firmware is one as EDK2 has it, as far as PCR 7 goes: another way to write the same than Foretell, which has only logs.
type firmware struct {
	kek, db, dbx []byte
	cards        [][]byte // entries that let option ROMs through
	boots        [][]byte // those that let the boot manager and the kernel image through
}

func (f firmware) log() []Event {
	out := []Event{{PCR: 0, Kind: 8, Digest: make([]byte, 32)}, {PCR: 7, Kind: NoAction, Data: []byte("told")}}
	out = append(out, measured(VariableConfig, []byte("SecureBoot is on")), measured(VariableConfig, []byte("PK")))
	for _, v := range []struct {
		name    string
		content []byte
	}{{"KEK", f.kek}, {"db", f.db}, {"dbx", f.dbx}} {
		out = append(out, measured(VariableConfig, variable(v.name, v.content)))
	}
	seen := map[string]bool{}
	lets := func(entries [][]byte) {
		for _, e := range entries {
			if !seen[string(e)] {
				seen[string(e)] = true
				out = append(out, measured(Authority, variable("db", e)), Event{PCR: 4, Kind: 0x80000003, Digest: bytes.Repeat(e[:1], 32)})
			}
		}
	}
	lets(f.cards)
	out = append(out, measured(separator, make([]byte, 4)))
	lets(f.boots)
	return out
}

func (f firmware) pcr7() [32]byte {
	events, err := Of(f.log(), 7)
	if err != nil {
		panic(err)
	}
	return Replay(events)
}

func someFirmware(t *rapid.T) firmware {
	content := rapid.SliceOfN(rapid.Byte(), 0, 40)
	entry := rapid.Map(rapid.SampledFrom([]string{"vendor", "db-1", "db-2", "db-3"}), func(s string) []byte { return []byte(s) })
	return firmware{kek: content.Draw(t, "KEK"), db: content.Draw(t, "db"), dbx: content.Draw(t, "dbx"), cards: rapid.SliceOfN(entry, 0, 3).Draw(t, "cards"),
		boots: rapid.SliceOfN(entry, 1, 2).Draw(t, "boots")}
}

// TestForetell: from the log of one start, PCR 7 of any other is foretold, whatever the firmware's keys become, and
// whichever of them lets through what it starts.
func TestForetell(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := someFirmware(t)
		next := someFirmware(t)
		next.cards = now.cards
		c := Change{Booted: now.boots, Boots: next.boots, Variables: map[string][]byte{}}
		for name, at := range map[string]struct{ now, next *[]byte }{"KEK": {&now.kek, &next.kek}, "db": {&now.db, &next.db}, "dbx": {&now.dbx, &next.dbx}} {
			if rapid.Bool().Draw(t, name) {
				c.Variables[name] = *at.next
			} else {
				*at.next = *at.now
			}
		}
		got, err := Foretell(now.log(), c)
		if err != nil || got != next.pcr7() {
			t.Fatalf("%x, not %x: %v", got, next.pcr7(), err)
		}
		if same, err := Foretell(now.log(), Change{Booted: now.boots, Boots: now.boots}); err != nil || same != now.pcr7() {
			t.Fatalf("nothing changes, and PCR 7 does: %v", err)
		}
	})
}

// TestForetellsNothing: a firmware that measures otherwise is not guessed at.
func TestForetellsNothing(t *testing.T) {
	f := firmware{kek: []byte("kek"), db: []byte("db"), boots: [][]byte{[]byte("db-1")}}
	c := Change{Booted: f.boots, Boots: f.boots, Variables: map[string][]byte{"db": []byte("more")}}
	change := func(do func([]Event) []Event) []Event { return do(f.log()) }
	db := func(e Event) bool { return named(e.Data, "db") && e.Kind == VariableConfig }
	for what, log := range map[string][]Event{
		"nothing of db": change(func(l []Event) []Event { return slices.DeleteFunc(l, db) }),
		"db by its content alone": change(func(l []Event) []Event {
			at := slices.IndexFunc(l, db)
			l[at].Digest = measured(0, []byte("db")).Digest
			return l
		}),
		"something after the kernel image": change(func(l []Event) []Event { return append(l, measured(5, []byte("more"))) }),
		"another key let it through": change(func(l []Event) []Event {
			at := slices.IndexFunc(l, func(e Event) bool { return e.Kind == Authority })
			l[at] = authority([]byte("db-9"))
			return l
		}),
		"no SHA-256": change(func(l []Event) []Event {
			l[3].Digest = nil
			return l
		}),
	} {
		if got, err := Foretell(log, c); err == nil {
			t.Errorf("%s: %x is foretold", what, got)
		}
	}
	c.Variables = map[string][]byte{"PK": nil}
	if _, err := Foretell(f.log(), c); err == nil {
		t.Error("another variable is foretold")
	}
}

// TestForetellChecks: without one of the checks, something is guessed.
func TestForetellChecks(t *testing.T) {
	const test = "^TestForetellsNothing$"
	end := "if len(again) == len(events) && Replay(again) == Replay(events) {"
	mutation.Prove(t, append(mutation.Marked(t, test, "foretell.go"),
		mutation.Check{Name: "end", Test: test, File: "foretell.go", From: end, To: strings.Replace(end, "if ", "if GONE || ", 1)})...)
}

// encode is a log with SHA-256 alone.
func encode(events []Event) []byte {
	u16, u32 := binary.LittleEndian.AppendUint16, binary.LittleEndian.AppendUint32
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = append(u16(u16(u32(spec, 1), sha256Alg), 32), 0)
	b := append(u32(u32(nil, 0), NoAction), make([]byte, 20)...)
	b = append(u32(b, uint32(len(spec))), spec...)
	for _, e := range events {
		b = u32(u32(u32(b, e.PCR), e.Kind), 1)
		b = append(u16(b, sha256Alg), append(e.Digest, make([]byte, 32-len(e.Digest))...)...)
		b = append(u32(b, uint32(len(e.Data))), e.Data...)
	}
	return b
}

func TestParse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := someFirmware(t)
		b := encode(f.log())
		events, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if events, err = Of(events, 7); err != nil || Replay(events) != f.pcr7() {
			t.Fatal("the log leads elsewhere", err)
		}
		cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if again, err := Parse(b[:cut]); err == nil && len(again) >= len(f.log()) {
			t.Fatalf("cut to %d of %d bytes, all is read", cut, len(b))
		}
	})
}

// recorded reads what EDK2 wrote down of a start in QEMU, under keys made for it (tests/secureboot's TestForetold): the events,
// PCR 7 as the TPM had it, what db was, and the entry that let boot manager and kernel image through.
func recorded(t *testing.T, name string) (events []Event, pcr7 string, db, by []byte) {
	t.Helper()
	files, err := filepath.Glob("testdata/logs/" + name + "-*")
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if events, err = Parse(b); err != nil {
		t.Fatal(err)
	}
	head := len(variable("db", nil))
	for _, e := range events {
		if e.PCR == secureBoot && named(e.Data, "db") {
			if e.Kind == VariableConfig {
				db = e.Data[head:]
			} else {
				by = e.Data[head:]
			}
		}
	}
	return events, strings.TrimPrefix(filepath.Ext(strings.ReplaceAll(filepath.Base(files[0]), name+"-", ".")), "."), db, by
}

// TestRecorded: real logs lead to what the TPM had, and each foretells the other.
func TestRecorded(t *testing.T) {
	one, pcr1, db1, by := recorded(t, "one-key")
	two, pcr2, db2, by2 := recorded(t, "two-keys")
	if !bytes.Equal(by, by2) || len(db1) == 0 || len(db2) <= len(db1) {
		t.Fatal("other logs than they should be")
	}
	boots := [][]byte{by, by}
	for _, c := range []struct {
		log  []Event
		db   []byte
		want string
	}{{one, db1, pcr1}, {one, db2, pcr2}, {two, db1, pcr1}, {two, db2, pcr2}} {
		got, err := Foretell(c.log, Change{Booted: boots, Boots: boots, Variables: map[string][]byte{"db": c.db}})
		if err != nil || fmt.Sprintf("%x", got)[:16] != c.want {
			t.Errorf("%x, not %s…: %v", got, c.want, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) { // they differ in nothing but db
		content, entry := rapid.SliceOf(rapid.Byte()).Draw(t, "content"), rapid.SliceOfN(rapid.Byte(), 17, 60).Draw(t, "entry")
		c := Change{Booted: boots, Boots: [][]byte{by, entry}, Variables: map[string][]byte{"db": content, "dbx": entry, "KEK": content}}
		a, err1 := Foretell(one, c)
		b, err2 := Foretell(two, c)
		if err1 != nil || err2 != nil || a != b {
			t.Fatal(a, b, err1, err2)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(encode(firmware{db: []byte("db"), boots: [][]byte{[]byte("db-1")}}.log()))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := Parse(b)
		if err != nil {
			return
		}
		entry := [][]byte{[]byte("db-1")}
		if _, err := Foretell(events, Change{Booted: entry, Boots: entry, Variables: map[string][]byte{"db": b}}); err != nil {
			return
		}
	})
}
