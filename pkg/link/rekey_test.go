package link_test

import (
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
)

// TestSealingKeyRotates: a device that has not heard of the core's new sealing key is believed by the old one while the
// core keeps that, one that has tells everything anew, and neither is lost by a cut.
func TestSealingKeyRotates(t *testing.T) {
	for _, kept := range []int{1, 0} {
		keys := keyring(t)
		w := linksim.New(1, keys, link.Config{})
		relay := w.Add("relay", api.DeviceID{})
		field, away := w.Add("field", relay.ID), w.Add("away", relay.ID)
		for _, b := range []*linksim.Box{relay, field, away} {
			b.Report("k", "before")
		}
		w.Run(time.Minute)
		keys.Rotate(kept)
		keys.Learn(relay.ID)
		keys.Learn(field.ID)
		epoch := w.DB.States[field.ID].Epoch
		away.Report("k", "by the old key")
		w.Run(5 * time.Minute)
		if w.DB.States[field.ID].Epoch == epoch {
			t.Error("what was told by the old key is not told anew")
		}
		for name, b := range map[string]*linksim.Box{"relay": relay, "field": field} {
			if n := w.DB.States[b.ID].Quarantined; n > 0 {
				t.Errorf("%s: %d entries of a device that knows the key are refused", name, n)
			}
		}
		if n := w.DB.States[away.ID].Quarantined; (n > 0) != (kept == 0) {
			t.Errorf("%d old keys kept: %d entries are refused of the device that does not know the new one", kept, n)
		}
		// Both start again, from their disks and with what they know.
		field.Crash()
		field.Start()
		field.Report("k", "after")
		w.Run(5 * time.Minute)
		keys.Learn(away.ID)
		away.Crash()
		away.Start()
		w.Run(5 * time.Minute)
		for _, d := range w.Differences() {
			if kept == 0 && strings.HasPrefix(d, "away: ") && strings.HasSuffix(d, "in quarantine") {
				continue // what it told by the lost key
			}
			t.Errorf("%d old keys kept: %s", kept, d)
		}
	}
}
