package link_test

import (
	"slices"
	"testing"

	"tributary.dev/tributary/pkg/link/linksim"
)

func TestOneChangeIsSmall(t *testing.T) {
	hops, err := linksim.Change()
	if err != nil {
		t.Fatal(err)
	}
	if t.Log("bytes a hop", hops); slices.Max(hops) > 120 {
		t.Errorf("one change takes %v bytes a hop, at most 120 are allowed", hops)
	}
}

func TestHealingCostsWhatChanged(t *testing.T) {
	devices := 1000
	if testing.Short() {
		devices = 100
	}
	h, err := linksim.Heal(devices, 100, 128)
	if err != nil {
		t.Fatal(err)
	}
	changed, replaced := float64(h.Changed.Total())/float64(h.Useful), float64(h.Replaced.Total())/float64(h.Useful)
	t.Logf("unchanged %d B; changed %.2f (%+v); replaced %.2f (%+v); useful %d", h.Unchanged.Total(), changed, h.Changed, replaced, h.Replaced, h.Useful)
	if h.Unchanged.Total() > 100 {
		t.Errorf("nothing changed, and %d bytes crossed: %+v", h.Unchanged.Total(), h.Unchanged)
	}
	if changed > 1.5 || replaced > 2 {
		t.Errorf("healing costs %.2f of what changed, with a new relay %.2f", changed, replaced)
	}
}

func TestRestIsQuiet(t *testing.T) {
	hours := 6
	if testing.Short() {
		hours = 2
	}
	m, took, err := linksim.Idle(100, hours)
	if err != nil {
		t.Fatal(err)
	}
	perDay := float64(m.WithTransport()) / 100 / (took.Hours() / 24)
	t.Logf("%.0f B a device and day (%+v in %s)", perDay, *m, took)
	if perDay > 50_000 {
		t.Errorf("a device at rest costs %.0f bytes a day", perDay)
	}
}
