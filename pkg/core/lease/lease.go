// Package lease answers: which of the cores on one database does what, and may it still write?
//
// Work that only one core may do at a time has a lease, a row with a holder, a time at which it
// runs out by the database's clock, and a number that grows with each that takes it: the fence.
// A core renews what it holds; what runs out, or is given back, another takes. Every
// transaction of leased work begins with a look whether its fence is still the newest
// (database.Fenced), and holds that until its end. So a core that was paused, or cut off, for
// longer than its leases lived changes nothing any more, whatever it believes.
package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

const (
	// Life is how long a lease lives that nobody renews: so long nobody does the work of a
	// core that died.
	Life = 5 * time.Second
	// beats is how often a lease is renewed in its life.
	beats = 5
	// lifeMark stands between a replica's name and what tells its lives apart.
	lifeMark = "#"
)

// ErrLost is that leased work is another's now. It has the code of what is not there for a
// while: whoever waits for the database waits until the work is taken from them.
var ErrLost = &api.Error{Code: api.Unavailable, Message: "another core has taken over this one's work", Remedy: "try again"}

// Config is what a Room is given.
type Config struct {
	// DB has the tables, in PostgreSQL in Schema. Nil: this core is alone, and does everything.
	DB     *database.DB
	Schema string
	// Self is this replica. Nobody else has its name as long as this process lives. Unique
	// tells its lives apart.
	Self   Replica
	Unique string
	Life   time.Duration // default Life
	Log    *slog.Logger
}

// Replica is one core of several.
type Replica struct {
	Name string
	// Address is where others reach its HTTPS: host:port.
	Address string
}

// Held is the leases that work runs by, with their fences.
type Held map[string]uint64

// Duty is work that only one core does at a time.
type Duty struct {
	// Names are the leases of it.
	Names []string
	// Spread divides them among the cores that live; else all stay with who has them.
	Spread bool
	// Run does the work of the leases held, at least one, until ctx ends; with others it is
	// run anew. Transactions under ctx are fenced. When it ends by itself, with api.Unavailable
	// or nothing, it is begun again; any other error ends the Room.
	Run func(ctx context.Context, held Held) error
}

// keeper keeps leases. Its methods are one transaction each.
type keeper interface {
	// renew prolongs what a holder has, and tells how things stand then.
	renew(ctx context.Context, self Replica, holder string, life time.Duration) (view, error)
	// take gives a holder those of rows that are still as they were seen.
	take(ctx context.Context, holder string, life time.Duration, rows []row) error
	// give gives back.
	give(ctx context.Context, holder string, names []string) error
	// leave gives everything back, and strikes the replica off.
	leave(ctx context.Context, holder string) error
}

// Room holds leases. Its methods may be called from any goroutine.
type Room struct {
	cfg    Config
	holder string
	keeper keeper
	duties []*duty
	ended  chan *duty

	mu   sync.Mutex
	live []Replica
}

// duty is a Duty that runs, or not.
type duty struct {
	Duty
	held   Held
	cancel context.CancelFunc // nil: it does not run
	done   chan struct{}
	err    error // of Run, once done
}

// New makes a Room. Its tables are Migrate's to make.
func New(cfg Config) *Room {
	cfg.Life = cmp.Or(cfg.Life, Life)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r := &Room{cfg: cfg, holder: cfg.Self.Name + lifeMark + cfg.Unique, ended: make(chan *duty, 16), live: []Replica{cfg.Self}}
	if cfg.DB != nil {
		r.keeper = &tables{db: cfg.DB, schema: cfg.Schema}
	}
	return r
}

// Add adds a duty, before Run.
func (r *Room) Add(d Duty) { r.duties = append(r.duties, &duty{Duty: d, held: Held{}}) }

// Alone tells whether this core is the only one that may ever run on its database.
func (r *Room) Alone() bool { return r.keeper == nil }

// Live lists the cores that live, this one too, as of the last look.
func (r *Room) Live() []Replica {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.live)
}

// Join says that this core is there, and looks who else is.
func (r *Room) Join(ctx context.Context) error {
	if r.Alone() {
		return nil
	}
	_, err := r.look(ctx)
	return err
}

// Run keeps leases, and runs the duties that they allow, until ctx ends: then everything is
// given back at once.
func (r *Room) Run(ctx context.Context) error {
	if r.Alone() {
		for _, d := range r.duties {
			for _, name := range d.Names {
				d.held[name] = 0
			}
		}
	}
	tick := time.NewTicker(r.cfg.Life / beats)
	defer tick.Stop()
	defer r.leave()
	for {
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("leases cannot be renewed", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case d := <-r.ended:
			if err := d.stop(); err != nil && api.CodeOf(err) != api.Unavailable {
				return err
			}
			select { // begun again with the next look
			case <-tick.C:
			case <-ctx.Done():
			}
		case <-tick.C:
		}
	}
}

