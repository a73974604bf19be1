package sztp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
)

var made = time.Now().UTC().Truncate(time.Second)

type pair struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newPair(t testing.TB, name string, by *pair) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: made.AddDate(0, 0, -30), NotAfter: made.AddDate(10, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature}
	parent, signer := tmpl, key
	if by == nil {
		tmpl.IsCA, tmpl.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	} else {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return pair{key, cert}
}

type world struct {
	t             testing.TB
	makers        [2]pair // the image's, and a forger's
	owners        [2]pair // the rightful, and another
	signers       [2]pair
	device, other pair
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, device: newPair(t, "device", nil), other: newPair(t, "device", nil)}
	for i := range 2 {
		w.makers[i], w.owners[i] = newPair(t, "maker", nil), newPair(t, "owner", nil)
		w.signers[i] = newPair(t, "signer", &w.owners[i])
	}
	return w
}

func (w *world) me() Device {
	code, err := voucher.Code(w.device.key)
	if err != nil {
		w.t.Fatal(err)
	}
	return Device{ID: identity.KeyID(&w.device.key.PublicKey), Serial: "TB-1", Code: code, Makers: []*x509.Certificate{w.makers[0].cert}}
}

func must[T any](t testing.TB, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func config(t testing.TB, first string) []byte {
	c := Beginning{Parents: []api.ParentRef{{Device: "core", Address: "10.0.0.1:8883", HTTPSPort: 8443}}}
	if first != "" {
		c.First = &First{Serial: first}
	}
	b, err := json.Marshal(c)
	return must(t, b, err)
}

// try lets a pair of results be checked in one expression.
func try[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T { t.Helper(); return must(t, v, err) }
}

// answer is what a source could give; the zero value is what the rightful owner gives.
type answer struct {
	maker, pinned, chain, signer int // 0 is right, 1 is somebody else
	serial                       string
	nonce                        []byte // in the voucher
	asked                        []byte
	expires                      time.Duration // from made
	bare                         bool          // without voucher
	plain                        string        // signed by nobody: "redirect" or "onboarding"
	pairing                      bool
	wrongCode                    bool
	first                        string // the serial number of what to run at first
	image                        *voucher.BootImage
}

func (w *world) artifacts(a answer) Artifacts {
	t := w.t
	if a.serial == "" {
		a.serial = "TB-1"
	}
	v := &voucher.Voucher{CreatedOn: made.Add(-time.Minute), Assertion: voucher.Logged, SerialNumber: a.serial, PinnedDomainCert: w.owners[a.pinned].cert.Raw, Nonce: a.nonce}
	if a.expires != 0 {
		at := made.Add(a.expires)
		v.ExpiresOn = &at
		if !at.After(v.CreatedOn) {
			v.CreatedOn = at.Add(-time.Minute)
		}
	}
	out := Artifacts{Nonce: a.asked}
	if !a.bare {
		out.Voucher = try(voucher.Sign(v, w.makers[a.maker].key, []*x509.Certificate{w.makers[a.maker].cert}))(t)
	}
	if a.pairing {
		code := w.me().Code
		if a.wrongCode {
			code = "0000-0000-0000"
		}
		out.Pairing = &voucher.Pairing{Root: w.owners[a.pinned].cert.Raw, Proof: voucher.Proof(code, w.owners[a.pinned].cert.Raw, w.me().ID)}
	}
	if a.plain != "" {
		c := &voucher.Conveyed{Onboarding: &voucher.Onboarding{Config: config(t, a.first)}}
		if a.plain == "redirect" {
			c = &voucher.Conveyed{Redirect: &voucher.Redirect{Servers: []voucher.Server{{Address: "h1"}}}}
		}
		return Artifacts{Conveyed: try(voucher.PlainConveyed(c))(t), Nonce: a.asked}
	}
	out.OwnerCert = try(voucher.OwnerCertificate([]*x509.Certificate{w.signers[a.chain].cert}))(t)
	out.Conveyed = try(voucher.SignConveyed(&voucher.Conveyed{Onboarding: &voucher.Onboarding{BootImage: a.image, Config: config(t, a.first)}}, w.signers[a.signer].key, []*x509.Certificate{w.signers[a.signer].cert}))(t)
	return out
}

// The table of who is refused, and why.
func TestJudge(t *testing.T) {
	w := newWorld(t)
	nonce, another := make([]byte, 16), make([]byte, 16)
	nonce[0] = 1
	knows := Clock{Now: made, Floor: made.Add(-24 * time.Hour), Trusted: true}
	doubts := Clock{Now: made.AddDate(-10, 0, 0), Floor: made.Add(-24 * time.Hour)}
	for _, c := range []struct {
		name  string
		clock Clock
		a     answer
		want  Reason
	}{
		{"the owner's", knows, answer{}, ""},
		{"without a clock", doubts, answer{}, ""},
		{"with the nonce that was asked", knows, answer{nonce: nonce, asked: nonce}, ""},
		{"not yet expired", knows, answer{expires: time.Hour}, ""},
		{"expired, but nobody knows the time", doubts, answer{expires: -time.Hour}, ""},
		{"expired", knows, answer{expires: -time.Hour}, Expired},
		{"expired before what is certainly past", doubts, answer{expires: -48 * time.Hour}, Expired},
		{"replayed", knows, answer{nonce: another, asked: nonce}, Replayed},
		{"with a nonce, on a stick", knows, answer{nonce: another}, Replayed},
		{"another's box", knows, answer{serial: "TB-2"}, WrongBox},
		{"with what it shall run at first", knows, answer{first: "TB-1"}, ""},
		{"with what another box shall run at first", knows, answer{first: "TB-2"}, WrongBox},
		{"by a forger of vouchers", knows, answer{maker: 1}, Forged},
		{"of an owner that the voucher does not name", knows, answer{chain: 1, signer: 1}, WrongOwner},
		{"with the owner's certificate, signed by another", knows, answer{signer: 1}, Forged},
		{"signed by a stranger under a stranger's voucher", knows, answer{maker: 1, pinned: 1, chain: 1, signer: 1}, Forged},
		{"of a rightful other owner", knows, answer{pinned: 1, chain: 1, signer: 1}, ""}, // resold by the manufacturer's word
		{"with nothing", knows, answer{bare: true}, Unsigned},
		{"that nobody signed", knows, answer{bare: true, plain: "onboarding"}, Unsigned},
		{"by pairing", knows, answer{bare: true, pairing: true}, ""},
		{"by pairing without the code", knows, answer{bare: true, pairing: true, wrongCode: true}, Forged},
		{"by pairing with one owner, signed by another", knows, answer{bare: true, pairing: true, chain: 1, signer: 1}, WrongOwner},
		{"a bad voucher beside a good pairing", knows, answer{maker: 1, pairing: true}, Forged},
	} {
		v, err := Judge(w.me(), c.clock, w.artifacts(c.a))
		if got := ReasonOf(err); got != c.want || (err == nil) != (c.want == "") {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		} else if err == nil && v.Owner == nil {
			t.Errorf("%s: no owner", c.name)
		}
	}
	// An unsigned redirect names no owner: whoever it names must prove him as anyone else.
	if v, err := Judge(w.me(), knows, w.artifacts(answer{bare: true, plain: "redirect"})); err != nil || v.Owner != nil || v.Conveyed.Redirect == nil {
		t.Errorf("an unsigned redirect: %+v, %v", v, err)
	}
	// A system that is to run first, on a box that can install one and on one that can't.
	image := try(voucher.ReleaseImage("core.example:8443", "2.0", "default/os@sha256:"+strings.Repeat("a", 64)))(t)
	other := *image
	other.Name = "another"
	for _, c := range []struct {
		updates bool
		image   *voucher.BootImage
		want    Reason
	}{{true, image, ""}, {false, image, Unfit}, {true, &other, Unfit}, {false, nil, ""}} {
		d := w.me()
		d.Updates = c.updates
		v, err := Judge(d, knows, w.artifacts(answer{image: c.image}))
		if ReasonOf(err) != c.want {
			t.Errorf("a boot image %+v, updates %v: %v", c.image, c.updates, err)
		}
		if c.want != "" || c.image == nil {
			continue
		}
		if f, err := found(v, "test"); err != nil || f.Release == nil || *f.Release != (Release{"default/os", "sha256:" + strings.Repeat("a", 64)}) {
			t.Errorf("%+v, %v", f, err)
		}
	}
	closed := w.me()
	closed.Code = ""
	if _, err := Judge(closed, knows, w.artifacts(answer{bare: true, pairing: true})); ReasonOf(err) != Unsigned {
		t.Errorf("pairing where it is not allowed: %v", err)
	}
}

// Whatever is mixed together, a box that believes it believes the owner whom a voucher by
// its maker, for its serial number and its question, or its own code, names.
func TestMixedAnswers(t *testing.T) {
	w := newWorld(t)
	nonces := [][]byte{nil, make([]byte, 8), {1, 2, 3, 4, 5, 6, 7, 8}}
	rapid.Check(t, func(rt *rapid.T) {
		bit := func(name string) int { return rapid.IntRange(0, 1).Draw(rt, name) }
		a := answer{maker: bit("maker"), pinned: bit("pinned"), chain: bit("chain"), signer: bit("signer"), serial: fmt.Sprintf("TB-%d", 1+bit("serial")),
			nonce: nonces[rapid.IntRange(0, 2).Draw(rt, "nonce")], asked: nonces[rapid.IntRange(0, 2).Draw(rt, "asked")],
			bare: bit("bare") == 1, pairing: bit("pairing") == 1, wrongCode: bit("code") == 1}
		if a.nonce == nil && bit("expires") == 1 {
			a.expires = time.Duration(rapid.IntRange(-72, 72).Draw(rt, "hours"))*time.Hour + time.Minute
		}
		clock := Clock{Now: made.Add(time.Duration(rapid.IntRange(-96, 96).Draw(rt, "clock")) * time.Hour), Floor: made.Add(-36 * time.Hour), Trusted: bit("trusted") == 1}
		v, err := Judge(w.me(), clock, w.artifacts(a))
		past := clock.Floor
		if clock.Trusted && clock.Now.After(past) {
			past = clock.Now
		}
		named := !a.bare && a.maker == 0 && a.serial == "TB-1" && (a.nonce == nil || slices.Equal(a.nonce, a.asked)) && (a.expires == 0 || past.Before(made.Add(a.expires)))
		if a.bare {
			named = a.pairing && !a.wrongCode
		}

		want := named && a.pinned == a.chain && a.chain == a.signer
		if (err == nil) != want {
			rt.Fatalf("%+v at %+v: %v, want taken %v", a, clock, err, want)
		}
		if err == nil && !v.Owner.Equal(w.owners[a.pinned].cert) {
			rt.Fatal("another owner")
		}
		if err != nil && ReasonOf(err) == "" {
			rt.Fatalf("without a reason: %v", err)
		}
	})
}

func TestRead(t *testing.T) {
	for _, o := range []*voucher.Onboarding{{}, {Config: []byte("{")}, {Config: []byte(`{"parents":[]}`)}, {Config: []byte(`{"parents":[{"address":""}]}`)},
		{Config: config(t, ""), PreScript: []byte("#!/bin/sh")}, {Config: config(t, ""), PostScript: []byte("#!/bin/sh")}} {
		if _, err := Read(o); ReasonOf(err) != Unreadable {
			t.Errorf("%s: %v", o.Config, err)
		}
	}
	if b, err := Read(&voucher.Onboarding{Config: config(t, "")}); err != nil || b.Parents[0].HTTPSPort != 8443 {
		t.Errorf("%+v, %v", b, err)
	}
}

// A walk ends whatever the answers are, asks nobody twice, keeps the order of kinds, and
// follows redirects first.
func TestRound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sources []Source
		for range rapid.IntRange(0, 12).Draw(t, "sources") {
			sources = append(sources, Source{Kind(rapid.IntRange(0, 3).Draw(t, "kind")), fmt.Sprintf("https://h%d:443", rapid.IntRange(0, 9).Draw(t, "host"))})
		}
		r := NewRound(sources)
		asked := map[string]bool{}
		last := Stick
		for n := 0; ; n++ {
			s, ok := r.Next()
			if !ok {
				break
			}
			if asked[s.Place] || n > 8*maxOfKind {
				t.Fatalf("%s is asked again", s.Place)
			}
			asked[s.Place] = true
			if s.Kind != Referred {
				if s.Kind < last {
					t.Fatalf("%s after %s", s.Kind, last)
				}
				last = s.Kind
			}
			if rapid.Bool().Draw(t, "fails") {
				r.Heard(nil, errors.New("no"))
				continue
			}
			to := &voucher.Redirect{}
			for range rapid.IntRange(1, 4).Draw(t, "named") {
				to.Servers = append(to.Servers, voucher.Server{Address: fmt.Sprintf("h%d", rapid.IntRange(0, 99).Draw(t, "to"))})
			}
			if f := r.Heard(&Verdict{Conveyed: &voucher.Conveyed{Redirect: to}}, nil); f != nil {
				t.Fatal("a redirect is an owner")
			}
		}
	})
}

