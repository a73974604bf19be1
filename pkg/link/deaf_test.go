package link_test

import (
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
)

// A session on which nothing comes down, as a broker at fault may leave one, is ended and
// made again, each time after twice as long.
func TestDeafSessionIsEnded(t *testing.T) {
	w := linksim.New(1, keyring(t), link.Config{})
	field := w.Add("field", api.DeviceID{})
	var began []time.Time
	w.OnSession = func(api.DeviceID) { began = append(began, w.Now) }
	w.OnFrame = func(_ api.DeviceID, up bool, f link.Frame) {
		if !up && len(began) <= 3 {
			f.Bytes[0] = 0xff // nothing reads it
		}
	}
	field.Report("k", "v")
	w.Run(10 * time.Minute)
	if len(began) != 4 {
		t.Fatalf("%d sessions, want three that are deaf and one that is not", len(began))
	}
	for i, want := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute} {
		if took := began[i+1].Sub(began[i]); took < want || took > want+10*time.Second {
			t.Errorf("deaf session %d took %s, want %s", i+1, took, want)
		}
	}
	if _, connected, _ := field.Relay.Connected(); !connected {
		t.Error("not connected in the end")
	}
	for _, d := range w.Differences() {
		t.Error(d)
	}
}
