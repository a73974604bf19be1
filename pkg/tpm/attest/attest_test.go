package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// madeUp is a quote as a TPM would write it, over PCRs 7 and 11.
func madeUp(nonce []byte, values ...[]byte) []byte {
	var b []byte
	u16 := func(n int) { b = binary.BigEndian.AppendUint16(b, uint16(n)) }
	b = binary.BigEndian.AppendUint32(b, generated)
	u16(typeQuote)
	u16(34)
	b = append(b, make([]byte, 34)...)
	u16(len(nonce))
	b = append(b, nonce...)
	b = append(b, make([]byte, 8+4+4+1+8)...)
	b = binary.BigEndian.AppendUint32(b, 1)
	u16(algSHA256)
	b = append(b, 3, 0x80, 0x08, 0)
	digest := sha256.Sum256(slices.Concat(values...))
	u16(len(digest))
	return append(b, digest[:]...)
}

func evidence(t testing.TB) (Expect, *Evidence) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	c, err := NewChallenge(nil, now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	log := Predict([]Section{{".linux", sha256.Sum256([]byte("kernel"))}, {".cmdline", sha256.Sum256([]byte("quiet"))}})
	pcr11, pcr7 := Replay(log), [32]byte{7}
	q := madeUp(c.Nonce[:], pcr7[:], pcr11[:])
	sum := sha256.Sum256(q)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return Expect{Key: &key.PublicKey, Challenge: c, Now: now, PCRs: map[uint][32]byte{7: pcr7}, Releases: []Release{{"1", pcr11}}},
		&Evidence{Quote: q, Signature: sig, PCRs: []PCR{{7, pcr7[:]}, {11, pcr11[:]}}, Log: log}
}

func TestVerify(t *testing.T) {
	x, e := evidence(t)
	if v, err := x.Verify(e); err != nil || v.Release != "1" {
		t.Fatalf("%+v, %v", v, err)
	}
	for name, spoil := range map[string]func(*Expect, *Evidence){
		"no key":           func(x *Expect, _ *Evidence) { x.Key = nil },
		"no release":       func(x *Expect, _ *Evidence) { x.Releases = nil },
		"a PCR not quoted": func(x *Expect, _ *Evidence) { x.PCRs = map[uint][32]byte{4: {}} },
		"short value":      func(_ *Expect, e *Evidence) { e.PCRs[0].Value = []byte{1} },
		"short event":      func(_ *Expect, e *Evidence) { e.Log = [][]byte{{1}} },
		"an empty log":     func(x *Expect, e *Evidence) { e.Log, x.Releases[0].PCR11 = nil, [32]byte{1} },
		"twice":            func(_ *Expect, e *Evidence) { e.PCRs = append(e.PCRs, e.PCRs[1]) },
	} {
		x, e := evidence(t)
		spoil(&x, e)
		if v, err := x.Verify(e); !errors.Is(err, ErrRefused) || v != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestParseQuoteCut shows that a quote is read whole or not at all.
func TestParseQuoteCut(t *testing.T) {
	whole := madeUp(make([]byte, NonceSize), make([]byte, 64))
	q, err := parseQuote(whole)
	if err != nil || !slices.Equal(q.pcrs, []uint{7, 11}) || len(q.nonce) != NonceSize || len(q.digest) != 32 {
		t.Fatalf("%+v, %v", q, err)
	}
	for n := range whole {
		if _, err := parseQuote(whole[:n]); err == nil {
			t.Errorf("cut to %d bytes", n)
		}
	}
	if _, err := parseQuote(append(whole, 0)); err == nil {
		t.Error("a byte too many")
	}
}

// TestReplay shows that no other log leads to a log's value.
func TestReplay(t *testing.T) {
	event := rapid.SliceOfN(rapid.Byte(), 32, 32)
	logs := rapid.SliceOfN(event, 0, 6)
	rapid.Check(t, func(t *rapid.T) {
		a, b := logs.Draw(t, "a"), logs.Draw(t, "b")
		if same := slices.EqualFunc(a, b, bytes.Equal); (Replay(a) == Replay(b)) != same {
			t.Fatalf("%x and %x", a, b)
		}
	})
}

func FuzzDecode(f *testing.F) {
	x, e := evidence(f)
	b, err := e.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			return
		}
		_, _ = x.Verify(e)
		if e.check() == nil { // and what is read only of a quote that is signed
			if q, err := parseQuote(e.Quote); err == nil {
				_ = e.matches(q)
			}
			_ = x.release(e, &Verdict{})
		}
		if again, err := e.Encode(); err != nil || len(again) > 2*MaxEvidence {
			t.Errorf("read, but not written: %v", err)
		}
	})
}

func FuzzParseQuote(f *testing.F) {
	f.Add(madeUp(make([]byte, NonceSize)))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseQuote(b) })
}
