// Package timesync answers: what time is it on a box whose clock may stand in any year, by
// servers of which none can be trusted?
//
// The box knows a floor: a moment that is certainly past, since the core signed it, or the
// image was built then. What the network's time servers say (SNTP, RFC 5905 section 14)
// may move the clock anywhere above the floor, never below it, and counts as trusted when
// most of those asked agree.
package timesync

import (
	"slices"
	"time"
)

// Answer is one server's word: how far ahead of this machine's clock it is, and by how much
// it may be wrong (RFC 5905, root distance).
type Answer struct {
	Server string
	Offset time.Duration
	Error  time.Duration
}

// Verdict is what to do with the clock.
type Verdict struct {
	// By is how far the clock is to be moved; zero leaves it.
	By time.Duration
	// Slew: slowly, since programs are better off with a clock that does not jump.
	Slew bool
	// Trusted: most servers agree, and none of it contradicts what is certain.
	Trusted bool
	// Error bounds how wrong the clock then is; it counts if Trusted.
	Error time.Duration
	Why   string // in words
}

const (
	// worst is an answer too vague to be of use.
	worst = 3 * time.Second
	// slewBelow is what is mended slowly (RFC 5905, STEPT).
	slewBelow = 128 * time.Millisecond
	// tooFar bounds how far beyond the floor a server may send a box: 20 years, as boot
	// bounds what it saved.
	tooFar = 20 * 365 * 24 * time.Hour
)

// Decide judges answers. now is the machine's clock, floor what is certainly past (zero:
// nothing).
func Decide(now, floor time.Time, answers []Answer) Verdict {
	behind := time.Duration(0)
	if !floor.IsZero() && now.Before(floor) {
		behind = floor.Sub(now)
	}
	lift := func(why string) Verdict {
		return Verdict{By: behind, Why: why}
	}
	var good []Answer
	for _, a := range answers {
		at := now.Add(a.Offset)
		if a.Error < 0 || a.Error > worst || at.Add(a.Error).Before(floor) || !floor.IsZero() && at.Sub(floor) > tooFar {
			continue
		}
		good = append(good, a)
	}
	if len(good) == 0 {
		if len(answers) == 0 {
			return lift("no time server answers")
		}
		return lift("no time server is believable")
	}
	best := agree(good)
	if 2*len(best) <= len(answers) {
		return lift("the time servers do not agree")
	}
	slices.SortFunc(best, func(a, b Answer) int { return int(a.Error - b.Error) })
	by := best[0].Offset
	if !floor.IsZero() && now.Add(by).Before(floor) {
		by = floor.Sub(now)
	}
	return Verdict{By: by, Slew: by.Abs() < slewBelow, Trusted: true, Error: best[0].Error + (by - best[0].Offset).Abs(), Why: best[0].Server}
}

// agree is the largest group of answers whose ranges have a moment in common (RFC 5905
// section 11.2.1).
func agree(list []Answer) (best []Answer) {
	for _, edge := range list {
		at := edge.Offset - edge.Error // a group's moment may be taken where a range begins
		var in []Answer
		for _, a := range list {
			if a.Offset-a.Error <= at && at <= a.Offset+a.Error {
				in = append(in, a)
			}
		}
		if len(in) > len(best) {
			best = in
		}
	}
	return best
}
