package uplink

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/uplink/bonding"
	"tributary.dev/tributary/tests/wait"
)

func TestBondOf(t *testing.T) {
	want := []api.Bond{{Name: "bond0", Ports: []api.UplinkMatch{{Name: "up*"}}}, {Name: "bond1", Ports: []api.UplinkMatch{{Driver: "ice"}, {MAC: "02:00:00:00:00:09"}}}}
	for _, c := range []struct {
		link Link
		bond string
	}{
		{Link{Name: "up0", Physical: true}, "bond0"},
		{Link{Name: "up0", Driver: "ice", Physical: true}, "bond0"},
		{Link{Name: "en0", Driver: "ice", Physical: true}, "bond1"},
		{Link{Name: "en1", MAC: "02:00:00:00:00:09", Physical: true}, "bond1"},
		{Link{Name: "en2", Physical: true}, ""},
		{Link{Name: "en2", Master: "bond1", Physical: true}, "bond1"}, // whatever its address is there
		{Link{Name: "up0x"}, ""},                                      // the box's own
		{Link{Name: "up1", Physical: true, Wireless: true}, ""},
		{Link{Name: "bond1", Driver: "ice", Physical: true}, ""},
	} {
		if got := bondOf(want, c.link); got != c.bond {
			t.Errorf("%+v: %q, want %q", c.link, got, c.bond)
		}
	}
}

// twoCables is the far end of a bond's ports: a bridge, or a bond that speaks LACP.
func twoCables(t *testing.T, mode string) string {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	var link netlink.Link = &netlink.Bridge{LinkAttrs: attrs}
	if mode == api.BondLACP {
		bond := netlink.NewLinkBond(attrs)
		bond.Mode, bond.Miimon, bond.LacpRate = netlink.BOND_MODE_802_3AD, bondPause, netlink.BOND_LACP_RATE_FAST
		link = bond
	}
	err := netlink.LinkAdd(link)
	for _, name := range []string{"up0x", "up1x"} {
		port, perr := netlink.LinkByName(name)
		if perr != nil {
			t.Fatal(perr)
		}
		err = errors.Join(err, netlink.LinkSetDown(port), netlink.LinkSetMaster(port, link), netlink.LinkSetUp(port))
	}
	if err = errors.Join(err, netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
	return "br0"
}

// obey switches interfaces of the far end: "off NAME", "on NAME".
func obey(t *testing.T, in *bufio.Reader) {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		do, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		l, err := netlink.LinkByName(name)
		if err == nil && do == "off" {
			err = netlink.LinkSetDown(l)
		} else if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// bondSays is what the kernel says of the bond.
func bondSays() (text, active string, ports []string, up, agreed int) {
	b, _ := os.ReadFile("/proc/net/bonding/bond0") // as long as there is one
	text = string(b)
	for line := range strings.Lines(text) {
		what, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch what {
		case "Currently Active Slave":
			active = value
		case "Slave Interface":
			ports = append(ports, value)
		case "MII Status":
			if value == "up" {
				up++ // the bond is one of them
			}
		case "Number of ports":
			agreed, _ = strconv.Atoi(value)
		}
	}
	slices.Sort(ports)
	return text, active, ports, up, agreed
}

// TestBond: two cards become one uplink, with an address by DHCP in a bond whose other end is a
// switch (active-backup) or speaks LACP. A connection goes on when a cable is pulled, and when it is
// plugged in again and the other is pulled. The bond goes with its settings.
func TestBond(t *testing.T) {
	if !alone(t) {
		return
	}
	for _, mode := range []string{api.BondBackup, api.BondLACP} {
		t.Run(mode, func(t *testing.T) { overBond(t, mode) })
	}
}

func overBond(t *testing.T, mode string) {
	card(t, "up0")
	card(t, "up1")
	f := newFar(t, mode)
	for _, name := range []string{"up0x", "up1x"} {
		peer, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetNsPid(peer, f.pid)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	probe := netlink.NewLinkBond(netlink.LinkAttrs{Name: "try0"})
	if err := netlink.LinkAdd(probe); err != nil {
		needs(t, "needs a kernel with bonding: %v", err)
	}
	if err := netlink.LinkDel(probe); err != nil {
		t.Fatal(err)
	}
	f.ready(t)
	settings := &api.NetworkSettings{Bonds: []api.Bond{{Name: "bond0", Mode: mode, Ports: []api.UplinkMatch{{Name: "up*"}}}}, Uplinks: []api.Uplink{{Match: api.UplinkMatch{Name: "bond0"}, DHCP: true}}}
	if mode == api.BondLACP {
		settings.Bonds[0].LACPRate, settings.Bonds[0].Hash, settings.Bonds[0].MinPorts = "fast", "layer3+4", 1
	}
	if err := settings.Validate(""); err != nil {
		t.Fatal(err)
	}
	run := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Settings: settings, Run: run, Sys: "/sys", Say: t.Logf, Only: []string{"up0", "up1", "bond0"}})
	}()
	both := func() (any, bool) {
		text, _, ports, up, agreed := bondSays()
		return text, slices.Equal(ports, []string{"up0", "up1"}) && up == 3 && (mode != api.BondLACP || agreed == 2)
	}
	wait.Seen(t, "a bond of both cards", both)
	wait.Until(t, "an address and answers by the bond", func() bool { return said(t, run, "bond0").Address == "10.66.0.77/24" && echoes(t.Context()) })
	if s := said(t, run, "up0"); s.Name != "" {
		t.Errorf("a port is an uplink of its own: %+v", s)
	}
	c, err := (&net.Dialer{Timeout: time.Minute}).DialContext(t.Context(), "tcp", "10.66.0.1:7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, cable := range []string{"up0", "up1"} {
		if _, err := io.WriteString(f.in, "off "+cable+"x\n"); err != nil {
			t.Fatal(err)
		}
		wait.Seen(t, "the other card carries", func() (any, bool) {
			text, active, _, up, agreed := bondSays()
			return text, up == 2 && (mode == api.BondLACP && agreed == 1 || mode == api.BondBackup && active != cable && active != "None")
		})
		pings(t, c)
		if words := bonding.Look(os.DirFS("/")); len(words) != 1 || words[0] != "bond0: no connection at "+cable {
			t.Errorf("%q", words)
		}
		if _, err := io.WriteString(f.in, "on "+cable+"x\n"); err != nil {
			t.Fatal(err)
		}
		wait.Seen(t, "both cables are in", both)
		wait.Seen(t, "nothing is wrong with it", func() (any, bool) { words := bonding.Look(os.DirFS("/")); return words, len(words) == 0 })
		pings(t, c)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	l, err := netlink.LinkByName("up0")
	if _, berr := netlink.LinkByName("bond0"); berr == nil || err != nil || l.Attrs().MasterIndex != 0 {
		t.Errorf("after its settings: bond0 %v, up0 %+v %v", berr, l, err)
	}
	for _, name := range []string{"up0", "up1"} { // and their far ends with them
		if l, err := netlink.LinkByName(name); err == nil {
			_ = netlink.LinkDel(l)
		}
	}
}

// pings says something over a connection that was there before, and hears it.
func pings(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	_, err := io.WriteString(c, "ping")
	if err == nil {
		_, err = io.ReadFull(c, b)
	}
	if err != nil || string(b) != "ping" {
		t.Fatalf("the connection does not go on: %q %v", b, err)
	}
}
