package scenario

import (
	"context"
	"fmt"
	"net"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// move sends a field device to another parent by its spec, takes that one away for
// good, and puts an empty box in the place of the other: the device always finds its
// next parent, its containers run on, and its ledger stays exact.
func move(ctx context.Context, t *testing.T, s *story.Story) {
	field := s.Lab.Boxes["field-1"]
	way, err := s.Lab.Connect(ctx, "access-2", "field-1")
	must(t, err)
	must(t, s.Apply(ctx, "v2.yaml"))
	must(t, s.AnswerEverywhere(ctx, "version 2"))
	must(t, s.RunningEverywhere(ctx)) // the instance before it is gone
	before := map[string]int{}
	for _, service := range []string{"web", "cache"} {
		before[service], err = field.Task(ctx, "demo", service)
		must(t, err)
	}
	settled := func(parent string) {
		t.Helper()
		must(t, attached(ctx, s, "field-1", parent))
		must(t, online(ctx, s, "field-1", parent))
		must(t, s.RunningEverywhere(ctx))
		for service, pid := range before {
			must(t, same(ctx, field, "demo", service, pid))
		}
		_, last, err := field.Recorded(ctx)
		must(t, err)
		_, err = s.Grown(ctx, "field-1", last)
		must(t, err)
		_, err = s.Counted(ctx, "field-1")
		must(t, err)
		s.Say("field-1 is settled below %s", parent)
	}
	devices, err := s.Devices(ctx)
	must(t, err)
	id := func(box string) string { return devices[box].Status.ID.String() }
	must(t, editDevice(ctx, s, "field-1", func(d *api.DeviceSpec) {
		d.Parents = []api.ParentRef{{Device: id("access-2"), Address: way.ParentAddr}, {Device: id("access-1"), Address: net.JoinHostPort(field.Uplink.ParentAddr, "8883")}}
	}))
	settled("access-2")
	greet := func(text string) { // a change arrives over the new way
		t.Helper()
		must(t, apply(ctx, s, fmt.Sprintf("apiVersion: tributary/v1\nkind: Config\nmetadata: {name: greeting}\nspec: {files: {text: %q}}\n", text+"\n")))
		must(t, answered(ctx, s, "greeting: "+text))
	}
	greet("by the second way")

	better := s.Lab.Boxes["access-2"]
	must(t, better.PowerCut())
	settled("access-1")
	must(t, better.Start(ctx))
	settled("access-2")        // by itself, once it is back to stay
	must(t, better.PowerCut()) // lost for good
	settled("access-1")
	greet("by the first way again")

	// The first relay burns down too; another box takes its place and address. It
	// enrols anew, with a key, a cursor and a cache of its own.
	relay, err := s.Lab.Replace("access-1", "access-3")
	must(t, err)
	must(t, relay.Start(ctx))
	must(t, online(ctx, s, "access-3", "field-2"))
	s.Say("access-3 stands in the place of access-1")
	settled("access-3")
	greet("by a box that knew nothing")
	must(t, s.Apply(ctx, "v1.yaml")) // and artifacts come through its empty cache
	must(t, s.AnswerEverywhere(ctx, "version 1"))
	must(t, attached(ctx, s, "field-2", "access-3"))
	if devices, err = s.Devices(ctx); err != nil {
		t.Fatal(err)
	}
	for name, d := range devices {
		t.Logf("%s: online %t, warnings %v", name, d.Status.Online, d.Status.Health)
	}
}

// attached waits until the core knows a device below a parent.
func attached(ctx context.Context, s *story.Story, box, parent string) error {
	return lab.Until(ctx, box+" is attached to "+parent, s.Wait, func(ctx context.Context) error {
		devices, err := s.Devices(ctx)
		if err != nil {
			return err
		}
		if got, want := devices[box].Status.Parent, devices[parent].Status.ID.String(); got != want {
			return fmt.Errorf("its parent is %s, not %s (%s)", got, parent, want)
		}
		return nil
	})
}
