package keys

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/efi"
)

var day = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func set(t testing.TB) *Set {
	t.Helper()
	s, err := LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLoadOrCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s, err := LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadOrCreate(dir)
	if err != nil || again.Owner() != s.Owner() || !again.Signer().cert.Equal(s.Signer().cert) {
		t.Fatalf("loaded another set: %v", err)
	}
	if i, err := os.Stat(filepath.Join(dir, "PK.key")); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("PK.key: %v %v", i.Mode(), err)
	}
	digest := sha256.Sum256([]byte("x"))
	a, _ := s.PK.Sign(nil, digest[:], crypto.SHA256)
	b, _ := again.PK.Sign(nil, digest[:], crypto.SHA256)
	if len(a) == 0 || !bytes.Equal(a, b) {
		t.Error("signatures differ")
	}
	if _, err := Rotate(dir); !errors.Is(err, ErrNotPrepared) {
		t.Errorf("a key that no box can know is to sign: %v", err)
	}
	if _, err := Prepare(dir); err != nil {
		t.Fatal(err)
	}
	r, err := Rotate(dir)
	if err != nil || len(r.DB) != 2 || r.Signer().cert.Equal(s.Signer().cert) || !r.DB[0].cert.Equal(s.DB[0].cert) {
		t.Fatalf("rotation: %+v %v", r, err)
	}
	if _, err := Load(filepath.Join(dir, "typo")); err == nil {
		t.Error("a folder that is not there has keys")
	}
	if r, err = Load(dir); err != nil || r.Signer().Name != "db-2" {
		t.Errorf("after rotation: %+v %v", r, err)
	}
	if err := os.Remove(filepath.Join(dir, "KEK.key")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "KEK.key"), []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreate(dir); err == nil {
		t.Error("a broken key was replaced in silence")
	}
}

// TestCarried follows a rotation: prepared, it is carried; rotated, it signs; revoked, the old one is nobody's any more.
func TestCarried(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	names := func(s *Set, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		carried, err := s.Carried()
		again, err2 := s.Carried()
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		out := s.Signer().Name
		for i, a := range carried {
			content, err := a.Content()
			certs, err2 := Lists(content)
			if err != nil || err2 != nil || len(certs) != 1 || !bytes.Equal(a.Data, again[i].Data) {
				t.Fatal(certs, err, err2)
			}
			out += fmt.Sprintf(" %s(%s %s)", a.Name, a.Variable, certs[0].Subject.CommonName)
		}
		for _, c := range s.Certificates() {
			out += " " + c.Subject.CommonName
		}
		return out
	}
	for _, step := range []struct {
		do   func() (*Set, error)
		want string
	}{
		{func() (*Set, error) { return LoadOrCreate(dir) }, "db-1 Tributary db-1"},
		{func() (*Set, error) { return Prepare(dir) }, "db-1 append-db-2(db Tributary db-2) Tributary db-1 Tributary db-2"},
		{func() (*Set, error) { return Prepare(dir) }, "db-1 append-db-2(db Tributary db-2) Tributary db-1 Tributary db-2"},
		{func() (*Set, error) { return Rotate(dir) }, "db-2 append-db-2(db Tributary db-2) Tributary db-1 Tributary db-2"},
		{func() (*Set, error) { return MarkRevoked(dir, "db-1") }, "db-2 append-db-2(db Tributary db-2) revoke-db-1(dbx Tributary db-1) Tributary db-2"},
		{func() (*Set, error) { return LoadOrCreate(dir) }, "db-2 append-db-2(db Tributary db-2) revoke-db-1(dbx Tributary db-1) Tributary db-2"},
	} {
		if got := names(step.do()); got != step.want {
			t.Errorf("%s\nwant %s", got, step.want)
		}
	}
	if _, err := MarkRevoked(dir, "db-2"); err == nil {
		t.Error("the key that signs is revoked")
	}
}

