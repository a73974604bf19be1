package machines

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
	"tributary.dev/tributary/tests/lab"
)

// keyDir holds the keys that came with the images: the manufacturer's too.
var keyDir = filepath.Join(root, ".cache", "keys")

// arrival is boxes that find their owner by themselves, and the owner's core.
type arrival struct {
	*testing.T
	ctx   context.Context
	tree  *Tree
	began time.Time
}

// arrive starts a core that expects the boxes, and writes their disks; they have no power yet.
func arrive(t *testing.T, images string, boxes ...BoxSpec) *arrival {
	t.Helper()
	keys, err := filepath.Abs(keyDir)
	if err != nil {
		t.Fatal(err)
	}
	return arriveFrom(t, images, keys, func(*arrival) {}, boxes...)
}

// arriveFrom is arrive for boxes of the manufacturer in a folder of keys, and does something once the
// core runs, before the disks are written.
func arriveFrom(t *testing.T, images, keys string, first func(*arrival), boxes ...BoxSpec) *arrival {
	t.Helper()
	tree, err := New(Spec{Bin: programs(t), Images: images, Dir: t.TempDir(), Keys: keys, Boxes: boxes, Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, b := range boxes {
			if m := tree.Machine(b.Name); m != nil && t.Failed() {
				t.Logf("the serial line of %s:\n%s", b.Name, m.Console.Tail(100))
				if said, err := tree.boxes[b.Name].Local(context.WithoutCancel(t.Context()), "/status"); err == nil {
					t.Logf("%s says %s", b.Name, said)
				}
			}
		}
		if text, err := os.ReadFile(filepath.Join(tree.Dir, "cored.log")); err == nil && t.Failed() {
			t.Logf("cored:\n%s", text)
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	t.Cleanup(cancel)
	a := &arrival{t, ctx, tree, time.Now()}
	if err := tree.StartCore(ctx); err != nil {
		t.Fatal(err)
	}
	first(a)
	if err := tree.Join(ctx); err != nil {
		t.Fatal(err)
	}
	return a
}

// server is where a box reaches the core's bootstrap server: a port of the host's loopback.
func (a *arrival) server(box string) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 2, 2}), uint16(a.tree.boxes[box].wire.bootstrap.port))
}

func (a *arrival) start() {
	a.Helper()
	a.began = time.Now()
	if err := a.tree.StartBoxes(a.ctx); err != nil {
		a.Fatal(err)
	}
}

func (a *arrival) edgectl(args ...string) string {
	a.Helper()
	out, err := a.tree.Edgectl(a.ctx, "", args...)
	if err != nil {
		a.Fatal(err)
	}
	return out
}

// member waits until the core has a box online.
func (a *arrival) member(name string) (st api.DeviceStatus) {
	a.Helper()
	if err := lab.Until(a.ctx, name+" is a member", patience, func(ctx context.Context) error { return memberOf(ctx, a.tree, name, &st) }); err != nil {
		a.Fatal(err)
	}
	a.Logf("%s: a member %.0f s after power on", name, time.Since(a.began).Seconds())
	return st
}

func memberOf(ctx context.Context, tree *Tree, name string, st *api.DeviceStatus) error {
	var list struct{ Items []api.Object }
	if err := tree.GetJSON(ctx, &list, "get", "devices"); err != nil {
		return err
	}
	for _, o := range list.Items {
		if o.Metadata.Name != name {
			continue
		}
		if err := json.Unmarshal(o.Status, st); err != nil {
			return err
		}
		if !st.Online {
			return errors.New("it has enrolled and is not online")
		}
		return nil
	}
	return fmt.Errorf("none of %d devices has the name", len(list.Items))
}

