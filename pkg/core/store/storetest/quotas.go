package storetest

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// quotas: what is more than a tenant, or one above it, may have is refused, however many try at once; what is over, or
// deleted, makes room; and a tenant is not moved to where it is too much.
func quotas(t *testing.T, s store.Store) {
	object := func(kind, tenant, name, spec string) *api.Object {
		return &api.Object{Kind: kind, Metadata: api.Meta{Tenant: tenant, Name: name}, Spec: json.RawMessage(spec)}
	}
	put(t, s, object(api.KindTenant, api.DefaultTenant, "acme", `{}`))
	put(t, s, object(api.KindTenant, api.DefaultTenant, "north", `{"parent":"acme"}`))
	put(t, s, object(api.KindTenant, api.DefaultTenant, "guest", `{}`))
	put(t, s, object(api.KindQuota, "acme", api.QuotaName, `{"apps":5,"trainingRanks":4}`))

	var wg sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	for i := range 12 {
		tenant := []string{"acme", "north"}[i%2]
		wg.Go(func() {
			_, err := s.Put(t.Context(), object(api.KindApp, tenant, fmt.Sprintf("app-%d", i), `{}`), store.PutOptions{InTenant: true})
			if api.CodeOf(err) == api.Conflict && strings.Contains(err.Error(), "quota of tenant acme is 5 apps") {
				mu.Lock()
				refused++
				mu.Unlock()
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	used, err := s.Used(t.Context(), "acme")
	if err != nil || refused != 7 || used["apps"] != 5 {
		t.Fatalf("%d of 12 were refused, %v are used: %v", refused, used, err)
	}
	if _, err := s.Put(t.Context(), object(api.KindApp, "guest", "app", `{}`), store.PutOptions{}); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	if _, err := s.Put(t.Context(), object(api.KindTenant, api.DefaultTenant, "guest", `{"parent":"north"}`), store.PutOptions{}); api.CodeOf(err) != api.Conflict {
		t.Errorf("a tenant with an app moved below a full one: %v", err)
	}
	apps, _, _, err := s.List(t.Context(), store.Query{Kind: api.KindApp, Tenant: "north"})
	if err != nil || len(apps) == 0 {
		t.Fatal(apps, err)
	}
	if err := s.Delete(t.Context(), apps[0].Key(), 0); err != nil {
		t.Fatal(err)
	}
	put(t, s, object(api.KindTenant, api.DefaultTenant, "guest", `{"parent":"north"}`))
	if _, err := s.Put(t.Context(), object(api.KindApp, "guest", "one-more", `{}`), store.PutOptions{}); api.CodeOf(err) != api.Conflict {
		t.Errorf("one more below: %v", err)
	}

	put(t, s, object(api.KindTrainingJob, "acme", "a", `{"trainer":"x","ranks":3}`))
	if _, err := s.Put(t.Context(), object(api.KindTrainingJob, "north", "b", `{"trainer":"x","ranks":2}`), store.PutOptions{}); api.CodeOf(err) != api.Conflict {
		t.Errorf("two more ranks where one is left: %v", err)
	}
	if err := s.PutStatus(t.Context(), api.Key{Tenant: "acme", Kind: api.KindTrainingJob, Name: "a"}, api.TrainingJobStatus{Phase: api.TrainingSucceeded}); err != nil {
		t.Fatal(err)
	}
	put(t, s, object(api.KindTrainingJob, "north", "b", `{"trainer":"x","ranks":4}`))
	put(t, s, object(api.KindTrainingJob, "north", "b", `{"trainer":"x","ranks":4,"suspend":true}`)) // what is there is no more
}
