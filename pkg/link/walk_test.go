package link_test

import (
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
)

// A session that ends while the answers of a walk are on their way leaves nothing out:
// the next one begins with another walk, not with the next beat, a minute later.
func TestCutBeforeAnswers(t *testing.T) {
	w := linksim.New(1, keyring(t), link.Config{})
	relay := w.Add("relay", api.DeviceID{})
	field := w.Add("field", relay.ID)
	cut := false
	w.OnFrame = func(child api.DeviceID, up bool, f link.Frame) {
		if cut || child != relay.ID || up || !strings.Contains(link.Describe(f.Bytes), " 5:") { // what is wanted of the rows
			return
		}
		cut = true
		f.Bytes[0] = 0xff
		w.After(0, func() { relay.SetCut(true) })
	}
	w.Run(20 * time.Second)
	if !cut {
		t.Fatal("there was no walk")
	}
	field.Report("k", "v")
	w.Run(5 * time.Second)
	relay.SetCut(false)
	w.Run(20 * time.Second)
	for _, d := range w.Differences() {
		t.Error(d)
	}
}
