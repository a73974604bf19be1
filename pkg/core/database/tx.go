package database

import (
	"context"
	"database/sql"
	"math/rand/v2"
	"time"
)

// Tx is a transaction. It belongs to one goroutine.
type Tx struct {
	tx    *sql.Tx
	db    *DB
	write bool
	stmts map[string]*sql.Stmt // those of Prepare that ran in it
}

// maxTries bounds how often a transaction is tried that loses its races, and firstWait how
// long it waits after the first, on average.
const (
	maxTries  = 12
	firstWait = 2 * time.Millisecond
)

// Write runs f in one transaction that writes, and commits it unless f fails. f runs again
// when the transaction lost a race against another: it must leave nothing behind that a
// second run does not make good.
func (db *DB) Write(ctx context.Context, f func(*Tx) error) error {
	for try := 1; ; try++ {
		err := db.once(ctx, f)
		if err == nil || try == maxTries || !lostRace(err) {
			return db.Explain(err)
		}
		wait := time.NewTimer(rand.N(2 * firstWait << min(try-1, 8)))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return err
		}
	}
}

func (db *DB) once(ctx context.Context, f func(*Tx) error) error {
	tx, err := db.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	t := &Tx{tx: tx, db: db, write: true}
	if err := fenceOf(ctx)(ctx, t); err != nil {
		return err
	}
	if err := f(t); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil || db.written == nil {
		return err
	}
	return db.written()
}

// Read runs f on one consistent state of the database, which nobody's writing changes.
func (db *DB) Read(ctx context.Context, f func(*Tx) error) error {
	o := sql.TxOptions{ReadOnly: true}
	if db.dialect == Postgres {
		o.Isolation = sql.LevelRepeatableRead
	}
	tx, err := db.read.BeginTx(ctx, &o)
	if err != nil {
		return db.Explain(err)
	}
	defer tx.Rollback() //nolint:errcheck // it only read
	return db.Explain(f(&Tx{tx: tx, db: db}))
}

// Dialect tells how this database wants its queries.
func (t *Tx) Dialect() Dialect { return t.db.dialect }

// parsed gives the statement of a text that Prepare was given, within this transaction; nil
// and the text to run when there is none.
func (t *Tx) parsed(ctx context.Context, text string) (*sql.Stmt, string) {
	if s := t.stmts[text]; s != nil {
		return s, ""
	}
	p, ok := (*t.db.hot.Load())[text]
	if !ok {
		return nil, t.db.dialect.bind(text)
	}
	of := p.read
	if t.write {
		of = p.write
	}
	if of == nil {
		return nil, p.text
	}
	if t.stmts == nil {
		t.stmts = make(map[string]*sql.Stmt)
	}
	s := t.tx.StmtContext(ctx, of)
	t.stmts[text] = s
	return s, ""
}

// QueryContext implements Querier.
func (t *Tx) QueryContext(ctx context.Context, text string, args ...any) (*sql.Rows, error) {
	s, text := t.parsed(ctx, text)
	if s != nil {
		return s.QueryContext(ctx, args...)
	}
	return t.tx.QueryContext(ctx, text, args...)
}

// QueryRowContext implements Querier.
func (t *Tx) QueryRowContext(ctx context.Context, text string, args ...any) *Row {
	s, text := t.parsed(ctx, text)
	if s != nil {
		return &Row{s.QueryRowContext(ctx, args...), t.db}
	}
	return &Row{t.tx.QueryRowContext(ctx, text, args...), t.db}
}

// ExecContext implements Querier.
func (t *Tx) ExecContext(ctx context.Context, text string, args ...any) (sql.Result, error) {
	s, text := t.parsed(ctx, text)
	if s != nil {
		return s.ExecContext(ctx, args...)
	}
	return t.tx.ExecContext(ctx, text, args...)
}

// PrepareContext parses a statement that this transaction runs many times. It ends with the
// transaction.
func (t *Tx) PrepareContext(ctx context.Context, text string) (*sql.Stmt, error) {
	return t.tx.PrepareContext(ctx, t.db.dialect.bind(text))
}
