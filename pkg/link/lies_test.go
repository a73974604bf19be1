package link_test

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
)

// lie makes a frame of one message.
func lie(t *testing.T, fields ...any) []byte {
	t.Helper()
	b, err := cbor.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{1 << 4}, b...)
}

func warned(list []api.Warning, name string) bool {
	return slices.ContainsFunc(list, func(w api.Warning) bool { return w.Name == name })
}

// What a relay makes up about a device's reported state is refused and told by name,
// and once it stops the core has the true state again, in the same session.
func TestLiesAboutState(t *testing.T) {
	const patch = 3 // a child's groups of state: device, epoch, number, how far back, forgotten, entries
	for name, c := range map[string]struct {
		warning string
		group   func(id []byte, epoch, seq uint64) []any
	}{
		"altered": {"bad-mac", func(id []byte, epoch, seq uint64) []any {
			return []any{id, epoch, seq + 1, 1, []any{"k1", []byte("forged"), 0, make([]byte, link.MACSize)}}
		}},
		"altered, all of it": {"bad-mac", func(id []byte, epoch, seq uint64) []any {
			return []any{id, epoch, seq + 1, seq + 1, 0, []any{"k1", []byte("forged"), 0, make([]byte, link.MACSize)}}
		}},
		"taken back": {"unproven-state", func(id []byte, epoch, seq uint64) []any { return []any{id, epoch, seq + 1, seq + 1, 0} }},
		"ahead":      {"unproven-state", func(id []byte, epoch, seq uint64) []any { return []any{id, epoch + 7, 1, 1, 0} }},
		"too far ahead": {"bad-frame", func(id []byte, _, _ uint64) []any {
			return []any{id, uint64(math.MaxUint64), 1, 1, 0}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := linksim.New(1, keyring(t), link.Config{})
			relay := w.Add("relay", api.DeviceID{})
			field := w.Add("field", relay.ID)
			field.Report("k1", "v1")
			w.Run(time.Minute)
			s := w.DB.States[field.ID]
			if s == nil {
				t.Fatal("nothing was reported")
			}
			w.Core.Link.FromChild(w.Now, relay.ID, lie(t, patch, c.group(field.ID[:], s.Epoch, s.Seq)))
			if !warned(w.Core.Link.Warnings(), c.warning) {
				t.Errorf("the core's warnings are %v", w.Core.Link.Warnings())
			}
			w.Run(time.Minute)
			field.Report("k2", "v2")
			w.Run(30 * time.Minute)
			if c.warning == "bad-mac" && w.DB.States[field.ID].Quarantined == 0 {
				t.Error("what was forged is not set aside")
			}
			w.DB.States[field.ID].Quarantined = 0 // and that is the only trace
			for _, d := range w.Differences() {
				t.Error(d)
			}
		})
	}
}

// A device that is handed another's manifest says so.
func TestForeignManifest(t *testing.T) {
	const patch = 7 // a parent's manifests
	keys := keyring(t)
	w := linksim.New(1, keys, link.Config{})
	field := w.Add("field", api.DeviceID{})
	w.Run(10 * time.Second)
	other := linksim.NewDesired(1)
	if err := other.Set(keys, api.DeviceID{9}, 1, 1_764_000_000, map[string][]byte{"config/a": {1}}); err != nil {
		t.Fatal(err)
	}
	field.Inject(lie(t, patch, other.Signed.Raw))
	if !warned(field.Relay.Warnings(), "foreign-manifest") {
		t.Errorf("its warnings are %v", field.Relay.Warnings())
	}
}

// A parent that says there is a way to the core, and keeps the core's word back, is
// noticed, and forgiven when the word comes.
func TestCoreSilent(t *testing.T) {
	w := linksim.New(1, keyring(t), link.Config{})
	field := w.Add("field", api.DeviceID{})
	w.Run(10 * time.Second)
	w.OnFrame = func(_ api.DeviceID, up bool, f link.Frame) {
		if !up && strings.Contains(link.Describe(f.Bytes), " 8:") { // an acknowledgement
			f.Bytes[0] = 0xff
		}
	}
	field.Append(api.RecordEvent, "it happened")
	w.Run(4 * time.Minute)
	if warned(field.Relay.Warnings(), "core-silent") {
		t.Error("a few minutes are no silence")
	}
	w.Run(4 * time.Minute)
	if !warned(field.Relay.Warnings(), "core-silent") {
		t.Errorf("its warnings are %v", field.Relay.Warnings())
	}
	w.OnFrame = nil
	w.Run(30 * time.Minute)
	if warned(field.Relay.Warnings(), "core-silent") {
		t.Error("the warning outlives the silence")
	}
	for _, d := range w.Differences() {
		t.Error(d)
	}
}
