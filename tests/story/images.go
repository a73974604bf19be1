package story

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// PushImages makes the demo's images and pushes them to the core's registry with
// edgectl, by the ordinary OCI protocol.
func (s *Story) PushImages(ctx context.Context) error {
	root, err := filepath.Abs(s.Root) // the images are made from there, by another process
	if err != nil {
		return err
	}
	dir := filepath.Join(root, ".cache", strings.Join(append([]string{"images"}, s.Arches...), "-"))
	if err := s.makeImages(ctx, dir); err != nil {
		return err
	}
	layouts, err := filepath.Glob(filepath.Join(dir, "*", "oci-layout"))
	if err != nil || len(layouts) == 0 {
		return fmt.Errorf("no OCI layouts in %s (%v)", dir, err)
	}
	for _, l := range layouts {
		image := filepath.Dir(l)
		if _, err := s.tree().Edgectl(ctx, "", "app", "push", image, "default/"+filepath.Base(image)+":latest"); err != nil {
			return err
		}
	}
	return nil
}

// makeImages runs tests/images, at most once a day for the same recipes: to ask Debian
// which packages are newest takes longer than all the rest.
func (s *Story) makeImages(ctx context.Context, dir string) error {
	mark, err := s.recipes()
	if err != nil {
		return err
	}
	made := filepath.Join(dir, ".made")
	if b, err := os.ReadFile(made); err == nil && string(b) == mark {
		return nil
	}
	cmd := exec.CommandContext(ctx, "go", "run", "./tests/images", "-out", dir, "-arch", strings.Join(s.Arches, ","))
	cmd.Dir = s.Root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("making images: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return os.WriteFile(made, []byte(mark), 0o644)
}

// recipes names today's images: the day and the sources of the program that makes them.
func (s *Story) recipes() (string, error) {
	h := sha256.New()
	for _, pattern := range []string{"*", "debimage/*.go"} {
		files, err := filepath.Glob(filepath.Join(s.Root, "tests", "images", pattern))
		if err != nil {
			return "", err
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil { // folders have no bytes
				h.Write(b)
			}
		}
	}
	return time.Now().UTC().Format(time.DateOnly) + " " + hex.EncodeToString(h.Sum(nil)), nil
}
