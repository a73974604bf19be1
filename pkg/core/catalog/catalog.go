// Package catalog answers: which objects fit what somebody looks for, in which order, page by page?
//
// It keeps a slim line of each object in memory, as the store's watch tells of them, so that a
// page far down a long list costs a look at each line and no sort of them all. What an object
// says is read from the store; who may see it is decided by whoever asks.
package catalog

import (
	"cmp"
	"container/heap"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"tributary.dev/tributary/pkg/api"
)

// Query says what is looked for. Empty fields are no limits.
type Query struct {
	Kinds    []string
	Tenant   string
	Text     string // in any name, label or fact of the line, in any case of letters
	Selector api.Selector
	// States, Sites, Parents, Apps and Versions: one of each that is given.
	States, Sites, Parents, Apps, Versions []string
	// Sort is one of Sorts, with a minus before it for the other way round.
	Sort  string
	Limit int
	After string // what the page before gave as Next
	// Only tells what the reader may see; nil is everything.
	Only func(*api.Object) bool
}

// Hit is one line of a page.
type Hit struct {
	Key   api.Key
	State string
	Site  string
}

// Page is one answer.
type Page struct {
	Hits []Hit
	Next string
	// Total counts what fits, over all pages. States counts by state what would fit if no state were asked for.
	Total  int
	States map[string]int
}

// Sorts are the orders that there are.
var Sorts = []string{"name", "site", "state", "seen", "version", "parent", "tier", "created"}

// line is what is kept of an object.
type line struct {
	key     api.Key
	object  *api.Object // as far as it decides who sees it: metadata, and of the spec the site or role
	text    string
	state   string
	site    string
	parent  string
	version string
	apps    []string
	tier    int64
	seen    int64
	created int64
}

// Catalog holds the lines. All methods may be called from any goroutine.
type Catalog struct {
	mu      sync.RWMutex
	lines   map[string]map[api.Key]*line
	readers map[*Reader]struct{}
	reached int64
	moved   chan struct{}
}

// New makes an empty one.
func New() *Catalog {
	return &Catalog{lines: map[string]map[api.Key]*line{}, readers: map[*Reader]struct{}{}, moved: make(chan struct{})}
}

// Reset replaces everything by what there is as of a revision.
func (c *Catalog) Reset(objects []*api.Object, revision int64) {
	lines := map[string]map[api.Key]*line{}
	for _, o := range objects {
		l := lineOf(o)
		if lines[o.Kind] == nil {
			lines[o.Kind] = map[api.Key]*line{}
		}
		lines[o.Kind][l.key] = l
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = lines
	for r := range c.readers {
		r.all()
	}
	c.reach(revision)
}

// Changed notes an object as it is now; Deleted that it is gone.
func (c *Catalog) Changed(o *api.Object, revision int64) {
	l := lineOf(o)
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.lines[o.Kind][l.key]
	if c.lines[o.Kind] == nil {
		c.lines[o.Kind] = map[api.Key]*line{}
	}
	c.lines[o.Kind][l.key] = l
	c.tell(was, l)
	c.reach(revision)
}

// Deleted notes that an object is gone.
func (c *Catalog) Deleted(key api.Key, revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.lines[key.Kind][key]
	delete(c.lines[key.Kind], key)
	c.tell(was, nil)
	c.reach(revision)
}

func (c *Catalog) reach(revision int64) {
	c.reached = max(c.reached, revision)
	close(c.moved)
	c.moved = make(chan struct{})
}

// Reached is the revision up to which the catalog knows everything, and a channel that closes when it is another.
func (c *Catalog) Reached() (int64, <-chan struct{}) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.reached, c.moved
}

// position is where a line stands in an order.
type position struct {
	N int64  `json:"n,omitempty"`
	S string `json:"s,omitempty"`
	T string `json:"t"`
	K string `json:"k"`
	M string `json:"m"`
}

func (p position) compare(o position, down bool) int {
	by := cmp.Or(cmp.Compare(p.N, o.N), strings.Compare(p.S, o.S))
	if down {
		by = -by
	}
	return cmp.Or(by, strings.Compare(p.T, o.T), strings.Compare(p.K, o.K), strings.Compare(p.M, o.M))
}

func (l *line) at(sort string) position {
	p := position{T: l.key.Tenant, K: l.key.Kind, M: l.key.Name}
	switch sort {
	case "site":
		p.S = l.site
	case "state":
		p.N = int64(slices.Index(severity, l.state))
	case "seen":
		p.N = l.seen
	case "version":
		p.S = l.version
	case "parent":
		p.S = l.parent
	case "tier":
		p.N = l.tier
	case "created":
		p.N = l.created
	default: // by name, whoever owns it
		p.S = l.key.Name
	}
	return p
}