// A site that names any number of servers, which name any number of others, does not keep a box from asking the servers of
// its image, nor those that these name.
func TestRoundReachesTheImage(t *testing.T) {
	var sources []Source
	for i := range 200 {
		sources = append(sources, Source{DHCP, fmt.Sprintf("https://d%d:443", i)}, Source{Site, fmt.Sprintf("https://s%d:443", i)})
	}
	r := NewRound(append(sources, Source{BuiltIn, "https://image:443"}))
	asked := map[string]bool{}
	for n := 0; ; n++ {
		s, ok := r.Next()
		if !ok {
			break
		}
		asked[s.Place] = true
		to := &voucher.Redirect{}
		for i := range 16 {
			to.Servers = append(to.Servers, voucher.Server{Address: fmt.Sprintf("r%d-%d", n, i)})
		}
		if s.Kind == BuiltIn {
			to.Servers[0].Address = "moved"
		}
		r.Heard(&Verdict{Conveyed: &voucher.Conveyed{Redirect: to}}, nil)
	}
	for _, place := range []string{"https://image:443", "https://moved:443"} {
		if !asked[place] {
			t.Errorf("%s is never asked, of %d", place, len(asked))
		}
	}
	if len(asked) > 8*maxOfKind {
		t.Errorf("%d are asked in one round", len(asked))
	}
}

