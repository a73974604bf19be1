package uplink

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/uplink/trial"
	"tributary.dev/tributary/pkg/edge/uplink/wifi"
	"tributary.dev/tributary/tests/wait"
)

// inGuest: under a kernel that has all that these tests want, as tests/machines starts one.
var inGuest = os.Getenv("INSIDE_GUEST") != ""

// needs skips, except where the reason cannot be.
func needs(t *testing.T, format string, args ...any) {
	t.Helper()
	if inGuest {
		t.Fatalf(format, args...)
	}
	t.Skipf(format+" (TestInside of tests/machines has it)", args...)
}

// far is the other end of a network: a process in a network of its own, that serves DHCP and
// echoes on TCP port 7 at 10.66.0.1.
type far struct {
	pid int
	in  io.Writer
	out *bufio.Scanner
}

// newFar starts it; role is what it sets up once it is told to go.
func newFar(t *testing.T, role string) *far {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFar$", "-test.timeout=20m")
	cmd.Env = append(os.Environ(), "UPLINK_FAR="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // its wish to end
		_ = cmd.Wait()
	})
	return &far{cmd.Process.Pid, in, bufio.NewScanner(out)}
}

// ready lets it go and waits until it serves.
func (f *far) ready(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(f.in, "go\n"); err != nil {
		t.Fatal(err)
	}
	var all []string
	for f.out.Scan() {
		if f.out.Text() == "far: ready" {
			go func() {
				for f.out.Scan() { // what it says later is of no interest
				}
			}()
			return
		}
		all = append(all, f.out.Text())
	}
	t.Fatalf("the far end does not come up:\n%s", strings.Join(all, "\n"))
}

// TestFar is the far end's process.
func TestFar(t *testing.T) {
	role := os.Getenv("UPLINK_FAR")
	if role == "" {
		t.Skip("is the far end of other tests")
	}
	stdin := bufio.NewReader(os.Stdin)
	if _, err := stdin.ReadString('\n'); err != nil {
		return
	}
	serves := "br0"
	switch role {
	case "air":
		accessPoint(t)
	case api.BondBackup, api.BondLACP:
		serves = twoCables(t, role)
	default:
		number, err := strconv.Atoi(role)
		if err != nil {
			t.Fatal(err)
		}
		link, err := netlink.LinkByName("up0x")
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			t.Fatal(err)
		}
		a := Assignment{Link: "up0x", VLAN: number}
		if _, err := vlan(link, a); err != nil {
			t.Fatal(err)
		}
		serves = a.Name()
	}
	serve(t, serves)
	fmt.Println("far: ready")
	obey(t, stdin) // until the test ends
}

// serve gives out 10.66.0.77 and echoes.
func serve(t *testing.T, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = errors.Join(netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("10.66.0.1/24"))}), netlink.LinkSetUp(link))
	}
	if err != nil {
		t.Fatal(err)
	}
	server, err := server4.NewServer(name, &net.UDPAddr{Port: 67}, func(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
		kind := dhcpv4.MessageTypeOffer
		if m.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
		}
		reply, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.IPv4(10, 66, 0, 77)), dhcpv4.WithServerIP(net.IPv4(10, 66, 0, 1)),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 66, 0, 1))), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(net.IPv4(10, 66, 0, 1)), dhcpv4.WithLeaseTime(3600))
		if err == nil {
			_, _ = conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68}) // it is asked again
		}
	}, server4.WithLogger(server4.ShortSummaryLogger{Printfer: log.New(io.Discard, "", 0)}))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve() }() // until the process ends
	l, err := net.Listen("tcp", "10.66.0.1:7")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// access is one radio with three networks: WPA2, one that hides its name, and WPA3 alone.
const access = `interface=%s
driver=nl80211
bridge=br0
hw_mode=g
channel=1
ssid=site
wpa=2
wpa_key_mgmt=WPA-PSK
rsn_pairwise=CCMP
wpa_passphrase=the right words

bss=ap1
bridge=br0
ssid=hidden
ignore_broadcast_ssid=1
wpa=2
wpa_key_mgmt=WPA-PSK
rsn_pairwise=CCMP
wpa_passphrase=the right words

bss=ap2
bridge=br0
ssid=three
wpa=2
wpa_key_mgmt=SAE
rsn_pairwise=CCMP
ieee80211w=2
wpa_passphrase=the right words
`

