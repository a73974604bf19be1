package uplink

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/uplink/trial"
	"tributary.dev/tributary/tests/wait"
)

// alone runs the test once more, as a process in a network of its own, and tells whether this
// is that process.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv("UPLINK_ALONE") != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: a network namespace is made")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=15m")
	cmd.Env = append(os.Environ(), "UPLINK_ALONE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// card makes a network card with a cable to nowhere.
func card(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "x"}); err != nil {
		t.Skipf("needs a pair of virtual network cards: %v", err)
	}
	far, err := netlink.LinkByName(name + "x")
	if err == nil {
		err = netlink.LinkSetUp(far)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestTrialAcrossReboot tries settings on a real card: those that lose the parent are on the
// card at once, outlive a reboot in the middle of their five minutes, and then the last that
// worked are on it again. The clock is the test's.
func TestTrialAcrossReboot(t *testing.T) {
	if !alone(t) {
		return
	}
	card(t, "up0")
	run := t.TempDir()
	file := filepath.Join(run, "kept.json")
	// The clock goes on by a second each time that it is looked at, as long as seconds are left.
	var leap, left atomic.Int64
	now := func() time.Time {
		if left.Add(-1) >= 0 {
			leap.Add(int64(time.Second))
		}
		return time.Unix(1_800_000_000, 0).Add(time.Duration(leap.Load()))
	}
	// The parent is where the first settings lead.
	reached := func(context.Context) bool { return has("up0", "10.9.0.2/24") }
	start := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- Keep(ctx, Keeping{Config: Config{Settings: fixed("10.9.0.2/24"), Run: run, Sys: "/sys", Say: t.Logf, Only: []string{"up0"}, Now: now, Choose: time.Hour},
				File: file, Every: 2 * time.Millisecond, Online: reached})
		}()
		return func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	phase := func() trial.Trial {
		x, err := trial.Load(file, fixed("10.9.0.2/24"))
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	stop := start()
	wait.Until(t, "the first settings are on the card", func() bool { return has("up0", "10.9.0.2/24") })
	pass := func(d time.Duration) { left.Store(int64(d / time.Second)) }
	pass(time.Hour)
	wait.Until(t, "they are kept", func() bool { return phase().Phase == trial.Kept })
	pass(0)
	if err := os.WriteFile(filepath.Join(run, WishFile+".new"), []byte(`{"settings":{"uplinks":[{"match":{"name":"up0"},"addresses":["10.8.0.2/24"]}]},"by":"ann"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(run, WishFile+".new"), filepath.Join(run, WishFile)); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, "the new ones are on it, and the old ones off", func() bool { return has("up0", "10.8.0.2/24") && !has("up0", "10.9.0.2/24") })
	pass(200 * time.Second) // the five minutes are not over, however long it takes to look
	wait.Until(t, "three minutes pass", func() bool { return phase().Silent >= 3*time.Minute })
	stop()
	if x := phase(); x.Phase != trial.OnTrial || x.Silent >= trial.Silence {
		t.Fatalf("before the reboot: %+v", x)
	}
	if has("up0", "10.8.0.2/24") {
		t.Error("the card keeps its address without anybody who cares for it")
	}
	stop = start() // the box has started anew
	defer func() { stop() }()
	wait.Until(t, "the trial goes on", func() bool { return has("up0", "10.8.0.2/24") })
	// What is saved each half minute is lost at most. Were the five minutes to begin anew, these would not do.
	pass(200 * time.Second)
	wait.Until(t, "the last that worked are back", func() bool { return has("up0", "10.9.0.2/24") })
	if x := phase(); x.Phase != trial.Reverted || x.Settings == nil || x.Settings.Uplinks[0].Addresses[0] != "10.9.0.2/24" {
		t.Errorf("%+v", x)
	}
	if len(trial.Shown(run)) != 1 {
		t.Error("no warning tells of it")
	}
}

func fixed(address string) *api.NetworkSettings {
	return &api.NetworkSettings{Uplinks: []api.Uplink{{Match: api.UplinkMatch{Name: "up0"}, Addresses: []string{address}}}}
}

// way is the card by which the kernel would reach an address far away.
func way(t *testing.T) string {
	t.Helper()
	routes, err := netlink.RouteGet([]byte{198, 51, 100, 7})
	if err != nil || len(routes) == 0 {
		return ""
	}
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return ""
	}
	return l.Attrs().Name
}

// vlans tells the VLAN to test with: 0 where the kernel has none.
func vlans(t *testing.T) (number int64, name string) {
	t.Helper()
	parent, err := netlink.LinkByName("up0")
	if err == nil {
		err = netlink.LinkSetUp(parent)
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := vlan(parent, Assignment{Link: "up0", VLAN: 12})
	if err != nil {
		if inGuest {
			t.Fatal(err)
		}
		t.Logf("this kernel has no VLANs (%v): without one", err)
		return 0, "up0"
	}
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	return 12, "up0.12"
}

// TestWayOut: of several uplinks, one a VLAN, the cheapest leads out, whatever the metrics say;
// when the parent is not reached by it, the next does; when it is again, it does again. The
// routes go with the settings, and so does the proxy.
func TestWayOut(t *testing.T) {
	if !alone(t) {
		return
	}
	card(t, "up0")
	card(t, "up1")
	number, free := vlans(t)
	run := t.TempDir()
	var leap atomic.Int64
	var broken atomic.Bool
	settings := &api.NetworkSettings{Proxy: "http://ann:secret@10.9.0.9:3128", Uplinks: []api.Uplink{
		{Match: api.UplinkMatch{Name: "up1"}, Addresses: []string{"10.8.0.2/24"}, Gateway: "10.8.0.1", Metric: 5, Cost: 10},
		{Match: api.UplinkMatch{Name: "up0"}, Addresses: []string{"10.9.0.2/24"}, Gateway: "10.9.0.1", VLAN: number, Metric: 700},
	}}
	if err := settings.Validate(""); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Settings: settings, Run: run, Sys: "/sys", Say: t.Logf, Only: []string{"up0", "up1"}, Choose: 2 * time.Millisecond,
			Now:    func() time.Time { return time.Unix(1_800_000_000, 0).Add(time.Duration(leap.Load())) },
			Online: func(context.Context) bool { return !(broken.Load() && way(t) == free) }})
	}()
	wait.Until(t, "the free uplink leads out by its VLAN", func() bool { leap.Add(int64(time.Second)); return way(t) == free })
	if text, err := os.ReadFile(filepath.Join(run, ProxyFile)); err != nil || string(text) != settings.Proxy+"\n" {
		t.Errorf("the proxy: %q %v", text, err)
	}
	broken.Store(true)
	wait.Until(t, "the costly one leads out", func() bool { leap.Add(int64(time.Second)); return way(t) == "up1" })
	broken.Store(false)
	wait.Until(t, "the free one leads out again", func() bool { leap.Add(int64(time.Second)); return way(t) == free })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if by := way(t); by != "" {
		t.Errorf("%s leads out, and nobody cares for it", by)
	}
	if err := tellProxy(filepath.Join(run, ProxyFile), nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(run, ProxyFile)); err == nil {
		t.Error("the proxy outlives its settings")
	}
}
