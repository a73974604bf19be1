package update

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/release"
	"tributary.dev/tributary/pkg/release/delta"
)

// power is a disk that loses power after some writes: what comes later is not on it.
type power struct {
	*os.File
	left int // -1: it stays
}

func (p *power) WriteAt(b []byte, off int64) (int, error) {
	if p.left == 0 {
		return 0, errCut
	}
	if p.left > 0 {
		p.left--
	}
	return p.File.WriteAt(b, off)
}

func (p *power) Sync() error {
	if p.left == 0 {
		return errCut
	}
	return nil // the page cache of a sparse file is disk enough
}

const mib = 1 << 20

func newDisk(t *testing.T) (*Flash, *power) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	const size = 160 * mib
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	table := &gpt.Table{Disk: gpt.Named("disk"), SectorSize: 512, Sectors: size / 512}
	at := uint64(mib / 512)
	for _, p := range []struct {
		label string
		kind  gpt.GUID
		mib   uint64
	}{{"esp-a", gpt.ESP, 40}, {"esp-b", gpt.ESP, 40}, {"root-a", gpt.RootAMD64, 8}, {"root-a-verity", gpt.RootVerityAMD64, 1}, {"root-b", gpt.RootAMD64, 8}, {"root-b-verity", gpt.RootVerityAMD64, 1}} {
		table.Partitions = append(table.Partitions, gpt.Partition{Type: p.kind, ID: gpt.Named(p.label), First: at, Last: at + p.mib*2048 - 1, Name: p.label})
		at += p.mib * 2048
	}
	p := &power{file, -1}
	if err := table.Write(p); err != nil {
		t.Fatal(err)
	}
	return &Flash{Disk: p, Size: size, Arch: "amd64"}, p
}

// sample makes a release out of random bytes, with its content.
func sample(t *testing.T, seed uint64) (release.Description, []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	uki, manager, root := noise(300_000), noise(9000), noise(100*4096)
	for i := range 20 { // releases differ a little
		uki[int(seed)*100+i*7], root[int(seed)*1000+i*4096] = byte(seed), byte(seed)
	}
	salt, id := strings.Repeat("5a", 32), strings.Repeat("01", 16)
	var tree memory
	hash, err := verity.Format(bytes.NewReader(root), int64(len(root)), bytes.Repeat([]byte{0x5a}, 32), [16]byte(bytes.Repeat([]byte{1}, 16)), &tree)
	if err != nil {
		t.Fatal(err)
	}
	content := append(append(bytes.Clone(uki), manager...), root...)
	d := release.Description{Format: release.Format, Version: "1." + string(rune('0'+seed)), Arch: "amd64", Profile: "vm", Counter: 1, RootHash: hexOf(hash),
		Root: release.PartOf(root), UKI: release.PartOf(uki), Manager: release.PartOf(manager), Salt: salt, UUID: id, Content: release.PartOf(content)}
	if _, err := release.ParseDescription(d.Encode()); err != nil {
		t.Fatal(err)
	}
	return d, content
}

func hexOf(h [32]byte) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for _, c := range h {
		b.WriteByte(digits[c>>4])
		b.WriteByte(digits[c&15])
	}
	return b.String()
}

type memory []byte

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(*m) {
		*m = append(*m, make([]byte, need-len(*m))...)
	}
	return copy((*m)[off:], p), nil
}

func plain(content []byte) func(io.Writer) error {
	return func(w io.Writer) error { _, err := w.Write(content); return err }
}

