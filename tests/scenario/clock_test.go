package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
)

// A relay and a device whose clocks are ten years ahead join and come online; builds that
// do not heed the core's word stay outside, since their parents' certificates look expired.
func TestClocksAhead(t *testing.T) {
	s := raise(t, pair())
	ctx := t.Context()
	const clock, heed = "b.state.Clock(time.Now, nil)", "Raise: b.clock.Heard"
	ahead := [2]string{clock, "b.state.Clock(func() time.Time { return time.Now().AddDate(10, 0, 0) }, nil)"}
	deaf := edgedBut(ctx, t, s.Root, ahead, [2]string{heed, "Raise: b.clock.Raise"})
	heeding := edgedBut(ctx, t, s.Root, ahead)
	for _, box := range s.Lab.Boxes {
		box.Program = deaf
	}
	must(t, s.Lab.StartCore(ctx))
	must(t, s.Lab.Join(ctx))
	must(t, s.Lab.StartBoxes(ctx))
	must(t, lab.Until(ctx, "the relay has enrolled", s.Wait, func(ctx context.Context) error {
		if devices, err := s.Devices(ctx); err != nil || len(devices) == 0 {
			return errors.Join(err, errors.New("nobody is in the list"))
		}
		return nil
	}))
	waiting, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if online(waiting, s, "agg-1") == nil {
		t.Fatal("a build that does not heed the core's word comes online: this test proves nothing")
	}
	for _, box := range s.Lab.Boxes {
		must(t, box.PowerCut())
		box.Program = heeding
	}
	must(t, s.Lab.StartBoxes(ctx))
	must(t, s.Enrolled(ctx))
}

// edgedBut builds an edged with changes to cmd/edged/run.go, each of a text that stands
// there once.
func edgedBut(ctx context.Context, t *testing.T, root string, changes ...[2]string) string {
	t.Helper()
	dir, source := t.TempDir(), filepath.Join(root, "cmd", "edged", "run.go")
	b, err := os.ReadFile(source)
	must(t, err)
	text := string(b)
	for _, c := range changes {
		if strings.Count(text, c[0]) != 1 {
			t.Fatalf("%s does not hold %q once", source, c[0])
		}
		text = strings.Replace(text, c[0], c[1], 1)
	}
	changed, overlay, program := filepath.Join(dir, "run.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "edged")
	b, err = json.Marshal(map[string]map[string]string{"Replace": {source: changed}})
	must(t, err)
	must(t, errors.Join(os.WriteFile(changed, []byte(text), 0o600), os.WriteFile(overlay, b, 0o600)))
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "grpcnotrace", "-overlay", overlay, "-o", program, "./cmd/edged")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}
