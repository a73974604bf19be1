package link

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

var update = flag.Bool("update", false, "write the golden frames anew")

var golden = api.DeviceID{1, 2, 3, 4, 5, 6, 7, 8}

// frames are one of each shape, as they were when the version began.
func frames() map[string][]byte {
	row := &row{id: golden, state: version{1764000000, 12}, entries: map[string]*item{}, lost: 2}
	add := func(key string, value []byte, seq uint64, extra []byte) {
		row.entries[key] = &item{Entry: Entry{Key: key, Value: value, Seq: seq, MAC: [8]byte{9, 9, 9}, Deleted: value == nil, Extra: extra}, feed: seq}
	}
	add("app/web", []byte{0xa0}, 10, nil)
	add("gone", nil, 11, nil)
	add("later", []byte{1}, 12, []byte{0x18, 0x2a, 0x61, 'x'}) // two fields of a later version
	row.att = Attachment{Device: golden, Counter: 3}
	body := putUint(putUint(putMessage(nil, upHello, 6), 7), 1000)
	body = putUint(putUint(putUint(putUint(body, 8), 20), 1<<63+5), 0)
	claim := putClaim(nil, claimOf(row))
	return map[string][]byte{
		"hello":  packFrame(body),
		"state":  packFrame(putGroup(putUint(putUint(putMessage(nil, upState, 3), 9), 3), row, 12, 9, row.since(9))),
		"whole":  packFrame(putPatch(row, 0)),
		"rows":   packFrame(putBytes(putUint(putUint(putUint(putUint(putMessage(nil, upRows, 5), 4), 12), 0), 1), claim)),
		"ack":    AckFrame(golden, []byte("signed")),
		"folded": packFrame(bytes.Repeat(putPatch(row, 0), 8)),
	}
}

func TestGoldenFrames(t *testing.T) {
	for name, got := range frames() {
		path := filepath.Join("testdata", "golden", name+".hex")
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(hex.EncodeToString(got)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(strings.TrimSpace(string(want)))
		if err != nil {
			t.Fatal(err)
		}
		msgs, err := splitFrame(b)
		if err != nil || len(msgs) == 0 {
			t.Errorf("%s: an old frame is no longer read: %v", name, err)
		}
		if name != "folded" && !bytes.Equal(b, got) {
			t.Errorf("%s: frames have changed their form: bump frameVersion\n got %x\nwant %x", name, got, b)
		}
		for _, m := range msgs {
			if err := cbor.Wellformed(m.raw); err != nil {
				t.Errorf("%s: not CBOR: %v", name, err)
			}
		}
	}
}

// Fields that this version does not know cross a relay byte for byte.
func TestUnknownFieldsAreCarried(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var extra []byte
		n := rapid.IntRange(0, 5).Draw(t, "fields")
		for range n {
			b, err := cbor.Marshal(rapid.OneOf(rapid.Just(any("text")), rapid.Just(any(7)), rapid.Just(any([]any{1, "x", map[int]int{1: 2}}))).Draw(t, "field"))
			if err != nil {
				t.Fatal(err)
			}
			extra = append(extra, b...)
		}
		top := rapid.Uint64Range(1, 1<<40).Draw(t, "top")
		e := Entry{Key: rapid.StringN(1, 20, 40).Draw(t, "key"), Seq: rapid.Uint64Range(1, top).Draw(t, "seq"), Extra: extra, Deleted: rapid.Bool().Draw(t, "deleted")}
		if !e.Deleted {
			e.Value = append([]byte{}, rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "value")...)
		}
		b := putEntry(nil, &e, top)
		r := reader{b: b}
		got := r.entry(top)
		if r.err != nil || len(r.b) != 0 || !bytes.Equal(putEntry(nil, &got, top), b) {
			t.Fatalf("%+v came back as %+v: %v", e, got, r.err)
		}
	})
}

func TestBoundsOfFrames(t *testing.T) {
	deep := append([]byte{frameVersion}, bytes.Repeat([]byte{0x81}, 100)...)
	deep = append(deep, 0)
	bomb := packFrame(make([]byte, MaxBody+1<<20))
	for name, f := range map[string][]byte{
		"empty": {}, "version": {0x20, 0x81, 1}, "deep": deep, "bomb": bomb, "big": make([]byte, MaxFrame+1),
		"indefinite": {frameVersion, 0x9f, 1, 0xff}, "long array": {frameVersion, 0x9a, 0xff, 0xff, 0xff, 0xff, 1},
		"long string": {frameVersion, 0x82, 1, 0x5a, 0xff, 0xff, 0xff, 0xff},
	} {
		if _, err := splitFrame(f); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// FuzzFromParent and FuzzFromChild feed a relay whatever comes: it may refuse, and must
// neither fall over nor grow.
func FuzzFromParent(f *testing.F) {
	for _, b := range frames() {
		f.Add(b)
	}
	for typ := uint64(1); typ <= downGreet; typ++ {
		f.Add(packFrame(putUint(putUint(putMessage(nil, typ, 2), 1), 1)))
		f.Add(packFrame(putID(putArray(putMessage(nil, typ, 1), 1), golden)))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		now := time.Unix(1_764_000_000, 0)
		r := fuzzRelay(t, now)
		r.ParentUp(now, api.DeviceID{})
		r.FromParent(now, packFrame(putUint(putUint(putMessage(nil, downWelcome, 2), 5), 1)))
		r.FromParent(now, frame)
		r.Tick(now.Add(time.Minute))
		checkFuzzed(t, r)
	})
}

func FuzzFromChild(f *testing.F) {
	for _, b := range frames() {
		f.Add(b)
	}
	for typ := uint64(1); typ <= upSince; typ++ {
		f.Add(packFrame(putUint(putUint(putMessage(nil, typ, 2), 1), 1)))
		f.Add(packFrame(putID(putArray(putMessage(nil, typ, 1), 1), golden)))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		now := time.Unix(1_764_000_000, 0)
		r := fuzzRelay(t, now)
		r.ChildUp(now, golden, nil)
		r.FromChild(now, golden, frames()["hello"])
		r.FromChild(now, golden, frame)
		r.Tick(now.Add(time.Minute))
		checkFuzzed(t, r)
	})
}

func checkFuzzed(t *testing.T, r *Relay) {
	t.Helper()
	if eff := r.Take(); len(eff.Up)+len(eff.Down) > 64 {
		t.Errorf("one frame led to %d up and %d down", len(eff.Up), len(eff.Down))
	}
	if h := r.Held(); h.Rows > 64 || h.Waiting > maxWaiting {
		t.Errorf("one frame made it hold %+v", h)
	}
}
