package firmware

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"unicode/utf16"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/pkg/tpm/eventlog"
	"tributary.dev/tributary/tests/mutation"
)

var x509Type, _ = gpt.Parse("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")

func entry(cert string) []byte { return append(bytes.Repeat([]byte{7}, 16), "<"+cert+">"...) }

// list is one EFI_SIGNATURE_LIST.
func list(cert string) []byte {
	le := binary.LittleEndian
	e := entry(cert)
	b := le.AppendUint32(x509Type[:len(x509Type):len(x509Type)], uint32(28+len(e)))
	b = le.AppendUint32(le.AppendUint32(b, 0), uint32(len(e)))
	return append(b, e...)
}

// addition is signed as it should be.
func addition(variable, cert string) efi.Append {
	by := "kek"
	if variable == "KEK" {
		by = "pk"
	}
	return additionBy(by, variable, cert)
}

func additionBy(by, variable, cert string) efi.Append {
	data := append(append(make([]byte, 16), 24, 0, 0, 0), make([]byte, 20)...)
	copy(data[24:], by)
	return efi.Append{Name: by + ": " + variable + "+" + cert, Variable: variable, Data: append(data, list(cert)...)}
}

// signer stands in the signature's place.
func signer(data []byte) string { return string(bytes.TrimRight(data[24:40], "\x00")) }

func vouched(a efi.Append, list []byte) (bool, error) {
	return bytes.Contains(list, []byte("<"+signer(a.Data)+">")), nil
}

// signed is the certificate table of what that key signed.
func signed(by string) []byte { return []byte("a signature with <" + by + "> in it") }

var errCut = errors.New("the power is cut")

// slot is what lies in one: a release that may carry additions, and who signed it.
type slot struct {
	by      string
	carried []efi.Append
}

// world is a box: the firmware's lists, two slots, and what its state is sealed to. Every effect may be the last.
type world struct {
	efi.Memory
	lists   map[string][]string
	slots   [2]slot
	running int
	booted  map[string][]string // the lists at this start
	sealed  [][]byte
	left    int // effects before the power is cut; negative: never
	blind   bool
	odd     bool // the firmware puts lists together in a way of its own
}

func (w *world) effect() error {
	if w.left == 0 {
		return errCut
	}
	w.left--
	return nil
}

func content(certs []string) (b []byte) {
	for _, c := range certs {
		b = append(b, list(c)...)
	}
	return b
}

// Get implements efi.Variables.
func (w *world) Get(name string, vendor gpt.GUID) (uint32, []byte, error) {
	switch name {
	case "PK", "KEK", "db", "dbx":
		return 0, content(w.lists[name]), nil
	case "SecureBoot":
		return 0, []byte{1}, nil
	case "SetupMode":
		return 0, []byte{0}, nil
	}
	return w.Memory.Get(name, vendor)
}

// Set appends, as firmware does.
func (w *world) Set(name string, _ gpt.GUID, attributes uint32, data []byte) error {
	if err := w.effect(); err != nil {
		return err
	}
	if by := signer(data); !slices.Contains(w.lists[efi.Authority(name)], by) {
		return fmt.Errorf("the firmware refuses a change of %s by %q", name, by)
	}
	if attributes != 0x67 {
		return fmt.Errorf("attributes %#x", attributes)
	}
	cert := string(bytes.Trim(data[40+28+16:], "<>"))
	switch {
	case slices.Contains(w.lists[name], cert):
	case w.odd:
		w.lists[name] = append([]string{cert}, w.lists[name]...)
	default:
		w.lists[name] = append(slices.Clone(w.lists[name]), cert)
	}
	return nil
}

