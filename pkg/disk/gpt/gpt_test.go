package gpt

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// image is a disk in memory that can lose power: after room bytes, nothing is written any more.
type image struct {
	b    []byte
	room int
}

func (m *image) WriteAt(p []byte, off int64) (int, error) {
	n := min(len(p), m.room)
	copy(m.b[off:], p[:n])
	m.room -= n
	if n < len(p) {
		return n, errors.New("power cut")
	}
	return n, nil
}

func (m *image) Sync() error { return nil }

func sample(sector int64) *Table {
	t := &Table{Disk: Named("disk"), SectorSize: sector, Sectors: 65536}
	at := uint64(2048)
	for _, n := range []string{"esp-a", "esp-b", "root-a", "root-a-verity", "data"} {
		t.Partitions = append(t.Partitions, Partition{Type: LinuxGeneric, ID: Named("id", n), First: at, Last: at + 2047, Name: n})
		at += 2048
	}
	return t
}

func TestGUIDText(t *testing.T) {
	if got := ESP[:4]; !bytes.Equal(got, []byte{0x28, 0x73, 0x2a, 0xc1}) {
		t.Errorf("on the disk an ESP's type begins % x", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		g := Named(rapid.String().Draw(t, "word"))
		h, err := Parse(strings.ToUpper(g.String()))
		if err != nil || g != h {
			t.Fatalf("%s read back as %s: %v", g, h, err)
		}
	})
	var hash [32]byte
	for i := range hash {
		hash[i] = byte(i)
	}
	root, verity := RootIDs(hash)
	if root.String() != "00010203-0405-0607-0809-0a0b0c0d0e0f" || verity.String() != "10111213-1415-1617-1819-1a1b1c1d1e1f" {
		t.Errorf("halves of the root hash: %s %s", root, verity)
	}
	for _, bad := range []string{"", "c12a7328", "c12a7328-f81f-11d2-ba4b-00a0c93ec93g", "c12a7328f81f-11d2-ba4b-00a0c93ec93b-"} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%q was read as a GUID", bad)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		want := sample(sector)
		m := &image{b: make([]byte, int64(want.Sectors)*sector), room: 1 << 30}
		if err := want.Write(m); err != nil {
			t.Fatal(err)
		}
		for _, torn := range []Copy{"", Primary, Backup} {
			b := slices.Clone(m.b)
			from := Primary
			switch torn {
			case Primary:
				clear(b[:34*sector])
				from = Backup
			case Backup:
				clear(b[len(b)-int(33*sector):])
			}
			got, copy, err := Read(bytes.NewReader(b), int64(len(b)))
			if err != nil || copy != from {
				t.Fatalf("torn %q: read from %q: %v", torn, copy, err)
			}
			if got.Disk != want.Disk || got.Sectors != want.Sectors || !slices.Equal(got.Partitions, want.Partitions) {
				t.Errorf("torn %q: read %+v", torn, got)
			}
		}
		clear(m.b)
		if _, _, err := Read(bytes.NewReader(m.b), int64(len(m.b))); !errors.Is(err, ErrNone) {
			t.Errorf("an empty disk: %v", err)
		}
	}
}

// TestPowerCut: after a cut at any byte of a change, the disk shows the old or the new table, whole.
func TestPowerCut(t *testing.T) {
	before, after := sample(512), sample(512)
	after.Partitions[2].ID = Named("new root")
	base := &image{b: make([]byte, before.Sectors*512), room: 1 << 30}
	if err := before.Write(base); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		cut := rapid.IntRange(0, 2*17*1024).Draw(t, "cut")
		m := &image{b: slices.Clone(base.b), room: cut}
		_ = after.Write(m)
		got, _, err := Read(bytes.NewReader(m.b), int64(len(m.b)))
		if err != nil {
			t.Fatalf("cut after %d bytes: %v", cut, err)
		}
		if id := got.Partitions[2].ID; id != before.Partitions[2].ID && id != after.Partitions[2].ID {
			t.Fatalf("cut after %d bytes: root is %s", cut, id)
		}
	})
}

func TestGrow(t *testing.T) {
	tab := sample(512)
	m := &image{b: make([]byte, 200<<20), room: 1 << 30}
	if err := tab.Write(m); err != nil {
		t.Fatal(err)
	}
	if changed, err := tab.Grow(200<<20, 5); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if err := tab.Write(m); err != nil {
		t.Fatal(err)
	}
	clear(m.b[512:1024]) // only the moved backup is left
	got, from, err := Read(bytes.NewReader(m.b), int64(len(m.b)))
	if err != nil || from != Backup {
		t.Fatal(from, err)
	}
	if end := got.Offset(got.Partitions[4]) + got.Size(got.Partitions[4]); end != 199<<20 {
		t.Errorf("data ends at %d", end)
	}
	if changed, _ := got.Grow(200<<20, 5); changed {
		t.Error("growing twice changes again")
	}
	if _, err := got.Grow(100<<20, 5); err == nil {
		t.Error("a table was shrunk")
	}
}

func TestCheck(t *testing.T) {
	spoil := map[string]func(*Table){
		"overlap":  func(t *Table) { t.Partitions[1].First = 2100 },
		"same":     func(t *Table) { t.Partitions[1].ID = t.Partitions[0].ID },
		"outside":  func(t *Table) { t.Partitions[4].Last = 70000 },
		"backward": func(t *Table) { t.Partitions[4].Last = t.Partitions[4].First - 1 },
		"name":     func(t *Table) { t.Partitions[0].Name = strings.Repeat("x", 37) },
		"header":   func(t *Table) { t.Partitions[0].First = 33 },
	}
	for name, f := range spoil {
		tab := sample(512)
		f(tab)
		if _, _, err := tab.Encode(); err == nil {
			t.Errorf("%s: written", name)
		}
	}
}

// TestSgdisk asks another implementation.
func TestSgdisk(t *testing.T) {
	if _, err := exec.LookPath("sgdisk"); err != nil {
		t.Skip("needs sgdisk (Debian: gdisk)")
	}
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tab := sample(512)
	if err := f.Truncate(int64(tab.Sectors) * 512); err != nil {
		t.Fatal(err)
	}
	if err := tab.Write(f); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sgdisk", "-v", "-p", "-i", "3", path).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("No problems found")) || !bytes.Contains(out, []byte("root-a-verity")) {
		t.Errorf("sgdisk: %v\n%s", err, out)
	}
	if want := strings.ToUpper(tab.Partitions[2].ID.String()); !bytes.Contains(out, []byte(want)) {
		t.Errorf("sgdisk does not show %s:\n%s", want, out)
	}
}

func FuzzRead(f *testing.F) {
	tab := sample(512)
	m := &image{b: make([]byte, tab.Sectors*512), room: 1 << 30}
	if err := tab.Write(m); err != nil {
		f.Fatal(err)
	}
	f.Add(m.b[:34*512], m.b[len(m.b)-33*512:])
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		b := make([]byte, 1<<20)
		copy(b, head)
		copy(b[max(0, len(b)-len(tail)):], tail)
		got, _, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if err := got.Check(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := got.Encode(); err != nil {
			t.Fatal(err)
		}
	})
}
