package backup

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/api"
)

func key(t testing.TB) *age.X25519Identity {
	t.Helper()
	k, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestThereAndBack(t *testing.T) {
	dir, k := t.TempDir(), key(t)
	big := filepath.Join(dir, "big")
	content := bytes.Repeat([]byte("canary "), 100_000)
	if err := os.WriteFile(big, content, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "b.age")
	h := Header{Version: "v", Created: time.Unix(1e9, 0).UTC(), Epoch: 7}
	entries := []Entry{{Name: "core.db", Path: big}, {Name: "ca/root.crt", Data: []byte("root")}}
	if err := Create(file, []age.Recipient{k.Recipient()}, h, entries); err != nil {
		t.Fatal(err)
	}
	if err := Create(file, []age.Recipient{k.Recipient()}, h, entries); api.CodeOf(err) != api.Conflict {
		t.Fatalf("written over another: %v", err)
	}
	raw, _ := os.ReadFile(file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || bytes.Contains(raw, []byte("canary")) {
		t.Fatalf("%v %v", info, err)
	}
	out := t.TempDir()
	got, err := Extract(file, []age.Identity{k}, out)
	if err != nil || got.Epoch != 7 || got.Format != 1 || !got.Created.Equal(h.Created) {
		t.Fatalf("%+v %v", got, err)
	}
	for name, want := range map[string][]byte{"core.db": content, "ca/root.crt": []byte("root")} {
		if b, err := os.ReadFile(filepath.Join(out, name)); err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	if _, err := Extract(file, []age.Identity{key(t)}, t.TempDir()); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("with another key: %v", err)
	}
	// Any cut or flip is noticed.
	for _, n := range []int{10, len(raw) / 2, len(raw) - 1} {
		flipped := bytes.Clone(raw)
		flipped[n] ^= 1
		for _, b := range [][]byte{raw[:n], flipped} {
			if _, err := extract(bytes.NewReader(b), []age.Identity{k}, t.TempDir()); err == nil {
				t.Errorf("a backup damaged at %d was taken", n)
			}
		}
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".backup-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestNoWayOut(t *testing.T) {
	k := key(t)
	for _, name := range []string{"../x", "/etc/x", "a/../../x"} {
		var b bytes.Buffer
		if err := write(&b, []age.Recipient{k.Recipient()}, Header{Format: 1}, []Entry{{Name: name, Data: []byte("x")}}); err != nil {
			t.Fatal(err)
		}
		if _, err := extract(&b, []age.Identity{k}, t.TempDir()); api.CodeOf(err) != api.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzExtract feeds what a stranger with the recipient's public key could make.
func FuzzExtract(f *testing.F) {
	k := key(f)
	plain := func(entries ...Entry) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, e := range entries {
			if err := add(w, e, time.Unix(0, 0)); err != nil {
				f.Fatal(err)
			}
		}
		w.Close()
		return b.Bytes()
	}
	f.Add(plain(Entry{Name: headerName, Data: []byte(`{"format":1}`)}, Entry{Name: "a/b", Data: []byte("x")}))
	f.Add(plain(Entry{Name: "other"}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, archive []byte) {
		var b bytes.Buffer
		sealed, err := age.Encrypt(&b, k.Recipient())
		if err != nil {
			t.Fatal(err)
		}
		packed, _ := zstd.NewWriter(sealed)
		_, _ = packed.Write(archive)
		packed.Close()
		sealed.Close()
		dir := t.TempDir()
		_, _ = extract(&b, []age.Identity{k}, filepath.Join(dir, "in"))
		if out, _ := os.ReadDir(dir); len(out) > 1 {
			t.Fatalf("it wrote outside: %v", out)
		}
	})
}
