package database

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/pressly/goose/v3"
)

// VersionTable is where the schema's version stands by goose's own custom.
const VersionTable = "goose_db_version"

// migrationLock is the number of the advisory lock under which schemas are brought up to
// date, so that two cores that start at once do not both do it: "tribmigr" in ASCII.
const migrationLock = 0x747269626d696772

// room is who has tables in a database.
type room struct {
	files fs.FS
	table string
}

// Migrate applies the steps that the database has not seen yet: numbered SQL files in the
// folders "migrations/sqlite" and "migrations/postgres" of files, of the same names in both.
// table, whose name ends in "_db_version", remembers which were applied; rooms that share a
// database have one each. A column has type BIGINT, TEXT or BYTEA (SQLite: INTEGER, TEXT,
// BLOB), a text of PostgreSQL COLLATE "C", and a table a primary key: see Copy.
func (db *DB) Migrate(ctx context.Context, files fs.FS, table string) error {
	if !strings.HasSuffix(table, versionSuffix) {
		return fmt.Errorf("a table of versions is named …%s, not %s", versionSuffix, table)
	}
	dir, err := migrations(files, db.dialect)
	if err != nil {
		return err
	}
	unlock, err := db.lockMigration(ctx)
	if err != nil {
		return err
	}
	dialect := goose.DialectSQLite3
	if db.dialect == Postgres {
		dialect = goose.DialectPostgres
	}
	provider, err := goose.NewProvider(dialect, db.write, dir, goose.WithDisableGlobalRegistry(true), goose.WithTableName(table))
	if err == nil {
		_, err = provider.Up(ctx)
	}
	if err = errors.Join(err, unlock()); err != nil {
		return fmt.Errorf("bring the schema of %s up to date: %w", db, err)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.rooms = append(db.rooms, room{files, table})
	return nil
}

// migrations gives a dialect's steps, when both have the same: a database of one is moved
// into the other table by table.
func migrations(files fs.FS, d Dialect) (fs.FS, error) {
	var names [2][]string
	for _, of := range []Dialect{SQLite, Postgres} {
		entries, err := fs.ReadDir(files, "migrations/"+of.String())
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			names[of] = append(names[of], e.Name())
		}
	}
	if !slices.Equal(names[SQLite], names[Postgres]) {
		return nil, fmt.Errorf("migrations for SQLite are %v, for PostgreSQL %v: write each for both", names[SQLite], names[Postgres])
	}
	return fs.Sub(files, "migrations/"+d.String())
}

// lockMigration waits until nobody else changes the schema. SQLite's own lock does for it.
func (db *DB) lockMigration(ctx context.Context) (unlock func() error, err error) {
	if db.dialect != Postgres {
		return func() error { return nil }, nil
	}
	conn, err := db.write.Conn(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(migrationLock)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return func() error { return errors.Join(releaseLock(conn), conn.Close()) }, nil
}

func releaseLock(conn *sql.Conn) error {
	_, err := conn.ExecContext(context.Background(), "SELECT pg_advisory_unlock($1)", int64(migrationLock))
	return err
}

// Wipe takes values that were replaced out of the files of the database.
func (db *DB) Wipe(ctx context.Context) error {
	if db.dialect == Postgres {
		return db.wipePostgres(ctx)
	}
	return db.wipeSQLite(ctx)
}
