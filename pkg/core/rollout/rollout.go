// Package rollout answers: which device gets a change next, and when does it stop or go back?
//
// Decide is the whole of it: a plain function of the spec, what was observed of the devices, and
// the clock. It holds no state and does nothing; who calls it keeps what it says, and acts.
//
// A device goes one way:
//
//	Waiting ──▸ Given ──▸ Healthy          a change is rolled out
//	   ▴          │  └──▸ Failed
//	   └─ away ───┘
//	any of them ──▸ Restoring ──▸ Restored  it is rolled back
//	                     └──────▸ Kept      it cannot, or need not: Why tells
//
// and never back from Restoring: no device is tossed to and fro.
package rollout

import (
	"time"

	"tributary.dev/tributary/pkg/api"
)

// State is how far a device is.
type State string

// The states.
const (
	Waiting   State = "waiting"   // it has not got the change, or went away before it was healthy
	Given     State = "given"     // its manifest has the change
	Healthy   State = "healthy"   // it was well for the whole soak time
	Failed    State = "failed"    // it did not become well in time, or told that it cannot
	Skipped   State = "skipped"   // it is left out: Why tells
	Restoring State = "restoring" // its manifest has what it had before
	Restored  State = "restored"
	Kept      State = "kept" // it is left as it is by a rollback: Why tells
)

// Health is what a device shows of a change that its manifest has.
type Health int

// The healths.
const (
	Unknown Health = iota // it has not told anything of it yet, or is on its way
	Well                  // the change is in force, and nothing is wrong
	Broken                // it says that the change cannot be, or what runs by it has failed
)

// Device is one device of a rollout: what was kept of it, and what is observed now.
type Device struct {
	ID, Name string
	// Site tells where it stands; one without a site stands alone. Relay: others hang below it.
	Site  string
	Relay bool
	Wave  int

	State State
	// Touched: it was given the change, whatever became of that.
	Touched bool
	Since   time.Time // when the state began
	WellAt  time.Time // since when it is well without a break; zero: it is not
	Until   time.Time // until when it may begin, by its permit; zero: it has none
	Slot    bool      // it has a place in the budget
	Why     string

	Online bool
	Health Health
	Told   string // the device's words for its health
	// Changed: somebody else has given it something else since.
	Changed string
	// Barred says why what it had before cannot be given back; empty when it can.
	Barred string
}

// Progress is how far a rollout is.
type Progress struct {
	Phase api.RolloutPhase
	// Wave is the one under way, from 0; it is the number of waves when all have passed.
	Wave int
	// WaveSince is when it began, or the wait before it did.
	WaveSince time.Time
	// Approved is up to which wave people said yes.
	Approved int
	Message  string
}

// Budget is how many devices may be interrupted at once, of all rollouts of the database.
type Budget struct {
	// Left is how many more in all.
	Left int
	// Sites tells of each site that is known.
	Sites map[string]Site
	// Others are devices that another rollout has under way.
	Others map[string]bool
}

// Site is a part of the budget.
type Site struct {
	Max, Taken int
	// Relays is how many relays are among those that are taken: never two.
	Relays int
}

// Do is what is to be done with a device.
type Do string

// What there is to do.
const (
	Note    Do = "note"    // nothing: its state is another
	Give    Do = "give"    // its manifest gets the change, and a permit until Until
	Restore Do = "restore" // its manifest gets what it had before, and a permit
)

// Step is one device's next state, and what is to be done for it.
type Step struct {
	Do     Do
	Device Device
}

// siteOf is where a device counts.
func siteOf(d *Device) string {
	if d.Site == "" {
		return "\x00" + d.ID
	}
	return d.Site
}
