package uplink

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestGoneCard: nobody is told of an uplink whose card was pulled out, nor sent to its name servers.
func TestGoneCard(t *testing.T) {
	run := t.TempDir()
	r := &runner{cfg: Config{Run: run, Say: t.Logf}, dns: map[string]resolvers{}, seen: map[string]Status{}, by6: map[string]said6{}, air: map[string]*WiFi{}}
	for name, server := range map[string]string{"eth0": "10.0.0.1", "usb0": "10.9.0.1"} {
		if err := r.tell(Status{Name: name, Up: true}, resolvers{servers: []netip.Addr{netip.MustParseAddr(server)}}); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	close(done)
	tasks := map[string]*task{"usb0": {cancel: func() {}, done: done}}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "usb0"
	r.follow(t.Context(), tasks, netlink.LinkUpdate{Header: unix.NlMsghdr{Type: unix.RTM_DELLINK}, Link: &netlink.Device{LinkAttrs: attrs}})
	for _, file := range []string{"resolv.conf", "uplinks.json"} {
		text, err := os.ReadFile(filepath.Join(run, file))
		if err != nil || strings.Contains(string(text), "10.9.0.1") || strings.Contains(string(text), "usb0") {
			t.Errorf("%s after its card has gone: %s %v", file, text, err)
		}
	}
	if ways, _ := r.ways(); len(ways) != 1 || len(tasks) != 0 {
		t.Errorf("ways out: %+v", ways)
	}
}
