package main

import (
	"log/slog"
	"path/filepath"
	"testing"

	"tributary.dev/tributary/pkg/edge/state"
)

// A budget of the settings outlives a restart, and one that is taken away leaves the
// default.
func TestSpoolBudget(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	open := func() *box {
		st, err := state.Open(state.Config{Path: path, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return &box{state: st, log: slog.New(slog.DiscardHandler)}
	}
	b := open()
	if n := b.spoolBytes(); n != 0 {
		t.Errorf("before any setting: %d", n)
	}
	for _, n := range []int64{8 << 20, 0} {
		b.keepSpoolBytes(n)
		if err := b.state.Close(); err != nil {
			t.Fatal(err)
		}
		b = open()
		if got := b.spoolBytes(); got != n {
			t.Errorf("after a restart: %d, want %d", got, n)
		}
	}
	if err := b.state.Close(); err != nil {
		t.Fatal(err)
	}
}
