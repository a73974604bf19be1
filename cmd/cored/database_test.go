package main

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/tests/wait"
)

func TestMain(m *testing.M) {
	if os.Getenv(asCored) != "" {
		os.Exit(Main())
	}
	os.Exit(databasetest.Run(m))
}

// cored runs a command as a person does.
func cored(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// A core goes from files into PostgreSQL and back with all it has, and starts nowhere else.
func TestMigrateStore(t *testing.T) {
	dir, server := filepath.Join(t.TempDir(), "core"), databasetest.Postgres(t)
	r := start(t, dir)
	const site = "apiVersion: tributary/v1\nkind: Site\nmetadata: {name: NAME}\nspec: {}\n"
	apply := func(r *running, name string) {
		t.Helper()
		r.must("POST", "/api/v1/apply", strings.Replace(site, "NAME", name, 1), nil)
	}
	has := func(r *running, names ...string) {
		t.Helper()
		for _, name := range names {
			r.must("GET", "/api/v1/sites/"+name, "", nil)
		}
	}
	apply(r, "first")
	if _, err := cored(t, "migrate-store", "--data", dir, "--to", server); api.CodeOf(err) != api.Unavailable {
		t.Fatalf("under a running core: %v", err)
	}
	epoch := r.c.epoch
	r.stop()
	for what, args := range map[string][]string{"no such place": {"--to", "mysql://x"}, "there already": {"--to", "files"}, "from elsewhere": {"--from", server, "--to", server + "&x=y"}} {
		if out, err := cored(t, append([]string{"migrate-store", "--data", dir}, args...)...); err == nil {
			t.Errorf("%s: %s", what, out)
		}
	}

	out, err := cored(t, "migrate-store", "--data", dir, "--from", "files", "--to", server)
	if err != nil || !strings.Contains(out, "objects") || !strings.Contains(out, "usage") {
		t.Fatalf("%s %v", out, err)
	}
	r2 := start(t, dir)
	has(r2, "first")
	apply(r2, "second")
	if r2.c.epoch != epoch || r2.token != r.token {
		t.Errorf("epoch %d after %d", r2.c.epoch, epoch)
	}
	if out, err := cored(t, "token", "list", "--data", dir); err != nil || !strings.Contains(out, "admin") {
		t.Errorf("tokens: %s %v", out, err)
	}
	r2.stop()
	if err := data(dir).useDatabase(t.Context(), databasetest.Postgres(t)); api.CodeOf(err) != api.Conflict {
		t.Errorf("another database: %v", err)
	}
	if err := data(t.TempDir()).useDatabase(t.Context(), server); api.CodeOf(err) != api.Conflict {
		t.Errorf("another folder's database: %v", err)
	}
	if err := os.Rename(data(dir).databaseFile(), filepath.Join(t.TempDir(), "away")); err != nil {
		t.Fatal(err)
	}
	if db, err := data(dir).openStore(t.Context()); api.CodeOf(err) != api.Gone {
		t.Errorf("the old files open: %v %v", db, err)
	}
	if err := data(dir).setDatabase(server); err != nil {
		t.Fatal(err)
	}

	if _, err := cored(t, "migrate-store", "--data", dir, "--to", "files"); api.CodeOf(err) != api.Conflict {
		t.Fatalf("over the old files: %v", err)
	}
	for _, name := range []string{"core.db", "ledger.db"} {
		if err := os.Remove(data(dir).path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := cored(t, "migrate-store", "--data", dir, "--to", "files"); err != nil {
		t.Fatalf("%s %v", out, err)
	}
	r3 := start(t, dir)
	has(r3, "first", "second")
	if err := data(t.TempDir()).useDatabase(t.Context(), server); api.CodeOf(err) != api.Conflict {
		t.Errorf("the database that the core left: %v", err)
	}
}

// While the server is away people are told so, and afterwards the core goes on.
func TestDatabaseGoesAway(t *testing.T) {
	server := databasetest.Postgres(t)
	r := startWith(t, options{data: data(filepath.Join(t.TempDir(), "core")), database: server, mqtt: "127.0.0.1:0"}, func(*core) {})
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	u.Path = "/postgres"
	beside, err := database.Open(t.Context(), database.Config{Place: u.String(), Schema: "beside"})
	if err != nil {
		t.Fatal(err)
	}
	defer beside.Close()
	do := func(statement string, args ...any) {
		t.Helper()
		if _, err := beside.ExecContext(t.Context(), statement, args...); err != nil {
			t.Fatal(err)
		}
	}
	r.must("GET", "/api/v1/sites", "", nil)
	do("ALTER DATABASE " + name + " ALLOW_CONNECTIONS false")
	do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ?", name)
	if e := r.call("GET", "/api/v1/sites", "", nil); e == nil || e.Code != api.Unavailable {
		t.Errorf("without a database: %v", e)
	}
	do("ALTER DATABASE " + name + " ALLOW_CONNECTIONS true")
	// What stood open when the server went away says so once more to whoever takes it next.
	wait.Until(t, "the database's return", func() bool { return r.call("GET", "/api/v1/sites", "", nil) == nil })
	r.must("POST", "/api/v1/apply", "apiVersion: tributary/v1\nkind: Site\nmetadata: {name: after}\nspec: {}\n", nil)
}
