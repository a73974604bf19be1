package tpm

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"tributary.dev/tributary/tests/mutation"
)

// extended is a PCR's value after those events.
func extended(events ...string) (pcr [32]byte) {
	for _, e := range events {
		d := sha256.Sum256([]byte(e))
		pcr = sha256.Sum256(append(pcr[:], d[:]...))
	}
	return pcr
}

// Two keys for all tests: making one takes a while.
var releaseKey, strangersKey = sync.OnceValue(rsaKey), sync.OnceValue(rsaKey)

func rsaKey() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
}

func signed(t *testing.T, key *rsa.PrivateKey, kernel string, counter uint64) *Signatures {
	t.Helper()
	file, err := SignPolicy(key, extended(kernel), counter)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSignatures(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sealed(t *testing.T, tpm *TPM, secret []byte) *Sealed {
	t.Helper()
	pcr7, err := tpm.PCR(PCRSecureBoot)
	if err != nil {
		t.Fatal(err)
	}
	s, err := tpm.Seal(secret, &releaseKey().PublicKey, pcr7)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func secret(t *testing.T) []byte {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	ourKeys = "Secure Boot on, our db"
	v1, v2  = "release 1", "release 2"
)

// TestSealSurvivesUpdate seals under release 1; after a start, and under release 2, the key comes
// back by the release's signature alone.
func TestSealSurvivesUpdate(t *testing.T) {
	b := newBox(t)
	want := secret(t)
	tpm := b.boot(ourKeys, v1)
	if err := tpm.RaiseFloor(0); err != nil {
		t.Fatal(err)
	}
	s := sealed(t, tpm, want)
	for _, kernel := range []string{v1, v2} {
		for _, counter := range []uint64{0, 3} {
			got, err := b.boot(ourKeys, kernel).Unseal(s, &releaseKey().PublicKey, signed(t, releaseKey(), kernel, counter))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s with counter %d: %v", kernel, counter, err)
			}
		}
	}
}

type refusal struct {
	secureBoot, kernel string
	sigs               func(t *testing.T) *Signatures
	key                *rsa.PublicKey
	check              string
}

// refusals are what must not open the key, each with the part of the policy that stops it.
func refusals() map[string]refusal {
	release := &releaseKey().PublicKey
	return map[string]refusal{
		"Secure Boot off": {"Secure Boot off", v1, func(t *testing.T) *Signatures { return signed(t, releaseKey(), v1, 0) }, release, "secure boot"},
		"another kernel":  {ourKeys, "another kernel", func(t *testing.T) *Signatures { return signed(t, releaseKey(), v1, 0) }, release, "release"},
		"no signature":    {ourKeys, v1, func(*testing.T) *Signatures { return nil }, release, "release"},
		"a stranger's signature": {ourKeys, "another kernel", func(t *testing.T) *Signatures { return signed(t, strangersKey(), "another kernel", 0) }, release,
			"release"},
		"a stranger's signature and key": {ourKeys, "another kernel", func(t *testing.T) *Signatures { return signed(t, strangersKey(), "another kernel", 0) },
			&strangersKey().PublicKey, "release"},
		"a signature moved to another policy": {ourKeys, "another kernel", func(t *testing.T) *Signatures {
			s := signed(t, strangersKey(), "another kernel", 0)
			s.entries[0].Signature = signed(t, releaseKey(), v1, 0).entries[0].Signature
			return s
		}, release, "release"},
	}
}

func TestSealRefuses(t *testing.T) {
	for name, c := range refusals() {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			s := sealed(t, b.boot(ourKeys, v1), secret(t))
			got, err := b.boot(c.secureBoot, c.kernel).Unseal(s, c.key, c.sigs(t))
			if !errors.Is(err, ErrRefused) || got != nil {
				t.Errorf("given away: %v", err)
			}
		})
	}
}

// TestPolicyCounts: in a build that leaves a part of the policy out, the key is given away.
func TestPolicyCounts(t *testing.T) {
	without := func(name, file, step string) mutation.Check {
		return mutation.Check{Name: name, File: file, From: step, To: "if GONE {\n	} else " + step}
	}
	against := map[string]string{}
	for name, c := range refusals() {
		against[name] = c.check
	}
	mutation.Prove(t, mutation.Each(t, []mutation.Check{
		without("release", "policy.go", "if err := (tpm2.PolicyAuthorize{KeySign: *name}).Update(p); err != nil {"),
		without("release", "seal.go", "if err := t.authorize(session, release, sigs); err != nil {"),
		without("secure boot", "policy.go", "if err := pcrStep(p, PCRSecureBoot, pcr7); err != nil {"),
		without("secure boot", "seal.go", "if _, err := (tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: selection(PCRSecureBoot)}).Execute(t.t); err != nil {"),
	}, "TestSealRefuses", "given away: <nil>", against)...)
}

