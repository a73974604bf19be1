package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/audit"
	"tributary.dev/tributary/pkg/core/billing"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/intake"
	"tributary.dev/tributary/pkg/core/lease"
	"tributary.dev/tributary/pkg/core/people"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/core/usage"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// filesPlace names the data folder where commands take the URL of a database.
const filesPlace = "files"

// parts are the two databases of a core, each a file or a schema. The one last is that by
// which a core is known.
var parts = []struct {
	schema, file string
	migrate      func(context.Context, *database.DB) error // of all rooms that have tables there
}{
	{intake.Schema, "ledger.db", migrateLedger},
	{store.Schema, "core.db", migrateStoreRooms},
}

// migrateLedger brings the tables of all rooms up to date that are in the ledger's database.
func migrateLedger(ctx context.Context, db *database.DB) error {
	return errors.Join(intake.Migrate(ctx, db), billing.Migrate(ctx, db), usage.Migrate(ctx, db))
}

// migrateStoreRooms does so for those that are in the store's.
func migrateStoreRooms(ctx context.Context, db *database.DB) error {
	return errors.Join(store.Migrate(ctx, db), audit.Migrate(ctx, db), lease.Migrate(ctx, db), people.Migrate(ctx, db))
}

func (d data) databaseFile() string { return d.path("database") }

// database is the URL of the PostgreSQL that the core of this folder has; "" for files of
// its own. Who finds it there finds a whole core: see database.Run.
func (d data) database() (string, error) {
	b, err := os.ReadFile(d.databaseFile())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if place := strings.TrimSpace(string(b)); err == nil && !database.IsURL(place) {
		return "", &api.Error{Code: api.Invalid, Message: d.databaseFile() + " holds no URL of a PostgreSQL database", Remedy: "write postgres://… in it, one line"}
	} else {
		return place, err
	}
}

