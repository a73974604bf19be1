// Package onboarding answers: does a box that knows neither parent nor token come to its
// owner, by each way that there is, and to nobody else?
//
// Real programs in network namespaces: it needs root and the built programs.
package onboarding

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/edge/onboard"
	"tributary.dev/tributary/pkg/edge/onboard/sztp"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
	"tributary.dev/tributary/tests/lab"
)

// Roles that this program plays in the networks of boxes, where it starts itself.
const (
	roleVariable = "TRIBUTARY_ONBOARDING_ROLE"
	roleDHCP     = "dhcp-server"
	roleUplink   = "dhcp-client"
	roleRogue    = "rogue"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, role+":", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// patience bounds each wait: what takes seconds by itself takes minutes on a busy machine.
const patience = 4 * time.Minute

// site is a lab with a core that boxes ask, and a manufacturer.
type site struct {
	*lab.Lab
	t     *testing.T
	maker maker
}

type maker struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newMaker(t testing.TB, name string) maker {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	cert, err := voucher.NewManufacturer(key, name, time.Now().AddDate(0, -1, 0))
	must(t, err)
	return maker{key, cert}
}

func (m maker) voucher(t testing.TB, serial string, owner *x509.Certificate, expires *time.Time) []byte {
	t.Helper()
	made := time.Now().Add(-time.Minute)
	if expires != nil {
		made = expires.Add(-time.Hour)
	}
	raw, err := voucher.Sign(&voucher.Voucher{CreatedOn: made, ExpiresOn: expires, Assertion: voucher.Verified, SerialNumber: serial, PinnedDomainCert: owner.Raw}, m.key, []*x509.Certificate{m.cert})
	must(t, err)
	return raw
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sites counts the labs of this process, whose names must differ.
var sites atomic.Int32

// newSite raises a core with a bootstrap port, and namespaces for boxes.
func newSite(t *testing.T, boxes ...lab.BoxSpec) *site {
	t.Helper()
	if testing.Short() {
		t.Skip("raises real boxes: not in the short form")
	}
	if err := lab.Root(); err != nil {
		t.Skip("needs root and the tools of network namespaces: " + err.Error())
	}
	t.Parallel() // each has networks of its own, and waits most of the time
	root, err := filepath.Abs("../..")
	must(t, err)
	bin := cmp.Or(os.Getenv("TRIBUTARY_BIN"), filepath.Join(root, "bin"))
	if _, err := os.Stat(filepath.Join(bin, "edged-onboard")); err != nil {
		t.Skip("needs the programs: run make build")
	}
	dir, err := os.MkdirTemp("", "tributary-onboarding-")
	must(t, err)
	m := newMaker(t, "Example Boxes")
	makers := filepath.Join(dir, "manufacturers.pem")
	must(t, os.WriteFile(makers, identity.FormatCerts([]*x509.Certificate{m.cert}), 0o644))
	for i := range boxes {
		own := filepath.Join(dir, boxes[i].Name)
		find := []string{filepath.Join(bin, "edged-onboard"), "--manufacturers", makers, "--code-file", filepath.Join(own, "pairing-code"), "--pause", "1s",
			"--uplinks", filepath.Join(own, "net", "uplinks.json"), "--birth", filepath.Join(own, "idevid.pem"), "--bootstrap-file", filepath.Join(own, "servers"), "--build-time", filepath.Join(own, "built")}
		if boxes[i].Alone {
			boxes[i].EdgedArgs = append([]string{"--find-owner", "--find-owner-with", strings.Join(append(find, boxes[i].EdgedArgs...), " ")}, "--verbose")
		}
	}
	l, err := lab.New(t.Context(), lab.Spec{Name: fmt.Sprintf("to%d-%d", os.Getpid()%10000, sites.Add(1)), Bin: bin, Dir: dir, Boxes: boxes,
		CoredArgs: []string{"--listen-bootstrap", ":8444", "--manufacturers", makers}})
	must(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("taking the site down: %v", err)
		}
		if t.Failed() {
			t.Logf("the logs are in %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, b := range boxes {
		must(t, os.MkdirAll(filepath.Join(dir, b.Name, "net"), 0o755))
		box := l.Boxes[b.Name]
		if b.Parent == "core" { // the core answers at all its addresses
			if _, err := box.Command(t.Context(), "ip", "route", "add", "default", "via", box.Uplink.ParentAddr); err != nil {
				t.Fatal(err)
			}
		}
	}
	must(t, l.StartCore(t.Context()))
	return &site{l, t, m}
}

func (s *site) dir(name string) string { return filepath.Join(s.Dir, name) }

// root is the owner's.
func (s *site) root() *x509.Certificate {
	b, err := os.ReadFile(filepath.Join(s.CoreDir(), "ca", "root.crt"))
	must(s.t, err)
	certs, err := identity.ParseCerts(b)
	must(s.t, err)
	return certs[0]
}

// born gives a box a birth certificate by the manufacturer.
func (s *site) born(name, serial string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(s.t, err)
	chain, err := voucher.IssueIDevID(&key.PublicKey, serial, s.maker.key, []*x509.Certificate{s.maker.cert})
	must(s.t, err)
	text, err := identity.FormatKey(key)
	must(s.t, err)
	must(s.t, os.WriteFile(filepath.Join(s.dir(name), "idevid.pem"), append(text, identity.FormatCerts(chain)...), 0o600))
}

func (s *site) edgectl(args ...string) string {
	s.t.Helper()
	out, err := s.Edgectl(s.t.Context(), "", args...)
	must(s.t, err)
	return out
}

// expect tells the core of a box, with a voucher.
func (s *site) expect(serial, name string, raw []byte) {
	s.t.Helper()
	file := filepath.Join(s.Dir, "voucher-"+name)
	must(s.t, os.WriteFile(file, raw, 0o644))
	s.edgectl("device", "expect", serial, "--voucher", file, "--name", name, "--labels", "role=field")
}

// warning waits until a box says locally what a text of words holds.
func (s *site) warning(name string, words ...string) api.Warning {
	s.t.Helper()
	var last api.Warning
	err := lab.Until(s.t.Context(), name+" says "+strings.Join(words, ", "), patience, func(ctx context.Context) error {
		b, err := s.Boxes[name].Local(ctx, "/status")
		if err != nil {
			return err
		}
		var st struct{ Warnings []api.Warning }
		if err := json.Unmarshal(b, &st); err != nil {
			return err
		}
		for _, w := range st.Warnings {
			last = w
			missing := false
			for _, word := range words {
				missing = missing || !strings.Contains(w.Name+" "+w.Message+" "+w.Remedy, word)
			}
			if !missing {
				return nil
			}
		}
		return fmt.Errorf("it says %+v", st.Warnings)
	})
	must(s.t, err)
	return last
}

// member waits until a box is online at the core under a name.
func (s *site) member(name string) api.DeviceStatus {
	s.t.Helper()
	var st api.DeviceStatus
	err := lab.Until(s.t.Context(), name+" is a member", patience, func(ctx context.Context) error {
		var list struct{ Items []api.Object }
		if err := s.GetJSON(ctx, &list, "get", "devices"); err != nil {
			return err
		}
		for _, o := range list.Items {
			if o.Metadata.Name == name {
				if err := json.Unmarshal(o.Status, &st); err != nil {
					return err
				}
				if st.Online {
					return nil
				}
				return errors.New("it has enrolled and is not online")
			}
		}
		return fmt.Errorf("none of %d devices has the name", len(list.Items))
	})
	must(s.t, err)
	return st
}

// start starts boxes' edged, with a containerd each.
func (s *site) start(names ...string) {
	s.t.Helper()
	for _, n := range names {
		must(s.t, s.Boxes[n].Start(s.t.Context()))
	}
}

// process starts this program in another role in a network; it ends with the test.
func (s *site) process(prefix []string, role string, args ...string) {
	s.t.Helper()
	me, err := os.Executable()
	must(s.t, err)
	argv := append(append(append([]string{}, prefix...), me), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	s.run(role, cmd)
}

// run starts a process that ends with the test; its words go into a log of its name.
func (s *site) run(name string, cmd *exec.Cmd) {
	s.t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.OpenFile(filepath.Join(s.Dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(s.t, err)
	cmd.Stdout, cmd.Stderr = log, log
	must(s.t, cmd.Start())
	log.Close()
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
}

func alone(name string, finder ...string) lab.BoxSpec {
	return lab.BoxSpec{Name: name, Parent: "core", Role: "field", Alone: true, EdgedArgs: finder}
}

// stickOf writes signed data of the core onto a FAT32 image, as a person does with a stick.
func (s *site) stickOf(serial string) (image string) {
	s.t.Helper()
	dir := s.t.TempDir()
	s.edgectl("device", "stick", serial, dir)
	var files []fat.File
	must(s.t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files = append(files, fat.File{Path: filepath.ToSlash(rel), Content: bytes.NewReader(b)})
		return err
	}))
	if len(files) != 3 {
		s.t.Fatalf("%d files on the stick", len(files))
	}
	image = filepath.Join(s.Dir, "stick.img")
	f, err := os.Create(image)
	must(s.t, err)
	must(s.t, errors.Join(f.Truncate(64<<20), fat.Write(f, 64<<20, fat.Options{Label: "STICK", Time: time.Now()}, files), f.Close()))
	return image
}

// plug makes an image a disk of the machine, if it can.
func (s *site) plug(image string) string {
	out, err := exec.CommandContext(s.t.Context(), "losetup", "--find", "--show", "--read-only", image).Output()
	if err != nil {
		s.t.Logf("no loop device (%v): the stick is read as a file", err)
		return image
	}
	dev := strings.TrimSpace(string(out))
	s.t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() }) // at the latest with the machine
	return dev
}

// dhcp gives a box's link a DHCP server that names bootstrap servers, and the box a client.
func (s *site) dhcp(name string, servers ...string) {
	s.t.Helper()
	box := s.Boxes[name]
	dev := s.device(box)
	for _, argv := range [][]string{{"ip", "route", "flush", "dev", dev}, {"ip", "addr", "flush", "dev", dev}} {
		if _, err := box.Command(s.t.Context(), argv...); err != nil {
			s.t.Fatal(err)
		}
	}
	s.process(s.CorePrefix(), roleDHCP, "down"+strings.TrimPrefix(dev, "up"), box.Uplink.ParentAddr, box.Uplink.ChildAddr, strings.Join(servers, ","))
	s.process(box.Prefix(), roleUplink, dev, filepath.Join(s.dir(name), "net"))
}

// dhcp6 gives a box's link a real DHCPv6 server (dnsmasq) with router advertisements, which
// names bootstrap servers, and the box a client. False: there is no such server here.
func (s *site) dhcp6(name, address string, servers ...string) bool {
	s.t.Helper()
	program, err := exec.LookPath("dnsmasq")
	if err != nil {
		return false
	}
	dev := s.device(s.Boxes[name])
	far := "down" + strings.TrimPrefix(dev, "up")
	argv := append(s.CorePrefix(), "ip", "-6", "addr", "add", address+"/64", "dev", far, "nodad")
	if out, err := exec.CommandContext(s.t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	var hex []string
	for _, b := range sztp.FormatList(servers) {
		hex = append(hex, fmt.Sprintf("%02x", b))
	}
	prefix := address[:strings.LastIndex(address, "::")+2]
	argv = append(s.CorePrefix(), program, "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface="+far, "--enable-ra", "--dhcp-range="+prefix+",ra-stateless",
		"--dhcp-option=option6:136,"+strings.Join(hex, ":"), "--dhcp-leasefile="+filepath.Join(s.Dir, "leases6"), "--pid-file=", "--user=root", "--log-facility=-")
	s.run("dnsmasq", exec.Command(argv[0], argv[1:]...))
	s.process(s.Boxes[name].Prefix(), roleUplink, dev, filepath.Join(s.dir(name), "net"))
	return true
}

// device is the name of a box's network card.
func (s *site) device(b *lab.Box) string {
	out, err := b.Command(s.t.Context(), "ip", "-o", "link", "show")
	must(s.t, err)
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], "up") {
			dev, _, _ := strings.Cut(strings.TrimSuffix(f[1], ":"), "@")
			return dev
		}
	}
	s.t.Fatalf("no network card in %q", out)
	return ""
}

