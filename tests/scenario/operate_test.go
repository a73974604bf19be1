package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// orchard is a tree with a choice: two access relays side by side, and two field
// devices under the first of them. field-1 runs the demo's app; field-2 and the
// aggregation relay run what the tests bring (role work).
func orchard() []lab.BoxSpec {
	return []lab.BoxSpec{
		{Name: "agg-1", Parent: "core", Relay: true, Role: "work"},
		{Name: "access-1", Parent: "agg-1", Relay: true, Role: "access"},
		{Name: "access-2", Parent: "agg-1", Relay: true, Role: "access"},
		{Name: "field-1", Parent: "access-1", Role: "field"},
		{Name: "field-2", Parent: "access-1", Role: "work"},
	}
}

// TestOperate plays what people do with a tree from day to day, on one tree.
func TestOperate(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := raise(t, orchard())
	ctx := t.Context()
	up(ctx, t, s)
	for _, part := range []struct {
		name string
		run  func(context.Context, *testing.T, *story.Story)
	}{
		{"WrongInput", wrongInput}, {"ConfigHotUpdate", configHotUpdate}, {"BadUpdate", badUpdate}, {"Streams", streams},
		{"ResourceLimits", resourceLimits}, {"LogFlood", logFlood}, {"Claims", claimsOfHardware}, {"Move", move},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t.Context(), t, s) })
	}
}

// work gives an app, written as Compose services, to the devices of the role work, and
// takes it away at the end of the test.
func work(ctx context.Context, t *testing.T, s *story.Story, name, services string) {
	t.Helper()
	must(t, apply(ctx, s, workText(name, services)))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		if _, err := s.Lab.Edgectl(ctx, "", "delete", "fleet", name); err != nil {
			t.Error(err)
		}
		if _, err := s.Lab.Edgectl(ctx, "", "delete", "app", name); err != nil {
			t.Error(err)
		}
	})
}

// workText is the app and its fleet as `edgectl apply` takes them.
func workText(name, services string) string {
	return appText(name, services) + "---\n" + fleetText(name, "work", name)
}

func appText(name, services string) string {
	return fmt.Sprintf("apiVersion: tributary/v1\nkind: App\nmetadata: {name: %s}\nspec:\n  compose: |\n%s", name, indent(services, "    "))
}

func fleetText(name, role, apps string) string {
	return fmt.Sprintf("apiVersion: tributary/v1\nkind: Fleet\nmetadata: {name: %s}\nspec:\n  selector: {matchLabels: {role: %s}}\n  apps: [%s]\n  settings: {meterInterval: 2s, healthInterval: 2s}\n", name, role, apps)
}

func indent(text, by string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.Trim(text, "\n") + "\n") {
		b.WriteString(by + line)
	}
	return b.String()
}

func apply(ctx context.Context, s *story.Story, text string) error {
	_, err := s.Lab.Edgectl(ctx, text, "apply", "-f", "-")
	return err
}

// appOn waits until an app on a box is as the condition wants it.
func appOn(ctx context.Context, s *story.Story, box, app, what string, cond func(api.AppStatus) bool) (api.AppStatus, error) {
	var found api.AppStatus
	err := lab.Until(ctx, box+": "+app+" "+what, s.Wait, func(ctx context.Context) error {
		devices, err := s.Devices(ctx)
		if err != nil {
			return err
		}
		for _, a := range devices[box].Status.Apps {
			if a.Name == app {
				if found = a; cond(a) {
					return nil
				}
			}
		}
		return fmt.Errorf("it is %+v", found)
	})
	return found, err
}

func running(ctx context.Context, s *story.Story, box, app string) error {
	_, err := appOn(ctx, s, box, app, "runs", func(a api.AppStatus) bool { return a.State == api.Running && a.Message == "" })
	return err
}

// event is one line of `edgectl events -o json`.
type event struct {
	Audit bool      `json:"audit"`
	Event api.Event `json:"event"`
}

func events(ctx context.Context, s *story.Story, box string) ([]event, error) {
	var list struct {
		Items []event `json:"items"`
	}
	err := s.Lab.GetJSON(ctx, &list, "events", box, "--limit", "1000")
	return list.Items, err
}

// happened waits until the core knows an event that fits.
func happened(ctx context.Context, s *story.Story, box, what string, fits func(event) bool) error {
	return lab.Until(ctx, box+": "+what, s.Wait, func(ctx context.Context) error {
		list, err := events(ctx, s, box)
		if err != nil {
			return err
		}
		for _, e := range list {
			if fits(e) {
				return nil
			}
		}
		return fmt.Errorf("not among %d events", len(list))
	})
}

// editDevice changes a device's spec as a person with `edgectl get` and `edgectl apply` does.
func editDevice(ctx context.Context, s *story.Story, name string, edit func(*api.DeviceSpec)) error {
	var o api.Object
	if err := s.Lab.GetJSON(ctx, &o, "get", "device", name); err != nil {
		return err
	}
	var spec api.DeviceSpec
	if err := json.Unmarshal(o.Spec, &spec); err != nil {
		return err
	}
	edit(&spec)
	var err error
	if o.Spec, err = json.Marshal(spec); err != nil {
		return err
	}
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return apply(ctx, s, string(text))
}

// answered waits until the demo's app on field-1 answers with all of the texts.
func answered(ctx context.Context, s *story.Story, texts ...string) error {
	return lab.Until(ctx, fmt.Sprintf("field-1 answers %q", texts), s.Wait, func(ctx context.Context) error {
		out, err := s.Lab.Boxes["field-1"].Command(ctx, "curl", "-sf", "--max-time", "3", story.AppURL)
		if err != nil {
			return err
		}
		for _, text := range texts {
			if !strings.Contains(out, text) {
				return fmt.Errorf("it answered %q", out)
			}
		}
		return nil
	})
}

// same fails when a service's process is another than before.
func same(ctx context.Context, box *lab.Box, app, service string, pid int) error {
	now, err := box.Task(ctx, app, service)
	if err == nil && now != pid {
		err = fmt.Errorf("%s: %s/%s was restarted: its process was %d, is %d", box.Name, app, service, pid, now)
	}
	return err
}

var errNothing = errors.New("nothing yet")
