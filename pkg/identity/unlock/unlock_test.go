package unlock

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/mutation"
)

func TestTextComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "bytes")
		text := Text(b, rapid.IntRange(1, 9).Draw(t, "group"))
		if rapid.Bool().Draw(t, "as people type") {
			text = strings.NewReplacer("0", "o", "1", "l", "-", " ").Replace(strings.ToLower(text))
		}
		back, err := Parse(text, len(b))
		if err != nil || string(back) != string(b) {
			t.Fatalf("%x comes back as %x, %v", b, back, err)
		}
	})
}

// TestTypingErrors: one wrong character, and two neighbours exchanged, are always noticed.
func TestTypingErrors(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 1, 45).Draw(t, "bytes")
		text := []byte(Text(b, 1000))
		i := rapid.IntRange(0, len(text)-1).Draw(t, "place")
		if rapid.Bool().Draw(t, "exchange") {
			if i == 0 || text[i] == text[i-1] {
				t.Skip("nothing changes")
			}
			text[i], text[i-1] = text[i-1], text[i]
		} else {
			other := rapid.SampledFrom([]byte(alphabet)).Draw(t, "other")
			if other == text[i] {
				t.Skip("nothing changes")
			}
			text[i] = other
		}
		if back, err := Parse(string(text), len(b)); !errors.Is(err, ErrTyped) {
			t.Fatalf("%s passes for %x (%v)", text, back, err)
		}
	})
}

func newKey(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestChallengeComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Challenge{Proven: rapid.Bool().Draw(t, "proven")}
		copy(c.Device[:], rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "device"))
		copy(c.Owner[:], rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "owner"))
		copy(c.Fresh[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "fresh"))
		back, err := ParseChallenge(c.String())
		if err != nil || back != c {
			t.Fatalf("%+v comes back as %+v, %v", c, back, err)
		}
		if n := len(strings.ReplaceAll(c.String(), "-", "")); n != 74 {
			t.Fatalf("%d characters: more than 77 make a larger code", n)
		}
	})
}

// bench is one box with its owner.
type bench struct {
	owner *ecdh.PrivateKey
	now   time.Duration
	limit Limit
}

func (b *bench) Load() (Limit, error) { return b.limit, nil }
func (b *bench) Save(l Limit) error   { b.limit = l; return nil }

func (b *bench) lock(device byte) *Lock {
	return NewLock(LockConfig{Owner: b.owner.PublicKey(), Device: api.DeviceID{device}, Proven: true, Limits: b, Now: func() time.Duration { return b.now }, Rand: rand.Reader})
}

type tester interface {
	Helper()
	Fatal(...any)
}

func ask(t tester, l *Lock) Challenge {
	t.Helper()
	c, err := l.Ask()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func answered(t tester, owner *ecdh.PrivateKey, c Challenge) string {
	t.Helper()
	a, err := Answer(owner, c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestUnlock(t *testing.T) {
	b := &bench{owner: newKey(t), now: time.Hour}
	l := b.lock(1)
	c := ask(t, l)
	if _, err := l.Try("ABC"); !errors.Is(err, ErrTyped) {
		t.Errorf("half an answer: %v", err)
	}
	// What a person reads out and types is the same challenge.
	read, err := ParseChallenge(strings.ToLower(c.String()))
	if err != nil {
		t.Fatal(err)
	}
	a := answered(t, b.owner, read)
	if len(strings.ReplaceAll(a, "-", "")) != 18 {
		t.Errorf("%q: 18 characters are wanted", a)
	}
	got, err := l.Try(a)
	if err != nil || got != c {
		t.Errorf("%+v %v", got, err)
	}
	if _, _, ok := l.Standing(); ok {
		t.Error("the challenge outlives its answer")
	}
}

// refusals are what must not open, each with the check that keeps it shut.
var refusals = []struct {
	name  string
	check string
	want  error
	try   func(t *testing.T, b *bench) error
}{
	{"a replayed answer", "once", ErrNone, func(t *testing.T, b *bench) error {
		l := b.lock(1)
		a := answered(t, b.owner, ask(t, l))
		if _, err := l.Try(a); err != nil {
			t.Fatal(err)
		}
		_, err := l.Try(a)
		return err
	}},
	{"an answer to an earlier challenge", "answer", ErrWrong, func(t *testing.T, b *bench) error {
		l := b.lock(1)
		a := answered(t, b.owner, ask(t, l))
		ask(t, l)
		_, err := l.Try(a)
		return err
	}},
	{"another box's answer", "answer", ErrWrong, func(t *testing.T, b *bench) error {
		a := answered(t, b.owner, ask(t, b.lock(2)))
		l := b.lock(1)
		ask(t, l)
		_, err := l.Try(a)
		return err
	}},
	{"another owner's answer", "answer", ErrWrong, func(t *testing.T, b *bench) error {
		l := b.lock(1)
		c, thief := ask(t, l), newKey(t)
		c.Owner = OwnerID(thief.PublicKey())
		_, err := l.Try(answered(t, thief, c))
		return err
	}},
	{"an expired challenge", "life", ErrExpired, func(t *testing.T, b *bench) error {
		l := b.lock(1)
		a := answered(t, b.owner, ask(t, l))
		b.now += Life
		_, err := l.Try(a)
		return err
	}},
	{"a right answer after three wrong ones", "limit", new(WaitError), func(t *testing.T, b *bench) error {
		l := b.lock(1)
		a := answered(t, b.owner, ask(t, l))
		for range Tries {
			if _, err := l.Try(Text(make([]byte, AnswerBytes), 6)); !errors.Is(err, ErrWrong) {
				t.Fatal(err)
			}
		}
		_, err := l.Try(a)
		return err
	}},
}

func TestRefusals(t *testing.T) {
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			err := r.try(t, &bench{owner: newKey(t), now: time.Hour})
			if wait := new(WaitError); err == nil {
				t.Error("it opens")
			} else if !errors.Is(err, r.want) && !(errors.As(r.want, &wait) && errors.As(err, &wait)) {
				t.Errorf("%v, want %v", err, r.want)
			}
		})
	}
}

