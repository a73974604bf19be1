package record

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

var update = flag.Bool("update", false, "write the golden bytes anew")

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var dev = api.DeviceID{1, 2, 3, 4, 5, 6, 7, 8}

func run(first uint64, payloads ...string) []Record {
	var rs []Record
	for i, p := range payloads {
		n := first + uint64(i)
		rs = append(rs, Record{Seq: n, Last: n, Kind: api.RecordEvent, Payload: []byte(p)})
	}
	return rs
}

func drawRecords(t *rapid.T, first uint64) []Record {
	n := rapid.IntRange(1, 20).Draw(t, "n")
	rs := make([]Record, 0, n)
	for range n {
		last := first
		if rapid.IntRange(0, 4).Draw(t, "summed") == 0 {
			last += rapid.Uint64Range(0, 1000).Draw(t, "span")
		}
		r := Record{Seq: first, Last: last, Kind: api.RecordKind(rapid.IntRange(1, 4).Draw(t, "kind"))}
		r.Payload = rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "payload")
		if rapid.IntRange(0, 9).Draw(t, "lost") == 0 {
			r = LostRange(first, last, Hash{byte(n), 7})
		}
		if r.Stands() {
			r.End = Hash{byte(n), 7}
		}
		rs = append(rs, r)
		first = last + 1
	}
	return rs
}

func TestSealOpenGiveTheSameBatch(t *testing.T) {
	key := newKey(t)
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint64Range(1, 1<<40).Draw(t, "first")
		rs := drawRecords(t, first)
		b := Batch{Epoch: rapid.Uint64().Draw(t, "epoch"), First: first, Last: rs[len(rs)-1].Last, Records: rs,
			Prev: Hash{9, byte(first)}, Explicit: rapid.Bool().Draw(t, "explicit")}
		raw, end, err := Seal(By(key), dev, b)
		if err != nil {
			t.Fatal(err)
		}
		got, gotEnd, err := Open(Of(key.Public()), raw, dev, b.Prev)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got.Records {
			if len(got.Records[i].Payload) == 0 {
				got.Records[i].Payload = b.Records[i].Payload
			}
		}
		if !reflect.DeepEqual(*got, b) || end != gotEnd {
			t.Fatalf("got %+v, want %+v", *got, b)
		}
		h, err := Peek(raw)
		if err != nil || h.First != b.First || h.Last != b.Last || h.Epoch != b.Epoch || h.Explicit != b.Explicit || h.Size != len(raw) {
			t.Fatalf("peek: %+v, %v", h, err)
		}
	})
}

// Any cut of the same records ends in the same chain value; any change of a record
// ends in another.
func TestChainIsOfRecordsNotOfBatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := drawRecords(t, 1)
		at := rapid.IntRange(0, len(rs)).Draw(t, "cut")
		whole := Chain(Hash{1}, rs)
		if got := Chain(Chain(Hash{1}, rs[:at]), rs[at:]); got != whole {
			t.Fatalf("cut at %d: %x, want %x", at, got, whole)
		}
		i := rapid.IntRange(0, len(rs)-1).Draw(t, "changed")
		for _, r := range rs[i:] {
			if r.Stands() {
				return
			}
		}
		rs[i].Payload = append(bytes.Clone(rs[i].Payload), 'x')
		if Chain(Hash{1}, rs) == whole {
			t.Fatal("a changed record left the chain as it was")
		}
	})
}

