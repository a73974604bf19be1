package server

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/store"
)

// Admission is a room's say in a write: it may refuse it, or give the status that is
// written with it. It runs after validation and may run more than once for one
// write; in a dry run it must leave nothing behind.
type Admission func(ctx context.Context, c Change) (Decision, error)

// Change is a write that was asked for.
type Change struct {
	Old    *api.Object // nil: it is created
	New    *api.Object // defaulted and validated
	DryRun bool
	// With holds the objects that the same request writes, as they were sent.
	With map[api.Key]*api.Object
}

// Decision is what a room made of a change.
type Decision struct {
	// Status is written with the spec; nil leaves the status as it is.
	Status   any
	Warnings []string
	// Reply changes the copy that answers this one request, e.g. to show a secret once.
	Reply func(*api.Object)
}

// Removal is a room's say in a deletion.
type Removal func(ctx context.Context, old *api.Object) error

// writeOptions tune one write.
type writeOptions struct {
	create, update, dryRun bool
	plan                   bool // it is only asked what would change
	hold                   bool // no device is given it
	with                   map[api.Key]*api.Object
}

// written is what a write did.
type written struct {
	old, object *api.Object
	warnings    []string
}

// write is the one way by which people change objects.
func (s *Server) write(ctx context.Context, request *api.Object, o writeOptions) (*written, error) {
	old, err := s.cfg.Store.Get(ctx, request.Key())
	if err != nil && api.CodeOf(err) != api.NotFound {
		return nil, err
	}
	if err := s.mayWrite(ctx, old, request, o); err != nil {
		return nil, err
	}
	if old != nil && o.create {
		return nil, &api.Error{Code: api.Conflict, Message: request.Kind + " " + request.Metadata.Name + " exists already", Remedy: "change it with PUT or `edgectl apply`"}
	}
	if old == nil && request.Kind == api.KindDevice {
		return nil, &api.Error{Code: api.NotFound, Field: "metadata.name", Message: "there is no Device " + request.Metadata.Name, Remedy: "devices come by enrolment: make a JoinToken and start edged with it"}
	}
	if err := s.tenantExists(ctx, request, o.with); err != nil {
		return nil, err
	}
	obj, err := api.Admit(old, request)
	if err != nil {
		return nil, err
	}
	var d Decision
	if admit := s.cfg.Admission[obj.Kind]; admit != nil {
		if d, err = admit(ctx, Change{Old: old, New: obj, DryRun: o.dryRun, With: o.with}); err != nil {
			return nil, err
		}
	}
	out, err := s.cfg.Store.Put(ctx, obj, store.PutOptions{Create: o.create, Update: o.update, InTenant: true, Status: d.Status, Hold: o.hold, DryRun: o.dryRun})
	if err != nil {
		return nil, err
	}
	if !o.dryRun && (old == nil || out.Metadata.Revision != old.Metadata.Revision) {
		s.cfg.Log.Info("object written", "object", out.Key().String(), "revision", out.Metadata.Revision, "generation", out.Metadata.Generation, "actor", CallerOf(ctx).Name)
	}
	w := &written{old: redact(old), object: redact(out), warnings: d.Warnings}
	if s.cfg.Rollouts != nil && api.HasRevisions(out.Kind) && !o.dryRun && !o.hold {
		behind, err := s.cfg.Rollouts.Behind(ctx, out.Key())
		if err != nil {
			return nil, err
		}
		if behind != "" {
			w.warnings = append(w.warnings, behind)
		}
	}
	if d.Reply != nil && !o.dryRun {
		d.Reply(w.object)
	}
	return w, nil
}

// tenantExists refuses an object of a tenant that neither exists nor comes along: a
// mistyped name would hide it.
func (s *Server) tenantExists(ctx context.Context, o *api.Object, with map[api.Key]*api.Object) error {
	name := o.Metadata.Tenant
	if name == api.DefaultTenant || name == "" {
		if o.Kind == api.KindTenant {
			return s.tenantPlaced(ctx, o, with)
		}
		return nil
	}
	if o.Kind == api.KindTenant {
		return &api.Error{Code: api.Invalid, Field: "metadata.tenant", Message: "a Tenant belongs to no other", Remedy: "leave metadata.tenant out"}
	}
	if name == api.PlatformTenant {
		return nil
	}
	key := api.Key{Tenant: api.DefaultTenant, Kind: api.KindTenant, Name: name}
	if with[key] != nil {
		return nil
	}
	_, err := s.cfg.Store.Get(ctx, key)
	if api.CodeOf(err) == api.NotFound && err != nil {
		return store.NoTenant(name)
	}
	return err
}

// tenantPlaced refuses a tenant that would hang nowhere or in a loop, together with those
// that come along. The store looks again when it writes.
func (s *Server) tenantPlaced(ctx context.Context, o *api.Object, with map[api.Key]*api.Object) error {
	tree, err := s.cfg.Store.Tenants(ctx)
	if err != nil {
		return err
	}
	for key, other := range with {
		if key.Kind == api.KindTenant && key.Tenant == api.DefaultTenant {
			tree[key.Name] = parentOf(other)
		}
	}
	return tree.Place(o.Metadata.Name, parentOf(o))
}

func parentOf(tenant *api.Object) string {
	var spec api.TenantSpec
	_ = json.Unmarshal(tenant.Spec, &spec) // decoded and checked before
	return spec.ParentOf()
}

// remove deletes an object.
func (s *Server) remove(ctx context.Context, key api.Key, revision int64) error {
	old, err := s.get(ctx, access.Read, key)
	if err == nil {
		err = s.mayRemove(ctx, old)
	}
	if err != nil {
		return err
	}
	if check := s.cfg.Removal[key.Kind]; check != nil {
		if err := check(ctx, old); err != nil {
			return err
		}
	}
	if err := s.cfg.Store.Delete(ctx, key, revision); err != nil {
		return err
	}
	s.cfg.Log.Info("object deleted", "object", key.String(), "actor", CallerOf(ctx).Name)
	return nil
}

// redact takes out what nobody reads back: the values of a Secret, and what the core
// keeps of a JoinToken to check it. It returns a copy where it changes anything.
func redact(o *api.Object) *api.Object {
	if o == nil {
		return nil
	}
	c := *o
	switch o.Kind {
	case api.KindSecret:
		var spec api.SecretSpec
		_ = json.Unmarshal(o.Spec, &spec) // an empty list of keys is the worst outcome
		status, err := json.Marshal(map[string]any{"keys": slices.Sorted(maps.Keys(spec.Data))})
		if err != nil {
			return nil
		}
		c.Spec, c.Status = json.RawMessage(`{}`), status
	case api.KindJoinToken:
		var status api.JoinTokenStatus
		_ = json.Unmarshal(o.Status, &status)
		status.Token = ""
		c.Status, _ = json.Marshal(status)
	}
	return &c
}
