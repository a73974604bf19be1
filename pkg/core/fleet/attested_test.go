package fleet

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/tpm/attest"
	"tributary.dev/tributary/tests/mutation"
)

// TestBooted: each start of a device is told once.
func TestBooted(t *testing.T) {
	c := newCore(t, "")
	id := c.device(1, nil)
	var boots []string
	c.change = func(cfg *Config) {
		cfg.Booted = func(of api.DeviceID, boot string) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if of == id {
				boots = append(boots, boot)
			}
		}
	}
	c.run()
	c.until("a manifest", c.has(id))
	for i, boot := range []string{"a", "a", "b"} {
		c.report(id, &Report{Entries: map[string][]byte{keyBoot: encode(boot), keyVersion: encode(fmt.Sprint(i))}})
		c.until("the report", func() bool {
			o, err := c.db.Get(t.Context(), api.Key{Tenant: "default", Kind: api.KindDevice, Name: "d1"})
			var s api.DeviceStatus
			return err == nil && json.Unmarshal(o.Status, &s) == nil && s.Version == fmt.Sprint(i)
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(boots, []string{"a", "b"}) {
		t.Errorf("%v", boots)
	}
}

// TestSecretsWait: a fleet that wants attested devices gives them new secrets only once they are,
// and takes none away that they hold. Without the wish all get theirs.
func TestSecretsWait(t *testing.T) {
	c := newCore(t, "")
	good, bad := c.device(1, map[string]string{"role": "field"}), c.device(2, map[string]string{"role": "field"})
	var all atomic.Bool
	c.change = func(cfg *Config) {
		cfg.Attested = func(id api.DeviceID) (bool, string) { return id == good || all.Load(), "another kernel" }
		cfg.Attestation = func(id api.DeviceID) *api.Attestation { return &api.Attestation{Attested: id == good} }
	}
	fleet := func(a *api.AttestSpec) {
		c.put(api.KindFleet, "field", nil, api.FleetSpec{Selector: api.Selector{MatchLabels: map[string]string{"role": "field"}}, Apps: []string{"web"}, Attest: a}, nil)
	}
	secret := func(name, value string) {
		c.put(api.KindSecret, name, nil, api.SecretSpec{Data: map[string]string{"k": value}}, nil)
	}
	opens := func(id api.DeviceID, name string) string { // under the lock
		item := c.published[id].Manifest.Items["secret/"+name]
		plain, err := identity.Open(c.seal, identity.SealInfo{Device: id, Name: name, Generation: item.Gen}, item.Body)
		var data api.ConfigData
		if err != nil || decMode.Unmarshal(plain, &data) != nil {
			return "shut"
		}
		return string(data.Files["k"])
	}
	warned := func(id api.DeviceID, name string) func() bool {
		return func() bool {
			o, err := c.db.Get(t.Context(), api.Key{Tenant: "default", Kind: api.KindDevice, Name: name})
			var s api.DeviceStatus
			if err != nil || json.Unmarshal(o.Status, &s) != nil || s.Attestation == nil || s.Attestation.Attested != (id == good) {
				return false
			}
			for _, w := range s.Health {
				if w.Name == "not-attested" && strings.Contains(w.Message, "another kernel") {
					return true
				}
			}
			return false
		}
	}
	secret("old", "1")
	c.app("web", 1, "old")
	fleet(nil)
	c.run()
	c.until("the secret of both", func() bool { return c.has(good, "app/web", "secret/old")() && c.has(bad, "app/web", "secret/old")() })

	fleet(&api.AttestSpec{Required: true, Systems: map[string]string{"flashed": strings.Repeat("07", 32)}})
	c.app("web", 2, "old", "new")
	secret("new", "1")
	c.until("the new secret, where it may be", c.has(good, "app/web", "secret/old", "secret/new"))
	c.until("a warning about the other", warned(bad, "d2"))
	if !c.now(func() bool { return c.has(bad, "app/web", "secret/old")() && opens(bad, "old") == "1" }) {
		t.Error("the device that is not attested lost its secret, or got a new one")
	}
	if got := c.loop.Systems(bad); len(got) != 1 || got[0] != (attest.Release{Name: "flashed", PCR11: [32]byte([]byte(strings.Repeat("\x07", 32)))}) {
		t.Errorf("%v", got)
	}
	c.put(api.KindRelease, "r", nil, api.ReleaseSpec{Artifact: "default/os@" + ref(1).Digest, PCR11: strings.Repeat("08", 32)}, nil)
	c.until("a release's system", func() bool { return len(c.loop.Systems(bad)) == 2 })
	secret("old", "2")
	c.until("the new value, where it may be", func() bool { return opens(good, "old") == "2" })
	if !c.now(func() bool { return opens(bad, "old") == "1" }) {
		t.Error("a device that is not attested has the new value, or none")
	}

	// A new epoch seals what it holds anew, and no more.
	secret("old", "1")
	c.until("back", func() bool { return opens(good, "old") == "1" })
	c.epoch = 2
	c.run()
	c.until("the new epoch", func() bool { s := c.published[bad]; return s != nil && s.Manifest.Epoch == 2 })
	if !c.now(func() bool { return c.has(bad, "app/web", "secret/old")() && opens(bad, "old") == "1" }) {
		t.Error("a new epoch took the secret away, or gave another")
	}
	all.Store(true)
	if err := c.loop.Touch(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	c.until("all of them, once it is attested", func() bool { return c.has(bad, "app/web", "secret/old", "secret/new")() && opens(bad, "new") == "1" })

	// The same where the tenant wants it of all its devices, whatever their fleets say.
	all.Store(false)
	fleet(nil)
	c.put(api.KindTenant, "default", nil, api.TenantSpec{Attest: &api.AttestSpec{Required: true, Systems: map[string]string{"of all": strings.Repeat("09", 32)}}}, nil)
	c.until("the tenant's system", func() bool {
		return slices.ContainsFunc(c.loop.Systems(bad), func(r attest.Release) bool { return r.Name == "of all" })
	})
	c.app("web", 3, "old", "new", "newer")
	secret("newer", "1")
	c.until("the new secret, where it may be", c.has(good, "app/web", "secret/old", "secret/new", "secret/newer"))
	if !c.now(c.has(bad, "app/web", "secret/old", "secret/new")) {
		t.Error("the device that is not attested lost a secret, or got a new one")
	}
	c.put(api.KindTenant, "default", nil, api.TenantSpec{}, nil)
	c.until("all of them, once nobody wants it", c.has(bad, "app/web", "secret/old", "secret/new", "secret/newer"))
}

// TestWhoWantsAttested: a tenant's wish, or one fleet's, is enough.
func TestWhoWantsAttested(t *testing.T) {
	wants, not := &api.AttestSpec{Required: true}, &api.AttestSpec{Systems: map[string]string{"x": strings.Repeat("07", 32)}}
	for _, c := range []struct {
		tenant, fleet *api.AttestSpec
		attested      bool
		held          string
	}{
		{nil, nil, false, ""}, {not, not, false, ""}, {wants, nil, false, "tenant default wants"}, {not, wants, false, "fleet field wants"}, {wants, wants, true, ""},
	} {
		l := &Loop{cfg: Config{Now: time.Now, Attested: func(api.DeviceID) (bool, string) { return c.attested, "another kernel" }}}
		w := &World{Attest: c.tenant, Fleets: map[string]*api.FleetSpec{"field": {Attest: c.fleet}}}
		want := map[string]Want{"secret/new": {Plain: []byte("new")}, "app/web": {}}
		warnings := l.holdSecrets(&entry{Device: Device{Tenant: "default", Name: "d1"}}, w, []string{"field"}, want, func([]byte) [32]byte { return [32]byte{} })
		_, given := want["secret/new"]
		if given != (c.held == "") || len(want) < 1 {
			t.Errorf("%+v: %v is given", c, want)
		}
		if c.held != "" && (len(warnings) != 1 || !strings.HasPrefix(warnings[0].Message, c.held)) {
			t.Errorf("%+v: %+v", c, warnings)
		}
	}
}

// TestAttestedCounts: without the checks, secrets are given to whoever asks.
func TestAttestedCounts(t *testing.T) {
	const test, file = "^TestWhoWantsAttested$", "attested.go"
	mutation.Prove(t,
		mutation.Check{Name: "required", Test: test, File: file, From: `if who == "" { // check: required`, To: `if who == "" || GONE {`},
		mutation.Check{Name: "tenant", Test: test, File: file, From: "if w.Attest != nil && w.Attest.Required {", To: "if w.Attest != nil && w.Attest.Required && !GONE {"})
}