func TestStick(t *testing.T) {
	w, mount := newWorld(t), t.TempDir()
	if _, err := readStick(mount, "TB-1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty stick: %v", err)
	}
	dir := filepath.Join(mount, StickDir, "TB-1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a := w.artifacts(answer{})
	for name, b := range map[string][]byte{StickConveyed: a.Conveyed, StickOwner: a.OwnerCert, StickVoucher: a.Voucher} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := readStick(mount, "TB-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Judge(w.me(), Clock{}, got); err != nil {
		t.Error(err)
	}
	// The same in a FAT file system, which no kernel mounts; and a disk with something else.
	image := filepath.Join(t.TempDir(), "stick.img")
	f := try(os.Create(image))(t)
	files := []fat.File{}
	for name, b := range map[string][]byte{StickConveyed: a.Conveyed, StickOwner: a.OwnerCert, StickVoucher: a.Voucher} {
		files = append(files, fat.File{Path: StickDir + "/" + name, Content: bytes.NewReader(b)})
	}
	if err := errors.Join(f.Truncate(64<<20), fat.Write(f, 64<<20, fat.Options{Label: "STICK"}, files), f.Close()); err != nil {
		t.Fatal(err)
	}
	if got, err = readStick(image, "TB-1"); err != nil || !bytes.Equal(got.Voucher, a.Voucher) {
		t.Errorf("from FAT: %v", err)
	}
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readStick(image, "TB-1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty disk: %v", err)
	}
	if _, err := readStick(mount, "../TB-1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a serial number that climbs: %v", err)
	}
}