// TestRotateKEK: what is carried after it is vouched for by the new KEK, that itself by PK, and by nobody else; and every
// byte of it counts.
func TestRotateKEK(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	first, err := Prepare(dir)
	if err != nil {
		t.Fatal(err)
	}
	for want := range 3 {
		s, err := LoadOrCreate(dir)
		if err != nil {
			t.Fatal(err)
		}
		carried, err := s.Carried()
		if err != nil || (want == 0) != (carried[0].Name == "append-db-2") || want > 0 && carried[0].Name != "append-KEK-"+fmt.Sprint(want+1) {
			t.Fatalf("after %d rotations: %v %v", want, carried, err)
		}
		for _, a := range carried {
			lists := map[string]*Key{"PK": s.PK, "KEK": s.KEK, "db": s.Signer()}
			if want > 0 {
				lists["the first KEK"] = first.KEK
			}
			for name, k := range lists {
				by, err := a.SignedIn(List(s.Owner(), s.PCR.cert, k.cert))
				if err != nil || by != (name == efi.Authority(a.Variable)) {
					t.Errorf("%s: vouched for by %s: %v %v", a.Name, name, by, err)
				}
			}
			list := List(s.Owner(), s.KEK.cert, s.PK.cert)
			for i := range a.Data {
				if i >= 20 && i < 40 {
					continue // what follows is a signature
				}
				bad := efi.Append{Name: a.Name, Variable: a.Variable, Data: bytes.Clone(a.Data)}
				bad.Data[i] ^= 1
				if by, err := bad.SignedIn(list); by && err == nil && !inCertificate(a.Data, i) {
					t.Fatalf("%s: byte %d of %d is another, and somebody vouches for it", a.Name, i, len(a.Data))
				}
			}
		}
		if !bytes.Equal(carried[len(carried)-1].Data[16+binary.LittleEndian.Uint32(carried[len(carried)-1].Data[16:]):], List(s.Owner(), s.Next.cert)) {
			t.Error("db-2 is not what is carried last")
		}
		vars, err := s.Enrolment(day, nil, nil)
		if err != nil || !bytes.HasSuffix(vars[1].Data, s.KEK.cert.Raw) {
			t.Errorf("new boxes are not enrolled with the newest KEK: %v", err)
		}
		if s, err = RotateKEK(dir); err != nil || s.KEK.cert.Equal(first.KEK.cert) || !s.PK.cert.Equal(first.PK.cert) {
			t.Fatal(err)
		}
	}
}

// inCertificate tells whether a byte belongs to what a signature says of itself, which is not what it vouches for.
func inCertificate(data []byte, at int) bool {
	n := 16 + int(binary.LittleEndian.Uint32(data[16:]))
	return at >= 40 && at < n-256 // the signature itself is last
}

func TestLists(t *testing.T) {
	s, vendor := set(t), set(t)
	both := append(List(vendor.Owner(), vendor.Certificates()...), List(s.Owner(), s.Certificates()...)...)
	certs, err := Lists(both)
	if err != nil || len(certs) != 2 || !certs[0].Equal(vendor.Signer().cert) || !certs[1].Equal(s.Signer().cert) {
		t.Fatalf("%d certificates: %v", len(certs), err)
	}
	vars, err := s.Enrolment(day, List(vendor.Owner(), vendor.Certificates()...), nil)
	if err != nil || len(vars) != 3 || vars[2].Name != "PK" {
		t.Fatal(vars, err)
	}
	if !bytes.HasSuffix(vars[0].Data, both) {
		t.Error("db does not hold the vendor's and our certificate")
	}
	if binary.LittleEndian.Uint32(vars[0].File()) != 0x27 {
		t.Error("attributes")
	}
}

