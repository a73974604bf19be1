package cli

import (
	"context"
	"slices"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
)

// prunable are the kinds that apply makes and may take away. Tenants hold others' things,
// devices and join tokens come and go by other ways.
var prunable = []string{api.KindSite, api.KindConfig, api.KindSecret, api.KindApp, api.KindRelease, api.KindFlowPolicy, api.KindFleet, api.KindNetworkPolicy}

// pruneOptions say what apply takes away.
type pruneOptions struct {
	on       bool
	selector string
}

// check refuses what would take away more than the files are about, before anything is
// sent.
func (o pruneOptions) check(sources []*source) error {
	switch {
	case !o.on && o.selector == "":
		return nil
	case !o.on:
		return &api.Error{Code: api.Invalid, Field: "--selector", Message: "it says what may be pruned", Remedy: "add --prune, or leave it out: all objects of the files are applied"}
	}
	s, err := api.ParseSelector(o.selector)
	if err != nil {
		return err
	}
	// k in (a,b) picks by a value that somebody gave; to lack a label, or to have any, is
	// nobody's mark.
	owned := len(s.MatchLabels) > 0 || slices.ContainsFunc(s.MatchExpressions, func(r api.Requirement) bool { return r.Operator == api.OpIn })
	if !owned {
		return &api.Error{Code: api.Invalid, Field: "--prune", Message: "without a label it would delete what others applied", Remedy: "give the objects of these files a label that no others have, and add it: --prune -l owner=me"}
	}
	var faults []*api.Error
	for _, one := range sources {
		m := one.object.Metadata
		if slices.Contains(prunable, one.object.Kind) && !s.Matches(m.Labels) {
			faults = append(faults, &api.Error{Code: api.Invalid, Field: "metadata.labels", Message: one.object.Kind + " " + m.Name + " of " + one.file + " does not meet " + o.selector,
				Remedy: "label it so; else it would stay behind when it leaves the files"})
		}
	}
	if err := api.JoinErrors(faults, "--prune"); err != nil {
		return err
	}
	return nil
}

// prune deletes what the selector picks in the tenants of the applied objects and was not
// applied along with them; what refers to others first. In a dry run it only tells. What
// was done before a refusal is told, too.
func prune(ctx context.Context, cl *client.Client, o pruneOptions, applied []client.Result, dryRun bool) (gone []client.Result, err error) {
	keep, tenants := map[api.Key]bool{}, []string{}
	for _, r := range applied {
		keep[api.Key{Tenant: r.Tenant, Kind: r.Kind, Name: r.Name}] = true
		if !slices.Contains(tenants, r.Tenant) {
			tenants = append(tenants, r.Tenant)
		}
	}
	var refs []ref
	tenantOf := map[ref][]string{}
	for _, name := range prunable {
		k, err := api.LookupKind(name)
		if err != nil {
			return nil, err
		}
		for _, tenant := range tenants {
			objects, err := cl.List(ctx, k, client.ListOptions{Selector: o.selector, Tenant: tenant})
			if err != nil && api.CodeOf(err) == api.NotFound {
				continue // the tenant comes with this very request
			}
			if err != nil {
				return nil, err
			}
			for _, obj := range objects {
				if r := (ref{k, obj.Metadata.Name}); !keep[obj.Key()] {
					refs = append(refs, r)
					tenantOf[r] = append(tenantOf[r], tenant)
				}
			}
		}
	}
	sortForDeletion(refs)
	for _, r := range refs {
		tenant := tenantOf[r][0]
		tenantOf[r] = tenantOf[r][1:]
		if !dryRun {
			if err := cl.DeleteIn(ctx, r.kind, tenant, r.name); err != nil && api.CodeOf(err) != api.NotFound {
				return gone, err
			}
		}
		gone = append(gone, client.Result{Tenant: tenant, Kind: r.kind.Name, Name: r.name, Action: "pruned"})
	}
	return gone, nil
}
