package accel

import "slices"

// Holding is a part of a card that one service held between two looks at the card.
type Holding struct {
	Who string // app/service
	// Compute is its part of the card: compute slices under MIG; 1 under the other modes.
	Compute   int
	Seconds   float64
	MemoryMiB int64
	// Percent is how much of the time a kernel of it ran; -1 where the card does not tell.
	Percent int
}

// Used is what one service is charged for.
type Used struct {
	Who            string
	SliceSeconds   float64 // compute slices times seconds
	MemoryMiBHours float64
	// BusySeconds is the time in which a kernel ran; -1 unknown.
	BusySeconds float64
	// EnergyJ is its part of what the card drew.
	EnergyJ float64
}

// Meter parts what a card used among who held it. A card has one meter of energy, so it is
// parted by compute times use where use is known of all, and by compute alone otherwise; the
// parts of free slices, of the card's slices in all, stay with the box. The sum of all parts
// is never more than the card drew.
func Meter(slicesInAll int, energyMJ uint64, held []Holding) []Used {
	known := !slices.ContainsFunc(held, func(h Holding) bool { return h.Percent < 0 })
	// A holder that does nothing draws too: half by what is held, half by what is done.
	var done float64
	for _, h := range held {
		done += float64(h.Compute) * float64(max(h.Percent, 0))
	}
	all := slicesInAll
	compute := 0
	for _, h := range held {
		compute += h.Compute
	}
	all = max(all, compute, 1)
	out := make([]Used, 0, len(held))
	joules := float64(energyMJ) / 1000
	for _, h := range held {
		part := float64(h.Compute) / float64(all)
		if known && done > 0 {
			part = part/2 + float64(h.Compute)*float64(h.Percent)/done/2*float64(compute)/float64(all)
		}
		u := Used{Who: h.Who, SliceSeconds: float64(h.Compute) * h.Seconds, MemoryMiBHours: float64(h.MemoryMiB) * h.Seconds / 3600, BusySeconds: -1, EnergyJ: joules * part}
		if h.Percent >= 0 {
			u.BusySeconds = h.Seconds * float64(h.Percent) / 100
		}
		out = append(out, u)
	}
	return out
}
