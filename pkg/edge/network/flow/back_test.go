package flow

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"
)

// What was changed on interfaces outlives a restart, and what an older edged wrote of it is read.
func TestNotes(t *testing.T) {
	older := &notes{raw: []byte(`["eth0","eth1"]`)}
	keeper := func() *Keeper {
		k := NewKeeper(Config{Notes: older, Log: slog.New(slog.DiscardHandler)})
		k.load()
		return k
	}
	k := keeper()
	k.turned["eth2"] = true
	if err := k.save(); err != nil {
		t.Fatal(err)
	}
	k = keeper()
	if got := fmt.Sprint(slices.Sorted(maps.Keys(k.hooked)), slices.Sorted(maps.Keys(k.turned))); got != "[eth0 eth1] [eth2]" {
		t.Error(got)
	}
	older.raw = []byte(`{"hooked`)
	if k = keeper(); len(k.hooked)+len(k.turned) != 0 {
		t.Errorf("torn notes are believed: %v %v", k.hooked, k.turned)
	}
}

// An interface is given back when nobody uses it, once, and one that went is forgotten; what fails is tried again.
func TestGiveBack(t *testing.T) {
	names := map[string]bool{"used": true, "gone": true, "free": true, "stuck": true}
	var undone []string
	look := func() (bool, error) {
		return giveBack(names, []Link{{Name: "used"}, {Name: "free"}, {Name: "stuck"}, {Name: "another's"}}, func(l Link) bool { return l.Name == "used" }, func(l Link) error {
			undone = append(undone, l.Name)
			if l.Name == "stuck" {
				return errors.New("busy")
			}
			return nil
		})
	}
	changed, err := look()
	slices.Sort(undone)
	if !changed || err == nil || fmt.Sprint(undone) != "[free stuck]" || !maps.Equal(names, map[string]bool{"used": true, "stuck": true}) {
		t.Errorf("%v %v %v %v", changed, err, undone, names)
	}
	if changed, _ = look(); changed || len(undone) != 3 {
		t.Errorf("again: %v %v", changed, undone)
	}
}
