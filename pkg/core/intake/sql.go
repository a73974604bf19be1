package intake

import "strings"

// The statements that run for every batch and every change of state.
var (
	sqlNewDevice     = `INSERT INTO devices (device) VALUES (?) ON CONFLICT (device) DO UPDATE SET device = excluded.device RETURNING dev`
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
	sqlNewService   = `INSERT INTO services (app, service) VALUES (?,?) RETURNING svc`
	sqlPutBatch     = `INSERT INTO batches (dev, epoch, last, first, hash, taken) VALUES (?,?,?,?,?,?)`
	sqlPutUsage     = `INSERT INTO usage (dev, epoch, seq, svc, last, began, ended, run_ms, cpu_us, mem_bs, rx_bytes, tx_bytes) VALUES ` + usageRow
	sqlPutUsages    = sqlPutUsage + strings.Repeat(","+usageRow, usageRows-1)
	sqlPutEvent     = `INSERT INTO events (dev, epoch, seq, last, audit, time, name, subject, message, actor) VALUES (?,?,?,?,?,?,?,?,?,?)`
	sqlPutOther     = `INSERT INTO others (dev, epoch, seq, last, kind, poison, payload) VALUES (?,?,?,?,?,?,?)`
	sqlBoundary     = `SELECT last, hash FROM batches WHERE dev = ? AND epoch = ? AND last >= ? AND last <= ? ORDER BY last LIMIT 1`
)

var hot = []string{sqlNewDevice, sqlPutVector, sqlPutAttachment, sqlPutPosition, sqlPutSeen, sqlPutEntry, sqlDropEntry, sqlClearEntries, sqlSetAside, sqlPruneAside,
	sqlFindService, sqlNewService, sqlPutBatch, sqlPutUsage, sqlPutUsages, sqlPutEvent, sqlPutOther, sqlBoundary, untidyQuery}

// usageRows is how many rows one statement inserts: past sixteen or so nothing is won.
const usageRows = 32

const usageRow = `(?,?,?,?,?,?,?,?,?,?,?,?)`

// seenAtLeast4 is max(seen, ?4) in the words of both databases.
const seenAtLeast4 = `seen = CASE WHEN seen < ?4 THEN ?4 ELSE seen END`