// says waits until a box tells who asks locally what holds all words, and answers its text.
func (a *arrival) says(box string, words ...string) (text string) {
	a.Helper()
	err := lab.Until(a.ctx, box+" says "+strings.Join(words, ", "), patience, func(ctx context.Context) error {
		b, err := a.tree.boxes[box].Local(ctx, "/status")
		if err != nil {
			return err
		}
		text = string(b)
		for _, w := range words {
			if !strings.Contains(text, w) {
				return fmt.Errorf("it says %.2000s", text)
			}
		}
		return nil
	})
	if err != nil {
		a.Fatal(err)
	}
	return text
}

// console opens a page of the console on the serial line, which has to show what matches.
func (a *arrival) console(box, page, pattern string) {
	a.Helper()
	m := a.tree.Machine(box)
	for _, step := range [][2]string{{"\r", `drawn screen: `}, {page + "\r", pattern}, {"", `go back: `}, {"\r", `drawn screen: `}} {
		if step[0] != "" {
			if err := m.Send(step[0]); err != nil {
				a.Fatal(err)
			}
		}
		expect(a.T, a.ctx, m, step[1])
	}
}

// TestOnboardStick: a box whose network names nobody finds its owner by what the owner signed
// for it on a USB stick. Without an image that drives USB the stick is a removable disk of
// another kind.
func TestOnboardStick(t *testing.T) {
	needImage(t, "amd64")
	from, bus, memory := images(), []string{"-device", "virtio-scsi-pci,id=bus", "-device", "scsi-hd,removable=on,drive=stick"}, 0
	if usb, err := filepath.Abs(filepath.Join(images(), usbProfile)); err != nil {
		t.Fatal(err)
	} else if _, err := os.Stat(filepath.Join(usb, "disk.raw")); err == nil {
		from, bus, memory = t.TempDir(), []string{"-device", "qemu-xhci,id=bus", "-device", "usb-storage,removable=on,drive=stick"}, 1024
		if err := os.Symlink(usb, filepath.Join(from, Profiles["amd64"])); err != nil { // where the tree looks for it
			t.Fatal(err)
		}
	} else {
		t.Logf("no USB: %v", err)
	}
	stick := filepath.Join(t.TempDir(), "stick.img")
	a := arrive(t, from, BoxSpec{Name: "box", Parent: "core", Role: "field", Arch: "amd64", Silent: true, MemoryMiB: memory,
		Extra: append([]string{"-blockdev", "driver=file,node-name=stickfile,filename=" + stick, "-blockdev", "driver=raw,node-name=stick,file=stickfile"}, bus...)})
	dir := t.TempDir()
	a.edgectl("device", "stick", "DEMO-BOX", dir)
	var files []fat.File
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files = append(files, fat.File{Path: filepath.ToSlash(name), Content: bytes.NewReader(b)})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	f, err := os.Create(stick)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), fat.Write(f, size, fat.Options{Label: "STICK", Time: time.Now()}, files), f.Close()); err != nil {
		t.Fatal(err)
	}
	a.start()
	a.member("box")
}

// TestOnboardDHCP: option 143 names five liars and the core. Each lie is named, on the console
// and to who asks locally, and none is believed; when the core expects the box, it is a member.
func TestOnboardDHCP(t *testing.T) {
	needImage(t, "amd64")
	s := newSite(t)
	a := arrive(t, images(), BoxSpec{Name: "box", Parent: "core", Role: "field", Silent: true, Site: s.wires})
	right, err := os.ReadFile(a.tree.boxes["box"].path("DEMO-BOX.vcj"))
	if err != nil {
		t.Fatal(err)
	}
	a.edgectl("delete", "expecteddevice", "demo-box")
	liars := a.liars("DEMO-BOX", right)
	s.names(func(s *site) { s.dhcp = append(liars, "https://"+a.server("box").String()) })
	a.start()
	a.says("box", "no-owner", "forged: ", "wrong-owner: ", "wrong-box: ", "replayed: ", "unsigned: ", "not expected here")
	t.Logf("refused %.0f s after power on", time.Since(a.began).Seconds())
	a.console("box", "health", `no-owner[\s\S]*forged:\s[\s\S]*wrong-owner:\s[\s\S]*wrong-box:\s[\s\S]*replayed:\s[\s\S]*unsigned:\s`)
	var st api.DeviceStatus
	if err := memberOf(a.ctx, a.tree, "box", &st); err == nil {
		t.Error("it is a member, and nobody expects it")
	}
	a.edgectl("device", "expect", "DEMO-BOX", "--voucher", a.tree.boxes["box"].path("DEMO-BOX.vcj"), "--name", "box", "--labels", "role=field")
	a.member("box")
}

