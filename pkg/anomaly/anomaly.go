// Package anomaly answers: does this sample look like nothing that its series did before?
//
// A Detector watches one series of numbers, sample by sample, in bounded memory, and knows
// neither labels nor what comes later. Four voices look at each sample, each in its own way,
// and each is measured against what it itself saw in this series before (decision 330).
package anomaly

import (
	"fmt"
	"math"
	"time"
)

// Voice is one way of looking at a series.
type Voice int

// The voices. Step, Shape and Hour compare with the third largest event so far: whatever is
// larger than that has hardly a precedent. Outlier compares with mean and deviation.
const (
	// Shape is how far the last samples, as a curve, are from the nearest curve remembered.
	Shape Voice = iota
	// Step is how much the value changed in one sample.
	Step
	// Hour is how far the last samples are from the mean of this quarter of an hour of the day.
	Hour
	// Outlier is Shape's distance again, in standard deviations above its mean.
	Outlier
	// Voices is how many there are.
	Voices
)

var voiceNames = [Voices]string{"shape", "step", "hour", "outlier"}

func (v Voice) String() string {
	if v < 0 || v >= Voices {
		return fmt.Sprintf("voice %d", int(v))
	}
	return voiceNames[v]
}

// Config tunes a detector; what is zero is as in Defaults.
type Config struct {
	// Limits are how much larger than usual a voice's measure is at least where it speaks up.
	Limits [Voices]float64
	// Rest is how many samples after a finding are part of it, and raise no other.
	Rest int
	// Warm is how many samples are listened to before the first finding.
	Warm int
	// Memory is how many curves are remembered.
	Memory int
	// Floor is the smallest difference of values that means anything: 0 where every one does.
	Floor float64
}

// Defaults are the parameters that are shipped, and under which docs/insight.md tells the score.
func Defaults() Config {
	return Config{Limits: [Voices]float64{Shape: 1, Step: 1.25, Hour: 1.25, Outlier: 5}, Rest: 60, Warm: 100, Memory: 1000}
}

// Firm are the parameters for findings that call a person: a box has many series, and each of them is
// watched for ever. Noise of nothing but chance has a finding in a thousand samples under Defaults,
// for which the benchmark charges a ninth of what it charges for a fault missed (decision 330).
func Firm() Config {
	c := Defaults()
	c.Limits = [Voices]float64{Shape: 1.5, Step: 2, Hour: 2, Outlier: 8}
	return c
}

func (c Config) filled() Config {
	d := Defaults()
	for v := range c.Limits {
		if c.Limits[v] <= 0 {
			c.Limits[v] = d.Limits[v]
		}
	}
	for _, n := range []struct {
		value *int
		or    int
	}{{&c.Rest, d.Rest}, {&c.Warm, d.Warm}, {&c.Memory, d.Memory}} {
		if *n.value <= 0 {
			*n.value = n.or
		}
	}
	return c
}

// Reading is what the detector thinks of one sample.
type Reading struct {
	// Measure is what each voice measured, in parts of what is usual for it; 0 while it listens.
	Measure [Voices]float64
	// Score is the largest measure in parts of its limit: at least 1 where there is a finding,
	// 0 where there is none.
	Score float64
	// Voice is whose measure that is. It measured Is, where Usual was the reference.
	Voice     Voice
	Is, Usual float64
}

// Found tells whether the sample is a finding.
func (r Reading) Found() bool { return r.Score > 0 }

// Detector watches one series. It is for one goroutine.
type Detector struct {
	config  Config
	curves  curves
	day     day
	last    float64
	seen    int
	shape   heights
	step    heights
	hour    heights
	outlier spread
	rested  int
}

// New makes a detector that has seen nothing.
func New(c Config) *Detector {
	c = c.filled()
	return &Detector{config: c, curves: newCurves(c.Memory), rested: c.Rest + 1}
}

// Add takes the next sample. A value that is no finite number is no sample, and changes nothing.
func (d *Detector) Add(at time.Time, value float64) Reading {
	var r Reading
	if math.IsNaN(value) || math.Abs(value) > math.MaxFloat64/1e20 { // its square still is a number
		return r
	}
	var is, usual [Voices]float64
	is[Shape] = d.curves.add(value)
	is[Outlier] = is[Shape]
	if d.seen > 0 {
		is[Step] = math.Abs(value - d.last)
	}
	is[Hour] = d.day.add(at, value)
	d.last = value
	usual[Shape] = d.shape.add(is[Shape])
	usual[Step] = d.step.add(is[Step])
	usual[Hour] = d.hour.add(is[Hour])
	mean, deviation := d.outlier.add(is[Outlier])
	usual[Outlier] = mean
	if d.seen >= d.config.Warm {
		curve := d.config.Floor * math.Sqrt(length) // the distance of curves that are a floor apart everywhere
		r.Measure[Shape] = part(is[Shape], usual[Shape], curve)
		r.Measure[Step] = part(is[Step], usual[Step], d.config.Floor)
		r.Measure[Hour] = part(is[Hour], usual[Hour], d.config.Floor)
		r.Measure[Outlier] = min(1e4, max(0, (is[Outlier]-mean)/max(deviation, curve, 1e-6)))
	}
	d.seen++
	d.rested++
	r.Score, r.Voice = d.config.Loudest(r.Measure)
	r.Is, r.Usual = is[r.Voice], usual[r.Voice]
	if r.Score < 1 || d.rested <= d.config.Rest {
		r.Score = 0
		return r
	}
	d.rested = 0
	return r
}

// Loudest is the largest of measures in parts of its limit.
func (c Config) Loudest(measure [Voices]float64) (score float64, voice Voice) {
	for v := range Voices {
		if s := measure[v] / c.Limits[v]; s > score {
			score, voice = s, v
		}
	}
	return score, voice
}

// part is is in parts of what is usual. A series that never moved has nothing usual: whatever it
// then does is a thousand times that.
func part(is, usual, floor float64) float64 {
	return min(1e3, is/(max(usual, floor)+1e-9))
}
