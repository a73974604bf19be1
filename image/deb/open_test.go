package deb

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"testing"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/image/deb/debtest"
	"tributary.dev/tributary/tests/mutation"
)

// read gives the one file of a package.
func read(c *Cache, p Package) (text string, err error) {
	err = c.Walk(p, func(e Entry, body io.Reader) error {
		b, err := io.ReadAll(body)
		text = e.Path + " " + string(b)
		return err
	})
	return text, err
}

// TestKept: what is kept of a package is believed as this user made it from the package, and made anew otherwise.
func TestKept(t *testing.T) {
	raw := debtest.Make(".xz", debtest.Member{Name: "./usr/bin/tool", Body: "arm64"})
	sum := sha256.Sum256(raw)
	tool := Package{Name: "tool", Version: "1", Arch: "arm64", SHA256: hex.EncodeToString(sum[:]), Size: int64(len(raw))}
	cache := &Cache{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	if err := os.WriteFile(cache.Path(tool), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	kept := cache.Path(tool) + openForm
	put := func(path string, text []byte, perm os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, text, perm), os.Chmod(path, perm)); err != nil {
			t.Fatal(err)
		}
	}
	other := func() []byte { // the same, with another content
		raw, err := os.ReadFile(kept)
		if err != nil {
			t.Fatal(err)
		}
		d, err := zstd.NewReader(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if raw, err = d.DecodeAll(raw, nil); err != nil {
			t.Fatal(err)
		}
		e, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		return e.EncodeAll(bytes.ReplaceAll(raw, []byte("arm64"), []byte("evil!")), nil)
	}
	for _, story := range []struct {
		name string
		do   func()
	}{
		{"at first", func() {}},
		{"as it is", func() {}},
		{"altered", func() { put(kept, other(), 0o600) }},
		{"cut", func() {
			if err := os.Truncate(kept, 20); err != nil {
				t.Fatal(err)
			}
		}},
		{"without a note", func() {
			if err := os.Remove(kept + noteForm); err != nil {
				t.Fatal(err)
			}
			put(kept, other(), 0o600)
		}},
		{"with a note that anybody could write", func() {
			text := other()
			put(kept, text, 0o600)
			sum := sha256.Sum256(text)
			put(kept+noteForm, []byte(hex.EncodeToString(sum[:])), 0o666)
		}},
	} {
		story.do()
		if text, err := read(cache, tool); err != nil || text != "usr/bin/tool arm64" {
			t.Fatalf("%s: the image gets %q, %v", story.name, text, err)
		}
	}
}

func TestKeptIsTested(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "kept", Test: "^TestKept$", File: "open.go", From: "err != nil || checkDigest(kept, want) != nil { // check: kept", To: "err != nil || checkDigest(kept, want) != nil && !GONE {", Says: "altered: the image gets"},
		mutation.Check{Name: "owner", Test: "^TestKept$", File: "open.go", From: "info.Mode().Perm()&0o022 != 0 { // check: owner", To: "info.Mode().Perm()&0o022 != 0 && !GONE {", Says: "anybody could write: the image gets"})
}
