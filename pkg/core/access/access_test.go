package access

import (
	"encoding/json"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/mutation"
)

func object(kind, tenant, name string, labels map[string]string, spec any) *api.Object {
	raw, err := json.Marshal(spec)
	if err != nil {
		panic(err)
	}
	return &api.Object{Kind: kind, Metadata: api.Meta{Tenant: tenant, Name: name, UID: tenant + "-" + name, Labels: labels}, Spec: raw}
}

var tree = api.TenantTree{"acme": "platform", "north": "acme", "other": "platform"}

// bound makes the caller of one account with bindings.
func bound(t interface{ Fatal(...any) }, bindings ...*api.Object) *Caller {
	fleet := object(api.KindFleet, "acme", "shops", nil, api.FleetSpec{Selector: api.Selector{MatchLabels: map[string]string{"role": "shop"}}})
	s, err := NewSnapshot(tree, append(bindings, fleet, object(api.KindServiceAccount, "acme", "ci", nil, api.ServiceAccountSpec{})))
	if err != nil {
		t.Fatal(err)
	}
	return s.Caller("acme-ci", "ci")
}

func binding(tenant, role, site, fleet string) *api.Object {
	return object(api.KindRoleBinding, tenant, role, nil, api.RoleBindingSpec{Role: role, Site: site, Fleet: fleet, Subjects: []api.Subject{{ServiceAccount: "ci", Tenant: "acme"}}})
}

// What each role may do in its scope is what the table says, and nothing of it outside.
func TestRoles(t *testing.T) {
	all := []Action{Read, Plan, Write, Govern, Approve, Operate, Reveal, Unlock, Onboard, Usage, Pull, Push, Unpublish, Observe}
	reads := []Action{Read, Plan, Usage, Pull, Observe}
	runs := append([]Action{Write, Approve, Operate, Reveal, Onboard, Push, Unpublish}, reads...)
	for role, may := range map[string][]Action{
		"viewer": reads, "rescuer": append([]Action{Unlock}, reads...), "billing": {Read, Usage}, "operator": runs,
		"tenant-admin": append([]Action{Unlock, Govern}, runs...), "platform-admin": all, "nobody": nil,
	} {
		c := bound(t, binding("acme", role, "", ""))
		for _, action := range all {
			for tenant, in := range map[string]bool{"acme": true, "north": true, "other": false, "platform": false, "default": false, "gone": false} {
				if got, want := c.May(action, Resource{Tenant: tenant, Kind: api.KindDevice}), in && slices.Contains(may, action); got != want {
					t.Errorf("%s of acme may %s in %s: %v", role, action, tenant, got)
				}
			}
		}
	}
	if bound(t, binding("acme", "billing", "", "")).May(Read, Resource{Tenant: "acme", Kind: api.KindSecret}) {
		t.Error("billing reads secrets")
	}
	admin := Resource{Tenant: "acme", Kind: api.KindRoleBinding, Role: api.RolePlatformAdmin}
	if bound(t, binding("acme", "tenant-admin", "", "")).May(Govern, admin) || !bound(t, binding("platform", "platform-admin", "", "")).May(Govern, admin) {
		t.Error("platform-admin is not given by those alone who have it")
	}
}

// A list shows what asking for each object would, whatever the bindings.
func TestViewsAreDecisions(t *testing.T) {
	tenants := append(tree.Names(), "gone")
	rapid.Check(t, func(t *rapid.T) {
		var all []*api.Object
		for range rapid.IntRange(0, 4).Draw(t, "bindings") {
			site, fleet := "", ""
			switch rapid.IntRange(0, 2).Draw(t, "narrow") {
			case 1:
				site = "hill"
			case 2:
				fleet = "shops"
			}
			all = append(all, binding(rapid.SampledFrom(tenants).Draw(t, "in"), rapid.SampledFrom(api.Roles).Draw(t, "role"), site, fleet))
		}
		c := bound(t, all...)
		kind := rapid.SampledFrom([]string{api.KindTenant, api.KindSite, api.KindDevice, api.KindFleet, api.KindSecret, api.KindRoleBinding}).Draw(t, "kind")
		o := object(kind, rapid.SampledFrom(tenants).Draw(t, "tenant"), rapid.SampledFrom([]string{"hill", "shops", "acme", "north"}).Draw(t, "name"),
			map[string]string{"role": rapid.SampledFrom([]string{"shop", "hub"}).Draw(t, "label")}, map[string]any{})
		if kind == api.KindDevice {
			o.Spec = json.RawMessage(`{"site":"` + rapid.SampledFrom([]string{"hill", "vale"}).Draw(t, "site") + `"}`)
		}
		v, r := c.Of(Read, kind), c.Resource(o)
		if !tree.Has(r.Tenant) {
			return // the store has no such
		}
		if got, want := v.Everything || v.Has(o), c.May(Read, r); got != want {
			t.Fatalf("%v: the view says %v, the decision %v", r, got, want)
		}
		if reaches := v.Reaches(); c.May(Read, r) && reaches != nil && !slices.Contains(reaches, r.Tenant) {
			t.Fatalf("%v is read, and only %v are reached", r, reaches)
		}
	})
}

