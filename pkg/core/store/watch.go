package store

import (
	"context"
	"slices"
	"sort"
	"sync"

	"tributary.dev/tributary/pkg/api"
)

// change is one entry of the history: which object, at which revision.
type change struct {
	key        api.Key
	revision   int64
	deleted    bool
	statusOnly bool
}

// history remembers the newest changes for watchers. It holds keys, no objects, so
// its size does not depend on theirs.
type history struct {
	// order is held from before a transaction begins until its changes are added, so
	// that they are added in the order of their revisions.
	order sync.Mutex

	mu      sync.Mutex
	ring    []change // oldest first
	limit   int
	oldest  int64         // changes with a revision above it are all in ring
	newest  int64         // revision of the last change
	arrived chan struct{} // closed and replaced whenever something was added
	closed  bool
}

func newHistory(limit int, revision int64) *history {
	return &history{limit: limit, oldest: revision, newest: revision, arrived: make(chan struct{})}
}

func (h *history) add(changes []change) {
	if len(changes) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ring = append(h.ring, changes...)
	h.newest = changes[len(changes)-1].revision
	// Cut in halves: the copy is paid once in limit changes.
	if len(h.ring) > 2*h.limit {
		cut := len(h.ring) - h.limit
		h.oldest = h.ring[cut-1].revision
		h.ring = append(make([]change, 0, 2*h.limit), h.ring[cut:]...)
	}
	close(h.arrived)
	h.arrived = make(chan struct{})
}

// jump begins anew at a revision; order is held.
func (h *history) jump(revision int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ring, h.oldest, h.newest = nil, revision, revision
	close(h.arrived)
	h.arrived = make(chan struct{})
}

func (h *history) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.closed = true
		close(h.arrived)
	}
}

// since returns the changes after a revision that a query asks for, each object once
// with its newest, the revision reached, and a channel that closes when there is more.
func (h *history) since(from int64, w WatchQuery) (out []change, reached int64, more <-chan struct{}, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if from < h.oldest || from > h.newest {
		return nil, 0, nil, errTooOld
	}
	const batch = 1024
	start := sort.Search(len(h.ring), func(i int) bool { return h.ring[i].revision > from })
	end := min(start+batch, len(h.ring))
	last := make(map[api.Key]int)
	for i := start; i < end; i++ {
		c := h.ring[i]
		if len(w.Kinds) > 0 && !slices.Contains(w.Kinds, c.key.Kind) || w.Tenant != "" && c.key.Tenant != w.Tenant || w.SpecOnly && c.statusOnly {
			continue
		}
		last[c.key] = i
	}
	for i := start; i < end; i++ {
		if at, ok := last[h.ring[i].key]; ok && at == i {
			out = append(out, h.ring[i])
		}
	}
	reached, more = h.newest, h.arrived
	if end < len(h.ring) {
		ready := make(chan struct{})
		close(ready)
		reached, more = h.ring[end-1].revision, ready
	}
	if h.closed {
		more = nil
	}
	return out, reached, more, nil
}

func (h *history) position() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.newest
}

// Reaches implements Store.
func (s *SQL) Reaches(from int64) error {
	_, _, _, err := s.history.since(from, WatchQuery{Kinds: []string{""}})
	return err
}

// Watch implements Store.
func (s *SQL) Watch(ctx context.Context, w WatchQuery) <-chan Event {
	switch w.From {
	case 0:
		w.From = s.history.position()
	case -1:
		w.From = 0
	}
	events := make(chan Event)
	go func() {
		defer close(events)
		send := func(e Event) bool {
			select {
			case events <- e:
				return true
			case <-ctx.Done():
				return false
			}
		}
		for from := w.From; ; {
			changes, reached, more, err := s.history.since(from, w)
			if err != nil {
				send(Event{Err: err})
				return
			}
			for _, c := range changes {
				e, err := s.event(ctx, c)
				if err != nil {
					send(Event{Err: err})
					return
				}
				if !send(e) {
					return
				}
			}
			from = reached
			if more == nil {
				return // the store is closed
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}()
	return events
}

// event reads the object of a change; one that is gone since counts as deleted.
func (s *SQL) event(ctx context.Context, c change) (Event, error) {
	gone := Event{Type: Deleted, Revision: c.revision, Object: &api.Object{APIVersion: api.Version, Kind: c.key.Kind,
		Metadata: api.Meta{Tenant: c.key.Tenant, Name: c.key.Name, Revision: c.revision}}}
	if c.deleted {
		return gone, nil
	}
	obj, err := s.Get(ctx, c.key)
	if api.CodeOf(err) == api.NotFound && err != nil {
		return gone, nil
	}
	return Event{Type: Changed, Revision: c.revision, Object: obj}, err
}
