package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// measured runs the scenario on machines of that name, which starts its guests, and reads what it measured.
func measured(ctx context.Context, test string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "bench-scenario-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "figures.json")
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-timeout", "30m", "-run", "^"+test+"$", "./tests/machines")
	cmd.Env = append(os.Environ(), "TRIBUTARY_VMTEST=1", "TRIBUTARY_FIGURES="+file)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	return os.ReadFile(file) // a scenario that is skipped writes none
}
