package database

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// TestOpenKeepsItsWord asks SQLite itself for what Open promises.
func TestOpenKeepsItsWord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a name with % and ?.db")
	db, err := Open(t.Context(), Config{Place: path, Cache: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "cache_size": "-4096", "busy_timeout": "10000"} {
		var got string
		if err := db.write.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", pragma, got, err, want)
		}
	}
}

// steps makes the migrations of a test.
func steps(names ...string) fstest.MapFS {
	files := fstest.MapFS{}
	for i, text := range names {
		for _, d := range []Dialect{SQLite, Postgres} {
			files[fmt.Sprintf("migrations/%s/%05d_step.sql", d, i+1)] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + text + ";\n")}
		}
	}
	return files
}

func TestMigrate(t *testing.T) {
	db, err := Open(t.Context(), Config{Place: filepath.Join(t.TempDir(), "x.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for range 2 { // the second time there is nothing to do
		if err := db.Migrate(t.Context(), steps("CREATE TABLE t (id BIGINT PRIMARY KEY, up BIGINT REFERENCES t(id))"), VersionTable); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.ExecContext(t.Context(), "INSERT INTO t VALUES (1, 7)"); err == nil {
		t.Error("a reference to a row that is not there was taken")
	}
	if err := db.Migrate(t.Context(), steps("CREATE TABLE u (id BIGINT)"), "another_db_version"); err != nil {
		t.Errorf("a second room's first step: %v", err)
	}
	if err := db.Migrate(t.Context(), steps("CREATE TABLE t (id BIGINT)", "CREATE NONSENSE"), VersionTable); err == nil || !strings.Contains(err.Error(), "schema") {
		t.Errorf("a broken step gave %v", err)
	}
	uneven := steps("SELECT 1")
	delete(uneven, "migrations/postgres/00001_step.sql")
	uneven["migrations/postgres/00002_step.sql"] = &fstest.MapFile{}
	if err := db.Migrate(t.Context(), uneven, VersionTable); err == nil || !strings.Contains(err.Error(), "both") {
		t.Errorf("steps for one database alone gave %v", err)
	}
}

func TestBind(t *testing.T) {
	for query, want := range map[string]string{
		"SELECT 1":                                "SELECT 1",
		"a = ? AND b = ?":                         "a = $1 AND b = $2",
		"a = ?2 AND b = ?1 OR c = ?12":            "a = $2 AND b = $1 OR c = $12",
		"a = '?' AND \"b?\" = ? -- ? no\nAND c=?": "a = '?' AND \"b?\" = $1 -- ? no\nAND c=$2",
		"a = 'it''s ?' AND b = ?":                 "a = 'it''s ?' AND b = $1",
		"an open ' ?":                             "an open ' ?",
	} {
		if got := Postgres.bind(query); got != want {
			t.Errorf("%q became %q, want %q", query, got, want)
		}
		if got := SQLite.bind(query); got != query {
			t.Errorf("%q became %q for SQLite", query, got)
		}
	}
}

func TestText(t *testing.T) {
	for s, want := range map[string]string{"a ü 漢": "a ü 漢", "a\x00b": "a\uFFFDb", "\xff\x00": "\uFFFD\uFFFD", "": ""} {
		if got := Legible(s); got != want || Text(s) != (s == want) || !Text(got) {
			t.Errorf("%q became %q, want %q", s, got, want)
		}
	}
}
