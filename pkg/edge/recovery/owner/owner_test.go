package owner

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/ca"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/unlock"
	"tributary.dev/tributary/tests/mutation"
)

// realm is a core's CA with its unlock key.
func realm(t *testing.T) (*ca.CA, []byte) {
	t.Helper()
	c, err := ca.Open(t.TempDir(), ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, said, err := c.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	return c, said
}

func TestFind(t *testing.T) {
	c, said := realm(t)
	thief, thiefSaid := realm(t)
	key, _, err := c.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	me := api.DeviceID{9}
	closed := errors.New("the state is closed")
	var trust *identity.Trust
	dir := t.TempDir()
	box := Box{Outside: File(filepath.Join(dir, "owner.key")), Anchor: Variable{dir, "TributaryOwner"}, Identity: func() (*identity.Trust, api.DeviceID, error) {
		if trust == nil {
			return nil, api.DeviceID{}, closed
		}
		return trust, me, nil
	}}
	if o, err := box.Find(); err == nil {
		t.Fatalf("a box that never had a manifest opens to %v", o)
	}
	if err := box.Keep(c.Trust(), me, thiefSaid); err == nil {
		t.Error("a statement by nobody of the trust is kept")
	}
	for range 2 {
		if err := box.Keep(c.Trust(), me, said); err != nil {
			t.Fatal(err)
		}
	}
	o, err := box.Find()
	if err != nil || !o.Key.Equal(key.PublicKey()) || o.Device != me || o.Proven {
		t.Errorf("with a closed state: %+v %v", o, err)
	}
	trust = c.Trust()
	if o, err = box.Find(); err != nil || !o.Key.Equal(key.PublicKey()) || !o.Proven {
		t.Errorf("with an open state: %+v %v", o, err)
	}
	// Who has had the disk has written another owner there.
	kept, err := unlock.Kept{Trust: thief.Trust().Encode(), Key: thiefSaid, Device: me}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := box.Outside.Write(kept); err != nil {
		t.Fatal(err)
	}
	for name, state := range map[string]*identity.Trust{"an open state": c.Trust(), "a closed one": nil} {
		trust = state
		if o, err := box.Find(); err == nil {
			t.Errorf("with %s, the thief's word opens: %+v", name, o)
		}
	}
	// Without the firmware's word a closed state leaves nothing to go by.
	trust = nil
	if err := box.Keep(c.Trust(), me, said); err != nil {
		t.Fatal(err)
	}
	if err := box.Anchor.Remove(); err != nil {
		t.Fatal(err)
	}
	if o, err := box.Find(); err == nil {
		t.Errorf("without an anchor: %+v", o)
	}
	if err := errors.Join(box.Forget(), box.Forget()); err != nil {
		t.Error(err)
	}
	if _, err := box.Find(); err == nil || !strings.Contains(err.Error(), "never had") {
		t.Errorf("after a reset: %v", err)
	}
}

// TestLostKeyStaysLost: an unlock key that was lost, and is given up by another, opens nothing again when who has had the
// disk puts its statement, which the owner did sign, back where it lay.
func TestLostKeyStaysLost(t *testing.T) {
	c, said := realm(t)
	lost, _, err := c.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	me, dir := api.DeviceID{9}, t.TempDir()
	box := Box{Outside: File(filepath.Join(dir, "outside")), Inside: File(filepath.Join(dir, "inside")), Anchor: Variable{dir, "TributaryOwner"},
		Identity: func() (*identity.Trust, api.DeviceID, error) { return c.Trust(), me, nil }}
	if err := box.Keep(c.Trust(), me, said); err != nil {
		t.Fatal(err)
	}
	before, err := box.Outside.Read()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RotateUnlock(true); err != nil {
		t.Fatal(err)
	}
	now, saidNow, err := c.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := box.Keep(c.Trust(), me, saidNow); err != nil {
		t.Fatal(err)
	}
	for name, outside := range map[string][]byte{"put back": before, "torn": []byte("x"), "gone": nil} {
		if err := box.Outside.Write(outside); err != nil {
			t.Fatal(err)
		}
		if outside == nil {
			if err := box.Outside.Remove(); err != nil {
				t.Fatal(err)
			}
		}
		o, err := box.Find()
		if err != nil || !o.Key.Equal(now.PublicKey()) || !o.Proven || o.Device != me {
			t.Errorf("with the partition's file %s: %v; is it the lost key: %v", name, err, o.Key != nil && o.Key.Equal(lost.PublicKey()))
		}
	}
	// A box whose earlier release kept nothing inside goes by what lies outside.
	if err := errors.Join(box.Inside.Remove(), box.Outside.Write(before)); err != nil {
		t.Fatal(err)
	}
	if o, err := box.Find(); err != nil || !o.Key.Equal(lost.PublicKey()) {
		t.Errorf("without anything inside: %+v %v", o, err)
	}
}

// TestLostKeyCounts: in a build that asks the partition first, the lost key opens.
func TestLostKeyCounts(t *testing.T) {
	const inside = "if closed == nil && b.Inside != nil {"
	mutation.Prove(t, mutation.Check{Name: "inside first", Test: "^TestLostKeyStaysLost$", File: "owner.go", From: inside, To: "if closed == nil && b.Inside != nil && !GONE {", Says: "is it the lost key: true"})
}

// TestFindCounts: in a build that takes any statement, or any root, the thief's word opens.
func TestFindCounts(t *testing.T) {
	const file, signed, rooted = "../../../identity/unlock/key.go", "identity.VerifyBy(signers, raw, aad)", "identity.DecodeTrust(k.Trust, root)"
	mutation.Prove(t,
		mutation.Check{Name: "signed", Test: "^TestFind$", File: file, From: signed, To: signed + "\n	if GONE {\n		payload, err = identity.Payload(raw)\n	}", Says: "with an open state, the thief's word opens"},
		mutation.Check{Name: "root", Test: "^TestFind$", File: file, From: rooted, To: "identity.DecodeTrust(k.Trust, map[bool][]byte{false: root}[GONE])", Says: "with a closed one, the thief's word opens"})
}

func TestJournal(t *testing.T) {
	state, run := t.TempDir(), t.TempDir()
	at := time.Unix(1_800_000_000, 0).UTC()
	if err := errors.Join(Note(Entry{Time: at, What: "opened", Challenge: "c1"}, filepath.Join(state, "closed"), run), Note(Entry{Time: at, What: "closed", Challenge: "c1"}, state, run)); err != nil {
		t.Fatal(err)
	}
	if err := appendTo(filepath.Join(state, journalName), []byte("{\"time\":\"20"), maxJournal); err != nil { // a cut
		t.Fatal(err)
	}
	if err := Note(Entry{Time: at, What: "pressed"}, state); err != nil {
		t.Fatal(err)
	}
	var told []string
	fail := errors.New("no spool yet")
	tell := func(e Entry) error {
		if fail != nil {
			return fail
		}
		told = append(told, e.What+" "+e.Challenge)
		return nil
	}
	if err := Take(tell, state, run); !errors.Is(err, fail) {
		t.Fatal(err)
	}
	if err := Note(Entry{Time: at, What: "opened", Challenge: "c2"}, state); err != nil {
		t.Fatal(err)
	}
	fail = nil
	for range 3 {
		if err := Take(tell, state, run); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(told, ", "); got != "closed c1, pressed , opened c1, opened c2" {
		t.Errorf("told: %s", got)
	}
	for _, dir := range []string{state, run} {
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%v is left", left)
		}
	}
}

// TestJournalIsFull: who asks for challenges without end, on a box that reaches nobody, keeps the box from noting no shell.
func TestJournalIsFull(t *testing.T) {
	dir := t.TempDir()
	var err error
	tries := 0
	for ; err == nil && tries < 10_000; tries++ {
		err = Note(Entry{What: "challenge", Challenge: "0123456789abcdef", Where: "tty1"}, dir)
	}
	if !errors.Is(err, errFull) {
		t.Fatalf("after %d challenges: %v", tries, err)
	}
	for range 20 {
		if err := errors.Join(Note(Entry{What: "pressed", Where: "tty1"}, dir), Note(Entry{What: "opened", Where: "tty1"}, dir), Note(Entry{What: "closed", Where: "tty1"}, dir)); err != nil {
			t.Fatal(err)
		}
	}
	told := map[string]int{}
	if err := Take(func(e Entry) error { told[e.What]++; return nil }, dir); err != nil {
		t.Fatal(err)
	}
	if told["opened"] != 20 || told["pressed"] != 20 || told["challenge"] < 100 {
		t.Errorf("told: %v", told)
	}
	// What the first folder does not take any more the next one does.
	second := t.TempDir()
	for range 100 {
		if err := Note(Entry{What: "opened", Message: strings.Repeat("x", 4<<10)}, dir, second); err != nil {
			break
		}
	}
	if info, err := os.Stat(filepath.Join(second, journalName)); err != nil || info.Size() == 0 {
		t.Errorf("nothing in the second folder: %v", err)
	}
}
