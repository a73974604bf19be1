package main

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestFleet plays the bench with few devices: what it waits for must come.
func TestFleet(t *testing.T) {
	if testing.Short() {
		t.Skip("needs some seconds of two processors")
	}
	bin, err := filepath.Abs(cmp.Or(os.Getenv("TRIBUTARY_BIN"), "../../bin"))
	if err != nil {
		t.Fatal(err)
	}
	cored := filepath.Join(bin, "cored")
	if _, err := os.Stat(cored); err != nil {
		t.Skip("needs the programs: run make build")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	o, err := runFleet(ctx, fleetPlan{devices: 200, relays: 4, cored: cored, dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("enrolled in %v, attached in %v, changed in %v (delivered in %v)", o.enrol, o.attach, o.known, o.delivered)
	if o.known < o.delivered {
		t.Errorf("cored knew of the change after %v, before all devices had it (%v)", o.known, o.delivered)
	}
}