// TestChecks: in a build without its check, each attempt opens.
func TestChecks(t *testing.T) {
	const once, void = "	l.key = nil\n	if err", "	l.key = nil\n	limit.Wrong"
	checks := append(mutation.Marked(t, "", "lock.go"),
		mutation.Check{Name: "once", File: "lock.go", From: once, To: strings.Replace(once, "l.key = nil", "if !GONE { l.key = nil }", 1)},
		mutation.Check{Name: "limit", File: "lock.go", From: void, To: strings.Replace(void, "l.key = nil", "if !GONE { l.key = nil }", 1)})
	against := map[string]string{}
	for _, r := range refusals {
		against[r.name] = r.check
	}
	const signed, rooted = "identity.VerifyBy(signers, raw, aad)", "identity.DecodeTrust(k.Trust, root)"
	mutation.Prove(t, append(mutation.Each(t, checks, "TestRefusals", "it opens", against),
		mutation.Check{Name: "the owner's word", Test: "^TestKept$", File: "key.go", From: signed, To: signed + "\n	if GONE {\n		payload, err = identity.Payload(raw)\n	}", Says: "a statement of the thief's is believed"},
		mutation.Check{Name: "the owner's root", Test: "^TestKept$", File: "key.go", From: rooted, To: "identity.DecodeTrust(k.Trust, map[bool][]byte{false: root}[GONE])", Says: "a realm of the thief's is believed"})...)
}

// TestLimit: whatever is asked and typed when, on whichever console, three wrong answers are
// followed by a wait, and the waits grow.
func TestLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		b := &bench{owner: k, now: time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "up"))}
		l := b.lock(1)
		var wrong []time.Duration
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			b.now += time.Duration(rapid.Int64Range(0, int64(2*time.Minute)).Draw(t, "pause"))
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				_, _ = l.Ask()
			case 1: // another console, or the same one after it was left
				l = b.lock(1)
			default:
				_, err := l.Try(Text(make([]byte, AnswerBytes), 6))
				if err == nil {
					t.Fatal("a wrong answer opens")
				}
				if errors.Is(err, ErrWrong) {
					wrong = append(wrong, b.now)
				}
			}
		}
		for i := Tries; i < len(wrong); i += Tries {
			if pause := wrong[i] - wrong[i-1]; pause < wait(i/Tries) {
				t.Fatalf("wrong answer %d came %v after the one before: the wait is %v", i+1, pause, wait(i/Tries))
			}
		}
	})
	for n, want := range map[int]time.Duration{1: time.Minute, 2: 2 * time.Minute, 6: 32 * time.Minute, 7: time.Hour, 1000: time.Hour} {
		if got := wait(n); got != want {
			t.Errorf("the wait after %d: %v, want %v", n, got, want)
		}
	}
}

