package main

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/edge/state"
)

// A budget of the settings is in force at once and outlives a restart, and one that is
// taken away leaves the default.
func TestSpoolBudget(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	open := func() *box {
		st, err := state.Open(state.Config{Path: path, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		b := &box{o: options{data: dir}, state: st, log: slog.New(slog.DiscardHandler)}
		if b.clock, err = st.Clock(time.Now, nil); err != nil {
			t.Fatal(err)
		}
		if err := b.openSpool(t.Context()); err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := open()
	if n := b.spoolBytes(); n != 0 {
		t.Errorf("before any setting: %d", n)
	}
	whole := b.spool.Bytes()
	for _, n := range []int64{1 << 20, 0} {
		b.setSpoolBytes(n)
		if got := b.spool.Bytes(); n != 0 && got >= whole {
			t.Errorf("takes %d bytes with a budget of %d, %d before", got, n, whole)
		}
		if err := errors.Join(b.spool.Close(), b.state.Close()); err != nil {
			t.Fatal(err)
		}
		b = open()
		if got := b.spoolBytes(); got != n {
			t.Errorf("after a restart: %d, want %d", got, n)
		}
	}
	if err := errors.Join(b.spool.Close(), b.state.Close()); err != nil {
		t.Fatal(err)
	}
}