func TestSealOtherTPM(t *testing.T) {
	one, other := newBox(t), newBox(t)
	s := sealed(t, one.boot(ourKeys, v1), secret(t))
	if _, err := other.boot(ourKeys, v1).Unseal(s, &releaseKey().PublicKey, signed(t, releaseKey(), v1, 0)); !errors.Is(err, ErrRefused) {
		t.Errorf("another TPM: %v", err)
	}
}

// TestAfterExtend shows that whoever comes later in the same start cannot unseal.
func TestAfterExtend(t *testing.T) {
	b := newBox(t)
	tpm := b.boot(ourKeys, v1)
	s, sigs := sealed(t, tpm, secret(t)), signed(t, releaseKey(), v1, 0)
	if _, err := tpm.Unseal(s, &releaseKey().PublicKey, sigs); err != nil {
		t.Fatal(err)
	}
	if err := tpm.Extend(PCRKernel, []byte("any word")); err != nil {
		t.Fatal(err)
	}
	if _, err := tpm.Unseal(s, &releaseKey().PublicKey, sigs); !errors.Is(err, ErrRefused) {
		t.Errorf("after PCR 11 was extended: %v", err)
	}
}

// busy is a TPM into which somebody else measures, before some of the commands.
type busy struct {
	*TPM
	times int
}

func (b *busy) Send(cmd []byte) ([]byte, error) {
	if b.times > 0 {
		b.times--
		if err := b.Extend(10, cmd); err != nil {
			return nil, err
		}
	}
	return b.t.Send(cmd)
}

// TestSealWhileMeasuring has the kernel measure drivers into PCR 10 while the key is unsealed.
func TestSealWhileMeasuring(t *testing.T) {
	tpm, want := newBox(t).boot(ourKeys, v1), secret(t)
	s, sigs := sealed(t, tpm, want), signed(t, releaseKey(), v1, 0)
	got, err := New(&busy{tpm, 40}).Unseal(s, &releaseKey().PublicKey, sigs)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("40 measurements beside it: %v", err)
	}
	if _, err := New(&busy{tpm, 1 << 30}).Unseal(s, &releaseKey().PublicKey, sigs); !errors.Is(err, tpm2.TPMRCPCRChanged) {
		t.Errorf("measurements without end: %v", err)
	}
}

func TestFloor(t *testing.T) {
	b := newBox(t)
	tpm := b.boot(ourKeys, v1)
	if n, err := tpm.Floor(); n != 0 || err != nil {
		t.Fatalf("a new box's floor: %d, %v", n, err)
	}
	s := sealed(t, tpm, secret(t))
	for _, step := range []struct{ raise, floor uint64 }{{0, 0}, {2, 2}, {1, 2}, {5, 5}} {
		if err := tpm.RaiseFloor(step.raise); err != nil {
			t.Fatal(err)
		}
		if n, err := tpm.Floor(); n != step.floor || err != nil {
			t.Fatalf("raised to %d: the floor is %d, not %d (%v)", step.raise, n, step.floor, err)
		}
	}
	if err := tpm.RaiseFloor(MaxCounter + 1); err == nil {
		t.Error("a floor beyond the highest")
	}
	tpm = b.boot(ourKeys, v1)
	for counter, opens := range map[uint64]bool{1: false, 4: false, 5: true, 6: true, MaxCounter: true} {
		_, err := tpm.Unseal(s, &releaseKey().PublicKey, signed(t, releaseKey(), v1, counter))
		if (err == nil) != opens || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("floor 5, counter %d: %v", counter, err)
		}
	}
	// The comparison left out by who signed, the same old release opens.
	if _, err := tpm.Unseal(s, &releaseKey().PublicKey, signed(t, releaseKey(), v1, 0)); err != nil {
		t.Errorf("without the floor: %v", err)
	}
	// A counter that the signature does not cover.
	forged := signed(t, releaseKey(), v1, 1)
	forged.entries[0].Counter = 6
	if _, err := tpm.Unseal(s, &releaseKey().PublicKey, forged); !errors.Is(err, ErrRefused) {
		t.Errorf("a forged counter: %v", err)
	}
}

func TestParseKey(t *testing.T) {
	for _, b := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte{0x30}, 4096)} {
		if _, err := ParseKey(b); err == nil {
			t.Errorf("%.8q is taken for a key", b)
		}
	}
}

func FuzzParseSignatures(f *testing.F) {
	f.Add([]byte(`{"sha256":[{"pcrs":[11],"pkfp":"00","pol":"00","sig":"AA=="}]}`))
	f.Add([]byte(`{"sha256":[]}`))
	if file, err := SignPolicy(releaseKey(), extended(v1), 1); err == nil {
		f.Add(file)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSignatures(b)
		if err == nil {
			_, _ = s.find([32]byte{})
		}
	})
}
