package database

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Table is what a copy holds of a table.
type Table struct {
	Name   string
	Rows   int64
	Digest [sha256.Size]byte // of all values, in the order of the primary key
}

// column is a column of a table. Three kinds of values can be said alike in both databases.
type column struct {
	name string
	kind byte // 'i', 't' or 'b': BIGINT, TEXT, BYTEA; INTEGER, TEXT, BLOB
	key  int  // place in the primary key, from 1; 0: none
}

var kinds = map[string]byte{"INTEGER": 'i', "BIGINT": 'i', "TEXT": 't', "BLOB": 'b', "BYTEA": 'b'}

// versionSuffix ends the names of tables that migrations remember themselves in.
const versionSuffix = "_db_version"

// insertValues bounds the parameters of one statement: both databases take as many.
const insertValues = 8000

// Copy replaces every row of a database, whose schema is of the same version, by those of a
// snapshot of another, in one transaction, and tells what there is now. Reading it back has
// to give the same counts and digests.
func Copy(ctx context.Context, from *Tx, to *DB) (tables []Table, err error) {
	names, err := from.sameSchema(ctx, to)
	if err != nil {
		return nil, err
	}
	err = to.Write(ctx, func(tx *Tx) error {
		tables = nil
		for _, name := range names {
			t, err := copyTable(ctx, from, tx, name)
			if err != nil {
				return fmt.Errorf("copy table %s: %w", name, err)
			}
			tables = append(tables, t)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = to.Read(ctx, func(tx *Tx) error {
		for _, want := range tables {
			got, err := tx.digest(ctx, want.Name)
			if err != nil {
				return err
			}
			if got != want {
				return api.Errorf(api.Internal, "table %s arrived as %d rows, digest %x, of %d rows, digest %x", want.Name, got.Rows, got.Digest[:6], want.Rows, want.Digest[:6])
			}
		}
		return nil
	})
	return tables, err
}

// sameSchema lists the tables to copy, when both databases have the same at the same version.
func (t *Tx) sameSchema(ctx context.Context, to *DB) (names []string, err error) {
	here, err := t.db.tables(ctx)
	if err != nil {
		return nil, err
	}
	there, err := to.tables(ctx)
	if err != nil {
		return nil, err
	}
	own := func(name string) bool { return name == handoverTable }
	here, there = slices.DeleteFunc(here, own), slices.DeleteFunc(there, own)
	if !slices.Equal(here, there) {
		return nil, api.Errorf(api.Internal, "the tables differ: %v in %s, %v in %s", here, t.db, there, to)
	}
	for _, name := range here {
		if !strings.HasSuffix(name, versionSuffix) {
			names = append(names, name)
			continue
		}
		var a, b int64
		query := "SELECT max(version_id) FROM " + quote(name)
		if err := errors.Join(t.QueryRowContext(ctx, query).Scan(&a), to.QueryRowContext(ctx, query).Scan(&b)); err != nil {
			return nil, err
		}
		if a != b {
			return nil, api.Errorf(api.Internal, "the schema has version %d in %s, %d in %s", a, t.db, b, to)
		}
	}
	return names, nil
}

// columns lists a table's columns by name.
func (t *Tx) columns(ctx context.Context, table string) (out []column, err error) {
	query := "SELECT name, type, pk FROM pragma_table_info(?) ORDER BY name"
	if t.Dialect() == Postgres {
		query = `SELECT a.attname, format_type(a.atttypid, a.atttypmod), coalesce(array_position(i.indkey::int2[], a.attnum) + 1, 0)
			FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
			WHERE a.attrelid = to_regclass(?) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname COLLATE "C"`
		table = quote(table)
	}
	rows, err := t.QueryContext(ctx, query, table)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var c column
		var kind string
		if err := rows.Scan(&c.name, &kind, &c.key); err != nil {
			return nil, err
		}
		if c.kind = kinds[strings.ToUpper(kind)]; c.kind == 0 {
			return nil, api.Errorf(api.Internal, "column %s has type %s; a database that can be moved has BIGINT, TEXT and BYTEA alone", c.name, kind)
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

// rows reads a table in the order of its primary key, texts by their bytes.
func (t *Tx) rows(ctx context.Context, table string, columns []column) (*sql.Rows, error) {
	keys := slices.DeleteFunc(slices.Clone(columns), func(c column) bool { return c.key == 0 })
	slices.SortFunc(keys, func(a, b column) int { return a.key - b.key })
	if len(keys) == 0 {
		return nil, api.Errorf(api.Internal, "table %s has no primary key", table)
	}
	var order []string
	for _, c := range keys {
		by := quote(c.name)
		if c.kind == 't' && t.Dialect() == Postgres {
			by += ` COLLATE "C"`
		}
		order = append(order, by)
	}
	return t.QueryContext(ctx, "SELECT "+list(columns)+" FROM "+quote(table)+" ORDER BY "+strings.Join(order, ", "))
}

func list(columns []column) string {
	var names []string
	for _, c := range columns {
		names = append(names, quote(c.name))
	}
	return strings.Join(names, ", ")
}

// each calls f for every row of a table, whose values are nil, int64, string or []byte, and
// tells the count and digest of all. The values are f's for the call alone.
func (t *Tx) each(ctx context.Context, table string, columns []column, f func(values []any) error) (out Table, err error) {
	rows, err := t.rows(ctx, table, columns)
	if err != nil {
		return out, err
	}
	defer rows.Close()
	out.Name = table
	sum := sha256.New()
	values, into := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return out, err
		}
		for i, c := range columns {
			if values[i], err = c.value(values[i]); err != nil {
				return out, err
			}
			addValue(sum, values[i])
		}
		out.Rows++
		if err := f(values); err != nil {
			return out, err
		}
	}
	sum.Sum(out.Digest[:0])
	return out, rows.Err()
}

// value brings what a driver gave into the form of the column: SQLite's columns take any.
func (c column) value(v any) (any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case int64:
		if c.kind == 'i' {
			return v, nil
		}
	case string:
		if c.kind == 't' {
			return Legible(v), nil // an older core kept any
		}
		if c.kind == 'b' {
			return []byte(v), nil
		}
	case []byte:
		if c.kind == 'b' {
			return append([]byte{}, v...), nil // an empty one is not none
		}
		if c.kind == 't' {
			return Legible(string(v)), nil
		}
	}
	return nil, api.Errorf(api.Internal, "column %s holds a %T", c.name, v)
}

// addValue adds a value to a digest so that no two lists of values are the same bytes.
func addValue(sum hash.Hash, v any) {
	var head [9]byte
	var rest []byte
	switch v := v.(type) {
	case int64:
		head[0] = 'i'
		binary.BigEndian.PutUint64(head[1:], uint64(v))
	case string:
		head[0], rest = 't', []byte(v)
		binary.BigEndian.PutUint64(head[1:], uint64(len(v)))
	case []byte:
		head[0], rest = 'b', v
		binary.BigEndian.PutUint64(head[1:], uint64(len(v)))
	}
	sum.Write(head[:])
	sum.Write(rest)
}

// digest reads a table for its count and digest alone.
func (t *Tx) digest(ctx context.Context, table string) (Table, error) {
	columns, err := t.columns(ctx, table)
	if err != nil {
		return Table{}, err
	}
	return t.each(ctx, table, columns, func([]any) error { return nil })
}

// copyTable replaces the rows of one table by those of another database.
func copyTable(ctx context.Context, from, to *Tx, table string) (Table, error) {
	columns, err := from.columns(ctx, table)
	if err != nil {
		return Table{}, err
	}
	there, err := to.columns(ctx, table)
	if err != nil {
		return Table{}, err
	}
	if !slices.Equal(columns, there) {
		return Table{}, api.Errorf(api.Internal, "the columns differ: %v in %s, %v in %s", columns, from.db, there, to.db)
	}
	if _, err := to.ExecContext(ctx, "DELETE FROM "+quote(table)); err != nil {
		return Table{}, err
	}
	row := "(" + strings.Repeat("?, ", len(columns)-1) + "?)"
	insert := func(values []any) error {
		if len(values) == 0 {
			return nil
		}
		n := len(values) / len(columns)
		_, err := to.ExecContext(ctx, "INSERT INTO "+quote(table)+" ("+list(columns)+") VALUES "+strings.Repeat(row+", ", n-1)+row, values...)
		return err
	}
	most := max(1, insertValues/len(columns)) * len(columns)
	pending := make([]any, 0, most)
	done, err := from.each(ctx, table, columns, func(values []any) error {
		pending = append(pending, values...)
		if len(pending) < most {
			return nil
		}
		err := insert(pending)
		pending = pending[:0]
		return err
	})
	if err == nil {
		err = insert(pending)
	}
	if err == nil {
		err = to.setSequences(ctx, table)
	}
	return done, err
}

// setSequences has the numbers that PostgreSQL gives go on after those that were copied.
func (t *Tx) setSequences(ctx context.Context, table string) error {
	if t.Dialect() != Postgres {
		return nil // SQLite goes on after the highest
	}
	rows, err := t.QueryContext(ctx, "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(?) AND attidentity <> ''", quote(table))
	if err != nil {
		return err
	}
	columns, err := strs(rows)
	if err != nil {
		return err
	}
	for _, c := range columns {
		if _, err := t.ExecContext(ctx, "SELECT setval(pg_get_serial_sequence(?, ?), coalesce((SELECT max("+quote(c)+") FROM "+quote(table)+"), 0) + 1, false)", quote(table), c); err != nil {
			return err
		}
	}
	return nil
}

// BackupTo writes a consistent copy of the database to a new file of SQLite, while others
// write.
func (db *DB) BackupTo(ctx context.Context, path string) (err error) {
	if db.dialect == SQLite {
		_, err := db.read.ExecContext(ctx, "VACUUM INTO ?", path)
		return err
	}
	to, err := openSQLite(Config{Place: path})
	if err != nil {
		return err
	}
	to.hot.Store(&map[string]parsed{})
	defer func() { err = errors.Join(err, to.Close()) }()
	db.mu.Lock()
	rooms := slices.Clone(db.rooms)
	db.mu.Unlock()
	for _, r := range rooms {
		if err := to.Migrate(ctx, r.files, r.table); err != nil {
			return err
		}
	}
	return db.Read(ctx, func(tx *Tx) error {
		_, err := Copy(ctx, tx, to)
		return err
	})
}
