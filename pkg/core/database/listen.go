package database

import (
	"context"
	"database/sql/driver"
	"encoding/hex"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/stdlib"

	"tributary.dev/tributary/pkg/api"
)

// channel is what commits of a schema are told on (PostgreSQL's NOTIFY).
func (db *DB) channel() string { return "tributary_" + db.schema }

// saidChannel is what all schemas of a database say things on.
const saidChannel = "tributary_said"

// Notify has all who Listen hear when this transaction commits. SQLite has nobody to tell.
func (t *Tx) Notify(ctx context.Context) error {
	if t.Dialect() != Postgres {
		return nil
	}
	_, err := t.ExecContext(ctx, "SELECT pg_notify(?, '')", t.db.channel())
	return err
}

// saidAtOnce is how many devices one notification names: it has at most 8,000 bytes.
const saidAtOnce = 400

// Say has all who Hear learn, when this transaction commits, that there is news of a kind about
// devices; about all for none.
func (t *Tx) Say(ctx context.Context, kind string, ids []api.DeviceID) error {
	if t.Dialect() != Postgres {
		return nil
	}
	for first := true; first || len(ids) > 0; first = false {
		part := ids[:min(len(ids), saidAtOnce)]
		ids = ids[len(part):]
		texts := make([]string, len(part))
		for i, id := range part {
			texts[i] = hex.EncodeToString(id[:])
		}
		if err := t.Tell(ctx, kind, strings.Join(texts, ",")); err != nil {
			return err
		}
	}
	return nil
}

// Tell has all who Hear learn a text of a kind, up to 7,000 bytes, when this transaction commits.
func (t *Tx) Tell(ctx context.Context, kind, text string) error {
	if t.Dialect() != Postgres {
		return nil
	}
	_, err := t.ExecContext(ctx, "SELECT pg_notify(?, ?)", saidChannel, kind+":"+text)
	return err
}

// Said reads what Say named: the devices, none for all. What is not understood is all.
func Said(text string) (ids []api.DeviceID) {
	for part := range strings.SplitSeq(text, ",") {
		b, err := hex.DecodeString(part)
		if err != nil || len(b) != len(api.DeviceID{}) {
			return nil
		}
		ids = append(ids, api.DeviceID(b))
	}
	return ids
}

// relisten is how long Listen waits before it connects again.
const relisten = time.Second

// Listen calls heard whenever somebody's transaction that called Notify may have committed,
// until ctx ends: once at first and after each time that the connection was lost, because
// nobody knows what was told meanwhile. Several commits may be heard of once. It keeps one
// connection.
func (db *DB) Listen(ctx context.Context, heard func(context.Context)) {
	db.relisten(ctx, db.channel(), heard, func(ctx context.Context, _ string) { heard(ctx) })
}

// Hear calls heard with what Say and Tell told, this process's own too, until ctx ends, and
// missed at first and whenever something may have been told that was not heard. It keeps one
// connection.
func (db *DB) Hear(ctx context.Context, missed func(context.Context), heard func(ctx context.Context, kind, text string)) {
	db.relisten(ctx, saidChannel, missed, func(ctx context.Context, said string) {
		kind, text, _ := strings.Cut(said, ":")
		heard(ctx, kind, text)
	})
}

func (db *DB) relisten(ctx context.Context, channel string, missed func(context.Context), heard func(context.Context, string)) {
	for ctx.Err() == nil {
		_ = db.listen(ctx, channel, missed, heard) // whatever ended it: connect again
		wait := time.NewTimer(relisten)
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
}

func (db *DB) listen(ctx context.Context, channel string, missed func(context.Context), heard func(context.Context, string)) error {
	conn, err := db.write.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "LISTEN "+quote(channel)); err != nil {
		return err
	}
	return conn.Raw(func(c any) error {
		missed(ctx)
		for {
			n, err := c.(*stdlib.Conn).Conn().WaitForNotification(ctx)
			if err != nil {
				return driver.ErrBadConn // this connection listens: it is nobody else's
			}
			heard(ctx, n.Payload)
		}
	})
}
