// Package access answers: who is asking, and may they?
//
// Somebody acts by bindings: a role in a scope. What a role may do stands in
// policies.cedar alone; who is bound to what, in the objects ServiceAccount and RoleBinding.
// The decision is a pure function of a Snapshot of these.
package access

import (
	_ "embed"
	"slices"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"tributary.dev/tributary/pkg/api"
)

// Action is what somebody wants to do.
type Action string

// The actions that policies speak of.
const (
	Read      Action = "read"      // see that it is there, and what it is
	Plan      Action = "plan"      // ask what a write would change
	Write     Action = "write"     // create, change, delete
	Govern    Action = "govern"    // the same of tenants, service accounts, their tokens, and bindings
	Approve   Action = "approve"   // let a device in, revoke it, say that its cards are well
	Operate   Action = "operate"   // logs, exec and the like
	Reveal    Action = "reveal"    // arguments of commands, pairing codes
	Unlock    Action = "unlock"    // answer a box's challenge, approve its firmware
	Onboard   Action = "onboard"   // make the signed data for a box
	Usage     Action = "usage"     // what was used
	Pull      Action = "pull"      // artifacts
	Push      Action = "push"      // artifacts
	Unpublish Action = "unpublish" // take artifacts away
	Observe   Action = "observe"   // metrics
	Audit     Action = "audit"     // who did what
	Price     Action = "price"     // say what usage costs a tenant, and who it is to its invoices; asked of the tenant above
	Bill      Action = "bill"      // make drafts, issue and credit invoices, decide what blocks them
)

// Resource is what is acted upon.
type Resource struct {
	Tenant string
	// Kind is a kind of object; what belongs to an object has its kind. Artifacts are of the
	// kind Artifact, and the tenant by itself is of the kind Tenant.
	Kind string
	// Name is the object's; empty for what has none.
	Name string
	// Site and Fleets are where a device is.
	Site   string
	Fleets []string
	// Role is what a RoleBinding gives.
	Role string
}

// Person is the kind of people: they belong to no tenant, and are the platform's to keep.
const Person = "Person"

// Artifact is the kind of what lies in the registry.
const Artifact = "Artifact"

// Invoice is the kind of what a tenant owes, drafts and costs included.
const Invoice = "Invoice"

//go:embed policies.cedar
var policyText []byte

// policies are read once; a fault in them is one of the build, which any test finds.
var policies = func() *cedar.PolicySet {
	set, err := cedar.NewPolicySetFromBytes("policies.cedar", policyText)
	if err != nil {
		panic(err)
	}
	return set
}()

// Caller is somebody who asks, with all that decides what they may as of one moment.
type Caller struct {
	// Name stands in logs and audits.
	Name string
	// UID is that of the person or account who acts, and How tells by what they are known.
	UID, How string
	// Account is the service account that the caller acts for; Person the uid of somebody who
	// acts for themselves, Session that of their session.
	Account         api.Key
	Person, Session string
	// Bindings are the caller's.
	Bindings []Binding
	tenants  api.TenantTree
	fleets   map[api.Key]api.Selector
	from     *Snapshot
}

// Binding is a role in a scope.
type Binding struct {
	Role   string `json:"role"`
	Tenant string `json:"tenant"`
	Site   string `json:"site,omitempty" doc:"Only this site of the tenant."`
	Fleet  string `json:"fleet,omitempty" doc:"Only this fleet of the tenant."`
}

func uid(kind, name string) types.EntityUID {
	return types.NewEntityUID(types.EntityType(kind), types.String(name))
}

func (b Binding) scope() types.EntityUID {
	switch {
	case b.Site != "":
		return uid("Site", b.Tenant+"/"+b.Site)
	case b.Fleet != "":
		return uid("Fleet", b.Tenant+"/"+b.Fleet)
	}
	return uid("Tenant", b.Tenant)
}

// May decides whether the caller may do something.
func (c *Caller) May(action Action, r Resource) bool {
	return slices.ContainsFunc(c.Bindings, func(b Binding) bool { return b.may(action, r, c.tenants) })
}

var (
	hat   = uid("Binding", "")
	thing = uid("Resource", "")
)