// liars serve answers on the host that no box may believe: by an unknown manufacturer's voucher,
// by another than the voucher's owner, by the vouchers of another box and of another question, and by
// no voucher at all.
func (a *arrival) liars(serial string, right []byte) (servers []string) {
	a.Helper()
	fail := func(err error) {
		a.Helper()
		if err != nil {
			a.Fatal(err)
		}
	}
	maker := func(name string) (*ecdsa.PrivateKey, *x509.Certificate) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		fail(err)
		cert, err := voucher.NewManufacturer(key, name, time.Now().AddDate(0, -1, 0))
		fail(err)
		return key, cert
	}
	forger, forgers := maker("development")
	thief, thiefs := maker("thief")
	forged, err := voucher.Sign(&voucher.Voucher{CreatedOn: time.Now().Add(-time.Hour), Assertion: voucher.Verified, SerialNumber: serial, PinnedDomainCert: thiefs.Raw}, forger, []*x509.Certificate{forgers})
	fail(err)
	root := filepath.Join(a.TempDir(), "thief.crt")
	fail(os.WriteFile(root, identity.FormatCerts([]*x509.Certificate{thiefs}), 0o644))
	vouch := func(serial string, more ...string) []byte {
		a.edgectl(append([]string{"voucher", "issue", serial, "--key", filepath.Join(a.tree.Keys, "manufacturer.key"), "--owner", root, "--out", filepath.Dir(root)}, more...)...)
		b, err := os.ReadFile(filepath.Join(filepath.Dir(root), serial+".vcj"))
		fail(err)
		return b
	}
	config, err := json.Marshal(map[string]any{"parents": []api.ParentRef{{Address: "10.0.2.2:8883", HTTPSPort: 8443}}})
	fail(err)
	c := &voucher.Conveyed{Onboarding: &voucher.Onboarding{Config: config}}
	signed, err := voucher.SignConveyed(c, thief, []*x509.Certificate{thiefs})
	fail(err)
	owner, err := voucher.OwnerCertificate([]*x509.Certificate{thiefs})
	fail(err)
	plain, err := voucher.PlainConveyed(c)
	fail(err)
	for _, answer := range []voucher.Answer{
		{Conveyed: signed, OwnerCert: owner, Voucher: forged},
		{Conveyed: signed, OwnerCert: owner, Voucher: right},
		{Conveyed: signed, OwnerCert: owner, Voucher: vouch("OTHER-1")},
		{Conveyed: signed, OwnerCert: owner, Voucher: vouch(serial, "--nonce", "00112233445566778899aabbccddeeff")},
		{Conveyed: plain},
	} {
		servers = append(servers, a.serves(answer))
	}
	return servers
}

// serves gives one answer to every box, and tells where.
func (a *arrival) serves(answer voucher.Answer) (server string) {
	a.Helper()
	b, err := voucher.Output(answer)
	if err != nil {
		a.Fatal(err)
	}
	l := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", voucher.MediaType)
		if strings.HasSuffix(r.URL.Path, ":get-bootstrapping-data") {
			_, _ = w.Write(b)
		}
	}))
	l.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	l.StartTLS()
	a.Cleanup(l.Close)
	at, err := netip.ParseAddrPort(l.Listener.Addr().String())
	if err != nil {
		a.Fatal(err)
	}
	return fmt.Sprintf("https://10.0.2.2:%d", at.Port())
}

