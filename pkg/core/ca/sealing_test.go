package ca

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/mutation"
)

// TestRotateSealing: what boxes sealed to an earlier key opens for as long as one may come with it.
func TestRotateSealing(t *testing.T) {
	clock, dir := newClock(), t.TempDir()
	c := openCA(t, dir, clock)
	info := identity.SealInfo{Device: api.DeviceID{1}, Name: "x"}
	var sealed [][]byte
	seal := func() {
		t.Helper()
		b, err := identity.Seal(&c.SealingKeys()[0].PublicKey, info, []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		sealed = append(sealed, b)
	}
	opens := func(when string, want ...bool) {
		t.Helper()
		for range 2 { // as it is, and after a restart
			for i, b := range sealed {
				if _, err := c.OpenSealed(info, b); (err == nil) != want[i] {
					t.Errorf("%s: the key %d opens: %v", when, i, err)
				}
			}
			if trust, err := identity.DecodeTrust(c.Trust().Encode(), nil); err != nil || !c.SealingKeys()[0].PublicKey.Equal(trust.Sealing.PublicKey) {
				t.Errorf("%s: boxes are told another key: %v", when, err)
			}
			c = openCA(t, dir, clock)
		}
	}
	if c.SealingName() != nil {
		t.Error("a key that was never another has a name for boxes")
	}
	seal()
	rotate := func() {
		t.Helper()
		clock.add(time.Hour)
		if err := c.RotateSealing(); err != nil {
			t.Fatal(err)
		}
		seal()
		if err := c.DestroySealing(false); err != nil {
			t.Fatal(err)
		}
	}
	rotate()
	rotate()
	opens("rotated twice", true, true, true)
	if err := c.Forget(); err != nil { // is about what was signed
		t.Fatal(err)
	}
	clock.add(DeviceLife + identity.Grace - time.Minute)
	if err := c.DestroySealing(false); err != nil {
		t.Fatal(err)
	}
	opens("the first is needed no more", false, true, true)
	if err := c.DestroySealing(true); err != nil {
		t.Fatal(err)
	}
	opens("lost", false, false, true)
	if c.SealingName() == nil {
		t.Error("boxes that were away do not hear of the key")
	}
	// The power goes between the two files of a rotation.
	text, err := os.ReadFile(filepath.Join(dir, "sealing.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, previousDir, "sealing-01700000000000000000.pem"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	opens("cut", false, false, true)
	if n := len(openCA(t, dir, clock).SealingKeys()); n != 1 {
		t.Errorf("%d keys after a cut", n)
	}
	if err := os.Remove(filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	if err := c.RotateSealing(); api.CodeOf(err) != api.Forbidden {
		t.Errorf("without the root: %v", err)
	}
	opens("refused", false, false, true)
}

// TestRotateSealingCounts: without the check a key goes that boxes need.
func TestRotateSealingCounts(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "needed", Test: "^TestRotateSealing$", File: "sealing.go", From: "!lost && c.now()", To: "!lost && !GONE && c.now()"})
}