// A binding to a site or a fleet reaches that, and its devices alone.
func TestNarrowBindings(t *testing.T) {
	device := func(tenant, site, role string) *api.Object {
		return object(api.KindDevice, tenant, "d", map[string]string{"role": role}, api.DeviceSpec{Site: site})
	}
	site, fleet := bound(t, binding("acme", "operator", "hill", "")), bound(t, binding("acme", "operator", "", "shops"))
	for _, x := range []struct {
		o               *api.Object
		bySite, byFleet bool
	}{
		{device("acme", "hill", "hub"), true, false}, {device("acme", "vale", "shop"), false, true}, {device("acme", "vale", "hub"), false, false},
		{device("north", "hill", "shop"), false, false}, {object(api.KindSite, "acme", "hill", nil, api.SiteSpec{}), true, false},
		{object(api.KindFleet, "acme", "shops", nil, api.FleetSpec{}), false, true}, {object(api.KindConfig, "acme", "hill", nil, api.ConfigSpec{}), false, false},
		{object(api.KindTenant, "default", "acme", nil, api.TenantSpec{}), false, false},
	} {
		if got := site.May(Operate, site.Resource(x.o)); got != x.bySite {
			t.Errorf("%s by its site: %v", x.o.Key(), got)
		}
		if got := fleet.May(Operate, fleet.Resource(x.o)); got != x.byFleet {
			t.Errorf("%s by its fleet: %v", x.o.Key(), got)
		}
	}
}

// A person may what they are bound to by uid, and by the groups of the issuer that said so.
func TestPeopleAndGroups(t *testing.T) {
	subject := func(tenant, role string, who api.Subject) *api.Object {
		return object(api.KindRoleBinding, tenant, role+who.Person+who.Group, nil, api.RoleBindingSpec{Role: role, Subjects: []api.Subject{who}})
	}
	s, err := NewSnapshot(tree, []*api.Object{subject("acme", "operator", api.Subject{Person: "uid-ann"}), subject("other", "viewer", api.Subject{Group: "ops", Issuer: "https://a"}),
		subject("platform", "tenant-admin", api.Subject{Group: "leads", Issuer: "https://a"})})
	if err != nil {
		t.Fatal(err)
	}
	in := func(tenant string) Resource { return Resource{Tenant: tenant, Kind: api.KindDevice} }
	ann, ops, forged, lead := s.Person("uid-ann", "ann", nil), s.Person("uid-bob", "bob", []Group{{"https://a", "ops"}}), s.Person("uid-eve", "eve", []Group{{"https://b", "ops"}}), s.Person("uid-lea", "lea", []Group{{"https://a", "leads"}})
	if !ann.May(Write, in("north")) || ann.May(Read, in("other")) || ops.May(Read, in("acme")) || !ops.May(Read, in("other")) || ops.May(Write, in("other")) {
		t.Error("a person or a group is not bound as the binding says")
	}
	if forged.May(Read, in("other")) || s.Person("ann", "uid-ann", nil).May(Read, in("acme")) {
		t.Error("another issuer's group, or a name, is taken for the one that is bound")
	}
	if lead.May(Govern, Resource{Tenant: "platform", Kind: Person}) || lead.May(Read, Resource{Tenant: "platform", Kind: Person}) || !bound(t, binding("platform", "platform-admin", "", "")).May(Govern, Resource{Tenant: "platform", Kind: Person}) {
		t.Error("people are not kept by platform-admins alone")
	}
}

// The tests of roles and views need the clause that holds a role to its scope.
func TestScopeCounts(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "scope", Test: "^TestRoles$", File: "access.go", From: `return uid("Tenant", b.Tenant)`,
		To: `if GONE { return uid("Tenant", "platform") }; return uid("Tenant", b.Tenant)`, Says: "in other: true"})
}
