package audit

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Notes writes rows that go along with no change of the database: refusals, commands, reads. Those
// that come at one time share a transaction.
type Notes struct {
	chain *Chain
	db    *database.DB
	log   *slog.Logger
	queue chan noted
	done  chan struct{}

	mu      sync.Mutex
	closed  bool
	writers sync.WaitGroup
	seen    map[string]*flood
}

type noted struct {
	entry api.AuditEntry
	wrote chan error
}

// noteBatch is how many rows one transaction takes at most.
const noteBatch = 500

// A stranger's refusals from one address are one row in foldFor, with their count in the next:
// nobody without a token fills the disk. Addresses above maxFloods count as one.
const (
	foldFor   = 10 * time.Second
	maxFloods = 1000
)

type flood struct {
	since time.Time
	more  int64
}

// NewNotes begins to write. Close ends it.
func NewNotes(chain *Chain, db *database.DB, log *slog.Logger) *Notes {
	n := &Notes{chain: chain, db: db, log: log, queue: make(chan noted, noteBatch), done: make(chan struct{}), seen: map[string]*flood{}}
	go n.run()
	return n
}

// Note writes a row, and returns when it is on the disk. Where a thing must not happen
// without its row, the caller refuses it when this fails.
func (n *Notes) Note(ctx context.Context, e api.AuditEntry) error {
	if e.Origin == (api.Origin{}) {
		e.Origin = api.OriginOf(ctx)
	}
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return api.Errorf(api.Unavailable, "the core stops: nothing is noted any more")
	}
	if e.Actor == "" && e.How == "" && e.Outcome == api.AuditRefused && n.folded(&e) {
		n.mu.Unlock()
		return nil
	}
	n.writers.Add(1)
	n.mu.Unlock()
	wrote := make(chan error, 1)
	n.queue <- noted{e, wrote}
	n.writers.Done()
	return <-wrote
}

// folded reports whether a stranger's refusal is counted along with one before.
func (n *Notes) folded(e *api.AuditEntry) bool {
	now, source := n.chain.now(), e.Source
	f := n.seen[source]
	if f == nil && len(n.seen) >= maxFloods {
		for s, old := range n.seen {
			if old.more == 0 && now.Sub(old.since) >= foldFor {
				delete(n.seen, s)
			}
		}
		if len(n.seen) >= maxFloods {
			source = ""
			f = n.seen[source]
			e.Source = "many"
		}
	}
	if f != nil && now.Sub(f.since) < foldFor {
		f.more++
		return true
	}
	if f == nil {
		f = &flood{}
		n.seen[source] = f
	}
	if f.more > 0 {
		e.Count = f.more + 1
	}
	f.since, f.more = now, 0
	return false
}

func (n *Notes) run() {
	defer close(n.done)
	for first := range n.queue {
		batch := []noted{first}
	gather:
		for len(batch) < noteBatch {
			select {
			case more, ok := <-n.queue:
				if !ok {
					break gather
				}
				batch = append(batch, more)
			default:
				break gather
			}
		}
		n.write(batch)
	}
}

func (n *Notes) write(batch []noted) {
	entries := make([]api.AuditEntry, len(batch))
	for i, b := range batch {
		entries[i] = b.entry
	}
	err := n.db.Write(context.Background(), func(tx *database.Tx) error { return n.chain.Append(context.Background(), tx, entries...) })
	if err != nil {
		n.log.Error("the audit log cannot be written", "rows", len(batch), "err", err)
	}
	for _, b := range batch {
		b.wrote <- err
	}
}

// Close writes what is left of strangers' counts, and ends.
func (n *Notes) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	var rest []noted
	for source, f := range n.seen {
		if f.more > 0 {
			rest = append(rest, noted{api.AuditEntry{Origin: api.Origin{Source: source}, Action: "authenticate", Outcome: api.AuditRefused, Count: f.more}, make(chan error, 1)})
		}
	}
	n.mu.Unlock()
	n.writers.Wait()
	close(n.queue)
	<-n.done
	if len(rest) > 0 {
		n.write(rest)
	}
	return nil
}

// List gives a page of rows.
func (n *Notes) List(ctx context.Context, q Query) ([]api.AuditEntry, error) {
	return List(ctx, n.db, q)
}
