package database

import (
	"context"
	"errors"
	"fmt"

	"tributary.dev/tributary/pkg/api"
)

// A database that is being filled, or whose content went elsewhere, has a table of this name
// with one row. Open refuses it: of the two ends of a move at most one is ever a core's.
const handoverTable = "handover"

// What the row tells.
const (
	arriving = "arriving"
	left     = "left"
)

// handover tells the state of a move, "" for a database that takes part in none, and the
// other end.
func (db *DB) handover(ctx context.Context) (state, peer string, err error) {
	query := "SELECT count(*) FROM sqlite_schema WHERE name = ?"
	if db.dialect == Postgres {
		query = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename = ?"
	}
	var n int
	if err := db.QueryRowContext(ctx, query, handoverTable).Scan(&n); err != nil || n == 0 {
		return "", "", err
	}
	err = db.QueryRowContext(ctx, "SELECT state, peer FROM "+handoverTable).Scan(&state, &peer)
	return state, peer, err
}

// setHandover notes the state of a move, "" for its end.
func (db *DB) setHandover(ctx context.Context, state, peer string) error {
	return db.Write(ctx, func(tx *Tx) error {
		if _, err := tx.ExecContext(ctx, "DROP TABLE IF EXISTS "+handoverTable); err != nil || state == "" {
			return err
		}
		if _, err := tx.ExecContext(ctx, "CREATE TABLE "+handoverTable+" (state TEXT NOT NULL, peer TEXT NOT NULL)"); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO "+handoverTable+" (state, peer) VALUES (?, ?)", state, peer)
		return err
	})
}

// runnable refuses a database that is not, or no longer, a core's.
func (db *DB) runnable(ctx context.Context) error {
	switch state, peer, err := db.handover(ctx); {
	case err != nil:
		return err
	case state == arriving:
		return &api.Error{Code: api.Unavailable, Message: "the copy from " + peer + " to " + db.String() + " was cut off", Remedy: "give the same command again that made it: it begins anew"}
	case state == left:
		return &api.Error{Code: api.Gone, Message: "the core of " + db.String() + " has moved to " + peer, Remedy: "run it there; when the move was cut off, give the same command again"}
	}
	return nil
}

// Fresh tells whether nothing is in a database, or nothing but a move that was cut off.
func (db *DB) Fresh(ctx context.Context) (bool, error) {
	state, _, err := db.handover(ctx)
	if err != nil || state != "" {
		return state == arriving, err
	}
	tables, err := db.tables(ctx)
	return len(tables) == 0, err
}

// Move is one database that goes into another, with all of its rooms' migrations. Both are
// opened with Config.Moving.
type Move struct {
	From, To *DB
	Migrate  func(ctx context.Context, db *DB) error
}

// Run moves databases that make one core, the one last by which a core is known. It may be
// cut at any point and run again: until it is through neither end opens as a core's, but for
// the first before everything has arrived. Then settle runs, and the new end is a core's when
// that is through, too.
func Run(ctx context.Context, moves []Move, settle func() error) (tables []Table, err error) {
	begun, err := mayArrive(ctx, moves)
	if err != nil {
		return nil, err
	}
	if err := mayGo(ctx, moves, begun); err != nil {
		return nil, err
	}
	for i := len(moves) - 1; i >= 0; i-- {
		if err := moves[i].To.setHandover(ctx, arriving, moves[i].From.String()); err != nil {
			return nil, err
		}
	}
	for _, m := range moves {
		if err := errors.Join(m.Migrate(ctx, m.From), m.Migrate(ctx, m.To)); err != nil {
			return nil, err
		}
		err := m.From.Read(ctx, func(tx *Tx) error {
			done, err := Copy(ctx, tx, m.To)
			tables = append(tables, done...)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("copy %s to %s: %w", m.From, m.To, err)
		}
	}
	for _, m := range moves {
		if err := m.From.setHandover(ctx, left, m.To.String()); err != nil {
			return nil, err
		}
	}
	if err := settle(); err != nil {
		return nil, err
	}
	var targets []*DB
	for _, m := range moves {
		targets = append(targets, m.To)
	}
	return tables, Finish(ctx, targets)
}

// Finish makes the new end of a move a core's, which everything has arrived at and settle was
// called for. It does nothing where no move arrives.
func Finish(ctx context.Context, targets []*DB) error {
	for _, to := range targets {
		state, _, err := to.handover(ctx)
		if err == nil && state == arriving {
			err = to.setHandover(ctx, "", "")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mayArrive refuses a target that holds anything, and tells whether this move was begun
// before: then what arrived is replaced.
func mayArrive(ctx context.Context, moves []Move) (begun bool, err error) {
	for i := len(moves) - 1; i >= 0 && !begun; i-- {
		to := moves[i].To
		state, _, err := to.handover(ctx)
		if err != nil {
			return false, err
		}
		if begun = i == len(moves)-1 && state == arriving; begun {
			break
		}
		if fresh, err := to.Fresh(ctx); err != nil {
			return false, err
		} else if !fresh {
			return false, &api.Error{Code: api.Conflict, Message: to.String() + " is not empty", Remedy: "name an empty database, or take away what is in this one"}
		}
	}
	return begun, nil
}

// mayGo refuses a source that is not whole, or that went elsewhere.
func mayGo(ctx context.Context, moves []Move, begun bool) error {
	for _, m := range moves {
		state, peer, err := m.From.handover(ctx)
		if err != nil {
			return err
		}
		if state == arriving || state == left && !(begun && peer == m.To.String()) {
			return m.From.runnable(ctx)
		}
		if tables, err := m.From.tables(ctx); err != nil {
			return err
		} else if len(tables) == 0 {
			return &api.Error{Code: api.NotFound, Message: "there is no core in " + m.From.String()}
		}
	}
	return nil
}
