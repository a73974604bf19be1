package tpm

import (
	"crypto/rand"
	"errors"
	"slices"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/tpm/attest"
	"tributary.dev/tributary/tests/mutation"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func challenge(t *testing.T) attest.Challenge {
	t.Helper()
	c, err := attest.NewChallenge(rand.Reader, noon, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// kernelLog is the log of a box that boot() has started.
func kernelLog(events ...string) (log [][]byte) {
	for _, e := range events {
		log = append(log, attest.Event([]byte(e)))
	}
	return log
}

// enrolled is what the core knows of a box.
func enrolled(t *testing.T, tpm *TPM) attest.Expect {
	t.Helper()
	key, err := tpm.AttestationKey()
	if err != nil {
		t.Fatal(err)
	}
	return attest.Expect{Key: key, Challenge: challenge(t), Now: noon,
		PCRs:     map[uint][32]byte{PCRSecureBoot: extended(ourKeys)},
		Releases: []attest.Release{{Name: "1", PCR11: extended(v1)}, {Name: "2", PCR11: extended(v2)}}}
}

// answer is what crosses the wire.
func answer(t *testing.T, tpm *TPM, c attest.Challenge, events ...string) *attest.Evidence {
	t.Helper()
	e, err := tpm.Quote(c.Nonce, []uint{PCRKernel, PCRSecureBoot, 0}, kernelLog(events...))
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if e, err = attest.Decode(b); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestQuote(t *testing.T) {
	b := newBox(t)
	tpm := b.boot(ourKeys, v1)
	x := enrolled(t, tpm)
	v, err := x.Verify(answer(t, tpm, x.Challenge, v1))
	if err != nil || v.Release != "1" || v.StateOpened {
		t.Fatalf("%+v, %v", v, err)
	}
	// After an update: the same key, another release, and the state was opened.
	tpm = b.boot(ourKeys, v2)
	if err := tpm.Extend(PCRKernel, []byte(attest.StateOpened)); err != nil {
		t.Fatal(err)
	}
	x.Challenge = challenge(t)
	again, err := x.Verify(answer(t, tpm, x.Challenge, v2, attest.StateOpened))
	if err != nil || again.Release != "2" || !again.StateOpened || again.Resets <= v.Resets {
		t.Errorf("%+v, %v", again, err)
	}
}

type lie struct {
	secureBoot, kernel string
	evidence           func(t *testing.T, tpm *TPM, x *attest.Expect) *attest.Evidence
	check              string
}

// lies are what the core must not believe, each with the check that stops it.
func lies(other *box) map[string]lie {
	const bad = "not a release"
	return map[string]lie{
		"a stale nonce": {ourKeys, v1, func(t *testing.T, tpm *TPM, x *attest.Expect) *attest.Evidence {
			e := answer(t, tpm, x.Challenge, v1)
			x.Challenge = challenge(t)
			return e
		}, "nonce"},
		"too late": {ourKeys, v1, func(t *testing.T, tpm *TPM, x *attest.Expect) *attest.Evidence {
			x.Now = x.Challenge.Expires
			return answer(t, tpm, x.Challenge, v1)
		}, "in time"},
		"another box": {ourKeys, v1, func(t *testing.T, _ *TPM, x *attest.Expect) *attest.Evidence {
			return answer(t, other.boot(ourKeys, v1), x.Challenge, v1)
		}, "key"},
		"Secure Boot off": {"Secure Boot off", v1, func(t *testing.T, tpm *TPM, x *attest.Expect) *attest.Evidence {
			return answer(t, tpm, x.Challenge, v1)
		}, "values"},
		"a value changed on the way": {"Secure Boot off", v1, func(t *testing.T, tpm *TPM, x *attest.Expect) *attest.Evidence {
			e, good := answer(t, tpm, x.Challenge, v1), extended(ourKeys)
			e.PCRs[1].Value = good[:]
			return e
		}, "what was quoted"},
		"a value left out": {ourKeys, v1, func(t *testing.T, tpm *TPM, x *attest.Expect) *attest.Evidence {
			e := answer(t, tpm, x.Challenge, v1)
			e.PCRs = e.PCRs[1:]
			return e
		}, "what was quoted"},
		"another kernel": {ourKeys, bad, func(t *testing.T, tpm *TPM, x *attest.Expect) *attest.Evidence {
			return answer(t, tpm, x.Challenge, bad)
		}, "release"},
		"another kernel with a release's log": {ourKeys, bad, func(t *testing.T, tpm *TPM, x *attest.Expect) *attest.Evidence {
			return answer(t, tpm, x.Challenge, v1)
		}, "replay"},
		"an event behind the release's": {ourKeys, v1, func(t *testing.T, tpm *TPM, x *attest.Expect) *attest.Evidence {
			if err := tpm.Extend(PCRKernel, []byte(bad)); err != nil {
				t.Fatal(err)
			}
			return answer(t, tpm, x.Challenge, v1, bad)
		}, "release"},
		"a log cut short": {ourKeys, v1, func(t *testing.T, tpm *TPM, x *attest.Expect) *attest.Evidence {
			if err := tpm.Extend(PCRKernel, []byte(bad)); err != nil {
				t.Fatal(err)
			}
			return answer(t, tpm, x.Challenge, v1)
		}, "replay"},
	}
}

func TestQuoteRefuses(t *testing.T) {
	one := newBox(t)
	for name, c := range lies(newBox(t)) {
		t.Run(name, func(t *testing.T) {
			x := enrolled(t, one.boot(ourKeys, v1))
			e := c.evidence(t, one.boot(c.secureBoot, c.kernel), &x)
			if v, err := x.Verify(e); !errors.Is(err, attest.ErrRefused) || v != nil {
				t.Errorf("believed: %+v, %v", v, err)
			}
		})
	}
}

// TestQuoteChecks: in a build without its check, each lie is believed.
func TestQuoteChecks(t *testing.T) {
	against := map[string]string{}
	for name, c := range lies(nil) {
		against[name] = c.check
	}
	mutation.Prove(t, mutation.Each(t, mutation.Marked(t, "", "attest/attest.go"), "TestQuoteRefuses", "believed", against)...)
}

// TestQuoteBits changes single bits of the quote and its signature: none is believed.
func TestQuoteBits(t *testing.T) {
	tpm := newBox(t).boot(ourKeys, v1)
	x := enrolled(t, tpm)
	good := answer(t, tpm, x.Challenge, v1)
	for i := range good.Quote {
		e := *good
		e.Quote = slices.Clone(good.Quote)
		e.Quote[i] ^= 1 << (i % 8)
		if _, err := x.Verify(&e); !errors.Is(err, attest.ErrRefused) {
			t.Errorf("byte %d of the quote changed: %v", i, err)
		}
	}
	for i := range good.Signature {
		e := *good
		e.Signature = slices.Clone(good.Signature)
		e.Signature[i] ^= 1 << (i % 8)
		if _, err := x.Verify(&e); !errors.Is(err, attest.ErrRefused) {
			t.Errorf("byte %d of the signature changed: %v", i, err)
		}
	}
}
