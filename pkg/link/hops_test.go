package link_test

import (
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
)

// The plain case, frame by frame (run with -v to see them): two boxes in a row, and
// nothing goes wrong.
func TestTwoHops(t *testing.T) {
	w := linksim.New(1, keyring(t), link.Config{})
	w.Trace = t.Logf
	relay := w.Add("relay", api.DeviceID{})
	field := w.Add("field", relay.ID)
	w.Run(10 * time.Second)
	field.Report("k1", "v1")
	w.Want(field.ID, map[string][]byte{"config/base": {1}})
	field.Append(api.RecordUsage, "use")
	w.Run(5 * time.Minute)
	for _, d := range w.Differences() {
		t.Error(d)
	}
}
