package audit_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/audit"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/tests/mutation"
)

func TestMain(m *testing.M) { os.Exit(databasetest.Run(m)) }

// core is a store with its log.
type core struct {
	t     *testing.T
	dir   string
	store *store.SQL
	key   audit.Key
	chain *audit.Chain
	heads *audit.Heads
}

func (c *core) path() string { return filepath.Join(c.dir, "heads.log") }

func open(t *testing.T, place string) *core {
	t.Helper()
	c := &core{t: t, dir: t.TempDir()}
	var err error
	if c.key, err = audit.CreateKey(filepath.Join(c.dir, "audit.key"), rand.Reader); err != nil {
		t.Fatal(err)
	}
	var uid atomic.Int64
	c.chain = audit.NewChain(c.key, time.Now)
	if c.store, err = store.Open(t.Context(), store.Config{Place: place, Now: time.Now, NewUID: func() string { return fmt.Sprint("uid-", uid.Add(1)) }, Auditor: c.chain, Rooms: audit.Migrate}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.store.Close() })
	if err := c.store.Adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.heads, err = audit.OpenHeads(c.chain, c.store.Database(), c.path()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.heads.Close() })
	return c
}

func (c *core) put(ctx context.Context, kind, name, spec string) *api.Object {
	c.t.Helper()
	o, err := c.store.Put(ctx, &api.Object{APIVersion: api.Version, Kind: kind, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: name}, Spec: []byte(spec)}, store.PutOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return o
}

