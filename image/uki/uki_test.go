package uki

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/image/keys"
)

// program makes the smallest PE32+ file that this package takes, with a stub's marks.
func program(machine uint16, version string) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x800)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	le.PutUint16(b[0x44:], machine)
	le.PutUint16(b[0x46:], 2)
	le.PutUint16(b[0x54:], 240)
	o := b[0x58:]
	le.PutUint16(o, 0x20b)
	le.PutUint32(o[32:], 0x1000)
	le.PutUint32(o[36:], 0x200)
	le.PutUint32(o[56:], 0x3000)
	le.PutUint32(o[60:], 0x400)
	le.PutUint32(o[108:], 16)
	for i, s := range []string{".text", ".sdmagic"} {
		h := b[0x58+240+i*40:]
		copy(h, s)
		le.PutUint32(h[8:], 0x180)
		le.PutUint32(h[12:], uint32(0x1000*(i+1)))
		le.PutUint32(h[16:], 0x200)
		le.PutUint32(h[20:], uint32(0x400+0x200*i))
	}
	copy(b[0x600:], "#### LoaderInfo: systemd-stub "+version+" ####")
	return b
}

func config(stub []byte) Config {
	return Config{
		Stub: stub, Kernel: program(MachineAMD64, "x"), Microcode: []byte("micro"), Initrd: []byte("initrd"),
		Cmdline: "roothash=00 quiet", OSRelease: "ID=tributary\n", Uname: "6.12.0",
	}
}