// setDatabase notes where the core of this folder has its database.
func (d data) setDatabase(place string) error {
	if place == "" {
		if err := os.Remove(d.databaseFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return atomicfile.SyncDir(string(d))
	}
	return atomicfile.Write(d.databaseFile(), []byte(place+"\n"), 0o600)
}

// place is where one part of the database is.
func (d data) place(file string) (string, error) {
	place, err := d.database()
	if place == "" {
		place = d.path(file)
	}
	return place, err
}

// openLedger opens the ledger where it is.
func (d data) openLedger(ctx context.Context, cfg intake.Config) (_ *intake.Store, err error) {
	if cfg.Place, err = d.place("ledger.db"); err != nil {
		return nil, err
	}
	cfg.Migrate = migrateLedger
	return intake.Open(ctx, cfg)
}

// openParts opens both databases at a place, also when they are at an end of a move.
func (d data) openParts(ctx context.Context, place string) (out []*database.DB, err error) {
	for _, p := range parts {
		at := place
		if place == "" {
			at = d.path(p.file)
		}
		db, err := database.Open(ctx, database.Config{Place: at, Schema: p.schema, Moving: true})
		if err != nil {
			return nil, errors.Join(err, closeAll(out))
		}
		out = append(out, db)
	}
	return out, nil
}

func closeAll(dbs []*database.DB) (err error) {
	for _, db := range dbs {
		err = errors.Join(err, db.Close())
	}
	return err
}

// useDatabase settles where the core of this folder has its database: where it ever had it,
// or, for a core that is made now, where place says. A move that was cut off after everything
// had arrived is ended. The caller holds the lock.
func (d data) useDatabase(ctx context.Context, place string) (err error) {
	known, err := d.database()
	if err != nil {
		return err
	}
	_, noFiles := os.Stat(d.store())
	switch {
	case place == "" || place == known:
	case !database.IsURL(place):
		return &api.Error{Code: api.Invalid, Field: "--database", Message: "not the URL of a PostgreSQL database: " + place, Remedy: "write it as postgres://USER@HOST:PORT/DATABASE, or leave it out"}
	case known != "" && sameDatabase(known, place):
		return d.setDatabase(place)
	case known != "" || noFiles == nil:
		is := database.Shown(known)
		if known == "" {
			is = "files in " + string(d)
		}
		return &api.Error{Code: api.Conflict, Field: "--database", Message: "the core of " + string(d) + " has its database elsewhere: " + is,
			Remedy: "leave --database out, or move it: `cored migrate-store --data " + string(d) + " --to URL`; when only the address is new, write it in " + d.databaseFile()}
	default:
		return d.firstDatabase(ctx, place)
	}
	if known == "" && noFiles != nil {
		return nil // made by what follows
	}
	dbs, err := d.openParts(ctx, known)
	if err != nil {
		return err
	}
	return errors.Join(database.Finish(ctx, dbs), closeAll(dbs))
}

// firstDatabase takes a database for a core that is made now: nobody else's.
func (d data) firstDatabase(ctx context.Context, place string) error {
	dbs, err := d.openParts(ctx, place)
	if err != nil {
		return err
	}
	for _, db := range dbs {
		fresh, freshErr := db.Fresh(ctx)
		if err = errors.Join(err, freshErr); freshErr == nil && !fresh {
			err = errors.Join(err, &api.Error{Code: api.Conflict, Field: "--database", Message: db.String() + " holds the core of another folder",
				Remedy: "name that folder as --data, which has its keys, or an empty database"})
		}
	}
	if err = errors.Join(err, closeAll(dbs)); err != nil {
		return err
	}
	return d.setDatabase(place)
}

// sameDatabase tells whether two URLs name one database, for another user perhaps.
func sameDatabase(a, b string) bool {
	bare := func(place string) string {
		u, err := url.Parse(place)
		if err != nil {
			return place
		}
		q := u.Query()
		q.Del("user")
		q.Del("password")
		u.User, u.RawQuery, u.Scheme = nil, q.Encode(), "postgres"
		return u.String()
	}
	return bare(a) == bare(b)
}

func migrateStoreCommand() *cobra.Command {
	var dir, from, to string
	cmd := &cobra.Command{Use: "migrate-store", Short: "Move the database of a core that is stopped: from files into PostgreSQL, or back", Args: cobra.NoArgs,
		Long: `Move the database of a core that is stopped: from files into PostgreSQL, or back.

Objects and ledger go over whole, and are read back by count and digest of every table.
The target must be empty. When it is cut off, give the same command again: it begins
anew. Keys, certificates and artifacts stay in the folder. The core goes on in its epoch
at the new place; the old one is marked, and no core starts there any more.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			tables, err := migrateStore(cmd.Context(), data(dir), from, to)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "TABLE\tROWS\tSHA-256")
			for _, t := range tables {
				fmt.Fprintf(w, "%s\t%d\t%x\n", t.Name, t.Rows, t.Digest[:8])
			}
			if err := w.Flush(); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the core of %s has its database at %s now\n", dir, database.Shown(to))
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	f.StringVar(&from, "from", "", "where the database is: files, or postgres://… (default: as the folder knows)")
	f.StringVar(&to, "to", "", "where it goes: files (of the folder), or postgres://…")
	return cmd
}

// migrateStore moves a core's databases. What the folder says is where they are counts.
func migrateStore(ctx context.Context, d data, from, to string) (_ []database.Table, err error) {
	place := map[string]string{filesPlace: ""}
	for _, p := range []string{from, to} {
		if database.IsURL(p) {
			place[p] = p
		} else if p != filesPlace && (p != "" || p == to) {
			return nil, &api.Error{Code: api.Invalid, Field: "--to", Message: fmt.Sprintf("%q is neither %s nor the URL of a database", p, filesPlace), Remedy: "write postgres://USER@HOST:PORT/DATABASE"}
		}
	}
	if err := d.exists(); err != nil {
		return nil, err
	}
	lock, err := d.lock()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	known, err := d.database()
	if err != nil {
		return nil, err
	}
	if known == place[to] { // it arrived, and was cut off after that perhaps
		if err := d.useDatabase(ctx, ""); err != nil {
			return nil, err
		}
		return nil, &api.Error{Code: api.Conflict, Message: "the core of " + string(d) + " has its database there already"}
	}
	if from != "" && place[from] != known {
		return nil, &api.Error{Code: api.Invalid, Field: "--from", Message: "the core of " + string(d) + " has its database elsewhere", Remedy: "leave --from out"}
	}
	return d.move(ctx, known, d, place[to], func() error { return d.setDatabase(place[to]) })
}

// move copies the databases at a place ("" for the folder) to another of another folder, and
// calls settle when everything has arrived.
func (d data) move(ctx context.Context, from string, other data, to string, settle func() error) (_ []database.Table, err error) {
	sources, err := d.openParts(ctx, from)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll(sources)) }()
	targets, err := other.openParts(ctx, to)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll(targets)) }()
	var moves []database.Move
	for i, p := range parts {
		moves = append(moves, database.Move{From: sources[i], To: targets[i], Migrate: p.migrate})
	}
	return database.Run(ctx, moves, settle)
}