func TestOpenRefusesWhatTheDeviceDidNotSign(t *testing.T) {
	key, other := newKey(t), newKey(t)
	b := Batch{Epoch: 5, First: 7, Last: 9, Prev: Hash{1}, Records: run(7, "a", "b", "c")}
	short, _, err := Seal(By(key), dev, b)
	if err != nil {
		t.Fatal(err)
	}
	b.Explicit = true
	long, _, err := Seal(By(key), dev, b)
	if err != nil {
		t.Fatal(err)
	}
	if len(long) != len(short)+len(Hash{}) {
		t.Errorf("explicit batch has %d bytes, short one %d", len(long), len(short))
	}
	check := func(name string, raw []byte, v Verifier, d api.DeviceID, prev Hash, want error) {
		t.Helper()
		if _, _, err := Open(v, raw, d, prev); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	check("right", short, Of(key.Public()), dev, Hash{1}, nil)
	check("right, explicit", long, Of(key.Public()), dev, Hash{77}, nil)
	check("other key", short, Of(other.Public()), dev, Hash{1}, ErrSignature)
	check("other device", short, Of(key.Public()), api.DeviceID{9}, Hash{1}, ErrSignature)
	check("other chain", short, Of(key.Public()), dev, Hash{2}, ErrSignature)
	for i := range long {
		bad := bytes.Clone(long)
		bad[i] ^= 0x10
		if _, _, err := Open(Of(key.Public()), bad, dev, Hash{1}); err == nil {
			t.Fatalf("byte %d flipped went unseen", i)
		}
	}
}

// A batch that is signed and unreadable tells its range, so that it can be set
// aside and acknowledged.
func TestPoisonNamesItsRange(t *testing.T) {
	key := newKey(t)
	for name, w := range map[string]wireBatch{
		"packing": {Version: Version, Epoch: 3, First: 10, Span: 5, Packing: 99, Body: []byte{0x80}},
		"body":    {Version: Version, Epoch: 3, First: 10, Span: 5, Packing: packPlain, Body: []byte("junk")},
		"zstd":    {Version: Version, Epoch: 3, First: 10, Span: 5, Packing: packZstd, Body: []byte("junk")},
		"columns": {Version: Version, Epoch: 3, First: 10, Span: 5, Packing: packColumns, Body: []byte("junk")},
		"numbers": {Version: Version, Epoch: 3, First: 10, Span: 5, Packing: packPlain, Body: []byte{0x81, 0x84, 1, 0, 0x40, 0x40}},
	} {
		w.Prev = nil
		payload, err := encMode().Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := By(key)(batchAAD(dev, Hash{1}, false), payload)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = Open(Of(key.Public()), raw, dev, Hash{1})
		var p *PoisonError
		if !errors.As(err, &p) || p.Header.First != 10 || p.Header.Last != 15 || p.Header.Epoch != 3 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBoundsHold(t *testing.T) {
	key := newKey(t)
	big := strings.Repeat("x", MaxPayload+1)
	if _, _, err := Seal(By(key), dev, Batch{First: 1, Last: 1, Records: run(1, big)}); !errors.Is(err, ErrMalformed) {
		t.Errorf("payload of %d bytes: %v", len(big), err)
	}
	if _, err := Peek(make([]byte, MaxBatch+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("batch of %d bytes: %v", MaxBatch+1, err)
	}
	noise := make([]byte, 60<<10)
	var rs []Record
	for i := range 10 {
		_, _ = rand.Read(noise)
		n := uint64(i + 1)
		rs = append(rs, Record{Seq: n, Last: n, Kind: 4, Payload: bytes.Clone(noise)})
	}
	if _, _, err := Seal(By(key), dev, Batch{First: 1, Last: 10, Records: rs}); api.CodeOf(err) != api.TooLarge {
		t.Errorf("600 kB of noise: %v", err)
	}
	// A bomb: a megabyte frame that expands past the bound.
	z, ok := squeeze(make([]byte, MaxBody*4))
	if !ok {
		t.Fatal("zeros do not compress?")
	}
	if _, err := expand(z); err == nil {
		t.Error("a bomb went off")
	}
}

func TestAck(t *testing.T) {
	key := newKey(t)
	own := Hash{4, 5, 6}
	chainAt := func(epoch, seq uint64) (Hash, bool) { return own, epoch == 3 && seq == 12 }
	rapid.Check(t, func(t *rapid.T) {
		a := Ack{CoreEpoch: rapid.Uint64().Draw(t, "core"), SpoolEpoch: 3, Acked: 12, Hash: own,
			Safe: rapid.Uint64Range(0, 12).Draw(t, "safe"), Generation: rapid.Uint64().Draw(t, "gen"),
			Time: rapid.Int64().Draw(t, "time"), StateSeq: rapid.Uint64().Draw(t, "state"), StateEpoch: rapid.Uint64().Draw(t, "state epoch"), Explicit: rapid.Bool().Draw(t, "explicit")}
		raw, err := SealAck(By(key), dev, a)
		if err != nil {
			t.Fatal(err)
		}
		got, err := OpenAck(Of(key.Public()), raw, dev, chainAt)
		if err != nil || *got != a {
			t.Fatalf("%+v, %v; want %+v", got, err, a)
		}
	})
	forked := Ack{SpoolEpoch: 3, Acked: 12, Hash: Hash{66}}
	raw, err := SealAck(By(key), dev, forked)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAck(Of(key.Public()), raw, dev, chainAt); !errors.Is(err, ErrSignature) {
		t.Errorf("short acknowledgement of another chain: %v", err)
	}
	if _, err := OpenAck(Of(newKey(t).Public()), raw, dev, chainAt); !errors.Is(err, ErrSignature) {
		t.Errorf("another signer: %v", err)
	}
	if _, err := OpenAck(Of(key.Public()), raw, api.DeviceID{1}, chainAt); !errors.Is(err, ErrSignature) {
		t.Errorf("to another device: %v", err)
	}
	// An acknowledgement is no batch, and the reverse, though one key could sign both.
	if _, _, err := Open(Of(key.Public()), raw, dev, Hash{}); err == nil {
		t.Error("an acknowledgement was read as a batch")
	}
}

// tag is a signer whose bytes never change: for golden bytes alone.
func tag(_, payload []byte) ([]byte, error) {
	type message struct {
		_           struct{} `cbor:",toarray"`
		Protected   []byte
		Unprotected map[int]int
		Payload     []byte
		Signature   []byte
	}
	m, err := encMode().Marshal(message{Protected: []byte{0xa1, 0x01, 0x26}, Unprotected: map[int]int{}, Payload: payload, Signature: make([]byte, 64)})
	return append([]byte{0xd2}, m...), err
}

func untag(raw, _ []byte) ([]byte, error) { return cosePayload(raw) }

// The bytes on the wire stay what they were: a device in the field and a newer core
// must understand each other. Run with -update after a deliberate change of Version.
func TestGoldenBytes(t *testing.T) {
	u := UsageRecord(t, 21, 3)
	for name, make := range map[string]func() ([]byte, error){
		"batch-plain.hex": func() ([]byte, error) {
			raw, _, err := Seal(tag, dev, Batch{Epoch: 1764000000, First: 7, Last: 8, Prev: Hash{1}, Records: run(7, "one", "two")})
			return raw, err
		},
		"batch-zstd.hex": func() ([]byte, error) {
			raw, _, err := Seal(tag, dev, Batch{Epoch: 1764000000, First: 7, Last: 8, Prev: Hash{1}, Explicit: true, Records: run(7, strings.Repeat("one ", 50), strings.Repeat("two ", 50))})
			return raw, err
		},
		"batch-lost.hex": func() ([]byte, error) {
			raw, _, err := Seal(tag, dev, Batch{Epoch: 1, First: 3, Last: 9, Records: []Record{LostRange(3, 9, Hash{0xaa})}})
			return raw, err
		},
		"batch-usage.hex": func() ([]byte, error) {
			raw, _, err := Seal(tag, dev, Batch{Epoch: 1764000000, First: 21, Last: 21, Records: []Record{u}})
			return raw, err
		},
		"batch-cuts.hex": func() ([]byte, error) {
			cut, err := u.Usage()
			if err != nil {
				return nil, err
			}
			cut.Cut = true
			r := u
			if r.Payload, err = EncodeUsage(cut); err != nil {
				return nil, err
			}
			raw, _, err := Seal(tag, dev, Batch{Epoch: 1764000000, First: 21, Last: 21, Records: []Record{r}})
			return raw, err
		},
		"ack-short.hex": func() ([]byte, error) {
			return SealAck(tag, dev, Ack{CoreEpoch: 2, SpoolEpoch: 1764000000, Acked: 300, Safe: 250, Generation: 17, Time: 1764000900, StateEpoch: 3, StateSeq: 40})
		},
		"ack-explicit.hex": func() ([]byte, error) {
			return SealAck(tag, dev, Ack{CoreEpoch: 2, SpoolEpoch: 1764000000, Acked: 300, Safe: 250, Generation: 17, Time: 1764000900, StateEpoch: 3, StateSeq: 40, Explicit: true, Hash: Hash{1, 2, 3}})
		},
	} {
		got, err := make()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		path := filepath.Join("testdata", "golden", name)
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(hex.EncodeToString(got)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) && name != "batch-zstd.hex" { // a compressor may improve; what it wrote must stay readable
			t.Errorf("%s: %x, want %x", name, got, want)
		}
		if strings.HasPrefix(name, "batch") {
			if _, _, err := Open(untag, want, dev, Hash{1}); err != nil {
				t.Errorf("%s is not readable any more: %v", name, err)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, b := range []Batch{
		{Epoch: 1, First: 7, Last: 8, Records: run(7, "one", "two")},
		{Epoch: 1, First: 7, Last: 8, Explicit: true, Records: run(7, strings.Repeat("one ", 50), "two")},
		{Epoch: 1, First: 3, Last: 9, Records: []Record{LostRange(3, 9, Hash{0xaa})}},
		{Epoch: 1, First: 3, Last: 3, Records: []Record{UsageRecord(f, 3, 10)}},
	} {
		raw, _, err := Seal(tag, dev, b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, end, err := Open(untag, raw, dev, Hash{1})
		if err != nil {
			return
		}
		if err := b.Check(); err != nil {
			t.Fatalf("Open let through: %v", err)
		}
		again, end2, err := Seal(tag, dev, *b)
		if api.CodeOf(err) == api.TooLarge {
			return
		}
		if err != nil || end != end2 {
			t.Fatalf("not sealable again: %v", err)
		}
		if _, end3, err := Open(untag, again, dev, b.Prev); err != nil || end3 != end {
			t.Fatalf("not readable again: %v", err)
		}
	})
}

func FuzzOpenAck(f *testing.F) {
	for _, a := range []Ack{{Acked: 3, SpoolEpoch: 1, Safe: 2}, {Acked: 9, Explicit: true, Hash: Hash{1}}} {
		raw, err := SealAck(tag, dev, a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := OpenAck(untag, raw, dev, func(uint64, uint64) (Hash, bool) { return Hash{1}, true })
		if err == nil && a.Safe > a.Acked {
			t.Fatalf("safe past acknowledged: %+v", a)
		}
	})
}