func event(kind uint32, name string, vendor gpt.GUID, content []byte) eventlog.Event {
	u := utf16.Encode([]rune(name))
	b := binary.LittleEndian.AppendUint64(vendor[:len(vendor):len(vendor)], uint64(len(u)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(content)))
	for _, c := range u {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	b = append(b, content...)
	d := sha256.Sum256(b)
	return eventlog.Event{PCR: 7, Kind: kind, Digest: d[:], Data: b}
}

// log is what the firmware measures when it starts what that key signed.
func log(lists map[string][]string, by string) []eventlog.Event {
	events := []eventlog.Event{event(eventlog.VariableConfig, "SecureBoot", efi.Global, []byte{1})}
	for _, name := range []string{"KEK", "db", "dbx"} {
		vendor, _ := efi.ListVendor(name)
		events = append(events, event(eventlog.VariableConfig, name, vendor, content(lists[name])))
	}
	return append(events, event(eventlog.Authority, "db", efi.SecurityDB, entry(by)))
}

func (w *world) keeper() *Keeper {
	return New(Config{Variables: w, Carried: func() ([]efi.Append, error) { return w.slots[w.running].carried, nil },
		Signed: func() (booted, other [][]byte, err error) {
			if by := w.slots[1-w.running].by; by != "" {
				other = [][]byte{signed(by), signed(by)}
			}
			by := w.slots[w.running].by
			return [][]byte{signed(by), signed(by)}, other, nil
		},
		Log: func() ([]eventlog.Event, error) {
			if w.blind {
				return nil, nil
			}
			return log(w.booted, w.slots[w.running].by), nil
		},
		Sealed: func(context.Context) (int, error) { return len(w.sealed), nil },
		Foretell: func(_ context.Context, pcr7 [][]byte) error {
			now := w.pcr7()
			for _, v := range pcr7 {
				if err := w.effect(); err != nil {
					return err
				}
				w.sealed = append(w.sealed, v)
			}
			if err := w.effect(); err != nil {
				return err
			}
			w.sealed = append(slices.Clone(pcr7), now) // what opened it in this start stays
			return nil
		},
		Vouched: vouched, Say: slog.New(slog.DiscardHandler)})
}

func (w *world) pcr7() []byte {
	v := eventlog.Replay(log(w.booted, w.slots[w.running].by))
	return v[:]
}

// start has the firmware start a slot: it tells whether that starts, and whether the state opens.
func (w *world) start(n int) (starts, opens bool) {
	by := w.slots[n].by
	if slices.Contains(w.lists["dbx"], by) || !slices.Contains(w.lists["db"], by) {
		return false, false
	}
	w.running, w.left = n, -1
	w.booted = map[string][]string{}
	for name, certs := range w.lists {
		w.booted[name] = slices.Clone(certs)
	}
	now := w.pcr7()
	return true, slices.ContainsFunc(w.sealed, func(v []byte) bool { return bytes.Equal(v, now) })
}

func newWorld() *world {
	w := &world{Memory: efi.Memory{}, lists: map[string][]string{"PK": {"pk"}, "KEK": {"kek"}, "db": {"vendor", "db-1"}}, slots: [2]slot{{by: "db-1"}, {by: "db-1"}}}
	w.start(0)
	w.sealed = [][]byte{w.pcr7()}
	return w
}

// TestRotation goes through rotations in any order, with the power cut after any effect: whichever slot the firmware starts
// then, the state opens, and the slot that ran always starts.
func TestRotation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		certs := rapid.SampledFrom([]string{"db-1", "db-2", "db-3"})
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			w.left = rapid.IntRange(-1, 6).Draw(t, "effects")
			k := w.keeper()
			var err error
			if rapid.Bool().Draw(t, "update") {
				next := slot{by: certs.Draw(t, "by")}
				for range rapid.IntRange(0, 3).Draw(t, "carried") {
					next.carried = append(next.carried, additionBy(rapid.SampledFrom([]string{"pk", "kek", "kek-2", "stranger"}).Draw(t, "signer"), rapid.SampledFrom([]string{"KEK", "db", "dbx"}).Draw(t, "list"),
						rapid.SampledFrom([]string{"db-1", "db-2", "db-3", "kek-2"}).Draw(t, "cert")))
				}
				w.slots[1-w.running] = next
				if err = k.BeforeTrial(t.Context()); err == nil {
					starts, opens := w.start(1 - w.running)
					if !starts || !opens {
						t.Fatalf("the release that is to be tried: starts %v, state opens %v", starts, opens)
					}
				}
			} else {
				err = k.Settle(t.Context())
			}
			// The power may go at any time, and the firmware may then start either slot.
			n := rapid.IntRange(0, 1).Draw(t, "slot")
			ran := w.running
			if starts, opens := w.start(n); n == ran && !starts {
				t.Fatal("the slot that ran does not start any more")
			} else if starts && !opens && (n == ran || err == nil) {
				t.Fatalf("slot %d starts (%d ran), and its state does not open: %v", n, ran, err)
			} else if !starts || !opens {
				w.start(ran) // the firmware goes on to the other
			}
		}
	})
}

