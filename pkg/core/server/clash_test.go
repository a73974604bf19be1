package server

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Apps meet within a fleet, and on a device that is in several fleets; a fleet of the
// same request counts as it will be.
func TestMeetings(t *testing.T) {
	ctx := t.Context()
	db, err := store.Open(ctx, store.Config{Now: time.Now, NewUID: func() string { return fmt.Sprint(time.Now().UnixNano()) }})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	object := func(kind, name string, labels map[string]string, spec any) *api.Object {
		b, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		return &api.Object{APIVersion: api.Version, Kind: kind, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: name, Labels: labels}, Spec: b}
	}
	fleet := func(name, role string, apps ...string) *api.Object {
		return object(api.KindFleet, name, nil, api.FleetSpec{Selector: api.Selector{MatchLabels: map[string]string{role: "yes"}}, Apps: apps})
	}
	for _, o := range []*api.Object{
		object(api.KindDevice, "d1", map[string]string{"a": "yes", "b": "yes"}, api.DeviceSpec{}), object(api.KindDevice, "d2", map[string]string{"a": "yes", "b": "yes"}, api.DeviceSpec{}),
		object(api.KindDevice, "d3", map[string]string{"c": "yes"}, api.DeviceSpec{}), fleet("fa", "a", "x"), fleet("fb", "b", "y"), fleet("fc", "c", "z"),
	} {
		if _, err := db.Put(ctx, o, store.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	apps := &Apps{Store: db}
	got := func(c Change, of string) (out []string) {
		pools, err := apps.meetings(context.Background(), c, func(name string, _ *api.FleetSpec) bool { return name == of })
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pools {
			out = append(out, fmt.Sprint(p.where, p.apps))
		}
		return out
	}
	both := "device d1, which is in the fleets fa and fb[x y]"
	for _, c := range []struct {
		change Change
		of     string
		want   []string
	}{
		{Change{New: fleet("fa", "a", "x")}, "fa", []string{"fleet fa[x]", both}},
		{Change{New: fleet("fa", "q", "x")}, "fa", []string{"fleet fa[x]"}},
		{Change{New: fleet("fa", "a")}, "fa", nil},
		{Change{New: fleet("fa", "a", "x"), With: map[api.Key]*api.Object{{Kind: "Fleet", Name: "fb"}: fleet("fb", "c", "y")}}, "fa", []string{"fleet fa[x]"}},
		{Change{New: object(api.KindApp, "z", nil, api.AppSpec{})}, "fc", []string{"fleet fc[z]"}},
	} {
		if out := got(c.change, c.of); !slices.Equal(out, c.want) {
			t.Errorf("%s: %q, want %q", c.change.New.Metadata.Name, out, c.want)
		}
	}
}
