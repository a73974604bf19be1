package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/release/frame"
	"tributary.dev/tributary/tests/mutation"
)

// made is a kernel laid out like Debian's: setup and PE headers, a section with the payload between code, data, a signature.
type made struct {
	image             []byte
	payload, code     int // where they are
	loads             []int
	lengths, dataSize int
	plain             []byte
}

func makeKernel(t testing.TB) *made {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	m := &made{plain: append([]byte("\x7fELF"), bytes.Repeat([]byte("some code of a kernel, "), 3000)...), payload: 0x52cc, dataSize: 0x200}
	r := rand.New(rand.NewPCG(1, 2))
	for i := 4; i < len(m.plain); i++ {
		m.plain[i] ^= byte(r.UintN(4)) // so that the payload spans pages
	}
	packed := binary.LittleEndian.AppendUint32(z.EncodeAll(m.plain, nil), uint32(len(m.plain)))
	m.code = m.payload + len(packed)
	end := int(round(uint32(m.code)+0x800, page))
	b := make([]byte, end+m.dataSize)
	for i := m.code; i < end; i++ {
		b[i] = 0x90
	}
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	b[setupSectors] = 39
	copy(b[headerMagic:], "HdrS")
	le.PutUint32(b[payloadOffset:], uint32(m.payload-0x5000))
	le.PutUint32(b[payloadLength:], uint32(len(packed)))
	pe := b[0x40:]
	copy(pe, "PE\x00\x00\x64\x86\x03\x00")
	le.PutUint16(pe[20:], 160)
	le.PutUint16(pe[peOptional:], 0x20b)
	le.PutUint32(pe[peAlignment:], page)
	le.PutUint32(pe[peAlignment+4:], fileBlock)
	le.PutUint32(pe[peImageSize:], uint32(end)+0x3000)
	le.PutUint32(pe[peHeaders:], 0x1000)
	le.PutUint32(pe[peTable-4-48:], 6)
	le.PutUint64(pe[peSecurity:], 0x0000_0100_0000_1000)
	for i, s := range []section{{[8]byte{'s'}, 0x4000, 0x1000, 0x4000, 0x1000, readable}, {[8]byte{'t'}, uint32(end - 0x5000), 0x5000, uint32(end - 0x5000), 0x5000, readable | executable}, {[8]byte{'d'}, 0x3000, uint32(end), uint32(m.dataSize), uint32(end), readable}} {
		h := pe[peTable+i*entrySize:]
		copy(h, s.name[:])
		for j, v := range []uint32{s.size, s.at, s.raw, s.offset} {
			le.PutUint32(h[8+4*j:], v)
		}
		le.PutUint32(h[36:], s.flags)
	}
	copy(b[m.payload:], packed)
	for i, at := range []int{m.code + 0x101, m.code + 0x333} {
		copy(b[at:], []byte{byte(0x48 | i<<2), 0x8d, 0x3d})
		le.PutUint32(b[at+3:], uint32(m.payload-at-7))
		m.loads = append(m.loads, at+3)
	}
	m.lengths = m.code + 0x600
	le.PutUint32(b[m.lengths:], uint32(len(packed)))
	le.PutUint32(b[m.lengths+4:], uint32(len(m.plain)))
	m.image = append(b, bytes.Repeat([]byte("signature "), 100)...)
	return m
}

// load lays a PE image out as firmware does.
func load(t *testing.T, image []byte) []byte {
	t.Helper()
	le := binary.LittleEndian
	pe := image[le.Uint32(image[0x3c:]):]
	size := le.Uint32(pe[peImageSize:])
	mem := make([]byte, size)
	copy(mem, image[:le.Uint32(pe[peHeaders:])])
	next := uint32(0)
	for i := range int(le.Uint16(pe[peSections:])) {
		h := pe[peTable+i*entrySize:]
		virtual, at, raw, offset := word(h, 8), word(h, 12), word(h, 16), word(h, 20)
		if offset%fileBlock != 0 || raw%fileBlock != 0 || at%page != 0 || next != 0 && at != next || uint64(at)+uint64(virtual) > uint64(size) {
			t.Fatalf("section %q of %#x at %#x, after %#x, of an image of %#x", h[:8], virtual, at, next, size)
		}
		copy(mem[at:at+virtual], image[offset:offset+raw])
		next = round(at+virtual, page)
	}
	if next != size {
		t.Fatalf("the sections end at %#x, the image at %#x", next, size)
	}
	return mem
}

