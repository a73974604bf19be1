package anomaly

import (
	"math"
	"time"
)

// length is how many samples are a curve.
const length = 16

// curves remembers the last samples, whose overlapping parts are the curves.
type curves struct {
	memory int
	// samples are the newest last. It is twice as long as what is needed of it, so that the
	// needed part is moved to its beginning rarely.
	samples []float64
}

// newest is how old a remembered curve is at least, in samples: before that it overlaps with the one compared.
const newest = length + 1

func newCurves(memory int) curves {
	return curves{memory: memory, samples: make([]float64, 0, 2*(memory+length+newest))}
}

// add tells how far the curve that ends with this sample is from the nearest one remembered, 0
// while none is.
func (c *curves) add(value float64) float64 {
	need := c.memory + length + newest - 1
	if len(c.samples) == cap(c.samples) {
		c.samples = c.samples[:copy(c.samples, c.samples[len(c.samples)-need+1:])]
	}
	c.samples = append(c.samples, value)
	n := len(c.samples)
	last := n - newest // where the newest curve remembered ends, and is part of it
	first := max(0, last-length+1-c.memory)
	if last-length < first {
		return 0
	}
	return nearest(c.samples[first:last], c.samples[n-length:])
}

// nearest is the Euclidean distance of curve from the nearest part of series that is as long.
func nearest(series, curve []float64) float64 {
	best := math.Inf(1)
	now := (*[length]float64)(curve)
	for ; len(series) >= length; series = series[1:] {
		then := (*[length]float64)(series)
		sum := 0.0
		// From the newest sample: where a curve is far, it mostly is there, and the rest need not be looked at.
		for i := length - 1; i >= 0 && sum < best; i-- {
			d := now[i] - then[i]
			sum += d * d
		}
		best = min(best, sum)
	}
	return math.Sqrt(best)
}

// quarters are how many parts of a day are told apart.
const quarters = 96

// day knows the mean of each quarter of an hour of the day (UTC), and how far the last samples are from it.
type day struct {
	means [quarters]struct{ mean, days float64 }
	whole struct{ mean, count float64 }
	now   int
	sum   float64
	count float64
	off   [3]float64
	at    int
}

func (d *day) add(at time.Time, value float64) float64 {
	at = at.UTC()
	quarter := (at.Hour()*60 + at.Minute()) / (24 * 60 / quarters)
	if quarter != d.now {
		d.close()
		d.now = quarter
	}
	d.whole.count++
	d.whole.mean += (value - d.whole.mean) / d.whole.count
	expected := d.whole.mean
	if m := d.means[quarter]; m.days > 0 {
		expected = m.mean
	}
	off := value - expected
	d.off[d.at] = off
	d.at = (d.at + 1) % len(d.off)
	d.sum += value
	d.count++
	return math.Abs(d.off[0]+d.off[1]+d.off[2]) / float64(len(d.off))
}

// close ends the quarter that was now: what was seen in it counts from the next day on.
func (d *day) close() {
	if d.count == 0 {
		return
	}
	m := &d.means[d.now]
	m.days++
	m.mean += max(0.2, 1/m.days) * (d.sum/d.count - m.mean)
	d.sum, d.count = 0, 0
}

const (
	// apart is how many samples lie between two events: what is nearer is one.
	apart = 50
	// kept is how many of the largest events are known by their place. The third is asked for;
	// the others are kept so that what grows out of a smaller one is not counted again.
	kept = 16
	rank = 3
)

// heights knows the largest events of a measure.
type heights struct {
	events [kept]struct {
		at     int
		height float64
	}
	count, now int
}

// add takes the next height and tells the third largest of the events before it.
func (h *heights) add(height float64) (usual float64) {
	if h.count > 0 {
		usual = h.events[min(rank, h.count)-1].height
	}
	h.now++
	at := -1
	for i := range h.count {
		if h.now-h.events[i].at <= apart {
			at = i
			break
		}
	}
	switch {
	case at >= 0 && height <= h.events[at].height:
		return usual
	case at >= 0:
	case h.count < kept:
		at = h.count
		h.count++
	case height > h.events[kept-1].height:
		at = kept - 1
	default:
		return usual
	}
	h.events[at].at, h.events[at].height = h.now, height
	for ; at > 0 && h.events[at-1].height < height; at-- {
		h.events[at-1], h.events[at] = h.events[at], h.events[at-1]
	}
	return usual
}

// spread knows mean and deviation of a measure, of all of it at first, later of the last some thousand samples.
type spread struct {
	mean, variance, count float64
}

// leastWeight is the least weight of a new sample.
const leastWeight = 0.0005

// add takes the next measure and tells mean and deviation of those before it.
func (s *spread) add(v float64) (mean, deviation float64) {
	mean, deviation = s.mean, math.Sqrt(s.variance)
	s.count++
	weight := max(leastWeight, 1/s.count)
	d := v - s.mean
	s.mean += weight * d
	s.variance += weight * (d*d*(1-weight) - s.variance)
	return mean, deviation
}