func testKeys(t testing.TB) *keys.Set {
	t.Helper()
	s, err := keys.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBuild(t *testing.T) {
	a, err := Build(config(program(MachineAMD64, "254.26-1")))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Build(config(program(MachineAMD64, "254.26-1")))
	if err != nil || !bytes.Equal(a, b) {
		t.Fatalf("two builds differ: %v", err)
	}
	for name, want := range map[string]string{".cmdline": "roothash=00 quiet", ".osrel": "ID=tributary\n", ".uname": "6.12.0", ".initrd": "micro\x00\x00\x00initrd"} {
		if got, err := Read(a, name); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	sections, err := Sections(a)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range sections[1:] {
		if s.Address < sections[i].Address+sections[i].Size || s.Address%0x1000 != 0 {
			t.Errorf("section %s lies at %#x, %s ends at %#x", s.Name, s.Address, sections[i].Name, sections[i].Address+sections[i].Size)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"other machine": func(c *Config) { c.Stub = program(MachineARM64, "254") },
		"two lines":     func(c *Config) { c.Cmdline = "a\nb" },
		"no kernel":     func(c *Config) { c.Kernel = nil },
		"no tree":       func(c *Config) { c.DeviceTree = []byte("/dts-v1/;") },
		"no PE":         func(c *Config) { c.Kernel = []byte("MZ but nothing else") },
	} {
		c := config(program(MachineAMD64, "254.26-1"))
		spoil(&c)
		if _, err := Build(c); err == nil {
			t.Errorf("%s: built", name)
		}
	}
}

func TestSign(t *testing.T) {
	set, other := testKeys(t), testKeys(t)
	pe, err := Build(config(program(MachineAMD64, "254.26-1")))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Sign(pe, set.Signer())
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := Sign(pe, set.Signer()); !bytes.Equal(again, signed) {
		t.Error("two signatures differ")
	}
	if err := Verify(signed, other.Signer().Certificate(), set.Signer().Certificate()); err != nil {
		t.Error(err)
	}
	if Verify(signed, other.Signer().Certificate()) == nil || Verify(signed) == nil || Verify(pe, set.Signer().Certificate()) == nil {
		t.Error("accepted with another key, with none, or unsigned")
	}
	if bare, err := Unsigned(signed); err != nil {
		t.Fatal(err)
	} else if again, err := Sign(bare, set.Signer()); err != nil || !bytes.Equal(again, signed) {
		t.Errorf("unsigned and signed again it is another: %v", err)
	}
	if _, err := Sign(signed, set.Signer()); err == nil {
		t.Error("signed twice")
	}
	p, _ := parse(signed)
	rapid.Check(t, func(t *rapid.T) {
		b := bytes.Clone(signed)
		at := rapid.IntRange(0x200, int(p.certOffset)-1).Draw(t, "at")
		b[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if Verify(b, set.Signer().Certificate()) == nil {
			t.Fatalf("a changed byte at %#x is not seen", at)
		}
	})
}

// TestSbverify asks sbsigntool about real stubs, where they are installed.
func TestSbverify(t *testing.T) {
	tool, err := exec.LookPath("sbverify")
	if err != nil {
		t.Skip("needs sbverify (Debian: sbsigntool)")
	}
	set := testKeys(t)
	dir := t.TempDir()
	cert := filepath.Join(dir, "db.pem")
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: set.Signer().Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	stubs := map[string][]byte{"smallest": program(MachineAMD64, "254")}
	for _, path := range []string{"/usr/lib/systemd/boot/efi/linuxx64.efi.stub", "/usr/lib/systemd/boot/efi/linuxaa64.efi.stub", "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"} {
		if b, err := os.ReadFile(path); err == nil {
			stubs[path] = b
		}
	}
	for name, stub := range stubs {
		pe := stub
		if !strings.Contains(name, "systemd-boot") {
			c := config(stub)
			p, err := parse(stub)
			if err != nil {
				t.Fatal(err)
			}
			c.Kernel = program(p.Machine, "x")
			c.PolicyKey = set.PCR.PublicPEM()
			c.Policy = func([]byte) ([]byte, error) { return []byte("{}"), nil }
			if pe, err = Build(c); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if _, err := PCR11(pe, "enter-initrd"); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		signed, err := Sign(pe, set.Signer())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		path := filepath.Join(dir, "signed.efi")
		if err := os.WriteFile(path, signed, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(tool, "--cert", cert, path).CombinedOutput(); err != nil {
			t.Errorf("%s: sbverify: %v\n%s", name, err, out)
		}
		signed[len(pe)/2] ^= 1
		if err := os.WriteFile(path, signed, 0o600); err != nil {
			t.Fatal(err)
		}
		if exec.Command(tool, "--cert", cert, path).Run() == nil {
			t.Errorf("%s: sbverify takes a changed image", name)
		}
	}
}

func TestPCR11(t *testing.T) {
	pe, err := Build(config(program(MachineAMD64, "254.26-1")))
	if err != nil {
		t.Fatal(err)
	}
	first, err := PCR11(pe)
	if err != nil {
		t.Fatal(err)
	}
	// By hand, in the order of systemd-stub 254.
	var want [32]byte
	for _, s := range [][2]string{{".linux", string(program(MachineAMD64, "x"))}, {".osrel", "ID=tributary\n"}, {".cmdline", "roothash=00 quiet"}, {".initrd", "micro\x00\x00\x00initrd"}, {".uname", "6.12.0"}} {
		want = Extend(Extend(want, []byte(s[0]+"\x00")), []byte(s[1]))
	}
	if first != want {
		t.Errorf("PCR 11 is %x, want %x", first, want)
	}
	phase, _ := PCR11(pe, "enter-initrd")
	if phase != Extend(want, []byte("enter-initrd")) {
		t.Error("the phase is not measured")
	}
	signed, err := Sign(pe, testKeys(t).Signer())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := PCR11(signed); err != nil || again != first {
		t.Errorf("the signature changes PCR 11: %v", err)
	}
	c := config(program(MachineAMD64, "254.26-1"))
	c.Policy = func(image []byte) ([]byte, error) {
		if got, err := PCR11(image); err != nil || got != first {
			t.Errorf("the policy is asked of another image: %v", err)
		}
		return []byte("{}"), nil
	}
	withPolicy, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := PCR11(withPolicy); again != first {
		t.Error("the policy's own section is measured")
	}
	c = config(program(MachineAMD64, "254.26-1"))
	c.DeviceTree = append([]byte("\xd0\x0d\xfe\xed"), make([]byte, 100)...)
	withTree, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	want = [32]byte{}
	for _, s := range [][2]string{{".linux", string(program(MachineAMD64, "x"))}, {".osrel", "ID=tributary\n"}, {".cmdline", "roothash=00 quiet"}, {".initrd", "micro\x00\x00\x00initrd"}, {".dtb", string(c.DeviceTree)}, {".uname", "6.12.0"}} {
		want = Extend(Extend(want, []byte(s[0]+"\x00")), []byte(s[1]))
	}
	if v, err := PCR11(withTree); err != nil || v != want {
		t.Errorf("with a device tree PCR 11 is %x, want %x: %v", v, want, err)
	}
	older, err := Build(config(program(MachineAMD64, "252.39-1")))
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := PCR11(older); v == first {
		t.Error("stub 252 measures no .uname")
	}
	if _, err := PCR11(program(MachineAMD64, "259")); err == nil {
		t.Error("an unknown stub is foretold")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(program(MachineAMD64, "254.26-1"))
	// Fuzzing's workers each come by here: making RSA keys in an instrumented program takes seconds.
	set, err := keys.LoadOrCreate(filepath.Join(os.TempDir(), "tributary-fuzz-keys"))
	if err != nil {
		f.Fatal(err)
	}
	pe, err := Build(config(program(MachineAMD64, "254.26-1")))
	if err != nil {
		f.Fatal(err)
	}
	signed, err := Sign(pe, set.Signer())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pe)
	f.Add(signed)
	cert := []*x509.Certificate{set.Signer().Certificate()}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = Sections(b)
		_, _ = Read(b, ".cmdline")
		_, _ = PCR11(b)
		_, _ = Digest(b)
		if Verify(b, cert...) == nil {
			if d, _ := Digest(b); d != func() [32]byte { d, _ := Digest(signed); return d }() {
				t.Fatal("a forged image verifies")
			}
		}
	})
}