// lookLimit bounds how long one look at the database takes.
const lookLimit = 10 * time.Second

// look renews what is held, and sees how things stand.
func (r *Room) look(ctx context.Context) (view, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	v, err := r.keeper.renew(ctx, r.cfg.Self, r.holder, r.cfg.Life)
	if err != nil {
		return v, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = v.live
	return v, nil
}

// step renews, gives back, takes, and has the duties follow.
func (r *Room) step(ctx context.Context) error {
	if !r.Alone() {
		v, err := r.look(ctx)
		if err != nil {
			return err
		}
		var take []row
		for _, d := range r.duties {
			give, want := plan(r.holder, v, &d.Duty)
			for _, name := range want {
				seen := v.rows[name]
				seen.name = name
				take = append(take, seen)
			}
			if err := r.yield(ctx, d, v, give); err != nil {
				return err
			}
		}
		if len(take) > 0 {
			if err := r.keeper.take(ctx, r.holder, r.cfg.Life, take); err != nil {
				return err
			}
			if v, err = r.look(ctx); err != nil {
				return err
			}
		}
		for _, d := range r.duties {
			r.adopt(d, v)
		}
	}
	for _, d := range r.duties {
		if d.cancel == nil && len(d.held) > 0 {
			d.start(r.fenced(ctx, maps.Clone(d.held)), r.ended)
		}
	}
	return nil
}

// yield ends work whose leases are lost or to be given back, and gives them back.
func (r *Room) yield(ctx context.Context, d *duty, v view, give []string) error {
	for name, fence := range d.held {
		if now := v.rows[name]; now.holder != r.holder || now.fence != fence || slices.Contains(give, name) {
			d.halt()
			delete(d.held, name)
		}
	}
	if len(give) == 0 {
		return nil
	}
	d.halt()
	for _, name := range give {
		v.rows[name] = row{name: name, fence: v.rows[name].fence}
	}
	return r.keeper.give(ctx, r.holder, give)
}

// adopt has a duty hold all that its holder has.
func (r *Room) adopt(d *duty, v view) {
	for _, name := range d.Names {
		if now, ok := v.rows[name]; ok && now.holder == r.holder && d.held[name] != now.fence {
			d.halt()
			d.held[name] = now.fence
			r.cfg.Log.Info("took over work", "lease", name, "fence", now.fence)
		}
	}
}

func (d *duty) start(ctx context.Context, ended chan<- *duty) {
	ctx, d.cancel = context.WithCancel(ctx)
	d.done = make(chan struct{})
	go func(done chan struct{}, held Held) {
		d.err = d.Run(ctx, held)
		close(done)
		if ctx.Err() == nil {
			ended <- d
		}
	}(d.done, maps.Clone(d.held))
}

// halt ends the work and waits for its end.
func (d *duty) halt() {
	if d.cancel != nil {
		_ = d.stop() // it was told to
	}
}

func (d *duty) stop() error {
	if d.cancel == nil {
		return nil
	}
	d.cancel()
	<-d.done
	d.cancel = nil
	return d.err
}

// leaveLimit bounds how long a core that ends tries to give back what it holds.
const leaveLimit = 3 * time.Second

func (r *Room) leave() {
	for _, d := range r.duties {
		if d.cancel != nil {
			d.cancel()
		}
	}
	for _, d := range r.duties {
		d.halt()
	}
	if r.Alone() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
	defer cancel()
	if err := r.keeper.leave(ctx, r.holder); err != nil {
		r.cfg.Log.Warn("work is not handed over: others take it when its leases have run out", "err", err)
	}
}

// fenced gives a context whose transactions hold only while the leases do.
func (r *Room) fenced(ctx context.Context, held Held) context.Context {
	if r.Alone() {
		return ctx
	}
	query := "SELECT name, fence FROM " + r.cfg.Schema + ".leases WHERE holder = ?"
	return database.Fenced(ctx, func(ctx context.Context, tx *database.Tx) error {
		rows, err := tx.QueryContext(ctx, query+tx.Dialect().Hold(), r.holder)
		if err != nil {
			return err
		}
		defer rows.Close()
		now := Held{}
		for rows.Next() {
			var name string
			var fence int64
			if err := rows.Scan(&name, &fence); err != nil {
				return err
			}
			now[name] = uint64(fence)
		}
		for name, fence := range held {
			if now[name] != fence { // check: fence
				return errors.Join(rows.Err(), fmt.Errorf("lease %s: %w", name, ErrLost))
			}
		}
		return rows.Err()
	})
}
