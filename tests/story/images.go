package story

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// PushImages makes the demo's images (once; they are kept in .cache) and pushes them
// to the core's registry with edgectl, by the ordinary OCI protocol.
func (s *Story) PushImages(ctx context.Context) error {
	dir := filepath.Join(s.cache(), "images")
	cmd := exec.CommandContext(ctx, "go", "run", "./tests/images", "-out", dir)
	cmd.Dir = s.Root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("making images: %w: %s", err, strings.TrimSpace(string(out)))
	}
	layouts, err := filepath.Glob(filepath.Join(dir, "*", "oci-layout"))
	if err != nil || len(layouts) == 0 {
		return fmt.Errorf("no OCI layouts in %s (%v)", dir, err)
	}
	for _, l := range layouts {
		name := filepath.Base(filepath.Dir(l))
		if _, err := os.Stat(filepath.Join(filepath.Dir(l), "index.json")); err != nil {
			return err
		}
		if _, err := s.Lab.Edgectl(ctx, "", "app", "push", filepath.Dir(l), "default/"+name+":latest"); err != nil {
			return err
		}
	}
	return nil
}