// TestLowOrder: a point that makes a secret which everybody knows is refused.
func TestLowOrder(t *testing.T) {
	k := newKey(t)
	if a, err := Answer(k, Challenge{Owner: OwnerID(k.PublicKey())}); err == nil {
		t.Errorf("the zero point is answered by %s", a)
	}
	if _, err := Answer(k, Challenge{Owner: OwnerID(newKey(t).PublicKey())}); !errors.Is(err, ErrOtherOwner) {
		t.Errorf("a challenge to another owner: %v", err)
	}
}

// realm makes a root with a signer, as a core has them.
func realm(t testing.TB) (*identity.Trust, *ecdsa.PrivateKey) {
	t.Helper()
	root, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial := int64(1)
	certify := func(name, role string, parent *x509.Certificate, pub *ecdsa.PublicKey) *x509.Certificate {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: role == "" || role == identity.RoleIssuer, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
		serial++
		if role != "" {
			ext, err := identity.RoleExtension(role)
			if err != nil {
				t.Fatal(err)
			}
			tmpl.ExtraExtensions = []pkix.Extension{ext}
		}
		if parent == nil {
			parent = tmpl
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, root)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	trust := &identity.Trust{Root: certify("root", "", nil, &root.PublicKey)}
	keys := map[string]*ecdsa.PrivateKey{}
	for _, role := range []string{identity.RoleIssuer, identity.RoleSigner, identity.RoleSealing} {
		if keys[role], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	trust.Issuers = []*x509.Certificate{certify("issuer", identity.RoleIssuer, trust.Root, &keys[identity.RoleIssuer].PublicKey)}
	trust.Signers = []*x509.Certificate{certify("signer", identity.RoleSigner, trust.Root, &keys[identity.RoleSigner].PublicKey)}
	trust.Sealing = certify("sealing", identity.RoleSealing, trust.Root, &keys[identity.RoleSealing].PublicKey)
	return trust, keys[identity.RoleSigner]
}

func kept(t testing.TB, trust *identity.Trust, signer *ecdsa.PrivateKey, pub *ecdh.PublicKey) []byte {
	t.Helper()
	raw, err := SignKey(signer, identity.KID(&signer.PublicKey), pub, time.Unix(1_800_000_000, 0))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Kept{Trust: trust.Encode(), Key: raw, Device: api.DeviceID{7}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestKept: what lies outside of the state is believed when it leads to the box's root, and
// not when somebody wrote their own there.
func TestKept(t *testing.T) {
	trust, signer := realm(t)
	owner := newKey(t)
	fp := identity.Fingerprint(trust.Root)
	b := kept(t, trust, signer, owner.PublicKey())
	if len(b) > 4<<10 {
		t.Errorf("%d bytes", len(b))
	}
	k, err := DecodeKept(b)
	if err != nil || k.Device != (api.DeviceID{7}) {
		t.Fatalf("%+v %v", k, err)
	}
	pub, err := k.Owner(fp[:])
	if err != nil || !pub.Equal(owner.PublicKey()) {
		t.Fatalf("%v %v", pub, err)
	}
	thiefTrust, thiefSigner := realm(t)
	thief := newKey(t)
	forged := map[string]Kept{}
	if forged["a realm of the thief's"], err = DecodeKept(kept(t, thiefTrust, thiefSigner, thief.PublicKey())); err != nil {
		t.Fatal(err)
	}
	mixed, err := SignKey(thiefSigner, identity.KID(&signer.PublicKey), thief.PublicKey(), time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	forged["a statement of the thief's"] = Kept{Trust: k.Trust, Key: mixed}
	for name, f := range forged {
		if pub, err := f.Owner(fp[:]); err == nil {
			t.Errorf("%s is believed: %v", name, pub)
		}
	}
	if _, err := k.Owner(nil); err == nil {
		t.Error("without a fingerprint anything is believed")
	}
	// A statement of another purpose by the same signer is none.
	other, err := identity.SignKID(signer, identity.KID(&signer.PublicKey), []byte("tributary/manifest/1"), []byte{0xa0})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKey(other, trust); err == nil {
		t.Error("a manifest passes for a statement")
	}
}

func FuzzParseChallenge(f *testing.F) {
	f.Add(Challenge{Device: api.DeviceID{1}, Fresh: [32]byte{9}}.String())
	f.Add("0")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := ParseChallenge(text); err == nil && c.String() == "" {
			t.Error("it has no text")
		}
		_, _ = Parse(text, AnswerBytes)
	})
}

func FuzzDecodeKept(f *testing.F) {
	trust, signer := realm(f)
	f.Add(kept(f, trust, signer, newKey(f).PublicKey()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := DecodeKept(b); err == nil {
			fp := identity.Fingerprint(trust.Root)
			_, _ = k.Owner(fp[:])
		}
	})
}
