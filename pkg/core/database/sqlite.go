package database

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"strings"

	_ "modernc.org/sqlite" // the driver named "sqlite"

	"tributary.dev/tributary/pkg/api"
)

// sqliteReaders is how many connections read a file beside the one that writes.
const sqliteReaders = 4

// openSQLite opens a file: one connection writes, a few read beside it. A database in memory
// belongs to one connection, which does both.
func openSQLite(c Config) (*DB, error) {
	db := &DB{dialect: SQLite, place: c.Place, schema: c.Schema}
	var err error
	if db.write, err = sqliteConns(c.Place, 1, c.Cache); err != nil {
		return nil, err
	}
	if db.read = db.write; c.Place != "" {
		if db.read, err = sqliteConns(c.Place, sqliteReaders, 0); err != nil {
			db.write.Close()
			return nil, err
		}
	}
	return db, nil
}

// sqliteConns gives connections to a file: a commit has reached the disk when it returns
// (WAL with synchronous=FULL), a transaction takes its write lock at once, and a lock held
// by another is waited for, 10 s at most.
func sqliteConns(path string, conns, cache int) (*sql.DB, error) {
	dsn := ":memory:"
	if path != "" {
		dsn = (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}).String()
	}
	pragmas := []string{"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"}
	if cache > 0 {
		pragmas = append(pragmas, fmt.Sprintf("cache_size(-%d)", cache))
	}
	db, err := sql.Open("sqlite", dsn+"?_txlock=immediate&_pragma="+strings.Join(pragmas, "&_pragma="))
	if err != nil {
		return nil, fmt.Errorf("open the database %s: %w", path, err)
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	db.SetConnMaxLifetime(0)
	return db, nil
}

// wipeSQLite takes values that were replaced out of the file and its log: SQLite leaves the
// pages of old values as they are until they are used again.
func (db *DB) wipeSQLite(ctx context.Context) error {
	if db.place == "" {
		return nil
	}
	if _, err := db.write.ExecContext(ctx, "VACUUM"); err != nil {
		return fmt.Errorf("wipe old values from the database: %w", err)
	}
	var busy, log, done int
	if err := db.write.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &done); err != nil {
		return fmt.Errorf("wipe old values from the database's log: %w", err)
	}
	if busy != 0 {
		return api.Errorf(api.Unavailable, "old values stand in the database's log until nobody reads it")
	}
	return nil
}
