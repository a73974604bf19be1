//go:build linux

package appear

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"tributary.dev/tributary/tests/wait"
)

func TestMain(m *testing.M) { wait.Leaks(m) }

func TestWait(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "later", "s")
	came := make(chan error, 1)
	go func() { came <- Wait(t.Context(), path) }() // the folder is not there yet, either
	for _, make := range []func() error{
		func() error { return os.Mkdir(filepath.Dir(path), 0o755) },
		func() error { return os.WriteFile(filepath.Join(filepath.Dir(path), "another"), nil, 0o600) },
		func() error { return os.WriteFile(path, nil, 0o600) },
	} {
		select {
		case err := <-came:
			t.Fatalf("it came before it was made: %v", err)
		default:
		}
		if err := make(); err != nil {
			t.Fatal(err)
		}
	}
	if err := wait.For(t, "the file", came); err != nil {
		t.Error(err)
	}
	if err := Wait(t.Context(), path); err != nil {
		t.Errorf("what is there: %v", err)
	}
}

// TestWaitTold has the folder from the start: the kernel alone tells.
func TestWaitTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	came := make(chan error, 1)
	go func() { came <- Wait(t.Context(), path) }()
	if err := os.WriteFile(path+".new", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if err := wait.For(t, "the file", came); err != nil {
		t.Error(err)
	}
}

func TestWaitEnds(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "s"), filepath.Join(dir, "none", "s")} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- Wait(ctx, path) }()
		cancel()
		if err := wait.For(t, "its end", ended); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
