package state

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestMirrorOutlivesARebuild(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	m := s.Mirror("meter")
	if v, err := m.Load(); v != nil || err != nil {
		t.Fatalf("fresh: %q, %v", v, err)
	}
	save := func(v string) {
		t.Helper()
		if err := m.Save([]byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	save("one")
	if err := s.Copy(); err != nil {
		t.Fatal(err)
	}
	save("two")
	save("three")
	s.Close()
	if err := os.Truncate(filepath.Join(dir, "state.db"), 5000); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	m = s.Mirror("meter")
	if v, err := m.Load(); string(v) != "three" || err != nil || s.Origin() != FromCopy {
		t.Fatalf("after a rebuild: %q, %v, %s", v, err, s.Origin())
	}
	save("four")
	s.Close()

	if err := os.WriteFile(filepath.Join(dir, "meter.mirror"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close()
	m = s.Mirror("meter")
	if v, err := m.Load(); string(v) != "four" || err != nil {
		t.Fatalf("with a torn mirror: %q, %v", v, err)
	}
}

// A write torn by a power cut damages the half that it went to; the one before it serves.
func TestMirrorTornInOneHalf(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close()
	m := s.Mirror("meter")
	path := filepath.Join(dir, "meter.mirror")
	values := [][]byte{[]byte("one"), bytes.Repeat([]byte("two"), 20<<10), []byte("three"), {}} // the second needs larger halves
	for i, v := range values {
		if err := m.Save(v); err != nil {
			t.Fatal(err)
		}
		_, got := numbered(m.newestHalf())
		if !bytes.Equal(got, v) {
			t.Fatalf("saved %d bytes, the file has %d", len(v), len(got))
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := int(m.seq%2) * len(raw) / 2
		torn := bytes.Clone(raw)
		torn[at+4] ^= 1
		if err := os.WriteFile(path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		_, got = numbered(m.newestHalf())
		if i == 2 && !bytes.Equal(got, values[i-1]) || i != 2 && bytes.Equal(got, v) && len(v) > 0 {
			t.Fatalf("after a torn write of value %d the file gives %d bytes", i, len(got))
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzMirrorFile(f *testing.F) {
	dir := f.TempDir()
	m := &Mirror{blob: Blob{nil, "meter"}, path: filepath.Join(dir, "meter.mirror")}
	f.Add([]byte{}, byte(0))
	f.Add([]byte("value"), byte(9))
	f.Fuzz(func(t *testing.T, value []byte, flip byte) {
		b := append(make([]byte, 8), value...)
		if err := m.rebuild(b, minHalf); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(m.path)
		if err != nil {
			t.Fatal(err)
		}
		raw[int(flip)%(12+len(value))] ^= flip
		if err := os.WriteFile(m.path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := m.newestHalf(); flip == 0 && !bytes.Equal(got, b) || flip != 0 && got != nil && !bytes.Equal(got, b) {
			t.Fatalf("saved %x, read %x", b, got)
		}
	})
}
