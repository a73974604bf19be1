package manifest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// oneKey is a set of one signer.
type oneKey struct{ *ecdsa.PublicKey }

func (k oneKey) SignerKey(kid []byte) (crypto.PublicKey, bool) {
	return k.PublicKey, bytes.Equal(kid, identity.KID(k.PublicKey))
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var device = api.DeviceID{1, 2, 3, 4, 5, 6, 7, 8}

func sample() Manifest {
	d := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	return Manifest{Version: 1, Device: device, Tenant: "default", Name: "box-1", Epoch: 3, Generation: 7, Time: 1_795_000_000,
		Items: map[string]Item{
			"app/web":        {Gen: 7, Refs: []Ref{{Repo: "default/web", Digest: d("a"), Size: 512}, {Repo: "default/nginx", Digest: d("b")}}},
			"config/web":     {Gen: 2, Body: []byte{0xa0}},
			"secret/db":      {Gen: 5, Body: []byte("sealed")},
			"setting/device": {Gen: 1, Body: []byte{0xa0}},
		}}
}

func TestSignOpen(t *testing.T) {
	key := newKey(t)
	s, err := Sign(sample(), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(s.Raw, oneKey{&key.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got.Manifest) != fmt.Sprint(sample()) {
		t.Fatalf("got %v", got.Manifest)
	}
	if _, err := Open(s.Raw, oneKey{&newKey(t).PublicKey}); !errors.Is(err, identity.ErrUnknownSigner) {
		t.Fatalf("foreign signer: %v", err)
	}
	for i := range s.Raw { // no byte can be altered
		bad := bytes.Clone(s.Raw)
		bad[i] ^= 1
		if _, err := Open(bad, oneKey{&key.PublicKey}); err == nil {
			t.Fatalf("byte %d altered and accepted", i)
		}
	}
	other, err := identity.SignKID(key, identity.KID(&key.PublicKey), []byte("tributary/other"), payloadOf(t, s))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(other, oneKey{&key.PublicKey}); !errors.Is(err, identity.ErrSignature) {
		t.Fatalf("signature of another purpose: %v", err)
	}
	if n := s.Manifest.AppNames(); len(n) != 1 || n[0] != "web" {
		t.Fatalf("apps %v", n)
	}
	if r := s.Manifest.Refs(); len(r) != 2 || r[0].Repo != "default/web" {
		t.Fatalf("refs %v", r)
	}
}

func payloadOf(t *testing.T, s *Signed) []byte {
	p, err := identity.Payload(s.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The payload's bytes are a contract with devices in the field.
func TestGolden(t *testing.T) {
	const path = "testdata/manifest-v1.hex"
	key := newKey(t)
	s, err := Sign(sample(), key, []byte("kid"))
	if err != nil {
		t.Fatal(err)
	}
	got := hex.EncodeToString(payloadOf(t, s))
	if os.Getenv("GOLDEN") != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != strings.TrimSpace(string(want)) {
		t.Fatalf("the manifest's bytes changed:\n got %s\nwant %s\nA new form needs a new version; GOLDEN=1 rewrites the file.", got, want)
	}
}

func TestRefuses(t *testing.T) {
	key := newKey(t)
	cases := map[string]func(*Manifest){
		"generation is 0":           func(m *Manifest) { m.Generation = 0 },
		"version 2":                 func(m *Manifest) { m.Version = 2 },
		"names no device":           func(m *Manifest) { m.Device = api.DeviceID{} },
		"changed at generation 8":   func(m *Manifest) { m.Items["app/web"] = Item{Gen: 8} },
		"changed at generation 0":   func(m *Manifest) { m.Items["app/web"] = Item{} },
		"item key of 0":             func(m *Manifest) { m.Items[""] = Item{Gen: 1} },
		"not sha256":                func(m *Manifest) { m.Items["app/web"] = Item{Gen: 1, Refs: []Ref{{Repo: "a", Digest: "md5:00"}}} },
		"items, more than":          func(m *Manifest) { m.Items = many(MaxItems + 1) },
		"more than 1048576":         func(m *Manifest) { m.Items["config/x"] = Item{Gen: 1, Body: make([]byte, MaxBytes)} },
		"without a proper reposito": func(m *Manifest) { m.Items["app/web"] = Item{Gen: 1, Refs: []Ref{{Digest: "sha256:"}}} },
	}
	for want, change := range cases {
		m := sample()
		change(&m)
		if _, err := Sign(m, key, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	m := sample()
	m.Items = many(MaxItems)
	if s, err := Sign(m, key, nil); err != nil {
		t.Errorf("%d items: %v", MaxItems, err)
	} else if d, ok := s.Since(0, nil); !ok {
		t.Error("no delta")
	} else if _, err := Apply(nil, d); err != nil {
		t.Error(err)
	}
}

func many(n int) map[string]Item {
	items := map[string]Item{}
	for i := range n {
		items[fmt.Sprintf("config/%d", i)] = Item{Gen: 1, Body: []byte{0xa0}}
	}
	return items
}

// A newer core's fields pass through an older relay untouched.
func TestUnknownFieldsSurvive(t *testing.T) {
	key := newKey(t)
	s, err := Sign(sample(), key, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := s.parts
	p.head, p.items = maps.Clone(p.head), maps.Clone(p.items)
	p.head[99] = cbor.RawMessage{0x82, 0x01, 0x61, 0x78}
	p.items["model/new"] = cbor.RawMessage{0xa2, 0x01, 0x07, 0x18, 0x63, 0x81, 0xf5} // {1: 7, 99: [true]}
	payload, err := p.payload()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := identity.SignKID(key, identity.KID(&key.PublicKey), []byte(Purpose), payload)
	if err != nil {
		t.Fatal(err)
	}
	newer, err := Open(raw, oneKey{&key.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	for base := range uint64(8) {
		got, err := Apply(cut(t, key, newer, base), mustSince(t, newer, base))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Raw, raw) {
			t.Fatal("other bytes")
		}
	}
}

func mustSince(t *testing.T, s *Signed, base uint64) []byte {
	d, ok := s.Since(base, nil)
	if !ok {
		t.Fatalf("no delta from %d", base)
	}
	return d
}

// cut makes the manifest that s was at generation gen, nil for 0.
func cut(t *testing.T, key *ecdsa.PrivateKey, s *Signed, gen uint64) *Signed {
	if gen == 0 {
		return nil
	}
	p := s.parts
	p.head, p.items = maps.Clone(p.head), map[string]cbor.RawMessage{}
	p.head[6], _ = encMode.Marshal(gen)
	for k, it := range s.Manifest.Items {
		if it.Gen <= gen {
			p.items[k] = s.parts.items[k]
		}
	}
	payload, err := p.payload()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := identity.SignKID(key, nil, []byte(Purpose), payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// history is a device's manifests as the core rendered them, with the tombstones that
// it keeps.
type history struct {
	all        []*Signed // all[g-1] is generation g
	tombstones map[string]uint64
}

func drawHistory(t *rapid.T, key *ecdsa.PrivateKey) history {
	h := history{tombstones: map[string]uint64{}}
	items := map[string]Item{}
	keyGen := rapid.SampledFrom([]string{"app/a", "app/b", "config/a", "config/b", "secret/a", "setting/device", "x/é"})
	n := rapid.IntRange(1, 6).Draw(t, "generations")
	for g := uint64(1); g <= uint64(n); g++ {
		for range rapid.IntRange(0, 3).Draw(t, "changes") {
			k := keyGen.Draw(t, "key")
			if _, there := items[k]; there && rapid.Bool().Draw(t, "remove") {
				delete(items, k)
				h.tombstones[k] = g
				continue
			}
			it := Item{Gen: g, Body: rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "body")}
			if rapid.Bool().Draw(t, "ref") {
				sum := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "digest")
				it.Refs = []Ref{{Repo: "r", Digest: "sha256:" + hex.EncodeToString(sum), Size: rapid.Int64Range(0, 1<<40).Draw(t, "size")}}
			}
			items[k] = it
			delete(h.tombstones, k)
		}
		s, err := Sign(Manifest{Version: 1, Device: device, Tenant: "t", Name: "n", Epoch: 1, Generation: g, Time: int64(g), Items: maps.Clone(items)}, key, nil)
		if err != nil {
			t.Fatal(err)
		}
		h.all = append(h.all, s)
	}
	return h
}

// Since and Apply rebuild Raw bit for bit from any base, from any base between the
// delta's and its result, and from nothing; any other base is refused.
func TestSinceApplyRebuilds(t *testing.T) {
	key := newKey(t)
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t, key)
		last := h.all[len(h.all)-1]
		from := uint64(rapid.IntRange(0, len(h.all)).Draw(t, "from"))
		delta, ok := last.Since(from, h.tombstones)
		if !ok {
			t.Fatal("no delta")
		}
		dev, epoch, base, gen, err := DeltaHeader(delta)
		if err != nil || dev != device || epoch != 1 || base != from || gen != uint64(len(h.all)) {
			t.Fatalf("header %v %d %d %d %v", dev, epoch, base, gen, err)
		}
		for i, b := range h.all {
			got, err := Apply(b, delta)
			if uint64(i+1) < from {
				if !errors.Is(err, ErrBase) {
					t.Fatalf("base %d accepted for a delta from %d: %v", i+1, from, err)
				}
				continue
			}
			if err != nil || !bytes.Equal(got.Raw, last.Raw) {
				t.Fatalf("base %d, delta from %d: %v", i+1, from, err)
			}
			if _, err := Open(got.Raw, oneKey{&key.PublicKey}); err != nil {
				t.Fatal(err)
			}
			d, err := Diff(b, last)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Apply(b, d); err != nil || !bytes.Equal(got.Raw, last.Raw) {
				t.Fatalf("diff from %d: %v", i+1, err)
			}
		}
		if got, err := Apply(nil, delta); (err == nil) != (from == 0) || err == nil && !bytes.Equal(got.Raw, last.Raw) {
			t.Fatalf("from nothing with a delta from %d: %v", from, err)
		}
	})
}

func TestApplyRefusesWrongBase(t *testing.T) {
	key := newKey(t)
	m := sample()
	target, err := Sign(m, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	delta := mustSince(t, target, 6)
	sign := func(change func(*Manifest)) *Signed {
		b := sample()
		b.Generation = 6
		b.Items["app/web"] = Item{Gen: 1}
		change(&b)
		s, err := Sign(b, key, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if _, err := Apply(sign(func(*Manifest) {}), delta); err != nil {
		t.Fatalf("the right base: %v", err)
	}
	for name, base := range map[string]*Signed{
		"nothing":       nil,
		"other device":  sign(func(m *Manifest) { m.Device[0]++ }),
		"other epoch":   sign(func(m *Manifest) { m.Epoch++ }),
		"older":         sign(func(m *Manifest) { m.Generation = 5 }),
		"newer":         sign(func(m *Manifest) { m.Generation = 8 }),
		"other content": sign(func(m *Manifest) { m.Items["config/web"] = Item{Gen: 2, Body: []byte("x")} }),
	} {
		if _, err := Apply(base, delta); !errors.Is(err, ErrBase) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, ok := target.Since(8, nil); ok {
		t.Error("a delta from a newer generation")
	}
	if _, ok := target.Since(3, map[string]uint64{Floor: 4}); ok {
		t.Error("a delta past the tombstones' memory")
	}
	if _, ok := target.Since(4, map[string]uint64{Floor: 4}); !ok {
		t.Error("no delta from the tombstones' floor")
	}
}

func TestNewer(t *testing.T) {
	for _, c := range []struct {
		ea, ga, eb, gb uint64
		want           bool
	}{{1, 2, 1, 1, true}, {1, 1, 1, 1, false}, {2, 1, 1, 9, true}, {1, 9, 2, 1, false}} {
		if got := Newer(c.ea, c.ga, c.eb, c.gb); got != c.want {
			t.Errorf("%v", c)
		}
	}
}

func FuzzParse(f *testing.F) {
	key := newKey(f)
	s, err := Sign(sample(), key, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Raw)
	f.Add([]byte{tagSign1, 0x84, 0x40, 0xa0, 0x40, 0x40})
	f.Add(bytes.Repeat([]byte{0x81}, 200))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Parse(raw)
		if err != nil {
			return
		}
		d, ok := s.Since(0, nil)
		if !ok {
			t.Fatal("no full delta of what parses")
		}
		again, err := Apply(nil, d)
		if err != nil || !bytes.Equal(again.Raw, raw) {
			t.Fatalf("does not come back: %v", err)
		}
	})
}

func FuzzApply(f *testing.F) {
	key := newKey(f)
	s, err := Sign(sample(), key, nil)
	if err != nil {
		f.Fatal(err)
	}
	for base := range uint64(8) {
		d, _ := s.Since(base, nil)
		f.Add(d)
	}
	f.Fuzz(func(t *testing.T, delta []byte) {
		_, _, _, _, _ = DeltaHeader(delta)
		if got, err := Apply(s, delta); err == nil {
			if _, err := Parse(got.Raw); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkApply(b *testing.B) {
	key := newKey(b)
	m := sample()
	base, err := Sign(m, key, nil)
	if err != nil {
		b.Fatal(err)
	}
	m.Generation++
	m.Items["config/web"] = Item{Gen: m.Generation, Body: []byte("new")}
	next, err := Sign(m, key, nil)
	if err != nil {
		b.Fatal(err)
	}
	d, _ := next.Since(7, nil)
	b.ReportMetric(float64(len(d)), "delta-bytes")
	b.ReportMetric(float64(len(next.Raw)), "full-bytes")
	for b.Loop() {
		if _, err := Apply(base, d); err != nil {
			b.Fatal(err)
		}
	}
}