// TestRotationStory is the way that people mean: a release with the new key's addition, one signed by that, one that
// revokes the old key.
func TestRotationStory(t *testing.T) {
	w := newWorld()
	k := w.keeper()
	w.left = -1
	update := func(by string, carried ...efi.Append) {
		t.Helper()
		w.slots[1-w.running] = slot{by, carried}
		if err := k.BeforeTrial(t.Context()); err != nil {
			t.Fatal(err)
		}
		if starts, opens := w.start(1 - w.running); !starts || !opens {
			t.Fatalf("starts %v, opens %v", starts, opens)
		}
		if err := k.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	again := func() {
		t.Helper()
		if starts, opens := w.start(w.running); !starts || !opens {
			t.Fatalf("starts %v, opens %v", starts, opens)
		}
		if err := k.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.slots[1] = slot{by: "db-2"}
	if err := k.BeforeTrial(t.Context()); err == nil {
		t.Error("a release is tried that the firmware would not start")
	}
	more, less := addition("db", "db-2"), addition("dbx", "db-1")
	update("db-1", more)
	again()
	update("db-2", more, less)
	if len(w.lists["dbx"]) > 0 {
		t.Error("the other slot's key is revoked: there is no way back")
	}
	again()
	update("db-2", more, less)
	if !slices.Equal(w.lists["dbx"], []string{"db-1"}) {
		t.Errorf("dbx holds %v", w.lists["dbx"])
	}
	again()
	w.slots[1-w.running] = slot{by: "db-1"}
	if err := k.BeforeTrial(t.Context()); err == nil {
		t.Error("a release of the old key is tried")
	}
	if n := len(w.sealed); n > 2 {
		t.Errorf("sealed to %d values", n)
	}
}

// TestNewKEK: another key comes into KEK when PK signed it, and from then on what it signs comes into db; what somebody
// else signed is not handed to the firmware, and keeps nothing else from coming.
func TestNewKEK(t *testing.T) {
	w := newWorld()
	w.left = -1
	w.slots[0].carried = []efi.Append{additionBy("stranger", "KEK", "kek-3"), additionBy("kek", "KEK", "kek-3"), additionBy("kek-2", "dbx", "db-3"),
		additionBy("pk", "KEK", "kek-2"), additionBy("kek-2", "db", "db-2"), additionBy("stranger", "db", "db-3"), additionBy("pk", "db", "db-3")}
	if err := w.keeper().Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{"PK": {"pk"}, "KEK": {"kek", "kek-2"}, "db": {"vendor", "db-1", "db-2"}, "dbx": nil} {
		if !slices.Equal(w.lists[name], want) {
			t.Errorf("%s holds %v", name, w.lists[name])
		}
	}
	for range 2 { // the state opens, and what waited for the new KEK comes
		if starts, opens := w.start(0); !starts || !opens {
			t.Fatalf("starts %v, opens %v", starts, opens)
		}
		if err := w.keeper().Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(w.lists["dbx"], []string{"db-3"}) {
		t.Errorf("dbx holds %v", w.lists["dbx"])
	}
}

// TestCuts cuts the power after each effect in turn.
func TestCuts(t *testing.T) {
	for left := range 10 {
		w := newWorld()
		w.slots[0].carried, w.left = []efi.Append{addition("KEK", "kek-2"), addition("db", "db-2"), addition("dbx", "db-3")}, left
		_ = w.keeper().Settle(t.Context())
		for n := range w.slots {
			if starts, opens := w.start(n); !starts || !opens {
				t.Errorf("slot %d after %d effects: starts %v, opens %v", n, left, starts, opens)
			}
		}
	}
}

// TestOddFirmware puts lists together in a way of its own: the state is sealed for that before the next start.
func TestOddFirmware(t *testing.T) {
	w := newWorld()
	w.odd, w.slots[0].carried, w.left = true, []efi.Append{addition("db", "db-2")}, -1
	if err := w.keeper().Settle(t.Context()); err == nil {
		t.Error("nobody hears of it")
	}
	if starts, opens := w.start(0); !starts || !opens {
		t.Errorf("starts %v, opens %v", starts, opens)
	}
}

// TestWithoutTPM: there is nothing to foretell, and the keys change all the same.
func TestWithoutTPM(t *testing.T) {
	w := newWorld()
	w.blind, w.sealed, w.slots[0].carried, w.left = true, nil, []efi.Append{addition("db", "db-2")}, -1
	if err := w.keeper().Settle(t.Context()); err != nil || !slices.Contains(w.lists["db"], "db-2") {
		t.Error(w.lists, err)
	}
}

// TestOrderCounts: without a check, or with the writes before the seal, a box would be shut or bricked.
func TestOrderCounts(t *testing.T) {
	const test = "^(TestCuts|TestRotationStory|TestNewKEK)$"
	none, order := "	if len(p.PCR7) == 0 {", "	if err := k.foretell(ctx, p); err != nil {\n		return err\n	}\n	for _, w := range p.Writes {"
	mutation.Prove(t, append(mutation.Marked(t, test, "firmware.go"),
		mutation.Check{Name: "sealed", Test: test, File: "firmware.go", From: none, To: "	if GONE || len(p.PCR7) == 0 {"},
		mutation.Check{Name: "sealed first", Test: test, File: "firmware.go", From: order,
			To: "	for _, w := range p.Writes {\n		if GONE {\n			if err := k.write(ctx, w); err != nil {\n				return err\n			}\n		}\n	}\n" + order})...)
}
