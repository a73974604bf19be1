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

// TestHotPlug has a box of an image join a core, and changes its hardware: a disk and a network card are plugged in
// and out, and a cable fails. Each time a person who asks the core by `edgectl describe device` sees it within seconds.
func TestHotPlug(t *testing.T) {
	needImage(t, "amd64")
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	_, tree := raise(t, ctx, BoxSpec{Name: "box", Arch: "amd64", Parent: "core", Role: "field", Extra: []string{
		"-device", "pcie-root-port,id=slot1,chassis=1,slot=1", "-device", "pcie-root-port,id=slot2,chassis=2,slot=2",
		"-blockdev", "driver=null-co,node-name=blank,size=1073741824,read-zeroes=on", "-netdev", "user,id=more,ipv6=off,restrict=on"}})
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
	const disk, card, cable = `^nvme0n1\s+nvme\s.*\slate\s`, `^eth2\s+\S+\s+virtio_net\s`, `^eth1\s+down\s+virtio_net\s`
	until("the box tells of its hardware", patience, shows(`^\S+\s+up\s+virtio_net\s`, true))
	for _, pattern := range []string{disk, card, cable} {
		if err := shows(pattern, false)(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what, command string
		arguments     map[string]any
		pattern       string
		wanted        bool
	}{
		{"a disk is plugged in", "device_add", map[string]any{"driver": "nvme", "id": "disk", "bus": "slot1", "drive": "blank", "serial": "late"}, disk, true},
		{"a network card is plugged in", "device_add", map[string]any{"driver": "virtio-net-pci", "id": "card", "bus": "slot2", "netdev": "more", "romfile": ""}, card, true},
		{"a cable fails", "set_link", map[string]any{"name": "net1", "up": false}, cable, true},
		{"the disk is pulled out", "device_del", map[string]any{"id": "disk"}, disk, false},
		{"the network card is pulled out", "device_del", map[string]any{"id": "card"}, card, false},
		{"the cable is whole again", "set_link", map[string]any{"name": "net1", "up": true}, cable, false},
	} {
		if err := tree.Machine("box").Do(ctx, c.command, c.arguments, nil); err != nil {
			t.Fatal(c.what, err)
		}
		until(c.what, hotPlugBound, shows(c.pattern, c.wanted))
	}
}
