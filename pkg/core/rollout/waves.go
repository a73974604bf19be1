package rollout

import (
	"cmp"
	"crypto/sha256"
	"slices"

	"tributary.dev/tributary/pkg/api"
)

// Candidate is a device that a rollout is for.
type Candidate struct {
	ID, Site string
	Labels   map[string]string
}

// Waves is how many waves there are: the last takes what the others left.
func Waves(spec *api.RolloutSpec) int {
	if n := len(spec.Waves); n > 0 && spec.Waves[n-1].Percent >= 100 && spec.Waves[n-1].Selector == nil {
		return n
	}
	return len(spec.Waves) + 1
}

// WaveOf is one wave of those that Waves counts.
func WaveOf(spec *api.RolloutSpec, n int) api.RolloutWave {
	if n < len(spec.Waves) {
		return spec.Waves[n]
	}
	return api.RolloutWave{Percent: 100}
}

// Assign gives each device its wave. salt, the rollout's name, makes the order another one for
// each, so that the first is not always the same box, and is known before it begins; sites are gone through in turn, so that the devices of a
// small wave stand at different ones.
func Assign(spec *api.RolloutSpec, salt string, devices []Candidate) map[string]int {
	type ranked struct {
		*Candidate
		hash [sha256.Size]byte
		rank int
	}
	order := make([]ranked, len(devices))
	for i := range devices {
		order[i] = ranked{Candidate: &devices[i], hash: sha256.Sum256([]byte(salt + "\x00" + devices[i].ID))}
	}
	byHash := func(a, b ranked) int { return slices.Compare(a.hash[:], b.hash[:]) }
	slices.SortFunc(order, byHash)
	at := map[string]int{}
	for i := range order {
		if site := order[i].Site; site != "" {
			order[i].rank = at[site]
			at[site]++
		}
	}
	slices.SortStableFunc(order, func(a, b ranked) int { return cmp.Compare(a.rank, b.rank) })

	out := make(map[string]int, len(devices))
	for n := range Waves(spec) {
		wave, left := WaveOf(spec, n), len(devices)
		if wave.Devices > 0 {
			left = wave.Devices
		} else if wave.Percent > 0 {
			left = max(1, api.Amount{Percent: wave.Percent}.AtLeast(len(devices)))
		}
		for i := range order {
			if _, has := out[order[i].ID]; has || left == 0 || wave.Selector != nil && !wave.Selector.Matches(order[i].Labels) {
				continue
			}
			out[order[i].ID] = n
			left--
		}
	}
	return out
}
