package link_test

import (
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
)

// A relay that lies about the reported state of those below it is told by name while it
// does, the core holds nothing that the device did not report, whole, and soon after the
// relay turns honest it holds all again: whether the core is the next to hear the lie, or
// a relay that cannot tell it from the truth.
func TestLyingRelay(t *testing.T) {
	for _, c := range []struct {
		lie   linksim.Lie
		names []string // one of them is told
	}{
		{linksim.DropEntry, []string{"state-incomplete", "unproven-state"}},
		{linksim.DropEntries, []string{"unproven-state"}},
		{linksim.AlterValue, []string{"bad-mac"}},
		{linksim.ReplayEntry, []string{"bad-mac"}},
		{linksim.ReplayAhead, []string{"state-incomplete"}},
		{linksim.SwapMACs, []string{"bad-mac"}},
		{linksim.SwapNumbers, []string{"bad-mac"}},
		{linksim.StripProof, []string{"state-incomplete"}},
		{linksim.AlterRecords, []string{"bad-batch"}},
	} {
		for name, between := range map[string]bool{"": false, ", an honest one above": true} {
			t.Run(c.lie.String()+name, func(t *testing.T) {
				w := linksim.New(1, keyring(t), link.Config{})
				parent := api.DeviceID{}
				if between {
					parent = w.Add("honest", api.DeviceID{}).ID
				}
				relay := w.Add("relay", parent)
				field := w.Add("field", relay.ID)
				for _, k := range []string{"a", "b", "c", "d", "e"} {
					field.Report(k, "one")
				}
				w.Run(time.Minute)
				liar := linksim.NewLiar(w, 1, c.lie)
				w.SetLiar(relay, liar)
				for _, v := range []string{"two", "three"} {
					for _, k := range []string{"a", "b", "c"} {
						field.Report(k, v)
					}
					field.Append(api.RecordEvent, v)
					w.Run(time.Minute)
				}
				told := 0
				for _, n := range c.names {
					told += w.Alarms[n]
				}
				if liar.Told == 0 || told == 0 {
					t.Errorf("%d lies were told, the core found %v", liar.Told, w.Alarms)
				}
				w.SetLiar(relay, nil)
				w.Run(15 * time.Minute)
				for _, d := range append(w.Failures, w.Differences()...) {
					t.Error(d)
				}
				if warned(w.Core.Link.Warnings(), "state-incomplete") {
					t.Error("state-incomplete stays when all has come")
				}
			})
		}
	}
}

// The case that once left the core with one key of three for good: a genuine entry of
// before is said to be all, under the next number, and the device then changes something.
func TestOneOldEntryIsNotAll(t *testing.T) {
	const patch = 3
	w := linksim.New(1, keyring(t), link.Config{})
	relay := w.Add("relay", api.DeviceID{})
	field := w.Add("field", relay.ID)
	for _, k := range []string{"k1", "k2", "k3"} {
		field.Report(k, "v")
	}
	w.Run(time.Minute)
	s := w.DB.States[field.ID]
	e := s.Entries["k1"]
	proof := append([]byte(nil), e.Extra[1:]...) // a byte string
	w.Core.Link.FromChild(w.Now, relay.ID, lie(t, patch, []any{field.ID[:], s.Epoch, s.Seq + 1, s.Seq + 1, 0,
		[]any{e.Key, e.Value, s.Seq + 1 - e.Seq, e.MAC[:], proof}}))
	if !warned(w.Core.Link.Warnings(), "state-incomplete") {
		t.Errorf("the core's warnings are %v", w.Core.Link.Warnings())
	}
	field.Report("k1", "w")
	w.Run(time.Minute)
	for _, d := range w.Differences() {
		t.Error(d)
	}
	if warned(w.Core.Link.Warnings(), "state-incomplete") {
		t.Error("state-incomplete stays when all has come")
	}
}

// A core that begins again knows from its store which keys it holds.
func TestCoreRestartKeepsTheCensus(t *testing.T) {
	w := linksim.New(1, keyring(t), link.Config{})
	field := w.Add("field", api.DeviceID{})
	field.Report("a", "1")
	field.Report("b", "1")
	w.Run(time.Minute)
	w.CrashCore()
	w.StartCore()
	w.Run(time.Minute)
	field.Report("a", "2")
	field.Report("b", "")
	w.Run(time.Minute)
	for _, d := range append(w.Failures, w.Differences()...) {
		t.Error(d)
	}
}
