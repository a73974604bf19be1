package database

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"tributary.dev/tributary/pkg/api"
)

const (
	// postgresConns is how many connections one DB has at most: a core has two, and a
	// server's default is a hundred for all.
	postgresConns = 8
	// postgresOldest is the oldest server that is known to do (PostgreSQL 15).
	postgresOldest = 150000
	connectTimeout = 10 * time.Second
)

// openPostgres opens a database of a server, and makes the schema when it is not there. What
// a server may have been set to otherwise is set for the session: a commit is on the disk
// when it returns.
func openPostgres(ctx context.Context, c Config) (*DB, error) {
	shown := Shown(c.Place)
	cfg, err := pgx.ParseConfig(c.Place)
	if err != nil { // its text holds the URL, and so the password
		return nil, &api.Error{Code: api.Invalid, Field: "--database", Message: "not the URL of a PostgreSQL database: " + shown, Remedy: "write it as postgres://USER:PASSWORD@HOST:PORT/DATABASE"}
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	for name, value := range map[string]string{"application_name": "cored", "search_path": quote(c.Schema), "synchronous_commit": "on", "client_encoding": "UTF8"} {
		cfg.RuntimeParams[name] = value
	}
	pool := stdlib.OpenDB(*cfg)
	pool.SetMaxOpenConns(postgresConns)
	pool.SetMaxIdleConns(postgresConns)
	db := &DB{dialect: Postgres, place: shown, schema: c.Schema, write: pool, read: pool}
	if err := db.greet(ctx); err != nil {
		return nil, errors.Join(db.Explain(err), pool.Close())
	}
	return db, nil
}

// Shown is a place without the password that it may hold.
func Shown(place string) string {
	if !IsURL(place) {
		return place
	}
	u, err := url.Parse(place)
	if err != nil {
		return "postgres://…"
	}
	if q := u.Query(); q.Has("password") {
		q.Set("password", "xxxxx")
		u.RawQuery = q.Encode()
	}
	return u.Redacted()
}

// greet looks whether the server is one to work with.
func (db *DB) greet(ctx context.Context) error {
	var text, encoding string
	if err := db.read.QueryRowContext(ctx, "SELECT current_setting('server_version_num'), current_setting('server_encoding')").Scan(&text, &encoding); err != nil {
		return err
	}
	if version, err := strconv.Atoi(text); err != nil || version < postgresOldest {
		return &api.Error{Code: api.Invalid, Message: "the server is PostgreSQL " + text + ", older than 15", Remedy: "use PostgreSQL 15 or newer"}
	}
	if encoding != "UTF8" {
		return &api.Error{Code: api.Invalid, Message: "the database keeps text as " + encoding, Remedy: "make one with CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'"}
	}
	_, err := db.write.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+quote(db.schema))
	if SQLState(err) == "23505" || SQLState(err) == "42P06" {
		return nil // another made it at the same moment
	}
	return err
}

// quote makes a name one of SQL.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// SQLState is the five characters by which PostgreSQL names a fault; "" for any other error.
func SQLState(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// lostRace tells of a transaction that only has to be done again: a serialization failure or
// a deadlock (PostgreSQL 15, appendix A, class 40).
func lostRace(err error) bool {
	code := SQLState(err)
	return code == "40001" || code == "40P01"
}

// Explain says in our words that a server does not answer, or cannot be written to now. What a
// room reads row by row it passes through here.
func (db *DB) Explain(err error) error {
	if db.dialect != Postgres || err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var connect *pgconn.ConnectError
	var network net.Error
	state := SQLState(err)
	// Classes 08 and 57 (connection exception, operator intervention), 53 (no disk, no memory, no
	// connection left), an I/O error, and a server that became a standby (PostgreSQL 15, appendix A).
	if errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, pgconn.ErrConnClosed) ||
		strings.HasPrefix(state, "08") || strings.HasPrefix(state, "57P") || strings.HasPrefix(state, "53") || state == "58030" || state == "25006" {
		return &api.Error{Code: api.Unavailable, Message: "the database " + db.place + " does not answer", Remedy: "see that its server runs and can be reached", Err: err}
	}
	return err
}

// wipePostgres writes the tables anew, without the rows that were replaced. The server's log
// is not ours to wipe.
func (db *DB) wipePostgres(ctx context.Context) error {
	tables, err := db.tables(ctx)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if _, err := db.write.ExecContext(ctx, "VACUUM (FULL) "+quote(t)); err != nil {
			return fmt.Errorf("wipe old values from the database: %w", err)
		}
	}
	return nil
}

// tables lists the tables of this database, by name.
func (db *DB) tables(ctx context.Context) ([]string, error) {
	query := "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name"
	if db.dialect == Postgres {
		query = `SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename COLLATE "C"`
	}
	rows, err := db.read.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return strs(rows)
}

// strs reads rows of one text.
func strs(rows *sql.Rows) (out []string, err error) {
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}
