package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/compose"
	"tributary.dev/tributary/pkg/core/store"
)

// Apps of one device share its ports. Which apps meet on a device is told by fleets and
// labels: those of one fleet always do; those of several do where a device is in all of
// them. What a label brings together later is refused by the device, by name.

// pool is a set of apps that meet.
type pool struct {
	where string // for people
	apps  []string
}

// fleetsOf lists a tenant's fleets as they will be after the request.
func (a *Apps) fleetsOf(ctx context.Context, c Change) (map[string]*api.FleetSpec, error) {
	tenant := c.New.Metadata.Tenant
	objects, _, _, err := a.Store.List(ctx, store.Query{Tenant: tenant, Kind: api.KindFleet})
	if err != nil {
		return nil, err
	}
	for _, o := range c.With {
		if o.Kind == api.KindFleet && o.Metadata.Tenant == tenant {
			objects = append(objects, o)
		}
	}
	if c.New.Kind == api.KindFleet {
		objects = append(objects, c.New)
	}
	out := map[string]*api.FleetSpec{}
	for _, o := range objects {
		spec := &api.FleetSpec{}
		if err := json.Unmarshal(o.Spec, spec); err != nil {
			continue // of the same request, and refused where it stands
		}
		if out[o.Metadata.Name] = spec; len(spec.AllApps()) == 0 {
			delete(out, o.Metadata.Name)
		}
	}
	return out, nil
}

// meetings lists the pools of which a fleet is part that concerns the change.
func (a *Apps) meetings(ctx context.Context, c Change, concerns func(fleet string, spec *api.FleetSpec) bool) ([]pool, error) {
	fleets, err := a.fleetsOf(ctx, c)
	if err != nil {
		return nil, err
	}
	var out []pool
	for _, name := range slices.Sorted(maps.Keys(fleets)) {
		if concerns(name, fleets[name]) {
			out = append(out, pool{"fleet " + name, fleets[name].AllApps()})
		}
	}
	if len(out) == 0 || len(fleets) < 2 {
		return out, nil
	}
	devices, _, _, err := a.Store.List(ctx, store.Query{Tenant: c.New.Metadata.Tenant, Kind: api.KindDevice})
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, d := range devices {
		names, concerned := []string(nil), false
		for name, spec := range fleets {
			if spec.Selector.Matches(d.Metadata.Labels) {
				names = append(names, name)
				concerned = concerned || concerns(name, spec)
			}
		}
		slices.Sort(names)
		set := strings.Join(names, " and ")
		if len(names) < 2 || !concerned || seen[set] {
			continue
		}
		seen[set] = true
		p := pool{where: fmt.Sprintf("device %s, which is in the fleets %s", d.Metadata.Name, set)}
		for _, name := range names {
			p.apps = append(p.apps, fleets[name].AllApps()...)
		}
		slices.Sort(p.apps)
		p.apps = slices.Compact(p.apps)
		out = append(out, p)
	}
	return out, nil
}

// appClashes refuses an app that wants a port which another app has where both meet.
func (a *Apps) appClashes(ctx context.Context, c Change, b *api.Bundle) error {
	name := c.New.Metadata.Name
	if !slices.ContainsFunc(b.Services, func(s api.Service) bool { return len(s.Ports) > 0 }) {
		return nil
	}
	pools, err := a.meetings(ctx, c, func(fleet string, spec *api.FleetSpec) bool {
		// A fleet of the same request is looked at when its turn comes.
		return slices.Contains(spec.AllApps(), name) && c.With[api.Key{Tenant: c.New.Metadata.Tenant, Kind: api.KindFleet, Name: fleet}] == nil
	})
	if err != nil {
		return err
	}
	for _, p := range pools {
		bundles, err := a.bundles(ctx, c, p.apps, name)
		if err != nil {
			return err
		}
		if err := clashError("spec.compose", p.where, compose.Clashes(append(bundles, b))); err != nil {
			return err
		}
	}
	return nil
}

// fleetClashes refuses a fleet that makes apps meet that want the same port.
func (a *Apps) fleetClashes(ctx context.Context, c Change) error {
	pools, err := a.meetings(ctx, c, func(fleet string, _ *api.FleetSpec) bool { return fleet == c.New.Metadata.Name })
	if err != nil {
		return err
	}
	for _, p := range pools {
		bundles, err := a.bundles(ctx, c, p.apps, "")
		if err != nil {
			return err
		}
		if err := clashError("spec.apps", p.where, compose.Clashes(bundles)); err != nil {
			return err
		}
	}
	return nil
}

func clashError(field, where string, clashes []compose.Clash) error {
	var faults []*api.Error
	for _, c := range clashes {
		faults = append(faults, &api.Error{Code: api.Invalid, Field: field, Message: fmt.Sprintf("in %s: %s", where, c), Remedy: "publish another host port, or give the apps to different devices"})
	}
	if err := api.JoinErrors(faults, "ports clash"); err != nil {
		return err
	}
	return nil
}