// TestOnboardDNS: the site's own DNS has a service of bootstrap servers (DNS-SD): one that lies, which
// the box refuses, and the core, by a name that this DNS alone knows.
func TestOnboardDNS(t *testing.T) {
	needImage(t, "amd64")
	s := newSite(t)
	a := arrive(t, images(), BoxSpec{Name: "box", Parent: "core", Role: "field", Silent: true, Site: s.wires})
	right, err := os.ReadFile(a.tree.boxes["box"].path("DEMO-BOX.vcj"))
	if err != nil {
		t.Fatal(err)
	}
	a.edgectl("delete", "expecteddevice", "demo-box")
	liar := netip.MustParseAddrPort(strings.TrimPrefix(a.liars("DEMO-BOX", right)[0], "https://"))
	s.names(func(s *site) { s.srv = []netip.AddrPort{liar, a.server("box")} })
	a.start()
	a.says("box", "no-owner", fmt.Sprintf("site https://core-a.site.example:%d: forged: ", liar.Port()), fmt.Sprintf("site https://core-b.site.example:%d: ", a.server("box").Port()), "not expected here")
	a.edgectl("device", "expect", "DEMO-BOX", "--voucher", a.tree.boxes["box"].path("DEMO-BOX.vcj"), "--name", "box", "--labels", "role=field")
	a.member("box")
	if s.count("srv") == 0 {
		t.Error("nobody asked the site's DNS for bootstrap servers")
	}
}

// TestOnboardTPM: a box without a certificate from its manufacturer is known by the key that its
// TPM has for life. The manufacturer reads its serial number off it and vouches for that; option
// 136 of DHCPv6 names the core, and nobody types a code.
func TestOnboardTPM(t *testing.T) {
	needImage(t, "amd64")
	s := newSite(t)
	a := arrive(t, images(), BoxSpec{Name: "box", Parent: "core", Role: "field", Alone: true, Secure: true, Site: s.wires})
	s.names(func(s *site) { s.dhcp6 = []string{"https://" + a.server("box").String()} })
	enrol(t, a.tree.boxes["box"].path("vars.fd"))
	a.start()
	text := a.says("box", "no-owner", "not expected here")
	found := regexp.MustCompile(`the device ([a-z2-7]{13}) is not expected here`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("no serial number in %s", text)
	}
	serial := found[1]
	t.Logf("its TPM is known as %s, %.0f s after power on", serial, time.Since(a.began).Seconds())
	dir := t.TempDir()
	a.edgectl("voucher", "issue", serial, "--key", filepath.Join(a.tree.Keys, "manufacturer.key"), "--owner", filepath.Join(a.tree.CoreDir(), "ca", "root.crt"), "--out", dir)
	a.edgectl("device", "expect", serial, "--voucher", filepath.Join(dir, serial+".vcj"), "--name", "box", "--labels", "role=field")
	st := a.member("box")
	if st.ID.String() == serial {
		t.Error("its key as a member is the TPM's, which a reset does not end")
	}
	if s.count("dhcp6") == 0 {
		t.Error("nobody asked by DHCPv6")
	}
}

// TestOnboardRelay: a relay whose CONFIG names the core comes in by its voucher, and a box below
// it by its own: it hears of the relay by mDNS, and nobody does anything.
func TestOnboardRelay(t *testing.T) {
	needImage(t, "amd64")
	a := arrive(t, images(), BoxSpec{Name: "relay", Parent: "core", Role: "access", Relay: true}, BoxSpec{Name: "box", Parent: "relay", Role: "field"})
	a.start()
	relay := a.member("relay")
	if st := a.member("box"); st.Parent != relay.ID.String() {
		t.Errorf("it hangs at %q, not at the relay %s", st.Parent, relay.ID)
	}
}
