package server

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// MayRemove is a Removal: it refuses to take away what a fleet or an app still names. The
// devices of the fleet would lose it at once, an app with its volumes.
func (a *Apps) MayRemove(ctx context.Context, o *api.Object) error {
	var users []string
	for _, kind := range []string{api.KindFleet, api.KindApp} {
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

// MayRemoveTenant is a Removal: it refuses to take away a tenant that owns anything, which
// nobody could name any more.
func (a *Apps) MayRemoveTenant(ctx context.Context, o *api.Object) error {
	var owned []string
	for _, kind := range api.Kinds {
		objects, _, _, err := a.Store.List(ctx, store.Query{Tenant: o.Metadata.Name, Kind: kind.Name})
		if err != nil {
			return err
		}
		for _, one := range objects {
			if one.Key() != o.Key() {
				owned = append(owned, kind.Name+" "+one.Metadata.Name)
			}
		}
	}
	if len(owned) == 0 {
		return nil
	}
	const shown = 10
	list := strings.Join(owned[:min(shown, len(owned))], ", ")
	if len(owned) > shown {
		list += fmt.Sprintf(" and %d more", len(owned)-shown)
	}
	return &api.Error{Code: api.Conflict, Message: "Tenant " + o.Metadata.Name + " is not empty: it has " + list,
		Remedy: "delete those first, with `--tenant " + o.Metadata.Name + "`"}
}

// namedBy lists the objects of a kind that a fleet or an app names.
func namedBy(user *api.Object, kind string) []string {
	var names map[string][]string
	switch user.Kind {
	case api.KindFleet:
		var s api.FleetSpec
		_ = json.Unmarshal(user.Spec, &s) // one that cannot be read names nothing
		names = map[string][]string{api.KindApp: s.Apps, api.KindConfig: s.Configs, api.KindSecret: s.Secrets}
	case api.KindApp:
		var s api.AppObjectStatus
		_ = json.Unmarshal(user.Status, &s)
		names = map[string][]string{api.KindConfig: s.Configs, api.KindSecret: s.Secrets}
	}
	return names[kind]
}
