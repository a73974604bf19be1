package machines

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/vm"
)

// ten is one app of ten small containers on every field box.
func ten() string {
	var b strings.Builder
	b.WriteString("apiVersion: " + api.Version + "\nkind: App\nmetadata: {name: ten}\nspec:\n  compose: |\n    services:\n")
	for i := range 10 {
		fmt.Fprintf(&b, "      s%d: {image: \"default/cache:latest\", restart: always}\n", i)
	}
	b.WriteString("---\napiVersion: " + api.Version + "\nkind: Fleet\nmetadata: {name: field}\nspec:\n  selector: {matchLabels: {role: field}}\n  apps: [ten]\n")
	return b.String()
}

// What a box may write in a day when its ten containers rest, in bytes. Its flash lasts
// some thousand times its size.
const writtenPerDay = 200e6

// Ten small containers run on a machine with 512 MB of memory; at rest it hardly writes.
// TRIBUTARY_REST is how long it is looked at.
func TestTenContainers(t *testing.T) {
	needImage(t, runtime.GOARCH)
	rest := 5 * time.Minute
	if v := os.Getenv("TRIBUTARY_REST"); v != "" {
		var err error
		if rest, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience+rest)
	defer cancel()
	s, tree := raise(t, ctx, BoxSpec{Name: "box", Parent: "core", Role: "field", MemoryMiB: 512})
	s.Fields, s.Wait = []string{"box"}, 2*patience
	if err := s.PushImages(ctx); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := tree.Edgectl(ctx, ten(), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if err := s.RunningEverywhere(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("ten containers run in 512 MB, %.0f s after they were wanted (emulated)", time.Since(began).Seconds())
	m := tree.Machine("box")
	// After the first start ext4 writes its tables of inodes, once, and the slower the disk the longer: a box is at rest
	// when that is over. What it writes until then counts too, once: it is written on the first day.
	first, err := m.Written(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for day := writes(t, ctx, m, time.Minute); day > writtenPerDay; day = writes(t, ctx, m, time.Minute) {
		t.Logf("not at rest yet, %.0f s after they were wanted", time.Since(began).Seconds())
	}
	settled, err := m.Written(ctx)
	if err != nil {
		t.Fatal(err)
	}
	once := float64(settled - first)
	if day := writes(t, ctx, m, rest); once+day > writtenPerDay {
		t.Errorf("it wrote %.0f MB until it was at rest and would write %.0f MB a day then, together more than %.0f", once/1e6, day/1e6, writtenPerDay/1e6)
	}
	devices, err := s.Devices(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if has := devices["box"].Status.Hardware.MemoryBytes; has > 512<<20 {
		t.Errorf("the box has %d bytes of memory, which is more than 512 MB", has)
	}
	apps := devices["box"].Status.Apps
	if len(apps) != 1 || apps[0].State != api.Running || len(apps[0].Services) != 10 {
		t.Fatalf("after the rest: %+v", apps)
	}
	for _, service := range apps[0].Services {
		if service.Restarts > 0 {
			t.Errorf("%s was started again %d times", service.Name, service.Restarts)
		}
	}
	if killed := regexp.MustCompile(`(?i)out of memory.*|oom-kill.*`).FindString(m.Console.String()); killed != "" {
		t.Error(killed)
	}
}

// writes is what a box would write in a day, in bytes, as it does for a time in which it is let be.
func writes(t *testing.T, ctx context.Context, m *vm.Machine, d time.Duration) float64 {
	t.Helper()
	before, err := m.Written(ctx)
	if err != nil {
		t.Fatal(err)
	}
	settle(t, ctx, d)
	after, err := m.Written(ctx)
	if err != nil {
		t.Fatal(err)
	}
	day := float64(after-before) * float64(24*time.Hour) / float64(d)
	t.Logf("it wrote %d bytes in %s: %.1f MB a day", after-before, d, day/1e6)
	return day
}

// settle lets a box be: what is measured is rest.
func settle(t *testing.T, ctx context.Context, d time.Duration) {
	t.Helper()
	select {
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	case <-time.After(d):
	}
}