// TestRepack: in memory all lies where it lay but the payload, and the program finds that where it is now.
func TestRepack(t *testing.T) {
	m := makeKernel(t)
	before := load(t, m.image)
	image, changed, err := Repack(m.image)
	if err != nil || !changed {
		t.Fatalf("not repacked: %v", err)
	}
	after := load(t, image)
	p, ok := find(image)
	if !ok {
		t.Fatal("the setup header does not lead to the payload")
	}
	packed := image[p.at : p.end()-lengthSize]
	want, err := frame.Encode(m.plain)
	if err != nil || !bytes.Equal(packed, want) || p.at%4 != 0 {
		t.Fatalf("the payload at %#x is not what boxes pack: %v", p.at, err)
	}
	for _, at := range m.loads {
		loaded := at + 4 + int(int32(word(after, at)))
		if !bytes.HasPrefix(after[loaded:], packed) {
			t.Fatalf("the program loads %#x, where there is something else", loaded)
		}
		copy(after[at:], before[at:at+4])
	}
	if n := word(after, m.lengths); int(n) != p.size {
		t.Fatalf("the program reads %d bytes of %d", n, p.size)
	}
	copy(after[m.lengths:], before[m.lengths:m.lengths+4])
	code := slices.Concat(before[0x5000:m.payload], make([]byte, m.code-m.payload), before[m.code:])
	if !bytes.Equal(after[0x5000:0x5000+len(code)], code) || !bytes.Equal(after[0x1000:0x5000], before[0x1000:0x5000]) {
		t.Fatal("something else changed in memory")
	}
	if bytes.Contains(image, []byte("signature ")) || len(image) > len(m.image)+2*page+len(packed) {
		t.Fatalf("%d bytes of %d: the old signature, or the old payload, is still in the file", len(image), len(m.image))
	}
	if again, _, err := Repack(m.image); err != nil || !bytes.Equal(again, image) {
		t.Fatalf("the same kernel gives other bytes: %v", err)
	}
}

// TestOthers: a kernel without a zstd payload stays as it is.
func TestOthers(t *testing.T) {
	lz4 := makeKernel(t)
	copy(lz4.image[lz4.payload:], []byte{0x02, 0x21, 0x4c, 0x18})
	for name, image := range map[string][]byte{"none": nil, "plain": make([]byte, 8192), "lz4": lz4.image} {
		if got, changed, err := Repack(image); err != nil || changed || !bytes.Equal(got, image) {
			t.Errorf("%s: changed %v, %v", name, changed, err)
		}
	}
}

// TestUnlike: a kernel laid out in another way is not touched.
func TestUnlike(t *testing.T) {
	for name, change := range map[string]func(m *made){
		"no instruction loads the payload": func(m *made) {
			for _, at := range m.loads {
				clear(m.image[at : at+4])
			}
		},
		"another instruction has its address": func(m *made) { m.image[m.loads[0]-2] = 0x8b },
		"the length stands twice":             func(m *made) { copy(m.image[m.lengths+64:], m.image[m.lengths:m.lengths+8]) },
		"the length stands nowhere":           func(m *made) { m.image[m.lengths]++ },
		"another length unpacked":             func(m *made) { m.image[m.code-lengthSize]++ },
		"sections are aligned otherwise":      func(m *made) { m.image[0x40+peAlignment+1] = 0x20 },
		"memory is not the file":              func(m *made) { m.image[0x40+peTable+entrySize+13] += 0x10 },
		"the payload is in data":              func(m *made) { m.image[0x40+peTable+entrySize+39] &^= executable >> 24 },
		"no room for headers":                 func(m *made) { m.image[0x40+peSections] = 7 },
		"no PE headers":                       func(m *made) { m.image[0x40] = 'N' },
	} {
		m := makeKernel(t)
		change(m)
		if got, changed, err := Repack(m.image); !errors.Is(err, ErrUnlike) || changed {
			t.Errorf("%s: %d bytes, changed %v, %v", name, len(got), changed, err)
		}
	}
}

// TestChecksCount: in a build without one of the checks, TestUnlike fails.
func TestChecksCount(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestUnlike$", "kernel.go")...)
}

func FuzzRepack(f *testing.F) {
	f.Add(makeKernel(f).image)
	f.Fuzz(func(t *testing.T, image []byte) {
		if got, changed, err := Repack(image); err == nil && !changed && !bytes.Equal(got, image) {
			t.Fatal("it changed, and nobody says so")
		}
	})
}
