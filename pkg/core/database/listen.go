package database

import (
	"context"
	"database/sql/driver"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
)

// channel is what commits of a schema are told on (PostgreSQL's NOTIFY).
func (db *DB) channel() string { return "tributary_" + db.schema }

// Notify has all who Listen hear when this transaction commits. SQLite has nobody to tell.
func (t *Tx) Notify(ctx context.Context) error {
	if t.Dialect() != Postgres {
		return nil
	}
	_, err := t.ExecContext(ctx, "SELECT pg_notify(?, '')", t.db.channel())
	return err
}

// relisten is how long Listen waits before it connects again.
const relisten = time.Second

// Listen calls heard whenever somebody's transaction that called Notify may have committed,
// until ctx ends: once at first and after each time that the connection was lost, because
// nobody knows what was told meanwhile. Several commits may be heard of once. It keeps one
// connection.
func (db *DB) Listen(ctx context.Context, heard func(context.Context)) {
	for ctx.Err() == nil {
		_ = db.listen(ctx, heard) // whatever ended it: connect again
		wait := time.NewTimer(relisten)
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
}

func (db *DB) listen(ctx context.Context, heard func(context.Context)) error {
	conn, err := db.write.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "LISTEN "+quote(db.channel())); err != nil {
		return err
	}
	return conn.Raw(func(c any) error {
		for {
			heard(ctx)
			if _, err := c.(*stdlib.Conn).Conn().WaitForNotification(ctx); err != nil {
				return driver.ErrBadConn // this connection listens: it is nobody else's
			}
		}
	})
}
