package link_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
	"tributary.dev/tributary/pkg/manifest"
)

// retire plays a relay with two children, one of which the core retires, and returns what
// is wrong a while later.
func retire(t *testing.T) (wrong []string) {
	w := linksim.New(1, keyring(t), link.Config{})
	relay := w.Add("relay", api.DeviceID{})
	retired, other := w.Add("retired", relay.ID), w.Add("other", relay.ID)
	w.Run(time.Minute)
	if !relay.Relay.Adopted(other.ID) || relay.Relay.Adopted(relay.ID) || relay.Relay.Adopted(api.DeviceID{9}) {
		wrong = append(wrong, "the relay does not know its own children")
	}
	w.Want(relay.ID, map[string][]byte{manifest.KeyRevoked: link.EncodeRevoked([]api.DeviceID{retired.ID})})
	w.Run(time.Minute)
	if !relay.Relay.Revoked(retired.ID) || relay.Relay.Revoked(other.ID) {
		wrong = append(wrong, "the relay takes the wrong one for retired")
	}
	before := w.DB.States[retired.ID].Seq
	retired.Report("k", "v")
	retired.Append(api.RecordEvent, "it happened")
	other.Report("k", "v")
	w.Run(10 * time.Minute)
	if got := w.DB.States[retired.ID].Seq; got != before || len(w.DB.Ledger[retired.ID]) > 0 {
		wrong = append(wrong, fmt.Sprintf("the retired device is heard: state %d after %d, %d records", got, before, len(w.DB.Ledger[retired.ID])))
	}
	for _, line := range relay.Relay.Dump() {
		if strings.HasPrefix(line, retired.ID.String()) {
			wrong = append(wrong, "the relay remembers "+line)
		}
	}
	for _, d := range w.Differences() {
		if strings.HasPrefix(d, "other") || strings.HasPrefix(d, "relay") {
			wrong = append(wrong, d)
		}
	}
	// It begins again from its disk and still knows.
	relay.Crash()
	relay.Start()
	if !relay.Relay.Adopted(other.ID) || relay.Relay.Adopted(retired.ID) {
		wrong = append(wrong, "after its restart the relay does not know its own children")
	}
	w.Run(5 * time.Minute)
	if got := w.DB.States[retired.ID].Seq; got != before {
		wrong = append(wrong, "the retired device is heard after the relay's restart")
	}
	return wrong
}

// A relay whose manifest names a device as retired hears it no more, nor after a restart.
func TestRelaysTurnRetiredDevicesAway(t *testing.T) {
	for _, s := range retire(t) {
		t.Error(s)
	}
}

// A session that is open when the list comes is ended.
func TestRetiringEndsTheSession(t *testing.T) {
	g := newGrove(t)
	want := linksim.NewDesired(1)
	relay := g.add(relayID, nil, link.NewMemStore(), nil)
	g.add(fieldID, relay, link.NewMemStore(), nil)
	if err := want.Set(g.keys, relayID, 1, g.now.Unix(), map[string][]byte{manifest.KeyRevoked: link.EncodeRevoked([]api.DeviceID{fieldID})}); err != nil {
		t.Fatal(err)
	}
	relay.FromParent(g.now, lie(t, 7, want.Signed.Raw))
	if kick := relay.Take().Kick; len(kick) != 1 || kick[0] != fieldID {
		t.Errorf("whose session ends: %v", kick)
	}
	relay.ChildUp(g.now, fieldID, linksim.Cert(fieldID))
	if kick := relay.Take().Kick; len(kick) != 1 || kick[0] != fieldID {
		t.Errorf("whose session ends when it comes again: %v", kick)
	}
	refused := relay.Stats().Refused
	relay.FromChild(g.now, fieldID, lie(t, 1, 1, 1, 1, 1, 1, 1))
	if relay.Stats().Refused != refused+1 || len(relay.Take().Down) > 0 {
		t.Error("its frames are not refused")
	}
}

func FuzzRevoked(f *testing.F) {
	f.Add(link.EncodeRevoked(nil))
	f.Add(link.EncodeRevoked([]api.DeviceID{{1}, {2}}))
	f.Add([]byte{0x5f, 0xff})
	f.Add([]byte("A0000000000000000")) // one byte, and more behind it
	keys := keyring(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		want := linksim.NewDesired(1)
		if want.Set(keys, relayID, 1, 1_764_000_000, map[string][]byte{manifest.KeyRevoked: body}) != nil {
			return // no CBOR
		}
		now := time.Unix(1_764_000_000, 0)
		r, err := link.NewRelay(now, link.RelayConfig{Self: relayID, Cert: linksim.Cert(relayID), Store: link.NewMemStore(), Keys: keys.Device(relayID)})
		if err != nil {
			t.Fatal(err)
		}
		r.ParentUp(now, api.DeviceID{})
		r.FromParent(now, lie(t, 7, want.Signed.Raw))
		if r.Revoked(relayID) {
			t.Error("a relay turns itself away")
		}
	})
}
