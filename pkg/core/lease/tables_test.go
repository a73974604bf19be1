package lease

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

func TestMain(m *testing.M) { os.Exit(databasetest.Run(m)) }

const short = 400 * time.Millisecond

// open makes a core on a database; a second schema stands for the ledger.
func open(t *testing.T, place, name, life string) (*Room, *database.DB) {
	t.Helper()
	var dbs [2]*database.DB
	for i, schema := range []string{"core", "ledger"} {
		db, err := database.Open(t.Context(), database.Config{Place: place, Schema: schema})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		dbs[i] = db
	}
	if err := Migrate(t.Context(), dbs[0]); err != nil {
		t.Fatal(err)
	}
	r := New(Config{DB: dbs[0], Schema: "core", Self: Replica{Name: name, Address: name + ":8443"}, Unique: life, Life: short})
	for _, d := range duties() {
		r.Add(d)
	}
	t.Cleanup(r.kill)
	return r, dbs[1]
}

func (r *Room) must(t *testing.T) {
	t.Helper()
	if err := r.step(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func count(r *Room, spread bool) (n int) {
	for _, d := range r.duties {
		if d.Spread == spread && d.cancel != nil {
			n += len(d.held)
		}
	}
	return n
}

// as writes as the work of a room does: by the fences that it holds.
func (r *Room) as(ctx context.Context, db *database.DB, during func()) error {
	return db.Write(r.fenced(ctx, r.heldNow()), func(*database.Tx) error { during(); return nil })
}

// Two cores on one PostgreSQL share the work; what one of them has the other takes when it dies,
// and at once when it stops.
func TestTwoCores(t *testing.T) {
	place := databasetest.Postgres(t)
	a, _ := open(t, place, "a", "1")
	a.must(t)
	if count(a, true) != len(slots) || count(a, false) != 2 || len(a.Live()) != 1 {
		t.Fatalf("alone it has %v", a.heldNow())
	}
	b, _ := open(t, place, "b", "1")
	for range 3 { // b says that it is there, a gives, b takes
		b.must(t)
		a.must(t)
	}
	if count(a, true) != len(slots)/2 || count(b, true) != len(slots)/2 || count(a, false) != 2 || count(b, false) != 0 {
		t.Fatalf("a has %v, b %v", a.heldNow(), b.heldNow())
	}
	if live := b.Live(); len(live) != 2 || live[0] != (Replica{"a", "a:8443"}) {
		t.Errorf("b sees %v", live)
	}
	b.leave()
	a.must(t)
	if count(a, true) != len(slots) || len(a.Live()) != 1 {
		t.Errorf("after b stopped a has %v", a.heldNow())
	}
	// a dies; its own next life takes over at once, another after a while.
	a2, _ := open(t, place, "a", "2")
	a2.must(t)
	if count(a2, true) != len(slots) {
		t.Errorf("a's second life has %v", a2.heldNow())
	}
	c, _ := open(t, place, "c", "1")
	c.must(t)
	if n := count(c, true) + count(c, false); n != 0 {
		t.Errorf("c has %v while a lives", c.heldNow())
	}
	wait.Until(t, "c to have all that a had", func() bool { c.must(t); return count(c, true) == len(slots) && count(c, false) == 2 })
}

// A core that lost its leases while it stood still changes nothing any more, in whatever schema;
// who has them does.
func TestStaleCoreIsRefused(t *testing.T) {
	place := databasetest.Postgres(t)
	a, ledger := open(t, place, "a", "1")
	a.must(t)
	if err := a.as(t.Context(), ledger, func() {}); err != nil {
		t.Fatal(err)
	}
	b, other := open(t, place, "b", "1")
	wait.Until(t, "b to have all that a had", func() bool { b.must(t); return count(b, true) == len(slots) && count(b, false) == 2 })
	wrote := false
	if err := a.as(t.Context(), ledger, func() { wrote = true }); !errors.Is(err, ErrLost) || api.CodeOf(err) != api.Unavailable || wrote {
		t.Errorf("a core without its leases writes: %v, %v", wrote, err)
	}
	if err := b.as(t.Context(), other, func() { wrote = true }); err != nil || !wrote {
		t.Errorf("a core with its leases: %v", err)
	}
	a.must(t)
	if n := len(a.heldNow()); n > 0 && count(a, false) > 0 {
		t.Errorf("it goes on with %v", a.heldNow())
	}
}

// While a transaction of leased work is under way nobody takes its leases, though their time has
// run out; to renew them does not wait for it.
func TestTakingWaitsForWrites(t *testing.T) {
	place := databasetest.Postgres(t)
	a, ledger := open(t, place, "a", "1")
	a.must(t)
	b, _ := open(t, place, "b", "1")
	err := a.as(t.Context(), ledger, func() {
		if _, err := a.look(t.Context()); err != nil {
			t.Error("renewing beside a transaction: ", err)
		}
		var v view
		wait.Until(t, "a's leases to run out", func() bool {
			var err error
			if v, err = b.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			return v.rows["render"].out
		})
		ctx, cancel := context.WithTimeout(t.Context(), short)
		defer cancel()
		if err := b.keeper.take(ctx, b.holder, short, []row{v.rows["render"]}); err == nil {
			t.Error("a lease was taken under a transaction that relies on it")
		}
	})
	if err != nil {
		t.Error(err)
	}
	wait.Until(t, "b to take it afterwards", func() bool { b.must(t); return count(b, false) == 2 })
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{"a": true, "core-2": true, "": false, "A": false, "a#b": false, "a%": false, "a/b": false, "abcdefghijklmnopqrstuvwxyz0123456789": false} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// The refusal is the fence's.
func TestFenceIsNeeded(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestStaleCoreIsRefused$", "lease.go")...)
}
