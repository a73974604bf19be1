package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
)

// fleetView is a fleet as far as it tells of apps.
type fleetView struct {
	name, tenant string
	spec         api.FleetSpec
	status       api.FleetStatus
}

// knowFleets learns what fleets tell of apps, where apps are to be shown. It is a comfort:
// without an answer nothing is told.
func (a *app) knowFleets(ctx context.Context, cl *client.Client, objects []*api.Object) {
	if !slices.ContainsFunc(objects, func(o *api.Object) bool { return o.Kind == api.KindApp }) {
		return
	}
	kind, err := api.LookupKind(api.KindFleet)
	if err != nil {
		return
	}
	all, err := cl.List(ctx, kind, client.ListOptions{AllTenants: true})
	if err != nil {
		return
	}
	a.fleets = nil
	for _, o := range all {
		f := fleetView{name: o.Metadata.Name, tenant: o.Metadata.Tenant}
		if readSpec(o, &f.spec) == nil && (len(o.Status) == 0 || json.Unmarshal(o.Status, &f.status) == nil) {
			a.fleets = append(a.fleets, f)
		}
	}
}

// missingOf lists what an app misses where, a line for each reason.
func (a *app) missingOf(tenant, name string) (out []string) {
	for _, f := range a.fleets {
		if f.tenant != tenant {
			continue
		}
		for _, p := range f.status.Placed {
			if p.App == name && p.Placed < p.Replicas {
				out = append(out, fmt.Sprintf("%s: on %d of %d devices: %s", f.name, p.Placed, p.Replicas, p.Message))
			}
		}
		for _, l := range f.status.Lacking {
			if l.App != name {
				continue
			}
			where := strings.Join(l.Devices, ", ")
			if more := l.Count - len(l.Devices); more > 0 {
				where += fmt.Sprintf(" and %d more", more)
			}
			out = append(out, fmt.Sprintf("%s: %s: %s", f.name, where, l.Message))
		}
	}
	return out
}

// describeWhere tells in which fleets an app is, what it misses there, and on which devices
// it does not run.
func (a *app) describeWhere(ctx context.Context, cl *client.Client, o *api.Object) {
	a.knowFleets(ctx, cl, []*api.Object{o})
	for _, f := range a.fleets {
		if f.tenant != o.Metadata.Tenant || !slices.Contains(f.spec.AllApps(), o.Metadata.Name) {
			continue
		}
		text := f.name + ", on every device"
		for _, p := range f.status.Placed {
			if p.App == o.Metadata.Name {
				text = fmt.Sprintf("%s, on %d of %d devices, %d run it", f.name, p.Placed, p.Replicas, p.Running)
			}
		}
		a.fact("Fleet", text)
	}
	for _, line := range a.missingOf(o.Metadata.Tenant, o.Metadata.Name) {
		a.fact("Missing", line)
	}
	kind, err := api.LookupKind(api.KindDevice)
	if err != nil {
		return
	}
	devices, err := cl.List(ctx, kind, client.ListOptions{})
	if err != nil {
		return
	}
	t := &table{header: []string{"DEVICE", "STATE", "MESSAGE"}}
	run := 0
	for _, d := range devices {
		var st api.DeviceStatus
		if readStatus(d, &st) != nil {
			continue
		}
		for _, s := range st.Apps {
			switch {
			case s.Name != o.Metadata.Name:
			case s.State == api.Running || s.State == api.Exited:
				run++
			default:
				t.rows = append(t.rows, []string{d.Metadata.Name, string(s.State), s.Message})
			}
		}
	}
	more := len(t.rows) - maxNotRunning
	t.rows = t.rows[:min(len(t.rows), maxNotRunning)]
	a.fact("Runs on", fmt.Sprintf("%d devices", run))
	if len(t.rows) > 0 {
		fmt.Fprintln(a.Out)
		t.write(a.Out, true)
	}
	if more > 0 {
		fmt.Fprintf(a.Out, "and on %d more devices it does not run\n", more)
	}
}

// maxNotRunning bounds the devices that are listed on which an app does not run.
const maxNotRunning = 50
