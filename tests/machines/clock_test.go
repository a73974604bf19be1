package machines

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
)

// A box whose clock is ten years off at power on joins, and again after its power was cut.
func TestClockTenYearsOff(t *testing.T) {
	needImage(t, runtime.GOARCH)
	for name, years := range map[string]int{"behind": -10, "ahead": 10} {
		t.Run(name, func(t *testing.T) {
			needImage(t, runtime.GOARCH)
			ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
			defer cancel()
			s, tree := raise(t, ctx, BoxSpec{Name: "box", Parent: "core", Role: "field", Clock: time.Now().AddDate(years, 0, 0)})
			if err := tree.Box("box").PowerCut(); err != nil {
				t.Fatal(err)
			}
			if err := tree.Box("box").Start(ctx); err != nil {
				t.Fatal(err)
			}
			if err := tree.boxes["box"].Up(ctx); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			err := lab.Until(ctx, "the core hears of the box again", patience, func(ctx context.Context) error {
				devices, err := s.Devices(ctx)
				if err != nil {
					return err
				}
				if d := devices["box"].Status; !d.Online || d.LastSeen == nil || d.LastSeen.Before(began) {
					return fmt.Errorf("online %v, last seen %v", d.Online, d.LastSeen)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
