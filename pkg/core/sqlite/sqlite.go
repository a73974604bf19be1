// Package sqlite answers: how does the core open a database file, and bring its schema up
// to date?
package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"net/url"
	"strings"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver named "sqlite"
)

// Options say how a database is opened.
type Options struct {
	Conns       int // 1 for the one writer; more for readers beside it
	Cache       int // KiB of pages held by the connection; 0: SQLite's own 2 MB
	ForeignKeys bool
}

// Open opens or creates the database in the file at path, or one in memory when path is
// empty, which belongs to one connection. A commit has reached the disk when it returns
// (WAL with synchronous=FULL), a transaction takes its write lock at once, and a lock held
// by another is waited for, 10 s at most.
func Open(path string, o Options) (*sql.DB, error) {
	dsn := ":memory:"
	if path != "" {
		dsn = (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}).String()
	}
	pragmas := []string{"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)"}
	if o.ForeignKeys {
		pragmas = append(pragmas, "foreign_keys(1)")
	}
	if o.Cache > 0 {
		pragmas = append(pragmas, fmt.Sprintf("cache_size(-%d)", o.Cache))
	}
	db, err := sql.Open("sqlite", dsn+"?_txlock=immediate&_pragma="+strings.Join(pragmas, "&_pragma="))
	if err != nil {
		return nil, fmt.Errorf("open the database %s: %w", path, err)
	}
	db.SetMaxOpenConns(o.Conns)
	db.SetMaxIdleConns(o.Conns)
	db.SetConnMaxLifetime(0)
	return db, nil
}

// Migrate applies the steps (numbered SQL files in the folder "migrations" of files) that
// the database has not seen yet.
func Migrate(ctx context.Context, db *sql.DB, files fs.FS) error {
	dir, err := fs.Sub(files, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, dir, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	if _, err = provider.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema up to date: %w", err)
	}
	return nil
}
