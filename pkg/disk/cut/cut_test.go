package cut

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func disk(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	return f
}

// What was flushed is always there, what was not may be there or not, and what was never written is not.
func TestCut(t *testing.T) {
	rec := &Recorder{Device: disk(t)}
	fill := func(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }
	for _, step := range []func() error{
		func() error { _, err := rec.WriteAt(fill(1), 0); return err },
		rec.Sync,
		func() error { _, err := rec.WriteAt(fill(2), 0); return err },
		func() error { _, err := rec.WriteAt(fill(3), 8192); return err },
		func() error { rec.Note("x", []byte("y")); return nil },
		func() error { _, err := rec.WriteAt(fill(4), 16384); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	replay := &Replay{Base: disk(t), Log: rec.Log()}
	random := rand.New(rand.NewPCG(1, 1))
	saw := map[byte]int{}
	torn := 0
	for range 500 {
		image, err := replay.Cut(5, random)
		if err != nil {
			t.Fatal(err)
		}
		if string(image.Notes["x"]) != "y" {
			t.Fatal("a note was lost")
		}
		b := make([]byte, 20480)
		if _, err := image.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		for _, c := range b[:4096] {
			if c != 1 && c != 2 {
				t.Fatalf("byte %d where a flushed write was", c)
			}
		}
		if b[0] != b[4095] {
			torn++
		}
		saw[b[0]]++
		saw[b[8192]+10]++
		if b[16384] != 0 {
			t.Fatal("a write after the cut is on the disk")
		}
	}
	if saw[1] == 0 || saw[2] == 0 || saw[10] == 0 || saw[13] == 0 || torn == 0 {
		t.Fatalf("not all that may be was seen: %v, %d torn", saw, torn)
	}
	if _, err := replay.Cut(1, random); err == nil {
		t.Fatal("a cut back in time")
	}
}

// kernels is a log as the kernel writes it: a write of two sectors, a flush, and a write that is durable by itself.
func kernels() []byte {
	le := binary.LittleEndian
	b := make([]byte, 4096)
	le.PutUint64(b, 0x6a736677736872)
	le.PutUint64(b[8:], 1)
	le.PutUint64(b[16:], 3)
	le.PutUint32(b[24:], 512)
	b = b[:512]
	entry := func(at, count, flags uint64, data byte) {
		e := make([]byte, 512)
		le.PutUint64(e, at)
		le.PutUint64(e[8:], count)
		le.PutUint64(e[16:], flags)
		b = append(append(b, e...), bytes.Repeat([]byte{data}, int(count)*512)...)
	}
	entry(8, 2, 0, 7)
	entry(0, 0, 1, 0)
	entry(16, 1, 2, 9)
	return append(b, make([]byte, 4096)...)
}

func TestDecode(t *testing.T) {
	log, ends, err := Decode(kernels())
	if err != nil || len(ends) != len(log) || ends[0] != 512+512+1024 {
		t.Fatal(ends, err)
	}
	if len(log) != 4 || log[0].Offset != 4096 || len(log[0].Data) != 1024 || log[1].Kind != Flush || log[2].Data[0] != 9 || log[3].Kind != Flush {
		t.Fatalf("%+v", log)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(kernels())
	f.Add(kernels()[:600])
	f.Fuzz(func(t *testing.T, b []byte) {
		log, _, err := Decode(b)
		if err != nil {
			return
		}
		for _, op := range log {
			if len(op.Data) > len(b) || op.Offset < 0 {
				t.Fatal("more than there is")
			}
		}
	})
}