func (c *core) sign() {
	c.t.Helper()
	if err := c.heads.Sign(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *core) verify() *audit.Report {
	c.t.Helper()
	r, err := audit.Verify(c.t.Context(), c.store.Database(), c.key, c.store.EverythingIn, audit.HeadFiles(c.path())...)
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// behind changes the database behind the core's back.
func (c *core) behind(statements ...string) {
	c.t.Helper()
	for _, text := range statements {
		res, err := c.store.Database().ExecContext(c.t.Context(), text)
		if err != nil {
			c.t.Fatal(text, err)
		}
		if n, _ := res.RowsAffected(); n == 0 {
			c.t.Fatal("nothing is changed by", text)
		}
	}
}

// lived is a core that has a life behind it: changes of several kinds, some by ann, and heads.
func lived(t *testing.T, place string) *core {
	c := open(t, place)
	ctx := api.WithOrigin(t.Context(), api.Origin{Actor: "uid-ann", Name: "ann", How: "token x", Source: "192.0.2.1", Request: "r1"})
	c.put(ctx, api.KindTenant, "acme", `{}`)
	c.put(ctx, api.KindConfig, "motd", `{"env":{"A":"1"}}`)
	c.sign()
	c.put(ctx, api.KindConfig, "motd", `{"env":{"A":"2"}}`)
	c.put(ctx, api.KindConfig, "gone", `{"env":{}}`)
	if err := c.store.Delete(ctx, api.Key{Tenant: api.DefaultTenant, Kind: api.KindConfig, Name: "gone"}, 0); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ann", "bob"} {
		if _, err := c.store.CreateToken(ctx, name, store.Admin, time.Time{}, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	c.sign()
	if r := c.verify(); len(r.Faults) != 0 || r.Rows < 9 || r.Heads != 2 || r.Tokens != 2 {
		t.Fatalf("an untouched core: %+v", r)
	}
	return c
}

// alterations are what somebody does behind the core's back, and what verify says of the place.
var alterations = map[string]struct {
	do   []string
	want string
}{
	"a row altered":        {[]string{"UPDATE audit SET actor_name = 'bob' WHERE seq = 4"}, "audit row 4: it, or the one before it, was changed"},
	"a row deleted":        {[]string{"DELETE FROM audit WHERE seq = 3"}, "audit rows 3 to 3: they are missing"},
	"rows cut off":         {[]string{"DELETE FROM audit WHERE seq > 5"}, "they are missing: the log was cut off at its end"},
	"the end moved along":  {[]string{"DELETE FROM audit WHERE seq > 5", "UPDATE audit_head SET seq = 5, hash = (SELECT hash FROM audit WHERE seq = 5)"}, "a head of"},
	"the end forgotten":    {[]string{"DELETE FROM audit_head"}, "audit_head: it says that row 0 is the last"},
	"an object altered":    {[]string{`UPDATE objects SET spec = CAST('{"env":{"A":"1"}}' AS BYTEA) WHERE name = 'motd'`}, "objects Config default/motd: it is not what was written last"},
	"an object's label":    {[]string{`UPDATE objects SET labels = '{"a":"b"}' WHERE name = 'motd'`}, "objects Config default/motd: it is not what was written last"},
	"an object deleted":    {[]string{"DELETE FROM objects WHERE name = 'motd'"}, "objects Config default/motd (uid "},
	"an object put there":  {[]string{`INSERT INTO objects SELECT tenant, kind, 'forged', 'uid-forged', labels, annotations, spec, status, revision, generation, created, updated FROM objects WHERE name = 'motd'`}, "objects Config default/forged: no row of the log tells"},
	"objects truncated":    {[]string{"DELETE FROM objects"}, "objects Config default/motd (uid "},
	"a token altered":      {[]string{"UPDATE tokens SET expires = 99999999999 WHERE name = 'ann'"}, "it is not what was written: it was changed"},
	"a token's hash":       {[]string{"UPDATE tokens SET hash = (SELECT hash FROM tokens WHERE name = 'ann') WHERE name = 'bob'"}, "it is not what was written: it was changed"},
	"a token put there":    {[]string{"INSERT INTO tokens SELECT 'forged', hash, name, role, created, expires, account FROM tokens WHERE name = 'ann'"}, "tokens forged: no row of the log tells"},
	"tokens truncated":     {[]string{"DELETE FROM tokens"}, "tokens Token platform/ann (uid "},
	"the log truncated":    {[]string{"DELETE FROM audit"}, "the log was cut off at its end"},
	"the log as if unused": {[]string{"DELETE FROM audit", "DELETE FROM audit_head"}, "a head of"},
}

func TestVerifyNamesThePlace(t *testing.T) {
	for name, a := range alterations {
		t.Run(name, func(t *testing.T) {
			c := lived(t, filepath.Join(t.TempDir(), "core.db"))
			for i := range a.do {
				a.do[i] = strings.ReplaceAll(a.do[i], "AS BYTEA", "AS BLOB")
			}
			c.behind(a.do...)
			c.named(a.want)
		})
	}
}

func (c *core) named(want string) {
	c.t.Helper()
	r := c.verify()
	for _, f := range r.Faults {
		if strings.Contains(f.String(), want) {
			return
		}
	}
	c.t.Errorf("it goes unseen: no fault says %q: %v", want, r.Faults)
}

// PostgreSQL keeps the same log. The log survives its rows being written anew from the middle on
// no better: then the head has another hash.
func TestVerifyOnPostgres(t *testing.T) {
	c := lived(t, databasetest.Postgres(t))
	c.behind("UPDATE objects SET spec = CAST('{}' AS BYTEA) WHERE name = 'motd'", "DELETE FROM tokens WHERE name = 'bob'")
	c.named("objects Config default/motd: it is not what was written last")
	c.named("tokens Token platform/bob (uid ")
}

// Whoever can write the database alone can write rows anew whose hashes fit; a head that was
// signed before tells.
func TestRowsWrittenAnew(t *testing.T) {
	c := lived(t, filepath.Join(t.TempDir(), "core.db"))
	entries, err := audit.List(t.Context(), c.store.Database(), audit.Query{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	c.behind("DELETE FROM audit WHERE seq > 3", "UPDATE audit_head SET seq = 3, hash = (SELECT hash FROM audit WHERE seq = 3)")
	again := make([]api.AuditEntry, 0, len(entries))
	for i := len(entries) - 1; i >= 0; i-- {
		if e := entries[i]; e.Seq > 3 {
			e.Name = "bob"
			again = append(again, e)
		}
	}
	if err := c.store.Audit(t.Context(), again...); err != nil {
		t.Fatal(err)
	}
	c.named("has another hash: the row, or one before it, was written anew")
}

func TestHeadsAreTheirOwnChain(t *testing.T) {
	c := lived(t, filepath.Join(t.TempDir(), "core.db"))
	raw, err := os.ReadFile(c.path())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(raw), "\n")
	for name, x := range map[string]struct{ text, want string }{
		"a line taken out": {lines[1], "lines before it were taken out"},
		"a number changed": {strings.Replace(lines[0], "head-1 1 ", "head-1 2 ", 1) + lines[1], "its signature is not by the core's key"},
		"another's line":   {"x\n" + lines[0] + lines[1], "it is no head"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			if err := os.WriteFile(c.path(), []byte(x.text), 0o600); err != nil {
				t.Fatal(err)
			}
			here := *c
			here.t = t
			here.named(x.want)
		})
	}
	// A power cut leaves half a line, which is none, and the next goes on behind it.
	if err := os.WriteFile(c.path(), []byte(string(raw)+lines[1][:40]), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := c.verify(); len(r.Faults) != 0 || len(r.Notes) != 1 {
		t.Errorf("half a line: %+v", r)
	}
}

// A second core on the folder keeps heads of its own.
func TestTwoCoresKeepHeads(t *testing.T) {
	c := lived(t, filepath.Join(t.TempDir(), "core.db"))
	second, err := audit.OpenHeads(c.chain, c.store.Database(), c.path())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := second.Sign(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := c.verify(); len(r.Faults) != 0 || r.Heads != 3 {
		t.Errorf("%+v", r)
	}
}

// A restored core's log goes on under its new epoch; what the old core signed since is not missed.
func TestRestore(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "core.db"))
	c.put(t.Context(), api.KindConfig, "a", `{"env":{}}`)
	backup := filepath.Join(t.TempDir(), "copy.db")
	if err := c.store.BackupTo(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		c.put(t.Context(), api.KindConfig, "a", fmt.Sprintf(`{"env":{"A":"%d"}}`, i))
	}
	c.sign()
	again, err := store.Open(t.Context(), store.Config{Place: backup, Now: time.Now, NewUID: func() string { return "u" }, Auditor: c.chain, Rooms: audit.Migrate})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	old := c.store
	c.store = again
	c.named("they are missing: a head of") // a copy that says nothing of a restore
	if err := again.SetEpoch(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	if err := again.Audit(t.Context(), api.AuditEntry{Action: audit.ActionRestored, Message: "from the backup of noon"}); err != nil {
		t.Fatal(err)
	}
	if r := c.verify(); len(r.Faults) != 0 || !strings.Contains(strings.Join(r.Notes, " "), "from the backup of noon") {
		t.Errorf("a restored core: %+v", r)
	}
	c.store = old
}

// What was there before the log was is adopted, once.
func TestAdopt(t *testing.T) {
	place := filepath.Join(t.TempDir(), "core.db")
	before, err := store.Open(t.Context(), store.Config{Place: place, Now: time.Now, NewUID: func() string { return "before" }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := before.CreateToken(t.Context(), "old", store.Viewer, time.Time{}, rand.Reader); err != nil {
		t.Fatal(err)
	}
	before.Close()
	c := open(t, place)
	if err := c.store.Adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := c.verify(); len(r.Faults) != 0 || r.Tokens != 1 || r.Rows != int64(r.Objects+r.Tokens+1) {
		t.Errorf("%+v", r)
	}
}

// Two processes that write at once make one chain without a gap.
func TestTwoWriters(t *testing.T) {
	for name, place := range map[string]string{"sqlite": filepath.Join(t.TempDir(), "core.db"), "postgres": databasetest.Postgres(t)} {
		t.Run(name, func(t *testing.T) {
			c := open(t, place)
			second, err := store.Open(t.Context(), store.Config{Place: place, Now: time.Now, NewUID: func() string { return "second" }, Auditor: c.chain, Rooms: audit.Migrate})
			if err != nil {
				t.Fatal(err)
			}
			defer second.Close()
			notes := audit.NewNotes(c.chain, second.Database(), slog.New(slog.DiscardHandler))
			const each = 40
			var all sync.WaitGroup
			for w := range 4 {
				all.Go(func() {
					for i := range each {
						var err error
						switch w {
						case 0:
							_, err = c.store.Put(t.Context(), &api.Object{APIVersion: api.Version, Kind: api.KindConfig, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: "x"}, Spec: fmt.Appendf(nil, `{"env":{"A":"%d"}}`, i)}, store.PutOptions{})
						default:
							err = notes.Note(t.Context(), api.AuditEntry{Origin: api.Origin{Actor: fmt.Sprint(w)}, Action: "exec", Kind: api.KindDevice, Object: "box"})
						}
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			if err := notes.Close(); err != nil {
				t.Fatal(err)
			}
			if err := notes.Note(t.Context(), api.AuditEntry{Action: "late"}); api.CodeOf(err) != api.Unavailable {
				t.Error("a row after the end:", err)
			}
			if r := c.verify(); len(r.Faults) != 0 || r.Rows != 4*each+1 {
				t.Errorf("%+v", r)
			}
		})
	}
}

// A stranger who knocks on and on fills nothing: the knocks are counted.
func TestFloodIsFolded(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "core.db"))
	notes := audit.NewNotes(c.chain, c.store.Database(), slog.New(slog.DiscardHandler))
	for range 500 {
		ctx := api.WithOrigin(t.Context(), api.Origin{Source: "198.51.100.7"})
		if err := notes.Note(ctx, api.AuditEntry{Action: "authenticate", Outcome: api.AuditRefused}); err != nil {
			t.Fatal(err)
		}
	}
	if err := notes.Close(); err != nil {
		t.Fatal(err)
	}
	rows, err := audit.List(t.Context(), c.store.Database(), audit.Query{Action: "authenticate", Limit: 1000})
	if err != nil || len(rows) < 2 || len(rows) > 20 {
		t.Fatalf("%d rows (%v)", len(rows), err)
	}
	var sum int64
	for _, e := range rows {
		sum += max(e.Count, 1)
	}
	if sum != 500 {
		t.Errorf("%d of 500 are counted", sum)
	}
}

// provenBy are the alterations that no other check sees.
var provenBy = map[string]string{"gaps of rows": "a row deleted", "chain of rows": "a row altered", "end of rows": "rows cut off", "heads beyond the end": "the end moved along",
	"inserted objects": "an object put there", "altered objects": "an object altered", "inserted tokens": "a token put there", "altered tokens": "a token altered", "deleted rows": "an object deleted"}

// TestChecksCount: without any of its checks, verify lets pass what the check is for.
func TestChecksCount(t *testing.T) {
	checks := mutation.Marked(t, "^TestVerifyNamesThePlace$", "verify.go", "heads.go")
	if len(checks) < 10 {
		t.Fatalf("only %d checks are marked", len(checks))
	}
	for i := range checks {
		if story := provenBy[checks[i].Name]; story != "" {
			checks[i].Test = "^TestVerifyNamesThePlace$/^" + strings.ReplaceAll(story, " ", "_") + "$"
		}
		switch checks[i].Name {
		case "heads":
			checks[i].Test = "^TestRowsWrittenAnew$"
		case "order of heads", "signature of a head":
			checks[i].Test = "^TestHeadsAreTheirOwnChain$"
		}
		checks[i].Says = "it goes unseen"
	}
	mutation.Prove(t, checks...)
}
