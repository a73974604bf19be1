package link_test

import (
	"testing"
	"time"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
)

func TestQuick(t *testing.T) {
	w := linksim.New(1, keyring(t), link.Config{})
	w.Trace = t.Logf
	n := 0
	w.OnFrame = func(c api.DeviceID, up bool, f link.Frame) {
		n++
		t.Logf("%s up=%v %s", w.Boxes[c].Name, up, link.Describe(f.Bytes))
	}
	a := w.Add("agg", api.DeviceID{})
	f := w.Add("field", a.ID)
	w.Run(10 * time.Second)
	f.Report("k1", "v1")
	w.Want(f.ID, map[string][]byte{"config/base": {1}})
	f.Append(1, "use")
	w.Run(5 * time.Minute)
	for _, d := range w.Differences() {
		t.Error(d)
	}
}
