package record

import (
	"fmt"

	"tributary.dev/tributary/pkg/api"
)

// SumUsage adds usage of following intervals up to one of the whole time. Nothing
// is lost but where within it each part fell. What the last one's end is, is the sum's: no
// other may be a cut point.
func SumUsage(us ...api.Usage) (api.Usage, error) {
	if len(us) == 0 {
		return api.Usage{}, fmt.Errorf("%w: no usage to sum", ErrMalformed)
	}
	out := api.Usage{From: us[0].From, To: us[0].To, Cut: us[len(us)-1].Cut}
	at := make(map[pair]int)
	for i, u := range us {
		if u.Cut && i < len(us)-1 {
			return api.Usage{}, fmt.Errorf("%w: a sum across a cut point", ErrMalformed)
		}
		out.From, out.To = min(out.From, u.From), max(out.To, u.To)
		for _, c := range u.Uses {
			p := pair{c.App, c.Service}
			i, ok := at[p]
			if !ok {
				i = len(out.Uses)
				at[p] = i
				out.Uses = append(out.Uses, api.ContainerUse{App: c.App, Service: c.Service})
			}
			if !addUse(&out.Uses[i], c) {
				return api.Usage{}, fmt.Errorf("%w: sum of usage overflows", ErrMalformed)
			}
		}
	}
	if len(out.Uses) > MaxUses {
		return api.Usage{}, fmt.Errorf("%w: usage of %d containers", ErrMalformed, len(out.Uses))
	}
	return out, nil
}

func addUse(to *api.ContainerUse, c api.ContainerUse) bool {
	ok := true
	add := func(a *uint64, b uint64) {
		*a += b
		ok = ok && *a >= b
	}
	add(&to.RunMillis, c.RunMillis)
	add(&to.CPUMicros, c.CPUMicros)
	add(&to.MemoryByteSeconds, c.MemoryByteSeconds)
	add(&to.RxBytes, c.RxBytes)
	add(&to.TxBytes, c.TxBytes)
	more := c.Accelerator.Fields()
	for i, n := range to.Accelerator.Fields() {
		add(n, *more[i])
	}
	for key, n := range c.More {
		if to.More == nil {
			to.More = make(map[string]uint64, len(c.More))
		}
		sum := to.More[key]
		add(&sum, n)
		to.More[key] = sum
	}
	ok = ok && len(to.More) <= MaxMeters
	return ok
}
