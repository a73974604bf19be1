package server

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// MayRemove is a Removal: it refuses to take away what a fleet or an app still names. The
// devices of the fleet would lose it at once, an app with its volumes.
func (a *Apps) MayRemove(ctx context.Context, o *api.Object) error {
	var users []string
	for _, kind := range []string{api.KindFleet, api.KindApp, api.KindRollout} {
		objects, _, _, err := a.Store.List(ctx, store.Query{Tenant: o.Metadata.Tenant, Kind: kind})
		if err != nil {
			return err
		}
		for _, user := range objects {
			if slices.Contains(namedBy(user, o.Kind), o.Metadata.Name) {
				users = append(users, kind+" "+user.Metadata.Name)
			}
		}
	}
	if len(users) == 0 {
		return nil
	}
	verb := " names it"
	if len(users) > 1 {
		verb = " name it"
	}
	return &api.Error{Code: api.Conflict, Message: o.Kind + " " + o.Metadata.Name + " is in use: " + strings.Join(users, ", ") + verb,
		Remedy: "take it out of there first, or delete that first"}
}

// namedBy lists the objects of a kind that a fleet or an app names.
func namedBy(user *api.Object, kind string) []string {
	var names map[string][]string
	switch user.Kind {
	case api.KindFleet:
		var s api.FleetSpec
		_ = json.Unmarshal(user.Spec, &s) // one that cannot be read names nothing
		names = map[string][]string{api.KindApp: s.AllApps(), api.KindConfig: s.Configs, api.KindSecret: s.Secrets, api.KindFlowPolicy: s.FlowPolicies}
	case api.KindRollout:
		return changes(user, kind)
	case api.KindApp:
		var s api.AppObjectStatus
		_ = json.Unmarshal(user.Status, &s)
		names = map[string][]string{api.KindConfig: s.Configs, api.KindSecret: s.Secrets}
	}
	return names[kind]
}

// changes lists the objects of a kind that a rollout gives which has not ended.
func changes(o *api.Object, kind string) (names []string) {
	var s api.RolloutStatus
	_ = json.Unmarshal(o.Status, &s) // one that cannot be read gives nothing
	for _, c := range s.Change {
		if c.Kind == kind && !s.Phase.Ended() {
			names = append(names, c.Name)
		}
	}
	return names
}
