package voucher

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/mutation"
)

// A box that its manufacturer certified has a key below the manufacturer's root, but signs no vouchers.
func TestBirthSignsNoVoucher(t *testing.T) {
	w := newWorld(t)
	box := newPair(t, "device", nil)
	chain, err := IssueIDevID(&box.key.PublicKey, "TB-0007", w.maker.key, list(w.maker))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := Sign(&Voucher{CreatedOn: made, Assertion: Verified, SerialNumber: "TB-0001", PinnedDomainCert: w.stranger.cert.Raw}, box.key, chain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(raw, list(w.maker)); err == nil || !strings.Contains(err.Error(), `signed by the device "TB-0007"`) {
		t.Errorf("a voucher by another device of the manufacturer: %v", err)
	}
	// A signer that the manufacturer certified for it, and one that is an anchor itself, do.
	below := newPair(t, "masa", &w.maker)
	for name, chain := range map[string][]*x509.Certificate{"below": list(below, w.maker), "anchor": {chain[0]}} {
		key, anchors := below.key, list(w.maker)
		if name == "anchor" {
			key, anchors = box.key, chain
		}
		raw, err := Sign(&Voucher{CreatedOn: made, Assertion: Verified, SerialNumber: "TB-0001", PinnedDomainCert: w.owner.cert.Raw}, key, chain)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(raw, anchors); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// withRole is a certificate below another, of one role.
func withRole(t *testing.T, by pair, role string, ca bool) pair {
	t.Helper()
	p := newPair(t, role, nil)
	ext, err := identity.RoleExtension(role)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: role}, BasicConstraintsValid: true, IsCA: ca,
		NotBefore: made.Add(-time.Hour), NotAfter: made.AddDate(50, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature, ExtraExtensions: []pkix.Extension{ext}}
	if ca {
		tmpl.KeyUsage = x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by.cert, &p.key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return p
}

// Of all that an owner certifies his signer alone speaks for him: a box of his that was taken over sends no others anywhere.
func TestOwnerSpeaksByHisSigner(t *testing.T) {
	w := newWorld(t)
	issuer := withRole(t, w.owner, identity.RoleIssuer, true)
	signer := withRole(t, w.owner, identity.RoleSigner, false)
	for name, c := range map[string]struct {
		chain []pair
		says  string
	}{
		"his signer":             {[]pair{signer}, ""},
		"another owner's signer": {[]pair{w.signer}, ""},
		"his root":               {[]pair{w.owner}, ""},
		"a box":                  {[]pair{withRole(t, issuer, identity.RoleDevice, false), issuer}, `role "device"`},
		"the core's TLS":         {[]pair{withRole(t, issuer, identity.RoleCore, false), issuer}, `role "core"`},
		"who certifies boxes":    {[]pair{issuer}, `role "issuer"`},
		"a signer by the issuer": {[]pair{withRole(t, issuer, identity.RoleSigner, false), issuer}, "did not certify itself"},
	} {
		raw, err := OwnerCertificate(list(c.chain...))
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []time.Time{{}, made} {
			leaf, err := OpenOwnerCertificate(raw, w.owner.cert, at)
			switch {
			case c.says == "" && (err != nil || !leaf.Equal(c.chain[0].cert)):
				t.Errorf("%s: %v", name, err)
			case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestSpeakersAreTested takes the checks out, one by one.
func TestSpeakersAreTested(t *testing.T) {
	mutation.Prove(t,
		mutation.Check{Name: "a voucher by a device", Test: "^TestBirthSignsNoVoucher$", File: "voucher.go",
			From: `if born(s.signer) && !slices`, To: `if born(s.signer) && !GONE && !slices`},
		mutation.Check{Name: "a word of a box", Test: "^TestOwnerSpeaksByHisSigner$", File: "cms.go",
			From: `case role != identity.RoleSigner:`, To: `case role != identity.RoleSigner && !GONE:`},
		mutation.Check{Name: "a signer by the issuer", Test: "^TestOwnerSpeaksByHisSigner$", File: "cms.go",
			From: `if err := leaf.CheckSignatureFrom(root); err != nil {`, To: `if err := leaf.CheckSignatureFrom(root); err != nil && !GONE {`},
	)
}
