package uplink

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"context"

	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/pkg/edge/onboard/sztp"
	"tributary.dev/tributary/tests/wait"
)

// TestSix asks a real server (dnsmasq, in a network of its own behind a cable) by DHCPv6 for
// bootstrap servers: where addresses come by router advertisements alone, and where the
// server gives them.
func TestSix(t *testing.T) {
	dnsmasq, err := exec.LookPath("dnsmasq")
	if err != nil {
		t.Skip("needs dnsmasq (Debian: dnsmasq-base)")
	}
	if !alone(t) {
		return
	}
	var hex []string
	for _, b := range sztp.FormatList([]string{"https://[fd00:77::1]:8444"}) {
		hex = append(hex, fmt.Sprintf("%02x", b))
	}
	for i, c := range []struct{ name, ranges, address string }{
		{"stateless", "fd00:77::,ra-stateless", "fd00:77:0:0:"},
		{"managed", "fd00:77::1000,fd00:77::1fff,64,1h", "fd00:77::1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := fmt.Sprintf("six%d", i)
			card(t, dev)
			dir := t.TempDir()
			script := fmt.Sprintf(`read go; ip link set lo up; ip link set %[1]sx up; ip -6 addr add fd00:77::1/64 dev %[1]sx nodad
exec %[2]s --no-daemon --conf-file=/dev/null --port=0 --interface=%[1]sx --enable-ra --dhcp-range=%[3]s --dhcp-option=option6:136,%[4]s --dhcp-option=option6:dns-server,[fd00:77::1] --dhcp-leasefile=%[5]s/leases --pid-file= --user=root --log-facility=-`,
				dev, dnsmasq, c.ranges, strings.Join(hex, ":"), dir)
			cmd := exec.Command("sh", "-c", script)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			log, err := os.Create(filepath.Join(dir, "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			cmd.Stdout, cmd.Stderr = log, log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				if text, err := os.ReadFile(log.Name()); t.Failed() {
					t.Logf("dnsmasq: %s %v", text, err)
				}
			}()
			far, err := netlink.LinkByName(dev + "x")
			if err == nil {
				err = netlink.LinkSetNsPid(far, cmd.Process.Pid)
			}
			if err == nil {
				_, err = in.Write([]byte("go\n"))
			}
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- Run(ctx, Config{Run: dir, Sys: "/sys", Say: t.Logf, Only: []string{dev}}) }()
			defer func() {
				cancel()
				if err := wait.For(t, "the end", ended); err != nil {
					t.Error(err)
				}
			}()
			wait.Seen(t, "option 136 in uplinks.json", func() (any, bool) {
				text, _ := os.ReadFile(filepath.Join(dir, "uplinks.json"))
				var list []Status
				if json.Unmarshal(text, &list) != nil || len(list) != 1 {
					return string(text), false
				}
				servers, err := sztp.ParseList(list[0].SZTP6)
				return string(text), err == nil && len(servers) == 1 && servers[0] == "https://[fd00:77::1]:8444" && strings.Contains(string(text), `"fd00:77::1"`)
			})
			wait.Seen(t, "an address of the network", func() (any, bool) {
				link, err := netlink.LinkByName(dev)
				if err != nil {
					return err, false
				}
				list, err := netlink.AddrList(link, netlink.FAMILY_V6)
				for _, a := range list {
					ones, _ := a.Mask.Size()
					if strings.HasPrefix(a.IP.String(), "fd00:77:") && (ones == 128) == (c.name == "managed") {
						return a, true
					}
				}
				return fmt.Sprint(list, err), false
			})
			if text, err := os.ReadFile(filepath.Join(dir, "resolv.conf")); err != nil || !strings.Contains(string(text), "fd00:77::1") {
				t.Errorf("resolv.conf: %s %v", text, err)
			}
		})
	}
}
