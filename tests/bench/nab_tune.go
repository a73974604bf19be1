package main

import (
	"math"
	"path"
	"slices"

	"tributary.dev/tributary/pkg/anomaly"
)

// What follows is the standard profile of the benchmark (Lavin, Ahmad: Evaluating Real-time
// Anomaly Detection Algorithms, 2015, section II): the limits are tuned by it. That it says the
// same as the benchmark's scorer is checked in each run.

const falseAlarm = 0.11

// worth is 1 down to 0 across a window, and to -1 behind it.
func worth(position float64) float64 {
	if position > 3 {
		return -1
	}
	return 2/(1+math.Exp(5*position)) - 1
}

// probation is how many samples at the beginning are not scored.
func (s *nabSeries) probation() int {
	return int(math.Min(math.Floor(0.15*float64(len(s.values))), 750))
}

// scored tells whether part of a window is behind the probation.
func (s *nabSeries) scored(window int) bool { return s.windows[window][1] >= s.probation() }

// founds lists the samples whose score is at least the threshold.
func (s *nabSeries) founds(threshold float64) (at []int) {
	for i, r := range s.readings {
		if nabScore(r.Score) >= threshold {
			at = append(at, i)
		}
	}
	return at
}

// score judges findings at these samples, ascending.
func (s *nabSeries) score(founds []int) (sum float64) {
	best := make([]float64, len(s.windows))
	for w := range s.windows {
		if s.scored(w) {
			best[w] = -1
		}
	}
	for _, i := range founds {
		if i < s.probation() {
			continue
		}
		in, before := -1, -1
		for w, ends := range s.windows {
			if ends[0] <= i && i <= ends[1] {
				in = w
			} else if ends[1] < i {
				before = w
			}
		}
		switch {
		case in >= 0:
			ends := s.windows[in]
			best[in] = max(best[in], worth(-float64(ends[1]-i+1)/float64(ends[1]-ends[0]+1))/worth(-1))
		case before >= 0:
			ends := s.windows[before]
			sum += falseAlarm * worth(float64(i-ends[1])/float64(ends[1]-ends[0]))
		default:
			sum -= falseAlarm
		}
	}
	for _, b := range best {
		sum += b
	}
	return sum
}

// normalNAB is 0 where nothing is found and 100 where each window is found at once and nothing else.
func normalNAB(series []*nabSeries, score func(*nabSeries) float64) float64 {
	var sum, null, perfect float64
	for _, s := range series {
		sum += score(s)
		perfect += float64(len(s.windows))
		for w := range s.windows {
			if s.scored(w) {
				null--
			}
		}
	}
	return 100 * (sum - null) / (perfect - null)
}

// grid is every choice of limits and rest that is tried.
func grid() (all []anomaly.Config) {
	parts := []float64{0.8, 0.9, 1, 1.1, 1.25, 1.5, 2}
	for _, rest := range []int{30, 40, 60, 80, 100, 150} {
		for _, shape := range parts {
			for _, step := range parts {
				for _, hour := range parts {
					for _, outlier := range []float64{3, 4, 5, 6, 8, 12} {
						c := anomaly.Config{Rest: rest}
						c.Limits = [anomaly.Voices]float64{anomaly.Shape: shape, anomaly.Step: step, anomaly.Hour: hour, anomaly.Outlier: outlier}
						all = append(all, c)
					}
				}
			}
		}
	}
	return all
}

// loud are the samples that can be a finding under a choice of the grid.
type loud struct {
	at      int
	measure [anomaly.Voices]float64
}

func (s *nabSeries) louds() (out []loud) {
	for i, r := range s.readings {
		m := r.Measure
		if m[anomaly.Shape] >= 0.8 || m[anomaly.Step] >= 0.8 || m[anomaly.Hour] >= 0.8 || m[anomaly.Outlier] >= 3 {
			out = append(out, loud{i, m})
		}
	}
	return out
}

// leaveOneOut scores each category under the choice that is best for all the others.
func leaveOneOut(series []*nabSeries) float64 {
	louds := map[*nabSeries][]loud{}
	var categories []string
	for _, s := range series {
		louds[s] = s.louds()
		if c := path.Dir(s.name); !slices.Contains(categories, c) {
			categories = append(categories, c)
		}
	}
	best, own := map[string]float64{}, map[string]map[*nabSeries]float64{}
	for _, c := range grid() {
		scores, all := map[*nabSeries]float64{}, 0.0
		without := map[string]float64{}
		for _, s := range series {
			scores[s] = s.score(judge(c, louds[s]))
			all += scores[s]
			without[path.Dir(s.name)] -= scores[s]
		}
		for _, category := range categories {
			if others := all + without[category]; own[category] == nil || others > best[category] {
				best[category], own[category] = others, scores
			}
		}
	}
	return normalNAB(series, func(s *nabSeries) float64 { return own[path.Dir(s.name)][s] })
}

// judge finds as a detector of that choice does.
func judge(c anomaly.Config, louds []loud) (founds []int) {
	for _, l := range louds {
		if score, _ := c.Loudest(l.measure); score >= 1 && (len(founds) == 0 || l.at-founds[len(founds)-1] > c.Rest) {
			founds = append(founds, l.at)
		}
	}
	return founds
}
