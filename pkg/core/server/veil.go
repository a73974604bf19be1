package server

import (
	"context"
	"encoding/json"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// What somebody ran in a container may hold passwords; only who may run things there
// sees the arguments. Others see which program it was.

// seesArguments reports whether whoever asks may see what others ran.
func seesArguments(ctx context.Context) bool {
	p, ok := PrincipalOf(ctx)
	return ok && changes(p)
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
	if seesArguments(ctx) {
		return
	}
	for i := range list {
		list[i].Event = veiled(list[i].Event)
	}
}

// veilCode hides a pairing code from who may not let boxes in: whoever knows it can pass
// for the owner of a box that shows it.
func veilCode(ctx context.Context, o *api.Object) *api.Object {
	if o == nil || o.Kind != api.KindExpectedDevice || seesArguments(ctx) {
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
func veilRecords(ctx context.Context, list []RecordEntry) {
	if seesArguments(ctx) {
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
