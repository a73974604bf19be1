package lease

import (
	"context"
	"embed"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

//go:embed migrations/*/*.sql
var migrations embed.FS

// Migrate makes the tables of leases, beside those of others.
func Migrate(ctx context.Context, db *database.DB) error {
	return db.Migrate(ctx, migrations, "lease_db_version")
}

// clock is the database's, in Unix milliseconds: that of no replica decides.
const clock = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

// tables is a keeper in PostgreSQL.
type tables struct {
	db     *database.DB
	schema string
}

func (t *tables) renew(ctx context.Context, self Replica, holder string, life time.Duration) (v view, err error) {
	err = t.db.Write(ctx, func(tx *database.Tx) error {
		v = view{rows: map[string]row{}}
		for _, q := range []struct {
			text string
			args []any
		}{
			{"INSERT INTO replicas (name, holder, address, expires) VALUES (?1, ?2, ?3, " + clock + " + ?4) ON CONFLICT (name) DO UPDATE SET holder = ?2, address = ?3, expires = excluded.expires",
				[]any{self.Name, holder, self.Address, life.Milliseconds()}},
			{"UPDATE leases SET expires = " + clock + " + ? WHERE holder = ?", []any{life.Milliseconds(), holder}},
		} {
			if _, err := tx.ExecContext(ctx, q.text, q.args...); err != nil {
				return err
			}
		}
		if err := v.readLive(ctx, tx); err != nil {
			return err
		}
		return v.readRows(ctx, tx)
	})
	return v, err
}

func (v *view) readLive(ctx context.Context, tx *database.Tx) error {
	rows, err := tx.QueryContext(ctx, "SELECT name, address FROM replicas WHERE expires > "+clock+" ORDER BY name")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var r Replica
		if err := rows.Scan(&r.Name, &r.Address); err != nil {
			return err
		}
		v.live = append(v.live, r)
	}
	return rows.Err()
}

func (v *view) readRows(ctx context.Context, tx *database.Tx) error {
	rows, err := tx.QueryContext(ctx, "SELECT name, holder, fence, expires <= "+clock+" FROM leases")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		var fence int64
		if err := rows.Scan(&r.name, &r.holder, &fence, &r.out); err != nil {
			return err
		}
		r.fence = uint64(fence)
		v.rows[r.name] = r
	}
	return rows.Err()
}

func (t *tables) take(ctx context.Context, holder string, life time.Duration, rows []row) error {
	return t.db.Write(ctx, func(tx *database.Tx) error {
		for _, r := range rows {
			// Who took it meanwhile raised its number, or renewed it.
			_, err := tx.ExecContext(ctx, "UPDATE leases SET holder = ?1, fence = fence + 1, expires = "+clock+" + ?2 WHERE name = ?3 AND fence = ?4 AND (holder = '' OR expires <= "+clock+" OR holder LIKE ?5)",
				holder, life.Milliseconds(), r.name, int64(r.fence), likeLives(holder))
			if err != nil {
				return err
			}
			if r.fence > 0 {
				continue
			}
			if _, err := tx.ExecContext(ctx, "INSERT INTO leases (name, holder, fence, expires) VALUES (?1, ?2, 1, "+clock+" + ?3) ON CONFLICT (name) DO NOTHING", r.name, holder, life.Milliseconds()); err != nil {
				return err
			}
		}
		return nil
	})
}

// likeLives is a pattern of all lives of a holder's replica. Names have no character that
// means something in it: see CheckName.
func likeLives(holder string) string { return replicaOf(holder) + lifeMark + "%" }

// CheckName refuses what cannot name a replica.
func CheckName(name string) error {
	if name == "" || len(name) > 32 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return &api.Error{Code: api.Invalid, Field: "--replica", Message: "a replica cannot be named " + name, Remedy: "give it up to 32 lower-case letters, digits and hyphens, each another"}
	}
	return nil
}

func (t *tables) give(ctx context.Context, holder string, names []string) error {
	return t.db.Write(ctx, func(tx *database.Tx) error {
		for _, name := range names {
			if _, err := tx.ExecContext(ctx, "UPDATE leases SET holder = '', expires = 0 WHERE name = ? AND holder = ?", name, holder); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *tables) leave(ctx context.Context, holder string) error {
	return t.db.Write(ctx, func(tx *database.Tx) error {
		if _, err := tx.ExecContext(ctx, "UPDATE leases SET holder = '', expires = 0 WHERE holder = ?", holder); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM replicas WHERE holder = ?", holder)
		return err
	})
}
