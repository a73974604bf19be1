package scenario

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// nothingLingers takes the app away while edged and containerd are dead: once they are
// back, no logger, shim or process of its containers is left on the box.
func nothingLingers(ctx context.Context, t *testing.T, s *story.Story) {
	box := s.Lab.Boxes["field-1"]
	if n := len(loggers(box)); n < 2 {
		t.Fatalf("%d loggers for an app of two services", n)
	}
	var pids []int
	for _, service := range []string{"web", "cache"} {
		pid, err := box.Task(ctx, "demo", service)
		must(t, err)
		pids = append(pids, pid)
	}
	box.KillEdged()
	box.KillContainerd()
	_, err := s.Lab.Edgectl(ctx, "", "delete", "fleet", "field")
	must(t, err)
	must(t, box.Start(ctx))
	must(t, lab.Until(ctx, "nothing of the app is left on "+box.Name, 2*s.Wait, func(ctx context.Context) error {
		if left := loggers(box); len(left) > 0 {
			return fmt.Errorf("loggers: %q", left)
		}
		for _, pid := range pids {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
				return fmt.Errorf("process %d of a container lives", pid)
			}
		}
		out, err := box.Ctr(ctx, "containers", "list", "-q")
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("containers: %q", out)
		}
		return err
	}))
}

// loggers are the command lines of the box's edged-log processes.
func loggers(box *lab.Box) (out []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has just ended
		}
		argv := strings.Split(string(b), "\x00")
		if filepath.Base(argv[0]) == "edged-log" && strings.Contains(string(b), box.Data()+"/") {
			out = append(out, strings.Join(argv, " "))
		}
	}
	return out
}
