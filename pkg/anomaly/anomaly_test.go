package anomaly

import (
	"math"
	"math/rand"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// found feeds a series, a sample every five minutes, and tells which samples are findings.
func found(c Config, n int, value func(i int) float64) (at []int, last Reading) {
	d := New(c)
	for i := range n {
		if r := d.Add(start.Add(time.Duration(i)*5*time.Minute), value(i)); r.Found() {
			at, last = append(at, i), r
		}
	}
	return at, last
}

// busy is a day's course with noise, the same for each seed.
func busy(seed int64) func(i int) float64 {
	r := rand.New(rand.NewSource(seed))
	noise := make([]float64, 5000)
	for i := range noise {
		noise[i] = r.NormFloat64()
	}
	return func(i int) float64 { return 50 + 20*math.Sin(2*math.Pi*float64(i)/288) + noise[i] }
}

// seeds is how many of them are tried: a quarter where time is short.
func seeds(n int64) int64 {
	if testing.Short() {
		return n / 4
	}
	return n
}

func TestFaultsAreFound(t *testing.T) {
	const fault = 3000
	for name, bend := range map[string]func(i int, v float64) float64{
		"spike":            func(i int, v float64) float64 { return v + 30*one(i == fault) },
		"level":            func(i int, v float64) float64 { return v + 30*one(i >= fault) },
		"stuck at nothing": func(i int, v float64) float64 { return v * (1 - one(i >= fault)) },
		"noise":            func(i int, v float64) float64 { return v + 8*one(i >= fault)*float64(i%3-1) },
		"the wrong hour":   func(i int, v float64) float64 { return v + one(i >= fault)*(busy(1)((i+144)%4000)-v) },
	} {
		for seed := range seeds(4) {
			course := busy(seed)
			at, r := found(Firm(), fault+20, func(i int) float64 { return bend(i, course(i)) })
			if len(at) == 0 || at[len(at)-1] < fault {
				t.Errorf("%s, seed %d: findings at %v, none from %d on", name, seed, at, fault)
				continue
			}
			if r.Is <= r.Usual {
				t.Errorf("%s, seed %d: the voice %s measured %g, and %g is usual", name, seed, r.Voice, r.Is, r.Usual)
			}
		}
	}
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func TestQuietSeriesRaiseLittle(t *testing.T) {
	for name, try := range map[string]struct {
		config Config
		most   int
	}{"defaults": {Defaults(), 40}, "firm": {Firm(), 4}} { // a finding in 1,000 samples, and in 10,000
		all := 0
		for seed := range seeds(8) {
			at, _ := found(try.config, 5000, busy(seed))
			for _, i := range at {
				if i > 2*288 { // the first two days are all new
					all++
				}
			}
		}
		if all > try.most*int(seeds(8))/8 {
			t.Errorf("%s: %d findings in eight series of 5,000 samples without a fault", name, all)
		}
	}
	if at, _ := found(Config{}, 2000, func(int) float64 { return 7 }); len(at) > 0 {
		t.Errorf("findings at %v in a series that never moves", at)
	}
}

func TestFloor(t *testing.T) {
	flicker := func(i int) float64 { return 7 + 0.01*one(i == 1500) }
	if at, _ := found(Config{}, 2000, flicker); len(at) == 0 {
		t.Error("without a floor the first move of a still series is none")
	}
	if at, _ := found(Config{Floor: 0.1}, 2000, flicker); len(at) > 0 {
		t.Errorf("findings at %v, of less than the floor", at)
	}
}

// TestNearest holds the window that is kept against all samples, as the definition has it.
func TestNearest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		memory := rapid.IntRange(1, 40).Draw(t, "memory")
		all := rapid.SliceOfN(rapid.Float64Range(-100, 100), 0, 300).Draw(t, "samples")
		c := newCurves(memory)
		for i := range all {
			want := math.Inf(1)
			for end := i - newest; end >= max(length-1, i-newest-memory+1); end-- {
				sum := 0.0
				for k := range length {
					sum += (all[i-k] - all[end-k]) * (all[i-k] - all[end-k])
				}
				want = min(want, math.Sqrt(sum))
			}
			if math.IsInf(want, 1) {
				want = 0
			}
			if got := c.add(all[i]); math.Abs(got-want) > 1e-9 {
				t.Fatalf("sample %d: %g from the nearest, want %g", i, got, want)
			}
			if cap(c.samples) != 2*(memory+length+newest) {
				t.Fatalf("%d samples are kept", cap(c.samples))
			}
		}
	})
}

// TestHeights: with events that far apart that each is one, the usual is the third largest.
func TestHeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rapid.Float64Range(0, 10), 1, 40).Draw(t, "events")
		var h heights
		for i, v := range list {
			want, larger := 0.0, append([]float64(nil), list[:i]...)
			for range min(rank, i) {
				best := 0
				for k := range larger {
					if larger[k] > larger[best] {
						best = k
					}
				}
				want = larger[best]
				larger = append(larger[:best], larger[best+1:]...)
			}
			if got := h.add(v); got != want {
				t.Fatalf("before event %d of %v: usual is %g, want %g", i, list, got, want)
			}
			h.now += apart
		}
	})
}

// TestAnyNumbers: whatever numbers come, scores are numbers, the detector listens first, and rests between findings.
func TestAnyNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Config{Rest: rapid.IntRange(1, 30).Draw(t, "rest"), Warm: rapid.IntRange(1, 60).Draw(t, "warm"), Memory: 50}
		d := New(c)
		at, heard, lastFound := start, 0, -1<<30
		for range rapid.IntRange(1, 400).Draw(t, "samples") {
			at = at.Add(time.Duration(rapid.Int64Range(-1e13, 1e13).Draw(t, "later")))
			v := rapid.OneOf(rapid.Float64(), rapid.Float64Range(0, 3), rapid.Just(math.NaN()), rapid.Just(math.Inf(-1))).Draw(t, "value")
			before := *d
			r := d.Add(at, v)
			if math.IsNaN(v) || math.IsInf(v, 0) {
				if d.seen != before.seen || r.Found() {
					t.Fatalf("%g counted as a sample", v)
				}
				continue
			}
			if d.seen > before.seen {
				heard++
			}
			if math.IsNaN(r.Score) || math.IsInf(r.Score, 0) || r.Score < 0 || r.Score > 0 && r.Score < 1 {
				t.Fatalf("score %g after %g", r.Score, v)
			}
			if !r.Found() {
				continue
			}
			if heard <= c.Warm {
				t.Fatalf("a finding at sample %d of %d to listen to", heard, c.Warm)
			}
			if heard-lastFound <= c.Rest {
				t.Fatalf("findings at samples %d and %d, with a rest of %d", lastFound, heard, c.Rest)
			}
			lastFound = heard
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	d, course := New(Config{}), busy(1)
	for i := 0; b.Loop(); i++ {
		d.Add(start.Add(time.Duration(i)*time.Minute), course(i%5000))
	}
}
