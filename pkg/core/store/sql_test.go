package store_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/core/store/storetest"
)

const historyLimit = 32

func open(t *testing.T, path string) (*store.SQL, *storetest.Clock) {
	t.Helper()
	clock := storetest.NewClock()
	var uid atomic.Int64
	s, err := store.Open(context.Background(), store.Config{Place: path, Now: clock.Now, History: historyLimit,
		NewUID: func() string { return fmt.Sprintf("uid-%d", uid.Add(1)) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, clock
}

func TestMain(m *testing.M) { os.Exit(databasetest.Run(m)) }

func TestSQL(t *testing.T) {
	for name, place := range map[string]func(t *testing.T) string{
		"file":     func(t *testing.T) string { return filepath.Join(t.TempDir(), "a folder with ? and %20.db") },
		"memory":   func(*testing.T) string { return "" },
		"postgres": func(t *testing.T) string { return databasetest.Postgres(t) },
	} {
		t.Run(name, func(t *testing.T) {
			if name == "postgres" {
				databasetest.Checks(t, 20)
			}
			s, clock := open(t, place(t))
			storetest.Objects(t, historyLimit, func(t *testing.T) store.Store {
				if name == "postgres" { // it takes its time to make a schema
					storetest.Clear(t, s)
					return s
				}
				s, _ := open(t, place(t))
				return s
			})
			storetest.Clear(t, s)
			t.Run("manifests", func(t *testing.T) { storetest.Manifests(t, s) })
			t.Run("boxes", func(t *testing.T) { storetest.Boxes(t, s) })
			t.Run("revisions", func(t *testing.T) { storetest.Revisions(t, s) })
			t.Run("events", func(t *testing.T) { storetest.Events(t, s) })
			t.Run("tokens", func(t *testing.T) { storetest.Tokens(t, s, clock) })
		})
	}
}

// Whatever is asked of them, SQLite and PostgreSQL answer alike.
func TestDatabasesAnswerAlike(t *testing.T) {
	databasetest.Checks(t, 40)
	lite, _ := open(t, "")
	big, _ := open(t, databasetest.Postgres(t))
	rapid.Check(t, func(rt *rapid.T) {
		storetest.Clear(rt, lite)
		storetest.Clear(rt, big)
		storetest.Alike(rt, lite, big)
	})
}

// What was written is there after a restart and in a backup, and revisions go on.
func TestReopenAndBackup(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s, _ := open(t, filepath.Join(dir, "core.db"))
	obj, err := s.Put(ctx, &api.Object{Kind: api.KindSite, Metadata: api.Meta{Tenant: "default", Name: "a"}, Spec: []byte(`{}`)}, store.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if epoch, err := s.Epoch(ctx); epoch != 1 || err != nil {
		t.Fatalf("epoch %d %v", epoch, err)
	}
	if err := s.SetEpoch(ctx, 1); api.CodeOf(err) != api.Invalid {
		t.Fatalf("the same epoch again: %v", err)
	}
	if err := s.SetEpoch(ctx, 1_900_000_000); err != nil {
		t.Fatal(err)
	}
	if err := s.BackupTo(ctx, filepath.Join(dir, "copy.db")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	for _, name := range []string{"core.db", "copy.db"} {
		again, _ := open(t, filepath.Join(dir, name))
		got, err := again.Get(ctx, obj.Key())
		if err != nil || got.Metadata.UID != obj.Metadata.UID {
			t.Fatalf("%s: %v %v", name, got, err)
		}
		next, err := again.Put(ctx, &api.Object{Kind: api.KindSite, Metadata: api.Meta{Tenant: "default", Name: "b"}}, store.PutOptions{})
		if err != nil || next.Metadata.Revision <= obj.Metadata.Revision {
			t.Fatalf("%s: revision %+v after %d, %v", name, next, obj.Metadata.Revision, err)
		}
		if epoch, _ := again.Epoch(ctx); epoch != 1_900_000_000 {
			t.Fatalf("%s: epoch %d", name, epoch)
		}
	}
}

func BenchmarkPutStatuses(b *testing.B) {
	s, err := store.Open(b.Context(), store.Config{Place: filepath.Join(b.TempDir(), "core.db"), Now: storetest.NewClock().Now, NewUID: func() string { return "" }})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	keys := make([]api.Key, 1000)
	for i := range keys {
		o, err := s.Put(b.Context(), &api.Object{Kind: api.KindDevice, Metadata: api.Meta{Tenant: "default", Name: fmt.Sprint("d", i)}}, store.PutOptions{})
		if err != nil {
			b.Fatal(err)
		}
		keys[i] = o.Key()
	}
	n := 0
	for b.Loop() {
		n++
		m := map[api.Key]any{}
		for _, k := range keys {
			m[k] = api.DeviceStatus{Desired: uint64(n)}
		}
		if err := s.PutStatuses(b.Context(), m); err != nil {
			b.Fatal(err)
		}
	}
}

// A tenant and what is made in it meet in the store: one of the two is refused.
func TestTenantsAndTheirs(t *testing.T) {
	s, err := store.Open(t.Context(), store.Config{Now: time.Now, NewUID: func() string { return "u" }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	acme := &api.Object{APIVersion: api.Version, Kind: api.KindTenant, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: "acme"}}
	hill := &api.Object{APIVersion: api.Version, Kind: api.KindSite, Metadata: api.Meta{Tenant: "acme", Name: "hill"}}
	in := store.PutOptions{InTenant: true}
	for range 50 {
		if _, err := s.Put(t.Context(), acme, in); err != nil {
			t.Fatal(err)
		}
		made, deleted := make(chan error), make(chan error)
		go func() { _, err := s.Put(t.Context(), hill, in); made <- err }()
		go func() { deleted <- s.Delete(t.Context(), acme.Key(), 0) }()
		putErr, delErr := <-made, <-deleted
		if (putErr == nil) == (delErr == nil) || putErr != nil && api.CodeOf(putErr) != api.Invalid || delErr != nil && api.CodeOf(delErr) != api.Conflict {
			t.Fatalf("made: %v, deleted: %v", putErr, delErr)
		}
		if putErr == nil {
			if err := errors.Join(s.Delete(t.Context(), hill.Key(), 0), s.Delete(t.Context(), acme.Key(), 0)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Two tenants that go below each other at once meet in the store: one of the two is refused.
func TestTenantsMakeNoLoop(t *testing.T) {
	s, _ := open(t, "")
	put := func(name, parent string) error {
		_, err := s.Put(t.Context(), &api.Object{APIVersion: api.Version, Kind: api.KindTenant, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: name}, Spec: []byte(`{"parent":"` + parent + `"}`)}, store.PutOptions{})
		return err
	}
	for range 50 {
		if err := errors.Join(put("a", "platform"), put("b", "platform")); err != nil {
			t.Fatal(err)
		}
		one := make(chan error)
		go func() { one <- put("a", "b") }()
		other := put("b", "a")
		if err := <-one; (err == nil) == (other == nil) || err != nil && api.CodeOf(err) != api.Invalid || other != nil && api.CodeOf(other) != api.Invalid {
			t.Fatalf("a below b: %v, b below a: %v", err, other)
		}
		if err := errors.Join(put("a", "platform"), put("b", "platform")); err != nil {
			t.Fatal(err)
		}
	}
}

// Two processes on one PostgreSQL hear of each other's writes, in the order of revisions,
// also over a connection that was lost.
func TestWatchHearsOfOtherProcesses(t *testing.T) {
	place := databasetest.Postgres(t)
	a, _ := open(t, place)
	b, _ := open(t, place)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	events := a.Watch(ctx, store.WatchQuery{From: -1})
	want := map[string]string{}
	var revision int64
	step := func(n int) {
		t.Helper()
		s, name := []*store.SQL{a, b, b}[n%3], fmt.Sprint("c", n%5)
		o, err := s.Put(ctx, &api.Object{Kind: api.KindConfig, Metadata: api.Meta{Tenant: "default", Name: name}, Spec: fmt.Appendf(nil, `{"n":%d}`, n)}, store.PutOptions{})
		if err != nil || o.Metadata.Revision != revision+1 {
			t.Fatalf("write %d: %+v after revision %d, %v", n, o, revision, err)
		}
		want[name], revision = string(o.Spec), o.Metadata.Revision
	}
	got := map[string]string{}
	hear := func() {
		t.Helper()
		for last := int64(0); last < revision; {
			select {
			case e := <-events:
				if e.Err != nil || e.Revision <= last {
					t.Fatalf("event %+v after %d", e, last)
				}
				got[e.Object.Metadata.Name], last = string(e.Object.Spec), e.Revision
			case <-ctx.Done():
				t.Fatalf("revision %d never came", revision)
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("heard %v, want %v", got, want)
		}
	}
	for n := range 20 {
		step(n)
	}
	hear()
	step(1) // b's alone: nothing but its notification tells a
	hear()
	if _, err := b.Database().ExecContext(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"); err != nil {
		t.Fatal(err)
	}
	step(2)
	hear()

	// What is kept no more is not made up: the watcher lists again.
	if _, err := b.Database().ExecContext(ctx, "DELETE FROM changes"); err != nil {
		t.Fatal(err)
	}
	if err := b.SetEpoch(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(ctx, &api.Object{Kind: api.KindConfig, Metadata: api.Meta{Tenant: "default", Name: "last"}, Spec: []byte("{}")}, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-events:
		if !store.IsTooOld(e.Err) {
			t.Fatalf("after a gap: %+v", e)
		}
	case <-ctx.Done():
		t.Fatal("nothing is heard of a gap")
	}
}

// A token of before there were accounts goes on speaking for the role that it had, by an
// account that is bound to it; an account's tokens go with it.
func TestTokensOfBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	s, _ := open(t, path)
	token, err := s.CreateToken(t.Context(), "ann", store.Viewer, time.Time{}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"UPDATE tokens SET account = '', role = 'viewer'", "DELETE FROM objects"} {
		if _, err := s.Database().ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s, _ = open(t, path)
	p, err := s.CheckToken(t.Context(), token)
	if err != nil || p.Name != "ann" {
		t.Fatal(p, err)
	}
	key := api.Key{Tenant: api.PlatformTenant, Kind: api.KindServiceAccount, Name: "viewer"}
	account, err := s.Get(t.Context(), key)
	if err != nil || account.Metadata.UID != p.Account {
		t.Errorf("the account %+v of %+v: %v", account, p, err)
	}
	key.Kind = api.KindRoleBinding
	if b, err := s.Get(t.Context(), key); err != nil || string(b.Spec) != `{"role":"viewer","subjects":[{"serviceAccount":"viewer"}]}` {
		t.Errorf("the binding %+v: %v", b, err)
	}
	key.Kind = api.KindServiceAccount
	if err := s.Delete(t.Context(), key, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CheckToken(t.Context(), token); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("a token whose account is gone: %v", err)
	}
}
