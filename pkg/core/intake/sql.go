package intake

import (
	"context"
	"strings"

	"tributary.dev/tributary/pkg/core/database"
)

// The statements that run for every batch and every change of state.
var (
	sqlNewDevice     = `INSERT INTO devices (device) VALUES (?) ON CONFLICT (device) DO UPDATE SET device = excluded.device RETURNING dev, epoch + acked + state_epoch + state_seq`
	sqlPutVector     = `UPDATE devices SET state_epoch = ?2, state_seq = ?3, ` + seenAtLeast4 + ` WHERE dev = ?1`
	sqlPutAttachment = `UPDATE devices SET attachment = ?2, parent = ?3 WHERE dev = ?1`
	sqlPutPosition   = `UPDATE devices SET epoch = ?2, acked = ?3, ` + seenAtLeast4 + `, hash = ?5 WHERE dev = ?1`
	sqlPutSeen       = `UPDATE devices SET seen = ?2 WHERE dev = ?1 AND seen < ?2`
	sqlPutEntry      = `INSERT INTO entries (dev, key, value, seq, mac, extra) VALUES (?,?,?,?,?,?)
		ON CONFLICT (dev, key) DO UPDATE SET value = excluded.value, seq = excluded.seq, mac = excluded.mac, extra = excluded.extra WHERE excluded.seq > entries.seq`
	sqlDropEntry    = `DELETE FROM entries WHERE dev = ? AND key = ? AND seq < ?`
	sqlClearEntries = `DELETE FROM entries WHERE dev = ?`
	sqlSetAside     = `INSERT INTO quarantine (dev, at, what, detail, raw) VALUES (?,?,?,?,?)`
	sqlPruneAside   = `DELETE FROM quarantine WHERE dev = ?1 AND what = ?2 AND id <= (SELECT id FROM quarantine WHERE dev = ?1 AND what = ?2 ORDER BY id DESC LIMIT 1 OFFSET 100)`
	sqlFindService  = `SELECT svc FROM services WHERE app = ? AND service = ?`
	sqlNewService   = `INSERT INTO services (app, service) VALUES (?,?) ON CONFLICT (app, service) DO UPDATE SET app = excluded.app RETURNING svc`
	sqlPutEvent     = `INSERT INTO events (dev, epoch, seq, last, audit, time, name, subject, message, actor) VALUES (?,?,?,?,?,?,?,?,?,?)`
	sqlPutOther     = `INSERT INTO others (dev, epoch, seq, last, kind, poison, payload) VALUES (?,?,?,?,?,?,?)`
	sqlBoundary     = `SELECT last, hash FROM batches WHERE dev = ? AND epoch = ? AND last >= ? AND last <= ? ORDER BY last LIMIT 1`
)

var hot = []string{sqlNewDevice, sqlPutVector, sqlPutAttachment, sqlPutPosition, sqlPutSeen, sqlPutEntry, sqlDropEntry, sqlClearEntries, sqlSetAside, sqlPruneAside,
	sqlFindService, sqlNewService, putUsage.one, putUsage.many, putBatch.one, putBatch.many, putVerbatim.one, putVerbatim.many,
	sqlPutEvent, sqlPutOther, sqlBoundary, untidyQuery}

var (
	putUsage = newBulk("usage", "dev", "epoch", "seq", "svc", "last", "began", "ended", "run_ms", "cpu_us", "mem_bs", "rx_bytes", "tx_bytes", "cut", "records")
	putBatch = newBulk("batches", "dev", "epoch", "last", "first", "hash", "taken")
	// putVerbatim keeps what devices signed.
	putVerbatim = newBulk("verbatim", "dev", "epoch", "last", "first", "taken", "prev", "raw")
)

// bulkRows is how many rows one statement inserts: past sixteen or so nothing is won.
const bulkRows = 32

// bulk inserts rows of a table, many with one statement. A copy begins with none.
type bulk struct {
	one, many string
	columns   int
	rows      []any // not yet inserted
}

func newBulk(table string, columns ...string) bulk {
	row := "(" + strings.Repeat("?,", len(columns)-1) + "?)"
	one := "INSERT INTO " + table + " (" + strings.Join(columns, ", ") + ") VALUES " + row
	return bulk{one: one, many: one + strings.Repeat(","+row, bulkRows-1), columns: len(columns)}
}

func (b *bulk) add(ctx context.Context, tx *database.Tx, values ...any) error {
	b.rows = append(b.rows, values...)
	if len(b.rows) < bulkRows*b.columns {
		return nil
	}
	_, err := tx.ExecContext(ctx, b.many, b.rows...)
	b.rows = b.rows[:0]
	return err
}

func (b *bulk) flush(ctx context.Context, tx *database.Tx) error {
	for i := 0; i < len(b.rows); i += b.columns {
		if _, err := tx.ExecContext(ctx, b.one, b.rows[i:i+b.columns]...); err != nil {
			return err
		}
	}
	b.rows = b.rows[:0]
	return nil
}

// seenAtLeast4 is max(seen, ?4) in the words of both databases.
const seenAtLeast4 = `seen = CASE WHEN seen < ?4 THEN ?4 ELSE seen END`
