package server

import (
	"cmp"
	"context"
	"encoding/json"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
)

// What somebody ran in a container may hold passwords; only who may run things there
// sees the arguments. Others see which program it was.

// reveals reports whether whoever asks may see what others ran on devices of a tenant; ""
// is that of devices that are gone.
func reveals(ctx context.Context, tenant string) bool {
	return CallerOf(ctx).May(access.Reveal, access.Resource{Tenant: cmp.Or(tenant, api.PlatformTenant), Kind: api.KindDevice})
}

// veiled is an event as those see it who may not see arguments.
func veiled(e api.Event) api.Event {
	if e.Name == "exec.opened" { // the others tell how it ended, and name no argument
		if program := strings.Fields(e.Message); len(program) > 1 {
			e.Message = program[0] + " …"
		}
	}
	return e
}

// veilEvents changes a list for who asks, in place.
func veilEvents(ctx context.Context, list []EventEntry) {
	may := map[string]bool{}
	for i, e := range list {
		if _, asked := may[e.Tenant]; !asked {
			may[e.Tenant] = reveals(ctx, e.Tenant)
		}
		if !may[e.Tenant] {
			list[i].Event = veiled(e.Event)
		}
	}
}

// veilCode hides a pairing code from who may not let boxes in: whoever knows it can pass
// for the owner of a box that shows it.
func veilCode(ctx context.Context, o *api.Object) *api.Object {
	if o == nil || o.Kind != api.KindExpectedDevice || CallerOf(ctx).May(access.Reveal, CallerOf(ctx).Resource(o)) {
		return o
	}
	var spec api.ExpectedDeviceSpec
	if json.Unmarshal(o.Spec, &spec) == nil && spec.Code == "" {
		return o
	}
	c := *o
	spec.Code = hidden
	c.Spec, _ = json.Marshal(spec) // a spec that was read
	return &c
}

// hidden stands where a pairing code is.
const hidden = "hidden"

// veilRecords is veilEvents for records. A record that could not be read as an event may
// hold anything.
func veilRecords(ctx context.Context, tenant string, list []RecordEntry) {
	if reveals(ctx, tenant) {
		return
	}
	for i := range list {
		if e := list[i].Event; e != nil {
			seen := veiled(*e)
			list[i].Event = &seen
		}
		if list[i].Kind == "audit" {
			list[i].Data = nil
		}
	}
}