func TestList(t *testing.T) {
	in := []string{"https://core.example:8444", "http://plain", "https://[fd00::1]:8444/", "https://a/b", "https://u:p@h"}
	got, err := ParseList(FormatList(in))
	if err != nil || !slices.Equal(got, []string{"https://core.example:8444", "https://[fd00::1]:8444"}) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := ParseList([]byte{0, 9, 'h'}); err == nil {
		t.Error("a cut list is read")
	}
}

func FuzzParseList(f *testing.F) {
	f.Add(FormatList([]string{"https://core.example:8444", "https://[fd00::1]"}))
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := ParseList(b)
		if err != nil {
			return
		}
		again, err := ParseList(FormatList(list))
		if err != nil || !slices.Equal(list, again) {
			t.Errorf("%q becomes %q, %v", list, again, err)
		}
	})
}

// A disk of the box itself is no stick.
func TestParseServers(t *testing.T) {
	got, err := ParseServers("# ours\nhttps://a.example:8444 # the first\n\n https://[fd00::1]:8444/\r\n")
	if want := []string{"https://a.example:8444", "https://[fd00::1]:8444"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q %v", got, err)
	}
	got, err = ParseServers("https://a.example:8444\nhttp://b.example\nhttps://c.example/x")
	if err == nil || !strings.Contains(err.Error(), "line 2: ") || !strings.Contains(err.Error(), "line 3: ") || !slices.Equal(got, []string{"https://a.example:8444"}) {
		t.Errorf("%q %v", got, err)
	}
	if _, err := ParseServers("# none\n"); err == nil {
		t.Error("a file of no server is one")
	}
}

