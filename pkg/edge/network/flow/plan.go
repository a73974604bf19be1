package flow

import (
	"cmp"
	"errors"
	"slices"
)

// Filter is a rule that the kernel has.
type Filter struct {
	Hook   Hook
	Pref   uint16 // the order among those of a hook, the lowest first
	Handle uint32
	Chain  uint32
	// EthType is what the kernel files it under.
	EthType uint16
	// ID is that of the rule it was made of; empty for one that is not ours.
	ID string
	// InHardware says that the card has it; SkipSoftware, that only the card does.
	InHardware, SkipSoftware bool
	Packets, Bytes, Hardware uint64
}

// Step is one change of the kernel's rules: Add at Pref, or remove Remove.
type Step struct {
	Add    *Rule
	Pref   uint16
	Remove *Filter
}

// The range of preferences that rules get. Others who add rules without a preference get
// 49152 and below, each lower than the one before (tcf_auto_prio), and come after ours.
const (
	prefFirst = 0x1000
	prefLast  = 0xb000
	prefSpace = 64 // left between two rules for those to come
)

// ErrNoRoom says that a hook has more rules than there are numbers for.
var ErrNoRoom = errors.New("there is no room for that many rules at one interface")

// Plan says what is to be done, in order, so that the kernel has the wanted rules and no others
// of ours. After each step every packet meets the first old rule that it matches or the first new
// one, in full: rules that stay are not touched, new ones are added in their order, each before the
// old ones that it takes the place of, and old ones go last, the last of them first.
func Plan(have []Filter, want []Rule) ([]Step, error) {
	old, now := map[Hook][]Filter{}, map[Hook][]Rule{}
	var hooks []Hook
	note := func(h Hook) {
		if !slices.Contains(hooks, h) {
			hooks = append(hooks, h)
		}
	}
	for _, r := range want { // answers come first, so that nothing is sent to an app before they have a way
		note(r.Hook)
		now[r.Hook] = append(now[r.Hook], r)
	}
	for _, f := range have {
		if f.ID == "" {
			continue
		}
		note(f.Hook)
		old[f.Hook] = append(old[f.Hook], f)
	}
	var adds, removes []Step
	var failed error
	for _, h := range hooks {
		a, r, err := planHook(old[h], now[h])
		failed = cmp.Or(failed, err)
		adds, removes = append(adds, a...), append(removes, r...)
	}
	slices.Reverse(removes)
	return append(adds, removes...), failed
}

func planHook(old []Filter, now []Rule) (adds, removes []Step, err error) {
	slices.SortFunc(old, func(a, b Filter) int { return cmp.Compare(a.Pref, b.Pref) })
	stays := common(old, now)
	prefs, ok := number(old, stays)
	if !ok {
		// Too crowded to put the new ones in between: all of them before the old ones, or behind.
		for i := range stays {
			stays[i] = -1
		}
		if prefs, ok = apart(old, len(now)); !ok {
			return nil, nil, ErrNoRoom
		}
	}
	kept := map[int]bool{}
	for i := range now {
		if stays[i] >= 0 {
			kept[stays[i]] = true
			continue
		}
		adds = append(adds, Step{Add: &now[i], Pref: prefs[i]})
	}
	for i := range old {
		if !kept[i] {
			removes = append(removes, Step{Remove: &old[i]})
		}
	}
	return adds, removes, nil
}

// common finds what can stay: for each new rule the place of an old filter of the same identity,
// or -1, as many as can keep their order (the longest increasing subsequence).
func common(old []Filter, now []Rule) []int {
	at := map[string]int{}
	for i := range now {
		at[now[i].ID()] = i
	}
	// tails[k] is the old filter at which a sequence of length k+1 ends at the lowest place.
	var tails, places []int
	before := make([]int, len(old))
	for i, f := range old {
		place, ok := at[f.ID]
		if !ok {
			continue
		}
		k, _ := slices.BinarySearch(places, place)
		before[i] = -1
		if k > 0 {
			before[i] = tails[k-1]
		}
		if k == len(tails) {
			tails, places = append(tails, i), append(places, place)
		} else {
			tails[k], places[k] = i, place
		}
	}
	stays := make([]int, len(now))
	for i := range stays {
		stays[i] = -1
	}
	if len(tails) > 0 {
		for i := tails[len(tails)-1]; i >= 0; i = before[i] {
			stays[at[old[i].ID]] = i
		}
	}
	return stays
}

// number gives new rules preferences between those that stay: above the one before them, and
// below the old ones that stand there now.
func number(old []Filter, stays []int) ([]uint16, bool) {
	prefs := make([]uint16, len(stays))
	low, next := prefFirst-1, 0
	for i := 0; i < len(stays); {
		if stays[i] >= 0 {
			next = stays[i] + 1
			low = int(old[stays[i]].Pref)
			prefs[i] = old[stays[i]].Pref
			i++
			continue
		}
		n := 0
		for i+n < len(stays) && stays[i+n] < 0 {
			n++
		}
		high := prefLast + 1
		if next < len(old) {
			high = int(old[next].Pref)
		}
		if !spread(prefs[i:i+n], low, high) {
			return nil, false
		}
		i += n
	}
	return prefs, true
}

// apart gives n preferences that are all lower, or all higher, than those of the old ones.
func apart(old []Filter, n int) ([]uint16, bool) {
	prefs := make([]uint16, n)
	low, high := prefFirst-1, prefLast+1
	if len(old) > 0 {
		if first := int(old[0].Pref); spread(prefs, low, first) {
			return prefs, true
		}
		low = int(old[len(old)-1].Pref)
	}
	return prefs, spread(prefs, low, high)
}

// spread places numbers between low and high, apart from each other where there is room: near
// the neighbour, and in the middle where there is none.
func spread(prefs []uint16, low, high int) bool {
	n := len(prefs)
	if high-low-1 < n {
		return false
	}
	space := min(prefSpace, (high-low)/(n+1))
	space = max(space, 1)
	from := low + space
	switch openLow, openHigh := low < prefFirst, high > prefLast; {
	case openLow && openHigh:
		from = low + 1 + (high-low-1-(n-1)*space)/2
	case openLow:
		from = high - n*space
	}
	for i := range prefs {
		prefs[i] = uint16(from + i*space)
	}
	return true
}
