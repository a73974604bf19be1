package cli_test

import (
	"crypto"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/release"
	"tributary.dev/tributary/tests/mutation"
)

// TestOwnersCount: in an edgectl without one of the checks the script of the owners of release keys does not go through.
func TestOwnersCount(t *testing.T) {
	mutation.Prove(t, append(mutation.Marked(t, "^TestScripts$/^owners$", "owners.go"), mutation.Marked(t, "^TestScripts$/^release$", "release.go")...)...)
}

// TestPageOfReleases goes through docs/releases.md: every command of its blocks, in order, in a folder with two bundles and
// a development's keys.
func TestPageOfReleases(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("needs openssl, which stands for a token")
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "releases.md"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := errors.Join(writeBundle(filepath.Join(dir, "update.tbu"), "vm", "amd64"), writeBundle(filepath.Join(dir, "next.tbu"), "vm", "amd64"), os.Mkdir(filepath.Join(dir, "dev"), 0o700)); err != nil {
		t.Fatal(err)
	}
	k, err := release.NewKey(filepath.Join(dir, "dev", "release-root.key"))
	if err != nil {
		t.Fatal(err)
	}
	of := []crypto.PublicKey{k.Public()}
	root, err := release.NewRoot(1, time.Now().Add(24*time.Hour), of, 1, of, 1)
	if err == nil {
		root, err = release.AddSignature(root, k)
	}
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, "dev", "release-root.json"), root, 0o600)); err != nil {
		t.Fatal(err)
	}
	ran, within := 0, false
	for line := range strings.Lines(strings.ReplaceAll(string(page), "\\\n", " ")) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "```") {
			within = line == "```sh offline"
			continue
		}
		if !within {
			continue
		}
		ran++
		cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	if ran < 15 {
		t.Errorf("%d commands were found on the page", ran)
	}
	trusted, err := release.TrustRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	b, err := release.ReadFile(filepath.Join(dir, "next.tbu"))
	if err != nil {
		t.Fatal(err)
	}
	if next, _, err := trusted.Verify(b.Roots, b.Targets, b.Description, time.Now()); err != nil || next.Version() != 2 {
		t.Errorf("a box with the development's root does not come to the owners' keys: %v", err)
	}
	alone := *b
	alone.Roots = nil
	if _, _, err := trusted.Verify(alone.Roots, alone.Targets, alone.Description, time.Now()); err == nil {
		t.Error("the old key still vouches")
	}
}
