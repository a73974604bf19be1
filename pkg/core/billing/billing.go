// Package billing answers: what does a tenant owe for what was used, and which paper says so
// for ever?
//
// Rating is a pure function (Tally, Lines): terms, entries and a period become lines. A run
// makes drafts of them, and issues invoices: numbered, rendered once, kept by their bytes, and
// entered into a ledger that only grows. Everything is in the ledger's database, in tables of
// this room alone, but for the heads of the chain, which are kept outside.
package billing

import (
	"cmp"
	"slices"
	"strings"
)

// isGap reports whether a decision is about a gap.
func isGap(subject string) bool { return strings.HasPrefix(subject, "gap/") }

// newest keeps the last decision about each subject, by subject.
func newest(list []Decision) []Decision {
	last := map[string]Decision{}
	for _, d := range list {
		last[d.Subject] = d
	}
	out := make([]Decision, 0, len(last))
	for _, d := range last {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b Decision) int { return cmp.Compare(a.Subject, b.Subject) })
	return out
}
