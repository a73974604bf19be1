package accel

import (
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Action is what a finding asks for.
type Action string

// The actions. Each takes in those before it.
const (
	ActNone   Action = "none"
	ActCordon Action = "cordon" // given to no one else; who is on it stays
	ActMove   Action = "move"   // who is on it is moved
)

// Fault is one thing that a card told: an event, or a figure out of bounds.
type Fault struct {
	Kind     string // xid, ecc-corrected, ecc-uncorrected, unavailable, hot
	Xid      uint64
	Instance int // the GPU instance; -1: the card
	Celsius  int
}

// xids are NVIDIA's numbers of faults whose remedy is known (Xid Errors, GPU deployment and
// management documentation): what they mean, and what they ask for. Faults of programs (13,
// 31, 43, 45 and others that any program can bring about) end the program and say nothing of the card.
var xids = map[uint64]struct {
	words  string
	action Action
	whole  bool // of the whole card, whatever the driver says of a slice
}{
	8:   {"a program's work did not end in time", ActNone, false},
	13:  {"a program used its memory wrongly", ActNone, false},
	31:  {"a program touched memory that is not its own", ActNone, false},
	32:  {"a program's commands could not be read", ActNone, false},
	43:  {"a program's work was stopped", ActNone, false},
	45:  {"a program's work was cleaned up", ActNone, false},
	48:  {"memory failed in two bits", ActMove, false},
	63:  {"memory was set aside for spare memory at the next reset", ActCordon, false},
	64:  {"no spare memory is left", ActMove, true},
	68:  {"a program's video could not be decoded", ActNone, false},
	69:  {"a program used an engine wrongly", ActNone, false},
	74:  {"an NVLink failed", ActCordon, true},
	79:  {"the card fell off the bus", ActMove, true},
	94:  {"a memory error was kept within one program", ActCordon, false},
	95:  {"a memory error reached more than one program", ActMove, true},
	109: {"a program did not give way in time", ActNone, false},
	119: {"the card's own processor does not answer", ActMove, true},
	120: {"the card's own processor failed", ActMove, true},
	137: {"a program touched another card's memory wrongly", ActNone, false},
	140: {"memory failed and was not mended", ActMove, true},
}

// hotC is when a card of a data centre slows down to save itself; most name 85 to 90.
const hotC = 88

// Judge says what a fault means and asks for. Slices are those of the card; without one of
// the fault's number it is about the card.
func Judge(a *api.Accelerator, f Fault, now time.Time) api.AcceleratorFinding {
	warn := func(name string, severity api.Severity, action Action, message, remedy string) api.AcceleratorFinding {
		return api.AcceleratorFinding{Action: string(action), Slice: sliceOf(a, f.Instance),
			Warning: api.Warning{Name: name, Severity: severity, Message: a.ID + ": " + message, Since: now.Unix(), Remedy: remedy}}
	}
	const reset = "restart the box when nothing else runs on the card; if it comes back, change the card"
	var out api.AcceleratorFinding
	whole := false
	switch f.Kind {
	case "xid":
		x, ok := xids[f.Xid]
		if !ok {
			x.words, x.action = "a fault that is not known here", ActCordon
		}
		whole = x.whole
		severity := map[Action]api.Severity{ActNone: api.Info, ActCordon: api.Degraded, ActMove: api.Critical}[x.action]
		out = warn("gpu-xid", severity, x.action, fmt.Sprintf("%s (XID %d)", x.words, f.Xid), reset)
	case "ecc-uncorrected":
		out = warn("gpu-memory", api.Critical, ActMove, "memory failed and could not be corrected", reset)
	case "ecc-corrected":
		out = warn("gpu-memory-corrected", api.Info, ActNone, "a memory error was corrected", "")
	case "unavailable":
		whole, out = true, warn("gpu-lost", api.Critical, ActMove, "the card does not answer", reset)
	case "hot":
		whole = true
		if f.Celsius < hotC {
			return api.AcceleratorFinding{}
		}
		out = warn("gpu-hot", api.Degraded, ActCordon, fmt.Sprintf("%d °C: the card slows down to save itself", f.Celsius), "look at the fans and what is in the air's way")
	}
	if whole {
		out.Slice = ""
	}
	return out
}

// sliceOf is the UUID of a GPU instance's slice; empty when it is about the card.
func sliceOf(a *api.Accelerator, instance int) string {
	if a.MIG == nil || instance < 0 {
		return ""
	}
	for _, i := range a.MIG.Instances {
		if i.ID == instance {
			return i.UUID
		}
	}
	return ""
}

// Cordon marks what findings say may be given to no one.
func Cordon(a *api.Accelerator) {
	if a.MIG == nil {
		return
	}
	for n := range a.MIG.Instances {
		if words := faultOf(a, a.MIG.Instances[n].UUID); words != "" {
			a.MIG.Instances[n].Cordoned = words
		}
	}
}
