package flash

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/disk/bmap"
	"tributary.dev/tributary/pkg/disk/gpt"
)

// disk is a disk in memory with faults: it may lose power after some bytes, or keep something else.
type disk struct {
	b    []byte
	room int
	flip int64 // a byte that comes to the disk changed, or -1
}

var errCut = errors.New("power cut")

func (d *disk) ReadAt(p []byte, off int64) (int, error) { return copy(p, d.b[off:]), nil }
func (d *disk) Sync() error                             { return nil }
func (d *disk) Drop() error                             { return nil }

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	n := min(len(p), d.room)
	copy(d.b[off:], p[:n])
	if d.flip >= off && d.flip < off+int64(n) {
		d.b[d.flip] ^= 1
	}
	if d.room -= n; n < len(p) {
		return n, errCut
	}
	return n, nil
}

func (d *disk) Zero(off, n int64) error {
	_, err := d.WriteAt(make([]byte, n), off)
	return err
}

func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

type buffer struct{ disk }

// image is 6 MiB with a table, something in the head behind it, and a partition half full.
func image(t testing.TB) ([]byte, bmap.Map) {
	t.Helper()
	b := &buffer{disk{b: make([]byte, 6<<20), room: 1 << 30, flip: -1}}
	tab := &gpt.Table{Disk: gpt.Named("d"), SectorSize: 512, Sectors: 6 << 11, Partitions: []gpt.Partition{
		{Type: gpt.ESP, ID: gpt.Named("1"), First: 2048, Last: 4095, Name: "esp"},
		{Type: gpt.LinuxGeneric, ID: gpt.Named("2"), First: 4096, Last: 8191, Name: "data"},
	}}
	if err := tab.Write(b); err != nil {
		t.Fatal(err)
	}
	copy(b.b[500<<10:], noise(9000, 1))
	copy(b.b[1<<20:], noise(600<<10, 2))
	copy(b.b[2<<20+4096:], noise(4096, 3))
	var used []int64
	for i := range int64(len(b.b) / bmap.BlockSize) {
		if len(bytes.TrimLeft(b.b[i*bmap.BlockSize:(i+1)*bmap.BlockSize], "\x00")) > 0 {
			used = append(used, i)
		}
	}
	m, err := bmap.Make(bytes.NewReader(b.b), int64(len(b.b)), used)
	if err != nil {
		t.Fatal(err)
	}
	return b.b, m
}

func TestWrite(t *testing.T) {
	im, m := image(t)
	for _, size := range []int{6 << 20, 16 << 20, 16<<20 + 512} {
		d := &disk{b: noise(size, 9), room: 1 << 30, flip: -1} // a used disk
		phases := map[Phase]int64{}
		err := Write(t.Context(), d, int64(size), bytes.NewReader(im), m, "data", func(p Phase, done, total int64) {
			if done > total || done < phases[p] {
				t.Errorf("%s: %d of %d after %d", p, done, total, phases[p])
			}
			phases[p] = done
		})
		if err != nil {
			t.Fatal(err)
		}
		if phases[Writing] != m.Mapped() || phases[Verifying] != m.Mapped() || phases[Erasing] != m.ImageSize-m.Mapped() {
			t.Errorf("progress ended at %v", phases)
		}
		tab, from, err := gpt.Read(bytes.NewReader(d.b), int64(size))
		if err != nil || from != gpt.Primary {
			t.Fatal(from, err)
		}
		_, p := tab.Find("data")
		if size > 6<<20 && tab.Size(p) != 13<<20 {
			t.Errorf("data has %d bytes on a disk of %d", tab.Size(p), size)
		}
		// All but the tables is the image.
		if !bytes.Equal(d.b[17408:5<<20], im[17408:5<<20]) {
			t.Error("the disk holds something else")
		}
	}
}

// TestPowerCut: wherever the power goes, the disk has no table, or all of the image.
func TestPowerCut(t *testing.T) {
	im, m := image(t)
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{6 << 20, 8 << 20}).Draw(t, "size")
		d := &disk{b: noise(size, 9), room: rapid.IntRange(0, size+2<<20).Draw(t, "cut"), flip: -1}
		old := &gpt.Table{Disk: gpt.Named("old"), SectorSize: 512, Sectors: uint64(size / 512), Partitions: []gpt.Partition{{Type: gpt.ESP, ID: gpt.Named("o"), First: 2048, Last: 4095, Name: "old"}}}
		room := d.room
		d.room = 1 << 30
		if err := old.Write(d); err != nil {
			t.Fatal(err)
		}
		d.room = room
		_ = Write(context.Background(), d, int64(size), bytes.NewReader(im), m, "data", nil)
		tab, _, err := gpt.Read(bytes.NewReader(d.b), int64(size))
		if err != nil {
			return
		}
		if n, _ := tab.Find("old"); n > 0 {
			// The old system's table, before anything of it was touched but the first copy.
			if room >= 2<<20 {
				t.Fatalf("cut after %d bytes: the old table is still there", room)
			}
			return
		}
		if !bytes.Equal(d.b[17408:5<<20], im[17408:5<<20]) {
			t.Fatalf("cut after %d bytes: a table over half an image", room)
		}
	})
}

func TestFaults(t *testing.T) {
	im, m := image(t)
	fresh := func(n int) *disk { return &disk{b: make([]byte, n), room: 1 << 30, flip: -1} }
	if err := Write(t.Context(), fresh(5<<20), 5<<20, bytes.NewReader(im), m, "", nil); !errors.Is(err, ErrSmall) {
		t.Errorf("small disk: %v", err)
	}
	for name, b := range map[string][]byte{"cut": im[:3<<20], "longer": append(bytes.Clone(im), 0), "changed": flipped(im, 1<<20+77), "changed head": flipped(im, 501<<10)} {
		d := fresh(6 << 20)
		if err := Write(t.Context(), d, 6<<20, bytes.NewReader(b), m, "", nil); !errors.Is(err, ErrImage) {
			t.Errorf("%s image: %v", name, err)
		}
		if _, _, err := gpt.Read(bytes.NewReader(d.b), 6<<20); err == nil {
			t.Errorf("%s image: the disk has a table", name)
		}
	}
	d := fresh(6 << 20)
	d.flip = 1<<20 + 5
	if err := Write(t.Context(), d, 6<<20, bytes.NewReader(im), m, "", nil); !errors.Is(err, ErrDisk) {
		t.Errorf("forgetful disk: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Write(ctx, fresh(6<<20), 6<<20, bytes.NewReader(im), m, "", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

func TestEmpty(t *testing.T) {
	for name, c := range map[string]struct {
		at   int
		want bool
	}{"zeros": {-1, true}, "first": {510, false}, "label": {1080, false}, "last": {6<<20 - 512, false}, "middle": {3 << 20, true}} {
		b := make([]byte, 6<<20)
		if c.at >= 0 {
			b[c.at] = 1
		}
		if got, err := Empty(bytes.NewReader(b), int64(len(b))); err != nil || got != c.want {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
}
