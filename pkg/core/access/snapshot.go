package access

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Snapshot is all that decides who may what, as of one moment.
type Snapshot struct {
	Tenants  api.TenantTree
	accounts map[string]*api.Object // by uid
	bound    map[api.Key][]Binding  // of service accounts
	people   map[string][]Binding   // by uid
	groups   map[Group][]Binding
	fleets   map[api.Key]api.Selector
}

// Group is what an issuer says that people belong to.
type Group struct{ Issuer, Name string }

// NewSnapshot sums up objects of the kinds that decide; others are passed over.
func NewSnapshot(tenants api.TenantTree, objects []*api.Object) (*Snapshot, error) {
	s := &Snapshot{Tenants: tenants, accounts: map[string]*api.Object{}, bound: map[api.Key][]Binding{}, people: map[string][]Binding{}, groups: map[Group][]Binding{}, fleets: map[api.Key]api.Selector{}}
	for _, o := range objects {
		if err := s.add(o); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Key(), err)
		}
	}
	return s, nil
}

func (s *Snapshot) add(o *api.Object) error {
	switch o.Kind {
	case api.KindServiceAccount:
		var spec api.ServiceAccountSpec
		if err := unmarshal(o.Spec, &spec); err != nil {
			return err
		}
		if !spec.Disabled {
			s.accounts[o.Metadata.UID] = o
		}
	case api.KindRoleBinding:
		var spec api.RoleBindingSpec
		if err := unmarshal(o.Spec, &spec); err != nil {
			return err
		}
		b := Binding{Role: spec.Role, Tenant: o.Metadata.Tenant, Site: spec.Site, Fleet: spec.Fleet}
		for _, subject := range spec.Subjects {
			switch group := (Group{subject.Issuer, subject.Group}); {
			case subject.Person != "":
				s.people[subject.Person] = append(s.people[subject.Person], b)
			case group.Name != "":
				s.groups[group] = append(s.groups[group], b)
			default:
				key := subject.Account(o.Metadata.Tenant)
				s.bound[key] = append(s.bound[key], b)
			}
		}
	case api.KindFleet:
		var spec api.FleetSpec
		if err := unmarshal(o.Spec, &spec); err != nil {
			return err
		}
		s.fleets[o.Key()] = spec.Selector
	}
	return nil
}

func unmarshal(raw json.RawMessage, into any) error {
	if len(raw) == 0 {
		return nil
	}
	return json.Unmarshal(raw, into)
}

// Caller is the one who acts for the service account of a uid; nil when there is none, or it
// is disabled.
func (s *Snapshot) Caller(account, name string) *Caller {
	o := s.accounts[account]
	if o == nil {
		return nil
	}
	return &Caller{Name: name, UID: account, Account: o.Key(), Bindings: s.bound[o.Key()], tenants: s.Tenants, fleets: s.fleets, from: s}
}

// Person is the one who acts for themselves, by what they and their groups are bound to.
func (s *Snapshot) Person(uid, name string, groups []Group) *Caller {
	bindings := slices.Clone(s.people[uid])
	for _, g := range groups {
		for _, b := range s.groups[g] {
			if !slices.Contains(bindings, b) {
				bindings = append(bindings, b)
			}
		}
	}
	return &Caller{Name: name, UID: uid, How: "session", Person: uid, Bindings: bindings, tenants: s.Tenants, fleets: s.fleets, from: s}
}

// Resource is an object as policies see it.
func (c *Caller) Resource(o *api.Object) Resource {
	r := Resource{Tenant: o.Metadata.Tenant, Kind: o.Kind, Name: o.Metadata.Name}
	switch o.Kind {
	case api.KindTenant:
		r.Tenant = o.Metadata.Name
	case api.KindSite:
		r.Site = o.Metadata.Name
	case api.KindFleet:
		r.Fleets = []string{o.Metadata.Name}
	case api.KindIncident: // of one site alone: whoever looks after that site sees it
		var status api.IncidentStatus
		if _ = unmarshal(o.Status, &status); len(status.Sites) == 1 {
			r.Site = status.Sites[0]
		}
	case api.KindRoleBinding:
		var spec api.RoleBindingSpec
		_ = unmarshal(o.Spec, &spec) // it was checked when it was written
		r.Role = spec.Role
	case api.KindDevice:
		var spec api.DeviceSpec
		_ = unmarshal(o.Spec, &spec)
		r.Site = spec.Site
		for _, b := range c.Bindings {
			if b.Fleet == "" || b.Tenant != r.Tenant || slices.Contains(r.Fleets, b.Fleet) {
				continue
			}
			if picks, ok := c.fleets[api.Key{Tenant: b.Tenant, Kind: api.KindFleet, Name: b.Fleet}]; ok && picks.Matches(o.Metadata.Labels) {
				r.Fleets = append(r.Fleets, b.Fleet)
			}
		}
	}
	return r
}

// Room tells who asks. It keeps the newest Snapshot, and reads it anew when what it was made
// of has changed, whoever changed it.
type Room struct {
	store Store

	mu    sync.Mutex
	of    int64
	known *Snapshot
}

// Store is what the room reads.
type Store interface {
	store.Tokens
	store.Store
	// AccessRevision is the revision of the last change of what decides who may what.
	AccessRevision(ctx context.Context) (int64, error)
}

// New makes the room.
func New(s Store) *Room { return &Room{store: s} }

// Snapshot gives what decides now.
func (r *Room) Snapshot(ctx context.Context) (*Snapshot, error) {
	now, err := r.store.AccessRevision(ctx) // before the rest: what changes after it is read again
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known != nil && r.of == now {
		return r.known, nil
	}
	tenants, err := r.store.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	var all []*api.Object
	for _, kind := range []string{api.KindServiceAccount, api.KindRoleBinding, api.KindFleet} {
		objects, _, _, err := r.store.List(ctx, store.Query{Kind: kind})
		if err != nil {
			return nil, err
		}
		all = append(all, objects...)
	}
	if r.known, err = NewSnapshot(tenants, all); err != nil {
		r.known = nil
		return nil, err
	}
	r.of = now
	return r.known, nil
}

// ByToken tells whose token it is. The error has code Unauthorized.
func (r *Room) ByToken(ctx context.Context, token string) (*Caller, error) {
	t, err := r.store.CheckToken(ctx, token)
	if err != nil {
		return nil, err
	}
	s, err := r.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	c := s.Caller(t.Account, t.Name)
	if c == nil {
		return nil, &api.Error{Code: api.Unauthorized, Message: "the token's service account is gone or disabled", Remedy: "ask whoever runs the tenant"}
	}
	c.How = "token " + t.TokenID
	return c, nil
}

// Person tells what somebody may who has a session.
func (r *Room) Person(ctx context.Context, uid, name string, groups []Group) (*Caller, error) {
	s, err := r.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return s.Person(uid, name, groups), nil
}
