package server_test

import (
	"encoding/json"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/tests/mutation"
)

// Who may not let boxes in reads no pairing code, by whatever way objects are read.
func TestViewersSeeNoCodes(t *testing.T) {
	c := start(t, nil)
	const code = "7K2M-9QXA-4HTR"
	box := func(name, code string) *api.Object {
		return &api.Object{APIVersion: api.Version, Kind: api.KindExpectedDevice, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: name}, Spec: json.RawMessage(`{"serial":"SN-` + name + `","code":"` + code + `","labels":{"role":"field"}}`)}
	}
	for _, o := range []*api.Object{box("a", code), box("b", "")} {
		if _, err := c.store.Put(t.Context(), o, store.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/api/v1/expecteddevices", "/api/v1/expecteddevices?watch=true", "/api/v1/expecteddevices/a"} {
		if text := c.read(c.viewer, "GET", path, ""); strings.Contains(text, code) || !strings.Contains(text, `"code":"hidden"`) || !strings.Contains(text, "SN-a") {
			t.Errorf("a viewer reads %s: %s", path, text)
		}
		if text := c.read(c.admin, "GET", path, ""); !strings.Contains(text, code) {
			t.Errorf("an admin reads %s: %s", path, text)
		}
	}
	if text := c.read(c.viewer, "GET", "/api/v1/expecteddevices/b", ""); strings.Contains(text, "hidden") {
		t.Errorf("a box without a code: %s", text)
	}
	// What a change would replace is not told either.
	doc := `{"apiVersion":"tributary/v1","kind":"ExpectedDevice","metadata":{"name":"a"},"spec":{"serial":"SN-a"}}`
	if text := c.read(c.viewer, "POST", "/api/v1/apply?dryRun=true", doc); strings.Contains(text, code) || !strings.Contains(text, `"unknown"`) {
		t.Errorf("a viewer's dry run: %s", text)
	}
	if text := c.read(c.admin, "POST", "/api/v1/apply?dryRun=true", doc); !strings.Contains(text, code) {
		t.Errorf("an admin's dry run: %s", text)
	}
}

func TestCodesAreTested(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "a pairing code", Test: "^TestViewersSeeNoCodes$", File: "veil.go",
		From: `if o == nil || o.Kind != api.KindExpectedDevice || CallerOf(ctx).May(access.Reveal, CallerOf(ctx).Resource(o)) {`, To: `if o == nil || o.Kind != api.KindExpectedDevice || CallerOf(ctx).May(access.Reveal, CallerOf(ctx).Resource(o)) || GONE {`},
		mutation.Check{Name: "a code that a dry run would replace", Test: "^TestViewersSeeNoCodes$", File: "apply.go",
			From: `|| d.Object.Kind == api.KindExpectedDevice) &&`, To: `|| d.Object.Kind == api.KindExpectedDevice && !GONE) &&`})
}
