package uplink

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/uplink/trial"
	"tributary.dev/tributary/pkg/link/names"
	"tributary.dev/tributary/tests/wait"
)

// inNamespace gives the test's thread a network of its own.
func inNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs a network namespace (root): %v", err)
	}
}

func has(name, address string) bool {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return false
	}
	list, err := i.Addrs()
	if err != nil {
		return false
	}
	for _, a := range list {
		if a.String() == address {
			return true
		}
	}
	return false
}

// TestAddressesGoWithTheirSettings: what settings put on a card is taken off when others
// follow. It stays on one thread, which alone is in the namespace.
func TestAddressesGoWithTheirSettings(t *testing.T) {
	inNamespace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far0"}); err != nil {
		t.Skipf("needs a pair of virtual network cards: %v", err)
	}
	run := t.TempDir()
	r := &runner{cfg: Config{Run: run, Sys: "/sys", Say: t.Logf}, dns: map[string]resolvers{}, seen: map[string]Status{}}
	plan := Plan([]Link{{Name: "up0", Physical: true}}, &api.NetworkSettings{Uplinks: []api.Uplink{{Addresses: []string{"10.9.0.2/24"}, Gateway: "10.9.0.1", DNS: []string{"10.9.0.53"}}}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // care puts the address on, sees that it is over, and takes it off
	on := false
	r.cfg.Say = func(string, ...any) { on = on || has("up0", "10.9.0.2/24") }
	if err := r.care(ctx, &task{Assignment: plan[0]}); err != nil {
		t.Fatal(err)
	}
	if !on {
		t.Error("the address was never there")
	}
	if has("up0", "10.9.0.2/24") {
		t.Error("the address outlives its settings")
	}
	if n := names.Read(filepath.Join(run, names.File)); len(n) != 1 || len(n[0].Servers) != 1 || n[0].Servers[0] != netip.MustParseAddrPort("10.9.0.53:53") {
		t.Errorf("others are told of these name servers: %+v", n)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, rt := range routes {
		if rt.Gw != nil {
			t.Errorf("the route outlives its settings: %v", rt)
		}
	}
}

// TestKeepHearsAndReverts runs the loop on no card at all.
func TestKeepHearsAndReverts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the loopback card is set up")
	}
	run := t.TempDir()
	file := filepath.Join(run, "kept.json")
	if err := trial.Fresh(nil).Tick(trial.Proof, true).Save(file); err != nil {
		t.Fatal(err)
	}
	var online atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Keep(ctx, Keeping{Config: Config{Run: run, Sys: run, Say: t.Logf, Only: []string{"no-such-card"}}, File: file, Every: 5 * time.Millisecond, Online: func(context.Context) bool { return online.Load() }})
	}()
	wish := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(run, WishFile+".new"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(run, WishFile+".new"), filepath.Join(run, WishFile)); err != nil {
			t.Fatal(err)
		}
	}
	until := func(phase trial.Phase) (x trial.Trial) {
		t.Helper()
		wait.Seen(t, fmt.Sprintf("it is %s", phase), func() (any, bool) {
			text, err := os.ReadFile(file)
			x = trial.Trial{}
			return string(text), err == nil && json.Unmarshal(text, &x) == nil && x.Phase == phase
		})
		return x
	}
	until(trial.Kept)
	wish(`{"settings":{"uplinks":[{"addresses":["10.0.0.2/24"]}]},"by":"ann"}`)
	if x := until(trial.OnTrial); x.By != "ann" || x.Settings == nil || x.Last != nil {
		t.Errorf("%+v", x)
	}
	wish(`{"settings":{"uplinks":[{"addresses":["nonsense"]}]},"by":"ann"}`)
	wish(`{"revert":true,"by":"ann"}`)
	if x := until(trial.Reverted); x.Settings != nil || !strings.Contains(x.Reason, "ann") {
		t.Errorf("%+v", x)
	}
	wait.Until(t, "a warning is shown", func() bool { return len(trial.Shown(run)) == 1 })
	cancel()
	if err := wait.For(t, "its end", ended); err != nil {
		t.Error(err)
	}
}
