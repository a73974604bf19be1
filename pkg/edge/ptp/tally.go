package ptp

import (
	"math"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// kpiEvery is the granularity of performance counters in telecom (3GPP TS 28.552).
const kpiEvery = 15 * time.Minute

// tally sums up readings of the offset.
type tally struct {
	from           time.Time
	count, missing uint64
	min, max       int64
	sum, squares   float64
}

// add takes one reading; followed says that there was a clock to be off from.
func (t *tally) add(offset int64, followed bool) {
	if !followed {
		t.missing++
		return
	}
	if t.count == 0 || offset < t.min {
		t.min = offset
	}
	if t.count == 0 || offset > t.max {
		t.max = offset
	}
	t.count++
	t.sum += float64(offset)
	t.squares += float64(offset) * float64(offset)
}

// cut gives what was added since the last cut, and begins anew, once that is kpiEvery ago. A clock that was
// set back cuts as well.
func (t *tally) cut(now time.Time) (kpi api.KPI, due bool) {
	if t.from.IsZero() {
		t.from = now
	}
	if since := now.Sub(t.from); since >= 0 && since < kpiEvery {
		return kpi, false
	}
	kpi = api.KPI{Name: "ptp.offset", Unit: "ns", From: t.from.UnixMilli(), To: now.UnixMilli(), Count: t.count, Missing: t.missing, Min: t.min, Max: t.max}
	if t.count > 0 {
		kpi.Mean = int64(math.Round(t.sum / float64(t.count)))
		kpi.RMS = int64(math.Round(math.Sqrt(t.squares / float64(t.count))))
	}
	*t = tally{from: now}
	return kpi, true
}