// TestOpenssl asks another implementation about the signature of a variable.
func TestOpenssl(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("needs openssl")
	}
	s, dir := set(t), t.TempDir()
	v, err := s.Append(day, s.Signer())
	if err != nil {
		t.Fatal(err)
	}
	n := int(binary.LittleEndian.Uint32(v.Data[16:]))
	sig, content := v.Data[40:16+n], v.Data[16+n:]
	// The signed bytes: name, GUID, attributes, time, content (UEFI 2.10, 8.2.2).
	signed := append([]byte("d\x00b\x00"), securityDB[:]...)
	signed = append(signed, 0x67, 0, 0, 0)
	signed = append(append(signed, v.Data[:16]...), content...)
	// openssl wants the outer ContentInfo.
	outer := append([]byte{0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02, 0xa0, 0x82, byte(len(sig) >> 8), byte(len(sig))}, sig...)
	outer = append([]byte{0x30, 0x82, byte(len(outer) >> 8), byte(len(outer))}, outer...)
	for name, b := range map[string][]byte{"sig": outer, "signed": signed} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func() ([]byte, error) {
		cmd := exec.Command("openssl", "smime", "-verify", "-binary", "-noverify", "-inform", "DER", "-in", "sig", "-content", "signed", "-out", "out")
		cmd.Dir = dir
		return cmd.CombinedOutput()
	}
	if out, err := check(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	signed[len(signed)-1] ^= 1
	if err := os.WriteFile(filepath.Join(dir, "signed"), signed, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := check(); err == nil {
		t.Error("openssl takes a changed variable")
	}
}

func TestOVMFVars(t *testing.T) {
	for _, path := range []string{"/usr/share/OVMF/OVMF_VARS_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "/usr/share/AAVMF/AAVMF_VARS.ms.fd"} {
		template, err := os.ReadFile(path)
		if err != nil {
			t.Logf("needs %s (Debian: ovmf, qemu-efi-aarch64)", path)
			continue
		}
		s := set(t)
		before, _, err := VendorLists(template)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		fd, err := s.OVMFVars(template, day)
		if err != nil || len(fd) != len(template) {
			t.Fatalf("%s: %v", path, err)
		}
		db, kek, err := VendorLists(fd)
		if err != nil {
			t.Fatal(err)
		}
		certs, err := Lists(db)
		if err != nil || !bytes.HasPrefix(db, before) || !certs[len(certs)-1].Equal(s.Signer().cert) || len(kek) == 0 {
			t.Errorf("%s: db holds %d certificates: %v", path, len(certs), err)
		}
		t.Logf("%s: %d certificates in db", filepath.Base(path), len(certs))
	}
}

// Of a store with a boot option, all that was there is still there.
func TestHTTPBoot(t *testing.T) {
	template, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
	if err != nil {
		t.Skipf("needs ovmf: run tests/install-deps vm: %v", err)
	}
	fd, err := HTTPBoot(template, "http://10.0.2.2:8080/netboot.efi")
	if err != nil || len(fd) != len(template) {
		t.Fatal(err)
	}
	before, _, err := read(template)
	if err != nil {
		t.Fatal(err)
	}
	after, _, err := read(fd)
	if err != nil || len(after) != len(before)+2 {
		t.Fatalf("%d variables, before %d: %v", len(after), len(before), err)
	}
	if last := after[len(after)-2]; last.name != "Boot0000" || !bytes.Contains(last.data, []byte("http://10.0.2.2:8080/netboot.efi\x7f\xff\x04\x00")) {
		t.Errorf("%q %q", last.name, last.data)
	}
}

func FuzzLists(f *testing.F) {
	// Fuzzing's workers each come by here: making RSA keys in an instrumented program takes seconds.
	s, err := LoadOrCreate(filepath.Join(os.TempDir(), "tributary-fuzz-keys"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(List(s.Owner(), s.Certificates()...))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = Lists(b) })
}

func FuzzVariableStore(f *testing.F) {
	small := make([]byte, 0x400)
	copy(small[40:], "_FVH")
	small[48] = 0x48
	copy(small[0x48:], authenticatedStore[:])
	binary.LittleEndian.PutUint32(small[0x48+16:], 0x300)
	full := bytes.Clone(small)
	if _, err := put(full, 0x48+storeHeader, 0x348, stored{name: "x", data: []byte("y"), stamp: make([]byte, 16)}); err != nil {
		f.Fatal(err)
	}
	f.Add(small)
	f.Add(full)
	f.Fuzz(func(t *testing.T, b []byte) { _, _, _ = read(b) })
}

func TestManufacturer(t *testing.T) {
	dir := t.TempDir()
	a, err := Manufacturer(dir, day)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := Manufacturer(dir, day.AddDate(1, 0, 0)); err != nil || !bytes.Equal(a, b) {
		t.Errorf("another the second time: %v", err)
	}
	if i, err := os.Stat(filepath.Join(dir, MakerKey)); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v %v", MakerKey, i, err)
	}
	// Whoever keeps the key elsewhere puts the certificate alone there.
	if err := os.Remove(filepath.Join(dir, MakerKey)); err != nil {
		t.Fatal(err)
	}
	if b, err := Manufacturer(dir, day); err != nil || !bytes.Equal(a, b) {
		t.Errorf("without the key: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, MakerCert), []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Manufacturer(dir, day); err == nil {
		t.Error("what is no certificate was replaced in silence")
	}
}
