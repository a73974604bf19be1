package machines

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/build"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// TestOnboardImage: an image is built for another manufacturer's boxes, with bootstrap servers in it.
// Nobody else on the network names the owner: DHCP, which goes first, names one with the voucher of a
// former owner, that ended last year and so before the image was built.
func TestOnboardImage(t *testing.T) {
	needImage(t, "amd64")
	s, built, keys := newSite(t), t.TempDir(), t.TempDir()
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fail(err)
	maker, err := voucher.NewManufacturer(key, "Example Boxes", time.Now().AddDate(-3, 0, 0))
	fail(err)
	text, err := identity.FormatKey(key)
	fail(err)
	fail(os.WriteFile(filepath.Join(keys, "manufacturer.key"), text, 0o600))
	fail(os.WriteFile(filepath.Join(keys, "manufacturer.pem"), identity.FormatCerts([]*x509.Certificate{maker}), 0o644))
	profile, err := hwprofiles.Load(Profiles["amd64"])
	fail(err)
	top, err := filepath.Abs(root)
	fail(err)
	a := arriveFrom(t, images(), keys, func(a *arrival) {
		preload, at := t.TempDir(), time.Now()
		fail(os.WriteFile(filepath.Join(preload, "bootstrap-servers"), []byte("https://"+a.server("box").String()+"\n"), 0o644))
		fail(os.WriteFile(filepath.Join(preload, "manufacturers.pem"), identity.FormatCerts([]*x509.Certificate{maker}), 0o644))
		_, err := build.Build(a.ctx, build.Config{Root: top, Profile: profile, Version: "preloaded", Counter: 1, Time: time.Now().Add(-time.Hour), Out: filepath.Join(built, profile.Name),
			Preload: preload, Quick: true, Log: slog.New(slog.DiscardHandler)})
		fail(err)
		t.Logf("an image with bootstrap servers in it: %.0f s", time.Since(at).Seconds())
		a.tree.Images = built
	}, BoxSpec{Name: "box", Parent: "core", Role: "field", Silent: true, Site: s.wires})
	a.edgectl("delete", "expecteddevice", "demo-box")
	former := a.expired("DEMO-BOX", key, maker)
	s.names(func(s *site) { s.dhcp = []string{former} })
	a.start()
	a.says("box", "no-owner", "DHCP "+former+": expired: the voucher ended on ", "image https://"+a.server("box").String()+": ", "not expected here")
	a.console("box", "health", `no-owner[\s\S]*expired:\s`)
	a.edgectl("device", "expect", "DEMO-BOX", "--voucher", a.tree.boxes["box"].path("DEMO-BOX.vcj"), "--name", "box", "--labels", "role=field")
	a.member("box")
}

// expired serves what the core would answer, but for a voucher that ended last year.
func (a *arrival) expired(serial string, key *ecdsa.PrivateKey, maker *x509.Certificate) (server string) {
	a.Helper()
	thief, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.Fatal(err)
	}
	cert, err := voucher.NewManufacturer(thief, "former owner", time.Now().AddDate(-2, 0, 0))
	if err != nil {
		a.Fatal(err)
	}
	ended := time.Now().AddDate(-1, 0, 0)
	var answer voucher.Answer
	var errs [4]error
	answer.Voucher, errs[0] = voucher.Sign(&voucher.Voucher{CreatedOn: ended.AddDate(0, -1, 0), ExpiresOn: &ended, Assertion: voucher.Verified, SerialNumber: serial, PinnedDomainCert: cert.Raw}, key, []*x509.Certificate{maker})
	config, err := json.Marshal(map[string]any{"parents": []api.ParentRef{{Address: "10.0.2.2:8883", HTTPSPort: 8443}}})
	errs[1] = err
	answer.Conveyed, errs[2] = voucher.SignConveyed(&voucher.Conveyed{Onboarding: &voucher.Onboarding{Config: config}}, thief, []*x509.Certificate{cert})
	answer.OwnerCert, errs[3] = voucher.OwnerCertificate([]*x509.Certificate{cert})
	if err := errors.Join(errs[:]...); err != nil {
		a.Fatal(err)
	}
	return a.serves(answer)
}