// TestForeignStick: a stick that a person formatted in a way that is not read here is named with what to do; one that holds something
// else, as a box's own disk, is passed over.
func TestForeignStick(t *testing.T) {
	for says, image := range map[string][]byte{
		"exFAT":           append([]byte("\xeb\x76\x90EXFAT   "), make([]byte, 4096)...),
		"NTFS":            append([]byte("\xeb\x52\x90NTFS    "), make([]byte, 4096)...),
		"a damaged FAT32": append(append(make([]byte, 82), "FAT32   "...), make([]byte, 4096)...),
		"ext4":            append(append(make([]byte, 1080), 0x53, 0xef), make([]byte, 4096)...),
		"":                append([]byte("LUKS\xba\xbe"), make([]byte, 4096)...),
		"nothing":         make([]byte, 512),
	} {
		place := filepath.Join(t.TempDir(), "sda1")
		if err := os.WriteFile(place, image, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readStick(place, "TB-1")
		foreign := says != "" && says != "nothing"
		if err == nil || errors.Is(err, fs.ErrNotExist) == foreign || foreign && !(strings.Contains(err.Error(), says) && strings.Contains(err.Error(), "format it as FAT32")) {
			t.Errorf("%q: %v", says, err)
		}
	}
}

func TestSticks(t *testing.T) {
	sys := t.TempDir()
	for path, text := range map[string]string{
		"block/sda/removable": "1\n", "block/sda/size": "100\n", "block/sda/sda1/partition": "1\n", "block/sda/sda2/partition": "2\n",
		"block/sdb/removable": "1\n", "block/sdb/size": "100\n", "block/sr0/removable": "1\n", "block/sr0/size": "0\n",
		"block/nvme0n1/removable": "0\n", "block/nvme0n1/size": "100\n", "block/nvme0n1/nvme0n1p1/partition": "1\n",
		"devices/pci/usb2/2-1/sdc/removable": "0\n", "devices/pci/usb2/2-1/sdc/size": "9\n",
	} {
		path = filepath.Join(sys, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../devices/pci/usb2/2-1/sdc", filepath.Join(sys, "block/sdc")); err != nil {
		t.Fatal(err)
	}
	if got := Sticks(sys, "/dev"); !slices.Equal(got, []string{"/dev/sda1", "/dev/sda2", "/dev/sdb", "/dev/sdc"}) {
		t.Errorf("%q", got)
	}
}
