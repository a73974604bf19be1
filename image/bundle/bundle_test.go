package bundle

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/release"
)

func write(t *testing.T, dir, version string, change byte, previous ...string) (*Result, string) {
	t.Helper()
	r := rand.New(rand.NewPCG(4, 4))
	root := make([]byte, 64*4096)
	for i := range root {
		root[i] = byte(r.Uint32())
	}
	for i := 0; i < len(root); i += 9000 {
		root[i] = change
	}
	file := filepath.Join(dir, version)
	if err := os.WriteFile(file+".erofs", root, 0o600); err != nil {
		t.Fatal(err)
	}
	tree, err := os.Create(file + ".verity")
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	hash, err := verity.Format(bytes.NewReader(root), int64(len(root)), []byte("salt"), [16]byte{1}, tree)
	if err != nil {
		t.Fatal(err)
	}
	out := file + ".tbu"
	res, err := Write(Config{Version: version, Arch: "amd64", Profile: "vm", Counter: 1, RootHash: hash, PCR11: strings.Repeat("ab", 32), Root: file + ".erofs", Verity: file + ".verity",
		UKI: []byte("kernel " + version), Manager: []byte("manager"), Expires: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), Previous: previous, Out: out})
	if err != nil {
		t.Fatal(err)
	}
	return res, out
}

func TestBundle(t *testing.T) {
	dir := t.TempDir()
	_, first := write(t, dir, "1.0", 1)
	res, second := write(t, dir, "1.1", 2, first)
	if n := res.Deltas["1.0"]; n == 0 || n > res.Plain/50 {
		t.Fatalf("a delta of %d bytes, the plain content has %d", n, res.Plain)
	}
	a, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	b, err := release.ReadBundle(bytes.NewReader(a))
	if err != nil {
		t.Fatal(err)
	}
	if _, digest, err := b.Manifest(); err != nil || digest != res.Digest {
		t.Fatalf("digest %s, want %s: %v", digest, res.Digest, err)
	}
	if d, err := release.ParseDescription(b.Description); err != nil || d.PCR11 != strings.Repeat("ab", 32) {
		t.Fatalf("PCR 11 is %q: %v", d.PCR11, err)
	}
	var again bytes.Buffer
	if err := b.Write(&again); err != nil || !bytes.Equal(again.Bytes(), a) {
		t.Fatalf("it does not come back: %v", err)
	}
	_, third := write(t, t.TempDir(), "1.1", 2, first)
	if c, err := os.ReadFile(third); err != nil || !bytes.Equal(a, c) {
		t.Fatalf("built twice, it differs: %v", err)
	}
	a[len(a)/2] ^= 1
	if _, err := release.ReadBundle(bytes.NewReader(a)); err == nil {
		t.Fatal("a flipped bit is not found")
	}
}
