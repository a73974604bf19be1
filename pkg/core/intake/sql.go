package intake

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// statements are prepared once, on the one connection that writes.
type statements struct {
	newDevice, putVector, putAttachment, putPosition, putSeen   *sql.Stmt
	putEntry, dropEntry, clearEntries                           *sql.Stmt
	setAside, pruneAside                                        *sql.Stmt
	findService, newService                                     *sql.Stmt
	putBatch, putUsage, putUsages, putEvent, putOther, boundary *sql.Stmt
}

// usageRows is how many rows one statement inserts: past sixteen or so nothing is won.
const usageRows = 32

const usageInsert = `INSERT INTO usage (dev, epoch, seq, svc, last, began, ended, run_ms, cpu_us, mem_bs, rx_bytes, tx_bytes) VALUES `

const usageRow = `(?,?,?,?,?,?,?,?,?,?,?,?)`

func prepare(ctx context.Context, db *sql.DB) (*statements, error) {
	q := &statements{}
	for _, p := range []struct {
		into **sql.Stmt
		text string
	}{
		{&q.newDevice, `INSERT INTO devices (device) VALUES (?) ON CONFLICT (device) DO UPDATE SET device = excluded.device RETURNING dev`},
		{&q.putVector, `UPDATE devices SET state_epoch = ?2, state_seq = ?3, seen = max(seen, ?4) WHERE dev = ?1`},
		{&q.putAttachment, `UPDATE devices SET attachment = ?2, parent = ?3 WHERE dev = ?1`},
		{&q.putPosition, `UPDATE devices SET epoch = ?2, acked = ?3, hash = ?4, seen = max(seen, ?5) WHERE dev = ?1`},
		{&q.putSeen, `UPDATE devices SET seen = max(seen, ?2) WHERE dev = ?1`},
		{&q.putEntry, `INSERT INTO entries (dev, key, value, seq, mac, extra) VALUES (?,?,?,?,?,?)
			ON CONFLICT (dev, key) DO UPDATE SET value = excluded.value, seq = excluded.seq, mac = excluded.mac, extra = excluded.extra WHERE excluded.seq > seq`},
		{&q.dropEntry, `DELETE FROM entries WHERE dev = ? AND key = ? AND seq < ?`},
		{&q.clearEntries, `DELETE FROM entries WHERE dev = ?`},
		{&q.setAside, `INSERT INTO quarantine (dev, at, what, detail, raw) VALUES (?,?,?,?,?)`},
		{&q.pruneAside, `DELETE FROM quarantine WHERE dev = ?1 AND what = ?2 AND id <= (SELECT id FROM quarantine WHERE dev = ?1 AND what = ?2 ORDER BY id DESC LIMIT 1 OFFSET 100)`},
		{&q.findService, `SELECT svc FROM services WHERE app = ? AND service = ?`},
		{&q.newService, `INSERT INTO services (app, service) VALUES (?,?) RETURNING svc`},
		{&q.putBatch, `INSERT INTO batches (dev, epoch, last, first, hash, taken) VALUES (?,?,?,?,?,?)`},
		{&q.putUsage, usageInsert + usageRow},
		{&q.putUsages, usageInsert + strings.Repeat(usageRow+",", usageRows-1) + usageRow},
		{&q.putEvent, `INSERT INTO events (dev, epoch, seq, last, audit, time, name, subject, message, actor) VALUES (?,?,?,?,?,?,?,?,?,?)`},
		{&q.putOther, `INSERT INTO others (dev, epoch, seq, last, kind, poison, payload) VALUES (?,?,?,?,?,?,?)`},
		{&q.boundary, `SELECT last, hash FROM batches WHERE dev = ? AND epoch = ? AND last >= ? AND last <= ? ORDER BY last LIMIT 1`},
	} {
		var err error
		if *p.into, err = db.PrepareContext(ctx, p.text); err != nil {
			return nil, fmt.Errorf("prepare %.40s…: %w", p.text, err)
		}
	}
	return q, nil
}
