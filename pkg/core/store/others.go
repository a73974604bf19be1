package store

import (
	"context"
	"strings"

	"tributary.dev/tributary/pkg/core/database"
)

// What another process writes to the same PostgreSQL is heard of here: each transaction
// leaves its changes in a table and tells of its commit. Every revision has one row, so that
// who finds the row after the newest that it knows has missed nothing.

// The column what of table changes.
const (
	whatSpec, whatStatus, whatDeleted = 0, 1, 2
)

// changeRows is how many rows one statement inserts, and tidyChanges after how many
// revisions those are dropped that no history reaches back to.
const (
	changeRows  = 500
	tidyChanges = 1024
)

// leave writes the changes of a transaction for other processes.
func (s *SQL) leave(ctx context.Context, w *writer) error {
	if w.Dialect() == database.SQLite {
		return nil
	}
	for at := 0; at < len(w.changes); at += changeRows {
		part := w.changes[at:min(at+changeRows, len(w.changes))]
		args := make([]any, 0, 5*len(part))
		for _, c := range part {
			what := whatSpec
			if c.deleted {
				what = whatDeleted
			} else if c.statusOnly {
				what = whatStatus
			}
			args = append(args, c.revision, c.key.Kind, c.key.Tenant, c.key.Name, what)
		}
		if _, err := w.ExecContext(ctx, "INSERT INTO changes (revision, kind, tenant, name, what) VALUES (?,?,?,?,?)"+strings.Repeat(",(?,?,?,?,?)", len(part)-1), args...); err != nil {
			return err
		}
	}
	first := w.changes[0].revision - 1
	if first/tidyChanges != w.revision/tidyChanges {
		if _, err := w.ExecContext(ctx, "DELETE FROM changes WHERE revision <= ?", w.revision-int64(s.cfg.History)); err != nil {
			return err
		}
	}
	return w.Notify(ctx)
}

// missed reads the changes after a revision to another; whole is false when some of them are
// kept no more.
func missed(ctx context.Context, q database.Querier, from, to int64) (out []change, whole bool, err error) {
	rows, err := q.QueryContext(ctx, "SELECT revision, kind, tenant, name, what FROM changes WHERE revision > ? AND revision <= ? ORDER BY revision", from, to)
	if err != nil {
		return nil, false, err
	}
	defer rows.Close()
	next := from + 1
	for whole = true; rows.Next(); next++ {
		var c change
		var what int
		if err := rows.Scan(&c.revision, &c.key.Kind, &c.key.Tenant, &c.key.Name, &what); err != nil {
			return nil, false, err
		}
		c.deleted, c.statusOnly = what == whatDeleted, what == whatStatus
		whole = whole && c.revision == next
		out = append(out, c)
	}
	return out, whole && next == to+1, rows.Err()
}

// catchUp brings the history to what others committed. A transaction of this process holds
// back while it does.
func (s *SQL) catchUp(ctx context.Context) error {
	s.history.order.Lock()
	defer s.history.order.Unlock()
	from := s.history.position()
	var changes []change
	var whole bool
	var to int64
	err := s.db.Read(ctx, func(tx *database.Tx) (err error) {
		if to, err = s.counter(ctx, tx, "revision"); err != nil || to <= from {
			return err
		}
		changes, whole, err = missed(ctx, tx, from, to)
		return err
	})
	if err != nil || to <= from {
		return err
	}
	s.heard(changes, whole, to)
	return nil
}

// heard adds others' changes to the history, or begins it anew where some are missing. order
// is held.
func (s *SQL) heard(changes []change, whole bool, to int64) {
	if whole {
		s.history.add(changes)
	} else {
		s.history.jump(to)
	}
}

// listen hears of others until Close. What cannot be read now is read with the next.
func (s *SQL) listen() {
	if s.db.Dialect() == database.SQLite {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	s.deafen = func() { cancel(); <-ended }
	go func() {
		defer close(ended)
		s.db.Listen(ctx, func(ctx context.Context) { _ = s.catchUp(ctx) })
	}()
}

// caughtUp has a transaction that holds the counter of revisions know what others committed
// before it, so that its own changes follow without a gap.
func (s *SQL) caughtUp(ctx context.Context, w *writer) error {
	from := s.history.position()
	if w.Dialect() == database.SQLite || w.revision <= from {
		return nil
	}
	changes, whole, err := missed(ctx, w, from, w.revision)
	if err == nil {
		s.heard(changes, whole, w.revision)
	}
	return err
}