// TestWriteByDelta: slot B becomes the new release from what slot A has, and reads back as it.
func TestWriteByDelta(t *testing.T) {
	f, _ := newDisk(t)
	d1, c1 := sample(t, 1)
	d2, c2 := sample(t, 2)
	if err := errors.Join(f.Fits(d1), f.Write("a", d1, 1, plain(c1)), f.Verify("a", d1, 1)); err != nil {
		t.Fatal(err)
	}
	old, err := f.Content("a")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	id, err := f.Identity("a", d1.RootHash)
	if err != nil {
		t.Fatal(err)
	}
	if want := release.Identity(d1.RootHash, c1[:300_000], c1[300_000:309_000]); id != want {
		t.Fatalf("identity %s, want %s", id, want)
	}
	patch, err := delta.Make(c1, c2, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(patch) > len(c2)/50 {
		t.Fatalf("a delta of %d bytes for 40 that differ", len(patch))
	}
	if err := f.Write("b", d2, 2, func(w io.Writer) error { return delta.Apply(old, patch, w) }); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Verify("b", d2, 2), f.Verify("a", d1, 1)); err != nil {
		t.Fatal(err)
	}
	esp, err := f.ReadESP("b")
	if err != nil || esp.Name != "tributary-2+3.efi" || !esp.Counted || esp.Tried != 0 {
		t.Fatalf("%+v %v", esp, err)
	}
	// What does not fit is refused before anything is written.
	big := d2
	big.Root.Size = 9 * mib
	if err := f.Fits(big); err == nil {
		t.Fatal("a root of 9 MiB fits into 8")
	}
	// Any flipped byte is found.
	for _, label := range []string{"root-b", "root-b-verity", "esp-b"} {
		table, err := f.table()
		if err != nil {
			t.Fatal(err)
		}
		s, err := f.section(table, label)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1)
		at := int64(4096 + 5)
		if label == "esp-b" {
			at = find(t, s, c2[4096:4096+64]) // in the kernel image
		}
		if _, err := s.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		_, _ = s.WriteAt([]byte{b[0] ^ 1}, at)
		if err := f.Verify("b", d2, 2); err == nil {
			t.Errorf("a flipped bit in %s is not found", label)
		}
		_, _ = s.WriteAt(b, at)
	}
}

// find tells where bytes lie in a partition.
func find(t *testing.T, s section, what []byte) int64 {
	t.Helper()
	all := make([]byte, s.size)
	if _, err := s.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(all, what)
	if at < 0 {
		t.Fatal("not in the partition")
	}
	return int64(at)
}

// TestWrongContent: content that is not that of the description never gets an ESP, whatever the delta said.
func TestWrongContent(t *testing.T) {
	f, _ := newDisk(t)
	d, c := sample(t, 1)
	for _, at := range []int{10, 300_005, len(c) - 5} {
		bad := bytes.Clone(c)
		bad[at] ^= 1
		if err := f.Write("b", d, 1, plain(bad)); err == nil {
			t.Errorf("content with byte %d flipped was written", at)
		}
		if _, err := f.ReadESP("b"); err == nil {
			t.Error("and can be started")
		}
	}
	if err := f.Write("b", d, 1, plain(c[:len(c)-1])); err == nil {
		t.Error("content cut short was written")
	}
}

// TestWriteCut: power goes after any write: the slot that runs stays whole, and the other is whole or cannot be started.
func TestWriteCut(t *testing.T) {
	f, p := newDisk(t)
	d1, c1 := sample(t, 1)
	d2, c2 := sample(t, 2)
	d3, c3 := sample(t, 3)
	if err := f.Write("a", d1, 1, plain(c1)); err != nil {
		t.Fatal(err)
	}
	install := uint64(2)
	for cut := 0; ; cut++ {
		install++
		d, c := d2, c2
		if cut%2 == 1 {
			d, c = d3, c3
		}
		p.left = cut
		err := f.Write("b", d, install, plain(c))
		p.left = -1
		if err == nil {
			if cut < 10 {
				t.Fatalf("only %d writes", cut)
			}
			break
		}
		if !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		if err := f.Verify("a", d1, 1); err != nil {
			t.Fatalf("after %d writes slot a is hurt: %v", cut, err)
		}
		esp, err := f.ReadESP("b")
		if err != nil {
			continue // cannot be started
		}
		if esp.Install == install {
			if err := f.Verify("b", d, install); err != nil {
				t.Fatalf("after %d writes slot b can be started and is not whole: %v", cut, err)
			}
		}
	}
}
