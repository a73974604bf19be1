package main

import (
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

func TestWhereToAttach(t *testing.T) {
	c := &core{o: &options{attach: []string{"10.0.2.2:18883,18443", "core.example"}}}
	got, err := c.whereToAttach()
	want := []api.ParentRef{{Device: "core", Address: "10.0.2.2:18883", HTTPSPort: 18443}, {Device: "core", Address: "core.example:8883"}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%+v, %v", got, err)
	}
	c.o.attach = []string{"core.example:none"}
	if _, err := c.whereToAttach(); api.CodeOf(err) != api.Invalid {
		t.Errorf("no port: %v", err)
	}
}

// An owner names a release that a box must run first, as RFC 8572 section 6 writes it.
func TestBootImage(t *testing.T) {
	m := newMaker(t)
	r, root := gate(t, m)
	birth, _ := m.birth(t, "SN-1")
	spec := api.ExpectedDeviceSpec{Serial: "SN-1", Voucher: m.voucher(t, "SN-1", r.c.ca.Trust().Root), Release: "two"}
	if e := r.expect("box-1", spec); e == nil || e.Field != "spec.release" {
		t.Errorf("a release that is not there: %v", e)
	}
	digest := strings.Repeat("0f", 32)
	if e := r.call("POST", "/api/v1/releases", `{"apiVersion":"tributary/v1","kind":"Release","metadata":{"name":"two"},"spec":{"artifact":"default/os@sha256:`+digest+`"}}`, nil); e != nil {
		t.Fatal(e)
	}
	if e := r.expect("box-1", spec); e != nil {
		t.Fatal(e)
	}
	// Of a box that is expected nobody knows the hardware profile: a Release of several is refused.
	several := `{"apiVersion":"tributary/v1","kind":"Release","metadata":{"name":"NAME"},"spec":{"systems":[{"profile":"vm","arch":"amd64","artifact":"default/os@sha256:` + digest + `"}MORE]}}`
	one := strings.NewReplacer("NAME", "one", "MORE", "").Replace(several)
	two := strings.NewReplacer("NAME", "both", "MORE", `,{"profile":"vm","arch":"arm64","artifact":"default/os@sha256:`+strings.Repeat("1e", 32)+`"}`).Replace(several)
	for _, text := range []string{one, two} {
		if e := r.call("POST", "/api/v1/releases", text, nil); e != nil {
			t.Fatal(e)
		}
	}
	other := api.ExpectedDeviceSpec{Serial: "SN-2", Voucher: m.voucher(t, "SN-2", r.c.ca.Trust().Root), Release: "both"}
	if e := r.expect("box-2", other); e == nil || e.Field != "spec.release" || !strings.Contains(e.Message, "several profiles") || e.Remedy == "" {
		t.Errorf("a release of several systems: %v", e)
	}
	other.Release = "one"
	if e := r.expect("box-2", other); e != nil {
		t.Errorf("a release of one system: %v", e)
	}
	got, err := newStranger(t, "SN-1", birth, m.cert).bootstrap(root)
	if err != nil || got.Onboarding == nil || got.Onboarding.Image == nil {
		t.Fatalf("%+v, %v", got, err)
	}
	i := got.Onboarding.Image
	if i.OS != "Tributary" || i.Version != "two" || len(i.URI) != 1 || !strings.HasSuffix(i.URI[0], "/v2/default/os/manifests/sha256:"+digest) ||
		len(i.Hash) != 1 || i.Hash[0].Algorithm != "ietf-sztp-conveyed-info:sha-256" || strings.ReplaceAll(i.Hash[0].Value, ":", "") != digest {
		t.Errorf("%+v", i)
	}
}
