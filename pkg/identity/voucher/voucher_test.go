package voucher

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/identity"
)

var made = time.Now().UTC().Truncate(time.Second)

type pair struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newPair(t testing.TB, name string, by *pair) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: made.Add(-time.Hour), NotAfter: made.AddDate(50, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature}
	parent, signer := tmpl, key
	if by == nil {
		tmpl.IsCA, tmpl.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	} else {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return pair{key, cert}
}

func list(p ...pair) (out []*x509.Certificate) {
	for _, x := range p {
		out = append(out, x.cert)
	}
	return out
}

// world is a manufacturer, an owner with a signer, and strangers of the same kinds.
type world struct{ maker, owner, signer, stranger pair }

func newWorld(t testing.TB) world {
	w := world{maker: newPair(t, "maker", nil), owner: newPair(t, "owner", nil), stranger: newPair(t, "stranger", nil)}
	w.signer = newPair(t, "signer", &w.owner)
	return w
}

func (w world) voucher(t testing.TB, serial string) []byte {
	t.Helper()
	raw, err := Sign(&Voucher{CreatedOn: made, Assertion: Verified, SerialNumber: serial, PinnedDomainCert: w.owner.cert.Raw}, w.maker.key, list(w.maker))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestVoucher(t *testing.T) {
	w := newWorld(t)
	raw := w.voucher(t, "TB-0001")
	v, err := Open(raw, list(w.stranger, w.maker))
	if err != nil || v.SerialNumber != "TB-0001" || !v.CreatedOn.Equal(made) {
		t.Fatalf("%+v, %v", v, err)
	}
	if _, err := Open(raw, list(w.stranger)); err == nil || !strings.Contains(err.Error(), "manufacturer that this device knows") {
		t.Errorf("a stranger's: %v", err)
	}
	if _, err := Open(raw, nil); err == nil {
		t.Error("taken without any manufacturer")
	}
	// A signature over one kind of content serves for no other.
	if _, err := OpenConveyed(raw, w.maker.cert); err == nil || !strings.Contains(err.Error(), "of kind") {
		t.Errorf("a voucher as conveyed information: %v", err)
	}
	for _, bad := range []func(*Voucher){
		func(v *Voucher) { v.SerialNumber = "" }, func(v *Voucher) { v.SerialNumber = "a\nb" },
		func(v *Voucher) { v.Nonce = []byte{1} }, func(v *Voucher) { v.PinnedDomainCert = nil },
		func(v *Voucher) { v.Assertion = "perhaps" }, func(v *Voucher) { e := made.Add(-1); v.ExpiresOn = &e },
		func(v *Voucher) { e := made.Add(time.Hour); v.ExpiresOn, v.Nonce = &e, make([]byte, 16) },
	} {
		v := Voucher{CreatedOn: made, Assertion: Logged, SerialNumber: "x", PinnedDomainCert: w.owner.cert.Raw}
		bad(&v)
		if _, err := Sign(&v, w.maker.key, list(w.maker)); err == nil {
			t.Errorf("%+v is signed", v)
		}
	}
}

// No changed byte makes another voucher: it is refused, or says what it said.
func TestAlteredVoucher(t *testing.T) {
	w := newWorld(t)
	raw := w.voucher(t, "TB-0001")
	rapid.Check(t, func(t *rapid.T) {
		b := append([]byte(nil), raw...)
		b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		v, err := Open(b, list(w.maker))
		if err == nil && (v.SerialNumber != "TB-0001" || string(v.PinnedDomainCert) != string(w.owner.cert.Raw)) {
			t.Fatalf("another voucher: %+v", v)
		}
	})
}

func TestConveyed(t *testing.T) {
	w := newWorld(t)
	c := &Conveyed{Onboarding: &Onboarding{Handling: "merge", Config: []byte(`{"a":1}`)}}
	raw, err := SignConveyed(c, w.signer.key, list(w.signer))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := OwnerCertificate(list(w.signer))
	if err != nil {
		t.Fatal(err)
	}
	owner, err := OpenOwnerCertificate(chain, w.owner.cert, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenConveyed(raw, owner)
	if err != nil || string(got.Onboarding.Config) != `{"a":1}` {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := OpenOwnerCertificate(chain, w.stranger.cert, time.Time{}); err == nil || !strings.Contains(err.Error(), "not of the owner") {
		t.Errorf("a stranger's owner certificate: %v", err)
	}
	if _, err := OpenOwnerCertificate(chain, w.owner.cert, made.AddDate(60, 0, 0)); err == nil {
		t.Error("an owner certificate past its time is taken by a device that knows the time")
	}
	if _, err := OpenConveyed(raw, w.stranger.cert); err == nil {
		t.Error("signed by another than the owner")
	}
	forged, err := SignConveyed(c, w.stranger.key, list(w.stranger))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenConveyed(forged, owner); err == nil {
		t.Error("forged")
	}
	for _, bad := range []*Conveyed{{}, {Redirect: &Redirect{}, Onboarding: &Onboarding{}}, {Redirect: &Redirect{}},
		{Redirect: &Redirect{Servers: []Server{{Address: "a/b"}}}}, {Onboarding: &Onboarding{Handling: "x"}}} {
		if _, err := SignConveyed(bad, w.signer.key, list(w.signer)); err == nil {
			t.Errorf("%+v is signed", bad)
		}
	}
}

func TestSerial(t *testing.T) {
	w := newWorld(t)
	key := newPair(t, "device", nil).key
	own, err := SelfIDevID(key)
	if err != nil {
		t.Fatal(err)
	}
	id := identity.KeyID(&key.PublicKey)
	if s, err := Serial(own, nil); err != nil || s != id.String() {
		t.Errorf("%s, %v", s, err)
	}
	issued, err := IssueIDevID(&key.PublicKey, "TB-0001", w.maker.key, list(w.maker))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := Serial(issued, list(w.stranger, w.maker)); err != nil || s != "TB-0001" {
		t.Errorf("%s, %v", s, err)
	}
	if _, err := Serial(issued, list(w.stranger)); err == nil {
		t.Error("an unknown manufacturer's device is believed")
	}
	other := newPair(t, "device", nil)
	lie, err := idevid(&other.key.PublicKey, id.String(), nil, other.key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Serial([]*x509.Certificate{lie}, list(w.maker)); err == nil {
		t.Error("a device takes another's id")
	}
}

func TestPairing(t *testing.T) {
	w := newWorld(t)
	key := newPair(t, "device", nil).key
	id := identity.KeyID(&key.PublicKey)
	code, err := Code(key)
	if err != nil {
		t.Fatal(err)
	}
	typed, err := ReadCode(" " + strings.ToLower(strings.ReplaceAll(code, "-", " ")))
	if err != nil || typed != code {
		t.Fatalf("%q read as %q, %v", code, typed, err)
	}
	p := Pairing{Root: w.owner.cert.Raw, Proof: Proof(typed, w.owner.cert.Raw, id)}
	if root, err := p.Check(code, id); err != nil || !root.Equal(w.owner.cert) {
		t.Error(err)
	}
	p.Root = w.stranger.cert.Raw
	if _, err := p.Check(code, id); err == nil {
		t.Error("the proof of one owner serves another")
	}
	for _, bad := range []string{"", "7K2M", "UUUU-UUUU-UUUU", code + "0"} {
		if _, err := ReadCode(bad); err == nil {
			t.Errorf("%q is a code", bad)
		}
	}
}

func TestPlainJSON(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"a":1,"b":{"a":2}}`: true, `[{"a":1},{"a":2}]`: true, `{"a":"a","b":"a"}`: true, `{"a":["a","a"],"b":1}`: true,
		`{"a":1,"a":2}`: false, `{"a":{},"a":2}`: false, `{} {}`: false, `{`: false, ``: false,
		strings.Repeat("[", 50) + strings.Repeat("]", 50): false,
	} {
		if err := plainJSON([]byte(text)); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// OpenSSL reads and verifies what we sign, and we what it signs.
func TestOpenSSL(t *testing.T) {
	bin, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("needs openssl")
	}
	w, dir := newWorld(t), t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	put := func(name string, b []byte) string {
		if err := os.WriteFile(at(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return at(name)
	}
	run := func(args ...string) string {
		out, err := exec.Command(bin, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("openssl %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	maker := put("maker.pem", identity.FormatCerts(list(w.maker)))
	keyPEM, err := identity.FormatKey(w.maker.key)
	if err != nil {
		t.Fatal(err)
	}
	key := put("maker.key", keyPEM)
	voucher := put("voucher.cms", w.voucher(t, "TB-0001"))
	run("cms", "-verify", "-in", voucher, "-inform", "DER", "-CAfile", maker, "-purpose", "any", "-out", at("content.json"))
	content, err := os.ReadFile(at("content.json"))
	if err != nil {
		t.Fatal(err)
	}
	var w1 map[string]Voucher
	if err := json.Unmarshal(content, &w1); err != nil || w1[voucherMember].SerialNumber != "TB-0001" {
		t.Errorf("%s: %v", content, err)
	}
	if out := run("cms", "-cmsout", "-print", "-in", voucher, "-inform", "DER"); !strings.Contains(out, "1.2.840.113549.1.9.16.1.40") {
		t.Errorf("the kind of content is not that of a voucher: %s", out)
	}
	run("cms", "-sign", "-in", at("content.json"), "-binary", "-nodetach", "-econtent_type", "1.2.840.113549.1.9.16.1.40", "-signer", maker, "-inkey", key, "-md", "sha256", "-outform", "DER", "-out", at("theirs.cms"))
	theirs, err := os.ReadFile(at("theirs.cms"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(theirs, list(w.maker)); err != nil {
		t.Errorf("what openssl signed: %v", err)
	}
	owner, err := OwnerCertificate(list(w.signer, w.owner))
	if err != nil {
		t.Fatal(err)
	}
	if out := run("pkcs7", "-print_certs", "-inform", "DER", "-in", put("owner.cms", owner)); strings.Count(out, "subject=") != 2 {
		t.Errorf("owner certificate: %s", out)
	}
}

func FuzzOpen(f *testing.F) {
	w := newWorld(f)
	f.Add(w.voucher(f, "TB-0001"))
	owner, _ := OwnerCertificate(list(w.signer, w.owner))
	f.Add(owner)
	conveyed, _ := SignConveyed(&Conveyed{Redirect: &Redirect{Servers: []Server{{Address: "10.0.0.1"}}}}, w.signer.key, list(w.signer))
	f.Add(conveyed)
	anchors := list(w.maker)
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := Open(b, anchors); err == nil && v.Check() != nil {
			t.Error("an opened voucher does not hold")
		}
		_, _ = OpenOwnerCertificate(b, w.owner.cert, time.Time{})
		_, _ = OpenConveyed(b, w.signer.cert)
		_, _ = PeekConveyed(b)
	})
}

func FuzzJSON(f *testing.F) {
	f.Add([]byte(`{"ietf-voucher:voucher":{"created-on":"2026-11-01T12:00:00Z","assertion":"logged","serial-number":"x","pinned-domain-cert":""}}`))
	f.Add([]byte(`{"ietf-sztp-conveyed-info:redirect-information":{"bootstrap-server":[{"address":"a","port":1}]}}`))
	f.Add([]byte(`{"ietf-sztp-bootstrap-server:input":{"nonce":"AAAA"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeConveyed(b); err == nil {
			if _, err := c.encode(); err != nil {
				t.Errorf("read and not written: %v", err)
			}
		}
		_, _ = decode(b)
		_ = ReadInput(b, &Ask{})
		_ = ReadOutput(b, &Answer{})
	})
}
