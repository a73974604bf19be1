package machines

import (
	"context"
	"fmt"
	"regexp"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
)

// hotPlugBound is how long after a change of the hardware edgectl shows it at the latest. On the way are the kernel's
// word, the box's own pace (looks are at least 2 s apart, 3.2 s at most in TestHardware), its link to the core, and
// the question, which is asked anew every 0.2 s: some 4 s on a machine with nothing else to do. An emulated box
// beside others, whose driver has to begin first, gets three times that.
const hotPlugBound = 12 * time.Second

// TestHotPlug has a box of an image join a core, and plugs in a disk: a person who asks the core by `edgectl describe
// device` sees it within seconds.
func TestHotPlug(t *testing.T) {
	needImage(t, "amd64")
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	_, tree := raise(t, ctx, BoxSpec{Name: "box", Arch: "amd64", Parent: "core", Role: "field", Extra: []string{
		"-device", "pcie-root-port,id=slot1,chassis=1,slot=1", "-blockdev", "driver=null-co,node-name=blank,size=1073741824,read-zeroes=on"}})
	shows := func(pattern string, wanted bool) func(context.Context) error {
		re := regexp.MustCompile(`(?m)` + pattern)
		return func(ctx context.Context) error {
			out, err := tree.Edgectl(ctx, "", "describe", "device", "box")
			if err == nil && re.MatchString(out) != wanted {
				err = fmt.Errorf("%s is shown: %v, in\n%s", pattern, !wanted, out)
			}
			return err
		}
	}
	until := func(what string, limit time.Duration, ok func(context.Context) error) {
		t.Helper()
		began := time.Now()
		if err := lab.Until(ctx, what, limit, ok); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: seen after %.1f s", what, time.Since(began).Seconds())
	}
	const disk = `^nvme0n1\s+nvme\s.*\slate\s`
	until("the box tells of its hardware", patience, shows(`^\S+\s+up\s+virtio_net\s`, true))
	if err := shows(disk, false)(ctx); err != nil {
		t.Fatal(err)
	}
	if err := tree.Machine("box").Do(ctx, "device_add", map[string]any{"driver": "nvme", "id": "disk", "bus": "slot1", "drive": "blank", "serial": "late"}, nil); err != nil {
		t.Fatal(err)
	}
	until("a disk is plugged in", hotPlugBound, shows(disk, true))
}