func (b Binding) may(action Action, r Resource, tree api.TenantTree) bool {
	path := tree.Path(r.Tenant)
	if path == nil {
		return false // what belongs to no tenant that is there is nobody's
	}
	lies := []types.EntityUID{uid("Tenant", r.Tenant)}
	entities := types.EntityMap{}
	for i, name := range path[:len(path)-1] {
		id := uid("Tenant", name)
		entities[id] = types.Entity{UID: id, Parents: types.NewEntityUIDSet(uid("Tenant", path[i+1]))}
	}
	if r.Site != "" {
		lies = append(lies, uid("Site", r.Tenant+"/"+r.Site))
	}
	for _, name := range r.Fleets {
		lies = append(lies, uid("Fleet", r.Tenant+"/"+name))
	}
	entities[hat] = types.Entity{UID: hat, Parents: types.NewEntityUIDSet(uid("Role", b.Role)), Attributes: types.NewRecord(types.RecordMap{"scope": b.scope()})}
	entities[thing] = types.Entity{UID: thing, Parents: types.NewEntityUIDSet(lies...),
		Attributes: types.NewRecord(types.RecordMap{"kind": types.String(r.Kind), "role": types.String(r.Role)})}
	decision, said := cedar.Authorize(policies, entities, cedar.Request{Principal: hat, Action: uid("Action", string(action)), Resource: thing})
	return decision == cedar.Allow && len(said.Errors) == 0
}

// View is what of a kind a caller may do something with.
type View struct {
	// Tenants are those of which all is in the view; nil with Everything.
	Tenants    []string
	Everything bool
	Kind       string
	caller     *Caller
	action     Action
	// narrow tells that devices or single objects of other tenants may be in the view.
	narrow []string // the tenants
}

// Of finds what of a kind the caller may act upon, for lists: asking May of each would find
// the same.
func (c *Caller) Of(action Action, kind string) View {
	v := View{Kind: kind, caller: c, action: action, Tenants: []string{}}
	for _, b := range c.Bindings {
		if b.Site != "" || b.Fleet != "" {
			v.narrow = append(v.narrow, b.Tenant)
			continue
		}
		if !b.may(action, Resource{Tenant: b.Tenant, Kind: kind}, c.tenants) {
			continue
		}
		if b.Tenant == api.PlatformTenant {
			return View{Kind: kind, caller: c, action: action, Everything: true}
		}
		for _, name := range c.tenants.Names() {
			if c.tenants.Within(name, b.Tenant) && !slices.Contains(v.Tenants, name) {
				v.Tenants = append(v.Tenants, name)
			}
		}
	}
	return v
}

// Whole reports whether all of a tenant is in the view.
func (v View) Whole(tenant string) bool { return v.Everything || slices.Contains(v.Tenants, tenant) }

// Narrow reports whether only a part of some tenant is in the view.
func (v View) Narrow() bool { return !v.Everything && len(v.narrow) > 0 }

// Same reports whether two views of a kind show the same, as far as can be told without the
// objects: what a fleet picks may have changed with anything.
func (v View) Same(o View) bool {
	return v.Everything == o.Everything && slices.Equal(v.Tenants, o.Tenants) && slices.Equal(v.narrow, o.narrow) && (!v.Narrow() || v.caller.from == o.caller.from)
}

// Reaches lists the tenants in which anything may be in the view; nil for all.
func (v View) Reaches() []string {
	if v.Everything {
		return nil
	}
	out := append([]string{}, v.Tenants...)
	for _, t := range v.narrow {
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// Has reports whether an object is in the view.
func (v View) Has(o *api.Object) bool {
	r := v.caller.Resource(o)
	return v.Whole(r.Tenant) || v.caller.May(v.action, r)
}

// Above is the tenant above another; the root has itself.
func (c *Caller) Above(tenant string) string {
	if path := c.tenants.Path(tenant); len(path) > 1 {
		return path[1]
	}
	return api.PlatformTenant
}

// Sees reports whether a tenant is there as far as the caller is told.
func (c *Caller) Sees(tenant string) bool {
	return c.tenants.Has(tenant) && slices.ContainsFunc(c.Bindings, func(b Binding) bool { return c.tenants.Within(tenant, b.Tenant) })
}