// severity orders the states, what needs a person first.
var severity = []string{"critical", "unapproved", "degraded", "offline", "healthy", "retired", ""}

// entry is a line that fits, at its place.
type entry struct {
	line *line
	at   position
}

// last is a heap with the entry on top that stands last of those that are kept.
type last struct {
	entries []entry
	down    bool
}

func (h *last) Len() int           { return len(h.entries) }
func (h *last) Less(i, j int) bool { return h.entries[i].at.compare(h.entries[j].at, h.down) > 0 }
func (h *last) Swap(i, j int)      { h.entries[i], h.entries[j] = h.entries[j], h.entries[i] }
func (h *last) Push(x any)         { h.entries = append(h.entries, x.(entry)) }
func (h *last) Pop() any {
	n := len(h.entries) - 1
	e := h.entries[n]
	h.entries = h.entries[:n]
	return e
}

// Find answers a query.
func (c *Catalog) Find(q Query) (Page, error) {
	sort, down := strings.CutPrefix(q.Sort, "-")
	if sort != "" && !slices.Contains(Sorts, sort) {
		return Page{}, &api.Error{Code: api.Invalid, Field: "query.sort", Message: "there is no order " + sort, Remedy: "the orders are " + strings.Join(Sorts, ", ") + "; a minus before turns one round"}
	}
	after, err := cursor(q.After, q.Sort)
	if err != nil {
		return Page{}, err
	}
	words := strings.Fields(strings.ToLower(q.Text))
	page := Page{States: map[string]int{}}
	kept := &last{down: down}
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, kind := range q.Kinds {
		for _, l := range c.lines[kind] {
			if !q.fits(l, words) {
				continue
			}
			page.States[l.state]++
			if !among(q.States, l.state) {
				continue
			}
			page.Total++
			at := l.at(sort)
			if after != nil && at.compare(*after, down) <= 0 {
				continue
			}
			if len(kept.entries) <= q.Limit {
				heap.Push(kept, entry{l, at})
			} else if at.compare(kept.entries[0].at, down) < 0 {
				kept.entries[0] = entry{l, at}
				heap.Fix(kept, 0)
			}
		}
	}
	slices.SortFunc(kept.entries, func(a, b entry) int { return a.at.compare(b.at, down) })
	if len(kept.entries) > q.Limit {
		kept.entries = kept.entries[:q.Limit]
		page.Next = encode(kept.entries[q.Limit-1].at, q.Sort)
	}
	for _, e := range kept.entries {
		page.Hits = append(page.Hits, Hit{e.line.key, e.line.state, e.line.site})
	}
	return page, nil
}

// fits tells whether a line is what is looked for, but for its state. The costly question comes last.
func (q *Query) fits(l *line, words []string) bool {
	if q.Tenant != "" && l.key.Tenant != q.Tenant || !among(q.Sites, l.site) || !among(q.Parents, l.parent) || !among(q.Versions, l.version) {
		return false
	}
	if len(q.Apps) > 0 && !slices.ContainsFunc(q.Apps, func(a string) bool { return slices.Contains(l.apps, a) }) {
		return false
	}
	for _, w := range words {
		if !strings.Contains(l.text, w) {
			return false
		}
	}
	if !q.Selector.Empty() && !q.Selector.Matches(l.object.Metadata.Labels) {
		return false
	}
	return q.Only == nil || q.Only(l.object)
}

func among(list []string, s string) bool { return len(list) == 0 || slices.Contains(list, s) }

// mark is a cursor as it travels: an order, and a place in it.
type mark struct {
	Sort string   `json:"o"`
	At   position `json:"p"`
}

func encode(at position, sort string) string {
	b, err := json.Marshal(mark{sort, at})
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// maxCursor bounds what somebody sends as a cursor.
const maxCursor = 4096

func cursor(text, sort string) (*position, error) {
	if text == "" {
		return nil, nil
	}
	var m mark
	raw, err := base64.RawURLEncoding.DecodeString(text[:min(len(text), maxCursor)])
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	if err != nil || m.Sort != sort {
		return nil, &api.Error{Code: api.Invalid, Field: "query.after", Message: "not a cursor of this list", Remedy: "pass what the page before gave as next, with the same sort"}
	}
	return &m.At, nil
}