// accessPoint runs hostapd on the radio that was put into this network.
func accessPoint(t *testing.T) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(links, func(l netlink.Link) bool { return strings.HasPrefix(l.Attrs().Name, "wlan") })
	if at < 0 {
		t.Fatal("no radio has come")
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "hostapd.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, access, links[at].Attrs().Name), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "hostapd", file)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // it was killed with the test
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		fmt.Println("hostapd:", lines.Text())
		if strings.Contains(lines.Text(), "AP-ENABLED") {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return
		}
	}
	t.Fatal("hostapd has ended")
}

// radios are the machine's wireless cards that nobody is: each its number and its card.
func radios(t *testing.T) (numbers []uint32, cards []string) {
	t.Helper()
	list, err := filepath.Glob("/sys/class/ieee80211/phy*")
	if err != nil {
		t.Fatal(err)
	}
	for _, phy := range list {
		driver, _ := os.Readlink(filepath.Join(phy, "device/driver")) // none is none of ours
		nets, _ := filepath.Glob(filepath.Join(phy, "device/net/*"))
		text, err := os.ReadFile(filepath.Join(phy, "index"))
		if filepath.Base(driver) != "mac80211_hwsim" || len(nets) != 1 || err != nil {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		numbers, cards = append(numbers, uint32(n)), append(cards, filepath.Base(nets[0]))
	}
	return numbers, cards
}

// move puts a radio into a process's network (nl80211.h, NL80211_CMD_SET_WIPHY_NETNS).
func move(t *testing.T, radio uint32, pid int) {
	t.Helper()
	family, err := netlink.GenlFamilyGet("nl80211")
	if err != nil {
		t.Fatal(err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: unix.NL80211_CMD_SET_WIPHY_NETNS})
	req.AddData(nl.NewRtAttr(unix.NL80211_ATTR_WIPHY, nl.Uint32Attr(radio)))
	req.AddData(nl.NewRtAttr(unix.NL80211_ATTR_PID, nl.Uint32Attr(uint32(pid))))
	if _, err := req.Execute(unix.NETLINK_GENERIC, 0); err != nil {
		t.Fatal(err)
	}
}

// echoes asks the far end over whatever way there is.
func echoes(ctx context.Context) bool {
	c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", "10.66.0.1:7")
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 4)
	if _, err := io.WriteString(c, "ping"); err != nil {
		return false
	}
	_, err = io.ReadFull(c, b)
	return err == nil && string(b) == "ping"
}

// said is a line of uplinks.json.
func said(t *testing.T, run, name string) (s Status) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(run, "uplinks.json"))
	if err != nil {
		return s
	}
	var all []Status
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for _, u := range all {
		if u.Name == name {
			s = u
		}
	}
	return s
}

