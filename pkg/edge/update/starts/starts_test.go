package starts

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestHeader holds the check of STATE's header against what cryptsetup writes: either copy is enough.
func TestHeader(t *testing.T) {
	if _, err := exec.LookPath("cryptsetup"); err != nil {
		t.Skip("needs cryptsetup")
	}
	path := filepath.Join(t.TempDir(), "state")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(20 << 20); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", path, "-")
	cmd.Stdin = strings.NewReader("key")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("cryptsetup: %v: %s", err, out)
	}
	if err := Header(f); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, 5000); err != nil { // in the first copy's JSON
		t.Fatal(err)
	}
	if err := Header(f); err != nil {
		t.Fatalf("the second copy is whole: %v", err)
	}
	if _, err := f.WriteAt([]byte{0xff}, 16<<10+5000); err != nil {
		t.Fatal(err)
	}
	if Header(f) == nil {
		t.Fatal("both copies are torn")
	}
}
