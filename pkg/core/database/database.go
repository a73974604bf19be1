// Package database answers: how does the core open its database, a SQLite file or
// PostgreSQL, and bring its schema up to date?
//
// A room writes its queries once, with "?" for parameters (or "?1", "?2" where one is used
// twice); they are made $1, $2 for PostgreSQL. What cannot be said alike in both is in the
// migrations, a folder for each, or in a method of Dialect.
package database

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
)

// Config says where a database is and how it is opened.
type Config struct {
	// Place is the path of a SQLite file, which is created when it is not there; "" for a
	// database in memory; or the URL of a PostgreSQL database, postgres://….
	Place string
	// Schema has the tables within PostgreSQL, and is created when it is not there. In
	// SQLite its place is a file of its own.
	Schema string
	// Moving opens one that is at an end of a Move, too; else it is refused.
	Moving bool
	// Cache is how many KiB of pages SQLite's writing connection holds; 0: its own 2 MB.
	Cache int
}

// IsURL tells whether a place is PostgreSQL's rather than a file.
func IsURL(place string) bool {
	return strings.HasPrefix(place, "postgres://") || strings.HasPrefix(place, "postgresql://")
}

// DB is an open database. A commit has reached the disk when it returns. All methods may be
// called from any goroutine.
type DB struct {
	dialect     Dialect
	place       string // to be shown: without a password
	schema      string
	write, read *sql.DB // the same for PostgreSQL, and for SQLite in memory
	hot         atomic.Pointer[map[string]parsed]

	mu    sync.Mutex
	rooms []room // whose tables it has

	written func() error // of tests: after a commit
}

// Querier is what a database and a transaction have in common.
type Querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Row is the first row of an answer, as sql.Row is.
type Row struct {
	row *sql.Row
	db  *DB
}

// Scan reads the row; the error is sql.ErrNoRows when there is none.
func (r *Row) Scan(into ...any) error { return r.db.Explain(r.row.Scan(into...)) }

var _, _ Querier = (*DB)(nil), (*Tx)(nil)

// Open opens or creates a database. Its schema is Migrate's to make.
func Open(ctx context.Context, c Config) (db *DB, err error) {
	if IsURL(c.Place) {
		db, err = openPostgres(ctx, c)
	} else {
		db, err = openSQLite(c)
	}
	if err != nil {
		return nil, err
	}
	db.hot.Store(&map[string]parsed{})
	if !c.Moving {
		if err := db.runnable(ctx); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	return db, nil
}

// Close closes the database.
func (db *DB) Close() error {
	var err error
	if db.read != db.write {
		err = db.read.Close()
	}
	return errors.Join(err, db.write.Close())
}

// Dialect tells how this database wants its queries.
func (db *DB) Dialect() Dialect { return db.dialect }

// String names the place, for messages.
func (db *DB) String() string {
	switch {
	case db.dialect == Postgres:
		return db.place + " (schema " + db.schema + ")"
	case db.place == "":
		return "memory"
	}
	return db.place
}

// Prepare has statements parsed once that run often: parsing took a fifth of the time of an
// enrolment in SQLite. They are known by their text from then on. PostgreSQL's driver
// remembers what it parsed by itself.
func (db *DB) Prepare(ctx context.Context, statements ...string) error {
	known := *db.hot.Load()
	next := make(map[string]parsed, len(known)+len(statements))
	for text, p := range known {
		next[text] = p
	}
	for _, text := range statements {
		p := parsed{text: db.dialect.bind(text)}
		if db.dialect == SQLite {
			var err error
			if p.write, err = db.write.PrepareContext(ctx, text); err != nil {
				return fmt.Errorf("prepare %.40s…: %w", text, err)
			}
			if p.read = p.write; db.read != db.write {
				if p.read, err = db.read.PrepareContext(ctx, text); err != nil {
					return fmt.Errorf("prepare %.40s…: %w", text, err)
				}
			}
		}
		next[text] = p
	}
	db.hot.Store(&next)
	return nil
}

// parsed is a statement that Prepare was given; the two are nil for PostgreSQL. They end
// with their database.
type parsed struct {
	text        string
	read, write *sql.Stmt
}

// QueryContext reads, outside of any transaction.
func (db *DB) QueryContext(ctx context.Context, text string, args ...any) (*sql.Rows, error) {
	p, ok := (*db.hot.Load())[text]
	if p.read != nil {
		return p.read.QueryContext(ctx, args...)
	}
	if !ok {
		p.text = db.dialect.bind(text)
	}
	rows, err := db.read.QueryContext(ctx, p.text, args...)
	return rows, db.Explain(err)
}

// QueryRowContext reads one row, outside of any transaction.
func (db *DB) QueryRowContext(ctx context.Context, text string, args ...any) *Row {
	p, ok := (*db.hot.Load())[text]
	if p.read != nil {
		return &Row{p.read.QueryRowContext(ctx, args...), db}
	}
	if !ok {
		p.text = db.dialect.bind(text)
	}
	return &Row{db.read.QueryRowContext(ctx, p.text, args...), db}
}

// ExecContext runs one statement that writes, in a transaction of its own.
func (db *DB) ExecContext(ctx context.Context, text string, args ...any) (res sql.Result, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		res, err = tx.ExecContext(ctx, text, args...)
		return err
	})
	return res, err
}
