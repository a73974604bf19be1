package database

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database/databasetest"
)

func TestMain(m *testing.M) { os.Exit(databasetest.Run(m)) }

func openServer(t *testing.T, place, schema string) *DB {
	t.Helper()
	db, err := Open(t.Context(), Config{Place: place, Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// A server that was set up otherwise is told for each connection what Open promises.
func TestPostgresKeepsOpensWord(t *testing.T) {
	place := databasetest.Postgres(t)
	db := openServer(t, place, `a "room"`)
	if _, err := db.write.ExecContext(t.Context(), "ALTER ROLE postgres SET synchronous_commit = off"); err != nil {
		t.Fatal(err)
	}
	again := openServer(t, place, `a "room"`)
	for name, want := range map[string]string{"synchronous_commit": "on", "search_path": `"a ""room"""`, "client_encoding": "UTF8", "application_name": "cored"} {
		var got string
		if err := again.QueryRowContext(t.Context(), "SELECT current_setting(?)", name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", name, got, err, want)
		}
	}
	if _, err := db.write.ExecContext(t.Context(), "ALTER ROLE postgres RESET ALL"); err != nil {
		t.Fatal(err)
	}
}

func TestPostgresRefuses(t *testing.T) {
	_, err := Open(t.Context(), Config{Place: "postgres://core:hunter2@[bad/x", Schema: "s"})
	if api.CodeOf(err) != api.Invalid || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a bad URL: %v", err)
	}
	if got := Shown("postgres://u@h/d?password=hunter2&x=y"); strings.Contains(got, "hunter2") || !strings.Contains(got, "x=y") {
		t.Error(got)
	}
	nobody := "postgres://core:hunter2@127.0.0.1:1/x"
	if _, err := Open(t.Context(), Config{Place: nobody, Schema: "s"}); api.CodeOf(err) != api.Unavailable || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "127.0.0.1:1/x") {
		t.Errorf("no server: %v", err)
	}
}

// Cores that start at once bring the schema up to date once.
func TestPostgresMigratesOnce(t *testing.T) {
	place := databasetest.Postgres(t)
	files := steps("CREATE TABLE t (n BIGINT)", "INSERT INTO t VALUES (1)")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			db, err := Open(context.Background(), Config{Place: place, Schema: "room"})
			if err == nil {
				err = errors.Join(db.Migrate(context.Background(), files, VersionTable), db.Close())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var n int
	if err := openServer(t, place, "room").QueryRowContext(t.Context(), "SELECT count(*) FROM t").Scan(&n); err != nil || n != 1 {
		t.Fatalf("%d rows, %v", n, err)
	}
}

// Of two transactions that hold what the other wants the server ends one, which is done
// again. Without that it fails.
func TestLostRacesAreRunAgain(t *testing.T) {
	db := openServer(t, databasetest.Postgres(t), "room")
	if err := db.Migrate(t.Context(), steps("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT NOT NULL)", "INSERT INTO t VALUES (1, 0), (2, 0)"), VersionTable); err != nil {
		t.Fatal(err)
	}
	cross := func(run func(context.Context, func(*Tx) error) error) (errs [2]error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var met, wg sync.WaitGroup
		met.Add(2)
		for i := range errs {
			first := sync.OnceFunc(func() { met.Done(); met.Wait() }) // both hold their first row
			wg.Go(func() {
				errs[i] = run(ctx, func(tx *Tx) error {
					for step := range 2 {
						if _, err := tx.ExecContext(ctx, "UPDATE t SET n = n + 1 WHERE id = ?", 1+(i+step)%2); err != nil {
							return err
						}
						first()
					}
					return nil
				})
			})
		}
		wg.Wait()
		return errs
	}
	if errs := cross(db.Write); errors.Join(errs[:]...) != nil {
		t.Fatalf("with trying again: %v", errs)
	}
	var n int
	if err := db.QueryRowContext(t.Context(), "SELECT sum(n) FROM t").Scan(&n); err != nil || n != 4 {
		t.Fatalf("%d changes, %v, want 4", n, err)
	}
	if errs := cross(db.once); !lostRace(errors.Join(errs[:]...)) {
		t.Fatalf("without it: %v", errs)
	}
}
