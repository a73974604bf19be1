package state

import (
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
