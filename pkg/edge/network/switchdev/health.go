package switchdev

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Reporter is one of a card's own watchers: of its firmware, of its queues.
type Reporter struct {
	Name string
	// Interface is the port's that it watches; empty for all of the card.
	Interface string
	// Failed says that what it watches has failed and is not mended.
	Failed             bool
	Errors, Recoveries uint64
}

// healthOf is what the inventory tells of cards, in the order of their names.
func healthOf(all []Observed) (out []api.CardHealth) {
	for _, o := range all {
		h := api.CardHealth{Card: o.Device.Name, ResetFailed: o.Device.Unreloaded}
		for _, r := range o.Reporters {
			h.Reporters = append(h.Reporters, api.HealthReporter{Name: r.Name, Interface: r.Interface, Failed: r.Failed, Errors: r.Errors, Recoveries: r.Recoveries})
		}
		slices.SortFunc(h.Reporters, func(a, b api.HealthReporter) int {
			return cmp.Or(cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.Name, b.Name))
		})
		if h.ResetFailed || len(h.Reporters) > 0 {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b api.CardHealth) int { return cmp.Compare(a.Card, b.Card) })
	return out
}

// faults are words on cards that are not well.
func faults(all []api.CardHealth) (words []string) {
	for _, h := range all {
		if h.ResetFailed {
			words = append(words, fmt.Sprintf("%s: its driver began anew and failed", h.Card))
		}
		var failed []string
		for _, r := range h.Reporters {
			if r.Failed {
				failed = append(failed, strings.TrimSuffix(r.Name+" of "+r.Interface, " of "))
			}
		}
		if len(failed) > 0 {
			words = append(words, fmt.Sprintf("%s has failed and is not mended: %s", h.Card, strings.Join(failed, ", ")))
		}
	}
	return words
}