// TestVLAN: an uplink in a VLAN gets its address by DHCP and carries what is sent, and what
// lies in another VLAN of the same cable is not reached.
func TestVLAN(t *testing.T) {
	if !alone(t) {
		return
	}
	card(t, "up0")
	if number, _ := vlans(t); number == 0 {
		needs(t, "needs a kernel with VLANs")
	}
	f := newFar(t, "12")
	peer, err := netlink.LinkByName("up0x")
	if err == nil {
		err = netlink.LinkSetNsPid(peer, f.pid)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.ready(t)
	try := func(number int64, until func(run string) bool) {
		t.Helper()
		run := t.TempDir()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- Run(ctx, Config{Settings: &api.NetworkSettings{Uplinks: []api.Uplink{{Match: api.UplinkMatch{Name: "up0"}, DHCP: true, VLAN: number}}}, Run: run, Sys: "/sys", Say: t.Logf, Only: []string{"up0"}})
		}()
		wait.Until(t, fmt.Sprintf("VLAN %d does what it should", number), func() bool { return until(run) })
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	try(12, func(run string) bool {
		return said(t, run, "up0.12").Address == "10.66.0.77/24" && echoes(t.Context())
	})
	try(13, func(string) bool { _, err := netlink.LinkByName("up0.13"); return err == nil && !echoes(t.Context()) })
}

// TestWiFi joins a real access point (hostapd) over simulated radios: by what CONFIG says, a
// hidden one, one of WPA3 alone; a wrong passphrase is named, and the settings that had it
// are taken back by themselves.
func TestWiFi(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a radio is put into a network of its own")
	}
	numbers, cards := radios(t)
	if len(cards) < 2 {
		needs(t, "needs two radios of mac80211_hwsim")
	}
	for _, program := range []string{"hostapd", wifi.Program} {
		if _, err := exec.LookPath(program); err != nil {
			needs(t, "needs %s", program)
		}
	}
	f := newFar(t, "air")
	move(t, numbers[1], f.pid)
	f.ready(t)
	name, run := cards[0], t.TempDir()
	join := func(ssid, passphrase string) *api.NetworkSettings {
		return &api.NetworkSettings{Uplinks: []api.Uplink{{DHCP: true, WiFi: &api.WiFi{SSID: ssid, Passphrase: passphrase, Hidden: ssid == "hidden", Country: "DE"}}}}
	}
	search := func() {
		t.Helper()
		list, err := wifi.Scan(t.Context(), wifi.Config{Link: name, Dir: filepath.Join(run, wifi.Dir)})
		if err != nil || !slices.ContainsFunc(list, func(n wifi.Network) bool { return n.SSID == "site" && n.Locked && !n.Foreign && n.Signal < 0 }) {
			t.Fatalf("a search hears %+v: %v", list, err)
		}
	}
	search() // with nobody on the card

	file, config := filepath.Join(run, "kept.json"), join("site", "the right words")
	var leap atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Keep(ctx, Keeping{Config: Config{Settings: config, Run: run, Sys: "/sys", Say: t.Logf, Only: []string{name}, Choose: time.Hour,
			Now: func() time.Time { return time.Unix(1_800_000_000, 0).Add(time.Duration(leap.Load())) }},
			File: file, Every: 20 * time.Millisecond, Online: echoes})
	}()
	phase := func() trial.Trial {
		x, err := trial.Load(file, config)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	joined := func(ssid string) func() bool {
		return func() bool {
			s := said(t, run, name)
			return s.WiFi != nil && s.WiFi.SSID == ssid && s.WiFi.State == wifi.Joined && s.Address == "10.66.0.77/24" && echoes(t.Context())
		}
	}
	wish := func(s *api.NetworkSettings) {
		t.Helper()
		text, err := json.Marshal(map[string]any{"settings": s, "by": "ann"})
		if err == nil {
			err = errors.Join(os.WriteFile(filepath.Join(run, WishFile+".new"), text, 0o600), os.Rename(filepath.Join(run, WishFile+".new"), filepath.Join(run, WishFile)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	kept := func() bool { leap.Add(int64(time.Second)); return phase().Phase == trial.Kept }
	wait.Until(t, "the network of CONFIG is joined", joined("site"))
	wait.Until(t, "it is kept", kept)
	search() // beside who keeps the card
	if !joined("site")() {
		t.Error("a search has cost the connection")
	}

	wish(join("site", "the wrong words"))
	wait.Until(t, "the wrong passphrase is named", func() bool {
		s := said(t, run, name)
		return s.WiFi != nil && s.WiFi.State == wifi.Refused
	})
	wait.Until(t, "the settings that worked are back", func() bool { leap.Add(int64(time.Second)); return phase().Phase == trial.Reverted })
	wait.Until(t, "the network is joined again", joined("site"))
	for _, ssid := range []string{"hidden", "three"} {
		wish(join(ssid, "the right words"))
		wait.Until(t, ssid+" is joined", joined(ssid))
		wait.Until(t, ssid+" is kept", kept)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(run, wifi.Dir, name+".conf")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("who may read the passphrase: %v %v", info, err)
	}
}
