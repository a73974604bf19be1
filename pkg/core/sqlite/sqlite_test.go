package sqlite

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// TestOpenKeepsItsWord asks the database itself for what Open promises.
func TestOpenKeepsItsWord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a name with % and ?.db")
	db, err := Open(path, Options{Conns: 1, Cache: 4096, ForeignKeys: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	files := fstest.MapFS{"migrations/001_first.sql": {Data: []byte("-- +goose Up\nCREATE TABLE t (id INTEGER PRIMARY KEY, of INTEGER REFERENCES t(id));\n")}}
	for range 2 { // the second time there is nothing to do
		if err := Migrate(t.Context(), db, files); err != nil {
			t.Fatal(err)
		}
	}
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "cache_size": "-4096", "busy_timeout": "10000"} {
		var got string
		if err := db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", pragma, got, err, want)
		}
	}
	if _, err := db.ExecContext(t.Context(), "INSERT INTO t VALUES (1, 7)"); err == nil {
		t.Error("a reference to a row that is not there was taken")
	}
	files["migrations/002_bad.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nCREATE NONSENSE;\n")}
	if err := Migrate(t.Context(), db, files); err == nil || !strings.Contains(err.Error(), "schema") {
		t.Errorf("a broken step gave %v", err)
	}
}