// TestSourceDHCPv6 lets a box come in by option 136 of a real DHCPv6 server.
func TestSourceDHCPv6(t *testing.T) {
	s := newSite(t, alone("by-dhcp6", "--sticks", "none", "--ask-site", "off"))
	s.born("by-dhcp6", "EX-0006")
	s.expect("EX-0006", "by-dhcp6", s.maker.voucher(t, "EX-0006", s.root(), nil))
	if !s.dhcp6("by-dhcp6", "fd00:77::1", "https://[fd00:77::1]:8444") {
		t.Skip("needs dnsmasq (Debian: dnsmasq-base)")
	}
	s.start("by-dhcp6")
	s.member("by-dhcp6")
	if o, err := onboard.LoadOwner(s.Boxes["by-dhcp6"].Data()); err != nil || o == nil || o.Source != "DHCP https://[fd00:77::1]:8444" {
		t.Errorf("it found its owner by %+v (%v)", o, err)
	}
}

// TestSources lets boxes come in by each source at once: the servers of the image, a
// pairing code, a stick, DHCP, and a relay or the core that answers the site. Another hears six forged
// answers by DHCP, says so, and comes to its owner all the same.
func TestSources(t *testing.T) {
	quiet := []string{"--sticks", "none", "--ask-site", "off"}
	stick := filepath.Join(t.TempDir(), "stick")
	s := newSite(t,
		alone("by-image", append(quiet, "--bootstrap", "https://10.77.0.1:8444")...),
		alone("by-code", append(quiet, "--bootstrap", "https://10.77.0.1:8444")...),
		alone("by-stick", "--sticks", stick, "--ask-site", "off"),
		alone("by-dhcp", quiet...),
		lab.BoxSpec{Name: "relay", Parent: "core", Role: "relay", Relay: true},
		lab.BoxSpec{Name: "by-site", Parent: "relay", Alone: true, EdgedArgs: []string{"--sticks", "none"}},
		alone("by-core", "--sticks", "none"),
		alone("lied-to", append(quiet, "--bootstrap", "https://10.77.0.1:8444")...),
	)
	for i, name := range []string{"by-image", "by-stick", "by-dhcp", "by-site", "lied-to", "by-core"} {
		serial := fmt.Sprintf("EX-000%d", i+1)
		s.born(name, serial)
		if name != "lied-to" {
			s.expect(serial, name, s.maker.voucher(t, serial, s.root(), nil))
		}
	}
	must(t, os.Symlink(s.plug(s.stickOf("EX-0002")), stick))
	s.dhcp("by-dhcp", "https://10.77.0.1:8444")
	must(t, os.WriteFile(filepath.Join(s.dir("lied-to"), "built"), fmt.Append(nil, time.Now().Add(-24*time.Hour).Unix()), 0o644))
	s.dhcp("lied-to", s.rogue("EX-0005", s.Boxes["lied-to"].Uplink.ParentAddr)...)
	must(t, s.Join(t.Context()))
	begin := time.Now()
	s.start("relay", "by-image", "by-code", "by-stick", "by-dhcp", "by-site", "by-core", "lied-to")

	// A person reads the code at the console and types it.
	s.warning("by-code", "no-owner", "its pairing code is", "edgectl device approve")
	var code []byte
	must(t, lab.Until(t.Context(), "a code at the console", patience, func(context.Context) (err error) {
		code, err = os.ReadFile(filepath.Join(s.dir("by-code"), "pairing-code"))
		return err
	}))
	must(t, lab.Until(t.Context(), "the box has asked", patience, func(ctx context.Context) error {
		_, err := s.Edgectl(ctx, "", "device", "approve", strings.TrimSpace(string(code)), "--name", "by-code")
		return err
	}))
	for _, name := range []string{"by-image", "by-code", "by-stick", "by-dhcp", "by-site", "by-core"} {
		st := s.member(name)
		t.Logf("%s: a member after %.1f s", name, time.Since(begin).Seconds())
		if parent := st.Parent; name == "by-site" && (parent == "" || parent == "core") {
			t.Errorf("%s hangs at %q, not at the relay", name, parent)
		}
	}
	if _, err := os.Stat(filepath.Join(s.dir("by-code"), "pairing-code")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the code is still shown: %v", err)
	}
	for i, want := range []string{"image https://10.77.0.1:8444", "stick " + stick, "DHCP https://10.77.0.1:8444", "site https://", "site https://"} {
		name := []string{"by-image", "by-stick", "by-dhcp", "by-site", "by-core"}[i]
		if o, err := onboard.LoadOwner(s.Boxes[name].Data()); err != nil || o == nil || !strings.HasPrefix(o.Source, want) {
			t.Errorf("%s found its owner by %+v (%v), not by %s", name, o, err, want)
		}
	}
	var o api.Object
	must(t, s.GetJSON(t.Context(), &o, "get", "expecteddevice", "ex-0001"))
	if !strings.Contains(string(o.Status), "bootstrap-complete") {
		t.Errorf("the core heard %s", o.Status)
	}

	// Six lies by DHCP: each is named, and none is believed.
	s.warning("lied-to", "forged:", "wrong-owner:", "wrong-box:", "expired:", "replayed:", "unsigned:", "not expected here")
	var list struct{ Items []api.Object }
	must(t, s.GetJSON(t.Context(), &list, "get", "devices"))
	if len(list.Items) != 7 { // with the relay
		t.Errorf("%d devices", len(list.Items))
	}
	s.expect("EX-0005", "lied-to", s.maker.voucher(t, "EX-0005", s.root(), nil))
	s.member("lied-to")
}
