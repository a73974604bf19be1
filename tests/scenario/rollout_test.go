package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
	"tributary.dev/tributary/tests/wait"
)

// TestRollout brings a version to two boxes behind a relay, one after the other with a person's yes between
// them; what the plan said of each link is what crosses it. A version that fails goes back by itself.
func TestRollout(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := raise(t, []lab.BoxSpec{{Name: "relay-1", Parent: "core", Relay: true, Role: "access"}, {Name: "field-1", Parent: "relay-1", Role: "work"}, {Name: "field-2", Parent: "relay-1", Role: "work"}})
	ctx := t.Context()
	must(t, s.Raise(ctx))
	must(t, s.PushImages(ctx))
	fields := []string{"field-1", "field-2"}
	service := func(image, why string) string {
		return "services:\n  w: {image: " + image + ", entrypoint: [/bin/busybox, " + why + "], stop_grace_period: 1s}\n"
	}
	must(t, apply(ctx, s, workText("shop", service("cache", "sleep, \"100000\""))))
	for _, f := range fields {
		must(t, running(ctx, s, f, "shop"))
	}

	rollout := func(name, more string) string {
		return "---\napiVersion: tributary/v1\nkind: Rollout\nmetadata: {name: " + name + "}\nspec:\n  target: {fleet: shop}\n  change: [{kind: App, name: shop}]\n  waves: [{devices: 1" + more + "}]\n" +
			"  health: {soak: 2s, timeout: 3m}\n  onFailure: rollback\n"
	}
	file := appText("shop", service("web", "sleep, \"100001\"")) + rollout("two", ", approve: true")
	var plan api.RolloutPlan
	out, err := s.Lab.Edgectl(ctx, file, "rollout", "plan", "-f", "-", "-o", "json")
	must(t, err)
	must(t, json.Unmarshal([]byte(out), &plan))
	if len(plan.Links) != 3 || len(plan.Waves) != 2 || len(plan.Waves[0].Devices) != 1 {
		t.Fatalf("the plan is %s", out)
	}
	before := downBytes(ctx, t, s, plan)
	must(t, apply(ctx, s, file))
	first := phase(ctx, t, s, "two", api.RolloutWaiting)
	if first.Devices.Healthy != 1 {
		t.Fatalf("%+v", first)
	}
	other := strings.ReplaceAll("field-1field-2", plan.Waves[0].Devices[0], "")
	if got := versionOf(ctx, t, s, other); got != 1 {
		t.Fatalf("%s has version %d before anybody approved", other, got)
	}
	_, err = s.Lab.Edgectl(ctx, "", "rollout", "approve", "two")
	must(t, err)
	phase(ctx, t, s, "two", api.RolloutComplete)
	after := downBytes(ctx, t, s, plan)
	for _, l := range plan.Links {
		got := float64(after[l.Child] - before[l.Child])
		t.Logf("%s - %s: %d bytes planned, %.0f crossed", l.Parent, l.Child, l.Bytes, got)
		if math.Abs(got-float64(l.Bytes)) > 0.15*got {
			t.Errorf("%s - %s: %d bytes were planned, %.0f crossed", l.Parent, l.Child, l.Bytes, got)
		}
	}

	// One that ends at once never runs: the box keeps the one before, and the rollout turns around.
	must(t, apply(ctx, s, appText("shop", service("web", "\"false\""))+rollout("three", "")))
	bad := phase(ctx, t, s, "three", api.RolloutRolledBack)
	if bad.Devices.Restored != 1 || bad.Devices.Waiting != 1 {
		t.Errorf("%+v", bad.Devices)
	}
	for _, f := range fields {
		if got := versionOf(ctx, t, s, f); got != 2 {
			t.Errorf("%s has version %d after the rollback", f, got)
		}
	}
}

// downBytes is what came down each link of a plan so far.
func downBytes(ctx context.Context, t *testing.T, s *story.Story, plan api.RolloutPlan) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	for _, l := range plan.Links {
		var err error
		out[l.Child], _, err = s.Lab.Boxes[l.Child].Uplink.Bytes(ctx)
		must(t, err)
	}
	return out
}

func phase(ctx context.Context, t *testing.T, s *story.Story, name string, want api.RolloutPhase) (status api.RolloutStatus) {
	t.Helper()
	wait.Until(t, fmt.Sprintf("rollout %s is %s", name, want), func() bool {
		var o struct {
			Status api.RolloutStatus `json:"status"`
		}
		must(t, s.Lab.GetJSON(ctx, &o, "get", "rollout", name))
		status = o.Status
		return status.Phase == want
	})
	return status
}

// versionOf is which version of the app runs on a box, by its revision.
func versionOf(ctx context.Context, t *testing.T, s *story.Story, device string) int {
	t.Helper()
	var o struct {
		Status api.DeviceStatus `json:"status"`
	}
	must(t, s.Lab.GetJSON(ctx, &o, "get", "device", device))
	for _, a := range o.Status.Apps {
		if a.Name != "shop" {
			continue
		}
		pid, err := s.Lab.Boxes[device].Task(ctx, "shop", "w")
		must(t, err)
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		must(t, err)
		if strings.Contains(string(line), "100001") {
			return 2
		}
		return 1
	}
	t.Fatalf("%s has no app", device)
	return 0
}
