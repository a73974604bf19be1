package storetest

import (
	"encoding/json"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Revisions is the suite of store.Revisions; s also puts objects.
func Revisions(t *testing.T, s interface {
	store.Store
	store.Revisions
}) {
	ctx, tenant := t.Context(), "default"
	k := func(kind, name string) api.Key { return api.Key{Tenant: tenant, Kind: kind, Name: name} }
	put := func(kind, name, spec string, opts store.PutOptions) {
		t.Helper()
		if _, err := s.Put(ctx, &api.Object{Kind: kind, Metadata: api.Meta{Tenant: tenant, Name: name}, Spec: json.RawMessage(spec)}, opts); err != nil {
			t.Fatal(err)
		}
	}
	given := func(kind, name string, all int64, spec string) {
		t.Helper()
		got, err := s.GivenOf(ctx, []api.Key{k(kind, name)})
		if err != nil {
			t.Fatal(err)
		}
		g := got[k(kind, name)]
		if all == 0 {
			if g != nil {
				t.Fatalf("%s %s was given: %+v", kind, name, g)
			}
			return
		}
		if g == nil || g.All != all || string(g.Revisions[all].Spec) != spec {
			t.Fatalf("%s %s: %+v; revision %d, %s is wanted", kind, name, g, all, spec)
		}
	}

	put(api.KindConfig, "c", `{"env":{"A":"1"}}`, store.PutOptions{})
	given(api.KindConfig, "c", 1, `{"env":{"A":"1"}}`)
	put(api.KindConfig, "c", `{"env":{"A":"1"}}`, store.PutOptions{}) // nothing new
	given(api.KindConfig, "c", 1, `{"env":{"A":"1"}}`)
	put(api.KindConfig, "c", `{"env":{"A":"2"}}`, store.PutOptions{DryRun: true})
	given(api.KindConfig, "c", 1, `{"env":{"A":"1"}}`)
	put(api.KindConfig, "c", `{"env":{"A":"2"}}`, store.PutOptions{Hold: true})
	given(api.KindConfig, "c", 1, `{"env":{"A":"1"}}`)
	put(api.KindConfig, "held", `{}`, store.PutOptions{Hold: true})
	given(api.KindConfig, "held", 0, "")

	// An app pins what it refers to, by number and digest.
	put(api.KindSecret, "s", `{"data":{"p":"w"}}`, store.PutOptions{})
	put(api.KindSecret, "same", `{"data":{"p":"w"}}`, store.PutOptions{})
	put(api.KindApp, "a", `{}`, store.PutOptions{Status: api.AppObjectStatus{Bundle: "sha256:1", Configs: []string{"c"}, Secrets: []string{"s", "none"}}})
	app, err := s.Revision(ctx, k(api.KindApp, "a"), 0)
	if err != nil || len(app.Pins) != 2 {
		t.Fatalf("%+v %v", app, err)
	}
	c, err := s.Revision(ctx, k(api.KindConfig, "c"), 2)
	if err != nil || app.Pins[0] != (api.Pin{Kind: api.KindConfig, Name: "c", Revision: 2, Digest: c.Digest}) || !strings.HasPrefix(c.Digest, "sha256:") {
		t.Fatalf("%+v %+v %v", app.Pins, c, err)
	}
	secret, err := s.Revision(ctx, k(api.KindSecret, "s"), 1)
	if err != nil || string(secret.Spec) != `{"data":{"p":"w"}}` {
		t.Fatalf("%+v %v", secret, err)
	}
	if other, err := s.Revision(ctx, k(api.KindSecret, "same"), 1); err != nil || other.Digest == secret.Digest {
		t.Fatalf("the digest tells that two secrets are alike: %v", err)
	}
	// A new pin of the same file's images is another revision.
	put(api.KindApp, "a", `{}`, store.PutOptions{Status: api.AppObjectStatus{Bundle: "sha256:2"}})
	given(api.KindApp, "a", 2, `{}`)
	all, err := s.GivenOf(ctx, nil)
	if err != nil || all[k(api.KindApp, "a")] == nil || all[k(api.KindSecret, "s")] == nil || all[k(api.KindConfig, "held")] != nil {
		t.Fatalf("%v %v", all, err)
	}

	if err := s.Delete(ctx, k(api.KindApp, "a"), 0); err != nil {
		t.Fatal(err)
	}
	given(api.KindApp, "a", 0, "")
	if _, err := s.Revision(ctx, k(api.KindApp, "a"), 1); api.CodeOf(err) != api.NotFound {
		t.Fatal("an object that is gone left its revisions: ", err)
	}
	for i := range int64(60) { // the oldest go, the one that is given stays
		put(api.KindConfig, "c", `{"env":{"A":"`+strings.Repeat("x", int(i)+1)+`"}}`, store.PutOptions{Hold: true})
	}
	if _, err := s.Revision(ctx, k(api.KindConfig, "c"), 3); api.CodeOf(err) != api.NotFound {
		t.Fatal("all revisions stay for ever: ", err)
	}
	given(api.KindConfig, "c", 1, `{"env":{"A":"1"}}`)
}
