package catalog

import (
	"maps"
	"slices"

	"tributary.dev/tributary/pkg/api"
)

// Reader hears which kinds changed, of what it may see. Many changes are folded until it takes them.
type Reader struct {
	c     *Catalog
	sees  func(*api.Object) bool
	kinds map[string]bool
	wake  chan struct{}
}

// Read begins to listen, until Close. sees must not call the catalog.
func (c *Catalog) Read(sees func(*api.Object) bool) *Reader {
	r := &Reader{c: c, sees: sees, kinds: map[string]bool{}, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readers[r] = struct{}{}
	return r
}

// Close ends it.
func (r *Reader) Close() {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	delete(r.c.readers, r)
}

// Wake gives a value when there is something to Take.
func (r *Reader) Wake() <-chan struct{} { return r.wake }

// Take gives the kinds that changed since it was asked last, and the revision that this reaches.
func (r *Reader) Take() (kinds []string, revision int64) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	kinds = slices.Sorted(maps.Keys(r.kinds))
	clear(r.kinds)
	return kinds, r.c.reached
}

// tell tells readers of a change of a line, as far as they see what it was or is.
func (c *Catalog) tell(was, is *line) {
	for r := range c.readers {
		for _, l := range []*line{is, was} {
			if l == nil || r.kinds[l.key.Kind] {
				continue
			}
			if r.sees(l.object) {
				r.kinds[l.key.Kind] = true
				r.ring()
			}
		}
	}
}

// all tells a reader that anything may have changed.
func (r *Reader) all() {
	for _, k := range api.Kinds {
		r.kinds[k.Name] = true
	}
	r.ring()
}

func (r *Reader) ring() {
	select {
	case r.wake <- struct{}{}:
	default: // it has not looked since
	}
}
