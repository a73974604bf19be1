package mqtt

import (
	"math/rand/v2"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Backoff bounds the pause before the next attempt. The zero value is 1 s to 2 min.
type Backoff struct{ Min, Max time.Duration }

func (b Backoff) withDefaults() Backoff {
	if b.Min <= 0 {
		b.Min = time.Second
	}
	if b.Max < b.Min {
		b.Max = max(2*time.Minute, b.Min)
	}
	return b
}

// pause is the wait after so many failures in a row: doubled each time, of which a random
// half is taken off, so that the children of a parent that comes back do not come all at
// once. r is in [0, 1).
func (b Backoff) pause(failures int, r float64) time.Duration {
	d := b.Min
	for range min(failures-1, 32) {
		if d >= b.Max/2 {
			d = b.Max
			break
		}
		d *= 2
	}
	return d/2 + time.Duration(r*float64(d/2))
}

// ladder decides which parent is tried next. It stays with one for patience failures,
// then goes to the next, round and round.
type ladder struct {
	parents []api.ParentRef
	at      int
	here    int // failures in a row at this parent
	given   int // parents in a row that were given up
}

// patience is how often a parent may fail before the next one is tried.
const patience = 3

// current is the parent to try; false when the list is empty.
func (l *ladder) current() (api.ParentRef, bool) {
	if len(l.parents) == 0 {
		return api.ParentRef{}, false
	}
	return l.parents[l.at], true
}

// failed notes an attempt that failed, or a session that ended at once.
func (l *ladder) failed() {
	l.here++
	if l.here >= patience && len(l.parents) > 0 {
		l.at, l.here = (l.at+1)%len(l.parents), 0
		l.given++
	}
}

// failures is what the pause before the next attempt goes by. It starts anew at each
// parent of the list, so that a device whose relay is lost is soon at its next one, and
// goes on where it was when all of them have failed.
func (l *ladder) failures() int {
	return max(1, l.here+patience*(l.given/max(1, len(l.parents))))
}

// held notes a session that lasted.
func (l *ladder) held() { l.here, l.given = 0, 0 }

// climbed notes a session with a better parent than the present one. It reports false, and
// changes nothing, when that one is not listed any more or no better.
func (l *ladder) climbed(p api.ParentRef) bool {
	i := slices.Index(l.parents, p)
	if i < 0 || i >= l.at {
		return false
	}
	l.at, l.here = i, 0
	return true
}

// set replaces the list. The position stays while neither it nor what is better than it
// changes; else it goes to the best: a person who puts a parent first means the device
// to move there.
func (l *ladder) set(parents []api.ParentRef) {
	same := len(l.parents) > l.at && len(parents) > l.at && slices.Equal(parents[:l.at+1], l.parents[:l.at+1])
	if l.parents = parents; !same {
		l.at, l.here, l.given = 0, 0, 0
	}
}

// random is the jitter's source when none is given.
func random() float64 { return rand.Float64() }
