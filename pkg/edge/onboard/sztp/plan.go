package sztp

import (
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/identity/voucher"
)

// Kind is a kind of source, in the order in which they are asked (RFC 8572 section 4).
type Kind int

// The kinds.
const (
	Stick    Kind = iota // removable storage
	DHCP                 // options 143 and 136
	Site                 // DNS-SD, by mDNS or the site's DNS
	BuiltIn              // in the image
	Referred             // named by an answer of another
)

func (k Kind) String() string {
	return [...]string{"stick", "DHCP", "site", "image", "redirect"}[k]
}

// Source is one place to ask: a folder, or the root URL of a bootstrap server.
type Source struct {
	Kind  Kind
	Place string
}

func (s Source) String() string { return s.Kind.String() + " " + s.Place }

const (
	// maxOfKind bounds what a round asks of one kind of source, and as many again of those that they
	// name: a site with a hundred servers does not keep the box from those in its image. maxHops
	// bounds the redirects that lead to a source: two servers that name each other end.
	maxOfKind = 16
	maxHops   = 5
)

// Round is one walk through the sources. It is a pure machine: Next says whom to ask, and
// Heard takes what came of it.
type Round struct {
	queue []step
	seen  map[string]bool
	asked [2 * Referred]int // of each kind, and named by each; in the queue or before
	now   step
	// Refused collects why answers were not taken, by source.
	Refused []Refused
}

type step struct {
	Source
	hops int
	via  string // the source that named it
	from Kind   // of that, or its own
}

// Refused is one source and why it did not serve.
type Refused struct {
	Source Source
	Err    error
}

// NewRound begins a walk. Sources are put in order by kind; within a kind the order is
// kept. Those named twice are asked once.
func NewRound(sources []Source) *Round {
	list := slices.Clone(sources)
	slices.SortStableFunc(list, func(a, b Source) int { return int(a.Kind) - int(b.Kind) })
	r := &Round{seen: map[string]bool{}}
	for _, s := range list {
		r.add(step{Source: s, from: s.Kind}, len(r.queue))
	}
	return r
}

func (r *Round) add(s step, at int) bool {
	key := strings.TrimRight(s.Place, "/")
	of := &r.asked[s.from]
	if s.Kind == Referred {
		of = &r.asked[Referred+s.from]
	}
	if r.seen[key] || *of >= maxOfKind {
		return false
	}
	r.seen[key] = true
	*of++
	r.queue = slices.Insert(r.queue, at, s)
	return true
}

// Next is whom to ask now; ok is false at the end of the walk.
func (r *Round) Next() (s Source, ok bool) {
	if len(r.queue) == 0 {
		return s, false
	}
	r.now, r.queue = r.queue[0], r.queue[1:]
	return r.now.Source, true
}

// Heard takes the judgement over the answer of the source that Next named last. It
// returns what was found; nil means to go on with Next.
func (r *Round) Heard(v *Verdict, err error) *Found {
	if err == nil && v.Conveyed.Redirect != nil {
		err = r.redirect(v.Conveyed.Redirect)
		if err == nil {
			return nil
		}
	}
	var f *Found
	if err == nil {
		name := r.now.Source.String()
		if r.now.via != "" {
			name += ", named by " + r.now.via
		}
		if f, err = found(v, name); err == nil {
			return f
		}
	}
	r.Refused = append(r.Refused, Refused{r.now.Source, err})
	return nil
}

// redirect puts what an answer names before all others. Whether the answer was trusted
// makes no difference: whom it names must prove the owner as anyone else, and no
// connection is trusted for the sake of its server.
func (r *Round) redirect(to *voucher.Redirect) error {
	if r.now.hops >= maxHops {
		return refuse(Unreadable, "too many redirects in a row")
	}
	via := r.now.via
	if via == "" {
		via = r.now.Source.String()
	}
	n := 0
	for _, s := range to.Servers {
		u, err := s.URL()
		if err != nil {
			return refuse(Unreadable, "%v", err)
		}
		if r.add(step{Source{Referred, u}, r.now.hops + 1, via, r.now.from}, n) {
			n++
		}
	}
	if n == 0 {
		return refuse(Unreadable, "it names servers that were asked before")
	}
	return nil
}
