package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
)

// card stands for a virtual function, which machines that run tests have none of: an
// interface of software whose alias says which function it is on. What the kernel does with
// one of hardware when its namespace ends is tried in a guest (tests/machines).
func card(t *testing.T, m *Manager, name, pci string) {
	t.Helper()
	m.parent, m.pci = func(l netlink.Link) string { return l.Attrs().Alias }, t.TempDir()
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1400, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}, PeerName: "cable"}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if far, err := netlink.LinkByName("cable"); err == nil {
			_ = netlink.LinkDel(far) // and with it the near end, wherever that is
		}
	})
	far, err := netlink.LinkByName("cable")
	if err == nil {
		err = netlink.LinkSetUp(far)
	}
	if err := errors.Join(err, netlink.LinkSetAlias(l, pci)); err != nil {
		t.Fatal(err)
	}
}

// bare is a manager that needs no plugins.
func bare(t *testing.T) *Manager {
	t.Helper()
	if why := workloadtest.Missing(); why != "" {
		t.Skip(why) // it has no namespace of its own
	}
	dir := t.TempDir()
	m, err := New(Config{State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run"), Pool: "10.98.0.0/16"})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func atHome(t *testing.T, m *Manager, pci string) *netlink.LinkAttrs {
	t.Helper()
	var at *netlink.LinkAttrs
	err := withHandle(func(h *netlink.Handle) error {
		l, err := m.linkOn(h, pci)
		if l != nil {
			at = l.Attrs()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return at
}

const function = "0000:01:10.0"

func checkHome(t *testing.T, m *Manager) {
	t.Helper()
	at := atHome(t, m, function)
	if at == nil || at.Name != "vf0" || at.MTU != 1400 || at.HardwareAddr.String() != "02:00:00:00:00:09" || at.Flags&net.FlagUp != 0 {
		t.Fatalf("it is back as %+v", at)
	}
	if away, err := m.Away(); err != nil || len(away) != 0 {
		t.Errorf("away: %v, %v", away, err)
	}
}

// An interface goes into a container with name, addresses and routes, and is as it was when
// the container goes; again and again.
func TestLinkMovesAndReturns(t *testing.T) {
	m := bare(t)
	card(t, m, "vf0", function)
	ctx := context.Background()
	r := Request{ID: "c1", App: "ran", Links: []api.DeviceLink{{PCI: function, Inside: "eth0", Addresses: []string{"192.0.2.10/24", "2001:db8::10/64"}, Routes: []string{"0.0.0.0/0 via 192.0.2.1", "198.51.100.0/24"}, MTU: 1300}}}
	for range 3 {
		for range 2 { // it may be repeated
			if _, err := m.Attach(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		if at := atHome(t, m, function); at != nil {
			t.Fatalf("it is still here: %+v", at)
		}
		err := enterLinks(m.Namespace("c1"), func(h *netlink.Handle) error {
			l, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			routes, err := h.RouteList(l, netlink.FAMILY_V4)
			if l.Attrs().MTU != 1300 || l.Attrs().Flags&net.FlagUp == 0 || len(addrs) < 2 || len(routes) != 3 {
				t.Errorf("inside: %+v, %v, %v", l.Attrs(), addrs, routes)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if away, err := m.Away(); err != nil || away[function] != "c1" {
			t.Errorf("away: %v, %v", away, err)
		}
		if err := m.Release("c1"); err != nil {
			t.Fatal(err)
		}
		checkHome(t, m)
		if err := m.Detach(ctx, r); err != nil {
			t.Fatal(err)
		}
		checkHome(t, m)
	}
}

// Cut short anywhere, a move is gone on with or taken back: another manager, as after kill
// -9, finds the interface.
func TestLinkIsFoundAgain(t *testing.T) {
	for _, cut := range []string{"recorded", "renamed", "moved", "back under another name"} {
		t.Run(cut, func(t *testing.T) {
			first := bare(t)
			card(t, first, "vf0", function)
			ctx := context.Background()
			r := Request{ID: "c1", App: "ran", Links: []api.DeviceLink{{PCI: function, Inside: "fast0", Addresses: []string{"192.0.2.10/24"}}}}
			if _, err := first.Attach(ctx, r); err != nil {
				t.Fatal(err)
			}
			record, err := os.ReadFile(first.recordOf(function))
			if err != nil {
				t.Fatal(err)
			}
			if cut != "moved" {
				if err := first.Release("c1"); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(first.recordOf(function), record, 0o644); err != nil {
					t.Fatal(err)
				}
				l, err := netlink.LinkByName("vf0")
				if err == nil && cut == "renamed" {
					err = netlink.LinkSetName(l, "trf9")
				}
				if err == nil && cut == "back under another name" {
					err = netlink.LinkSetName(l, "dev12")
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			second, err := New(first.cfg)
			if err != nil {
				t.Fatal(err)
			}
			second.parent, second.pci = first.parent, first.pci
			if err := second.Recover(); err != nil {
				t.Fatal(err)
			}
			if cut != "moved" {
				checkHome(t, second)
			}
			if _, err := second.Attach(ctx, r); err != nil {
				t.Fatal(err)
			}
			if at := atHome(t, second, function); at != nil {
				t.Errorf("it is still here: %+v", at)
			}
			other := r
			other.ID = "c2"
			if _, err := second.Attach(ctx, other); err == nil {
				t.Error("another container got what the first has")
			}
			if err := second.Detach(ctx, r); err != nil {
				t.Fatal(err)
			}
			checkHome(t, second)
		})
	}
}

// What a container made of an interface goes with it: its driver is told to make another, once, though it may be killed
// between; and an MTU that the card no longer takes costs nobody the function.
func TestLinkIsRenewed(t *testing.T) {
	m := bare(t)
	card(t, m, "vf0", function)
	driver, device := filepath.Join(m.pci, "drivers", "igbvf"), filepath.Join(m.pci, "devices", function)
	if err := errors.Join(os.MkdirAll(driver, 0o755), os.MkdirAll(device, 0o755), os.Symlink(driver, filepath.Join(device, "driver"))); err != nil {
		t.Fatal(err)
	}
	said := func(dir, name string) string {
		b, _ := os.ReadFile(filepath.Join(dir, name))
		return string(b)
	}
	r := Request{ID: "c1", App: "ran", Links: []api.DeviceLink{{PCI: function, Inside: "fast0"}}}
	if _, err := m.Attach(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	list, err := m.aways()
	if err != nil || len(list) != 1 || list[0].Renewed || said(driver, "unbind") != "" {
		t.Fatalf("away: %+v, %v", list, err)
	}
	list[0].MTU = 1 << 20
	if err := m.record(list[0]); err != nil {
		t.Fatal(err)
	}
	if err := m.Detach(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	checkHome(t, m)
	if said(driver, "unbind") != function || said(driver, "bind") != function || said(m.pci, "drivers_probe") != "" {
		t.Errorf("the driver heard %q and %q", said(driver, "unbind"), said(driver, "bind"))
	}
	// It went, and whoever took its driver away was killed.
	if err := errors.Join(os.Remove(filepath.Join(device, "driver")), m.record(away{PCI: function, Namespace: m.Namespace("c1"), Name: "vf0"})); err != nil {
		t.Fatal(err)
	}
	m.parent = func(netlink.Link) string { return "" }
	if err := m.Recover(); err != nil || said(m.pci, "drivers_probe") != function {
		t.Errorf("%v; probed: %q", err, said(m.pci, "drivers_probe"))
	}
}

// The process's first thread, which Go cannot end, is in no container's namespace afterwards: it would keep it, with the
// interfaces in it, as long as the process lives. A program's first goroutine begins on it, so another program tries.
func TestFirstThreadStaysHome(t *testing.T) {
	m := bare(t)
	path := m.Namespace("c9")
	if _, err := makeNamespace(path); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := removeNamespace(path); err != nil {
			t.Error(err)
		}
	}()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", entersFirst+"="+path)
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "home" {
		t.Errorf("%s, %v", out, err)
	}
}

// entersFirst names a namespace to a program that enters it on its first goroutine, and says where its first thread is then.
const entersFirst = "TRIBUTARY_TEST_ENTERS"

func enterFirst(path string) int {
	first := fmt.Sprintf("/proc/self/task/%d/ns/net", os.Getpid())
	home, err := os.Readlink(first)
	if err == nil {
		err = Enter(path, func() error { return nil })
	}
	now, read := os.Readlink(first)
	if err := errors.Join(err, read); err != nil || now != home {
		fmt.Printf("%s, and began in %s, %v", now, home, err)
		return 1
	}
	fmt.Print("home")
	return 0
}

// What cannot be given leaves nothing behind.
func TestLinkThatIsNotThere(t *testing.T) {
	m := bare(t)
	card(t, m, "vf0", function)
	ctx := context.Background()
	for _, l := range []api.DeviceLink{{PCI: "0000:01:10.1", Inside: "x"}, {PCI: function, Inside: "lo"}, {PCI: function, Addresses: []string{"nonsense"}}, {PCI: function, Routes: []string{"0.0.0.0/0 via 192.0.2.1"}}} {
		if _, err := m.Attach(ctx, Request{ID: "c3", App: "ran", Links: []api.DeviceLink{l}}); err == nil {
			t.Errorf("%+v was given", l)
		}
		if isNamespace(m.Namespace("c3")) {
			t.Error("its namespace stays")
		}
		checkHome(t, m)
	}
}
