package intake

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/link"
)

// errMoved is that another core wrote of a device after this one had read it: what was decided
// is decided again, by what is known now.
var errMoved = errors.New("another core wrote of the device meanwhile")

// maxMoved bounds how often that is done for one call.
const maxMoved = 16

// settled runs once, and again while other cores came first.
func (s *Store) settled(ctx context.Context, once func() error) (err error) {
	for range maxMoved {
		if err = s.fresh(ctx); err != nil {
			return err
		}
		if err = once(); !errors.Is(err, errMoved) {
			return err
		}
	}
	return &api.Error{Code: api.Unavailable, Message: "other cores write of the same devices all the time", Remedy: "try again", Err: err}
}

// confirm holds the rows of devices until the transaction's end, and makes sure that memory has
// them as they are. So a record is counted from where the count really stands, whoever moved it.
func (s *Store) confirm(ctx context.Context, tx *database.Tx, ids []api.DeviceID) error {
	if !s.cfg.Shared {
		return nil
	}
	rows, err := tx.QueryContext(ctx, `SELECT `+deviceColumns+` FROM devices WHERE device IN `+tx.Dialect().Blobs()+` ORDER BY device`+tx.Dialect().ForUpdate(), blobs(ids))
	if err != nil {
		return err
	}
	defer rows.Close()
	moved := false
	for rows.Next() {
		now, err := scanDevice(rows)
		if err != nil {
			return err
		}
		if old := s.devices[now.id]; old == nil || !old.same(now) { // check: moved
			s.devices[now.id], moved = now, true
		}
	}
	if err := rows.Err(); err != nil || !moved {
		return err
	}
	return errMoved
}

// reread makes memory what the ledger says of a device that others may have written of.
func (s *Store) reread(ctx context.Context, id api.DeviceID) error {
	if !s.cfg.Shared {
		return nil
	}
	rows, err := s.db.QueryContext(ctx, `SELECT `+deviceColumns+` FROM devices WHERE device = ?`, id[:])
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		now, err := scanDevice(rows)
		if err != nil {
			return s.db.Explain(err)
		}
		if old := s.devices[id]; old == nil || !old.same(now) {
			s.devices[id] = now
		}
	}
	return s.db.Explain(rows.Err())
}

// same tells whether two say the same of a device.
func (d *device) same(o *device) bool {
	return d.dev == o.dev && d.stateEpoch == o.stateEpoch && d.stateSeq == o.stateSeq && d.position == o.position && bytes.Equal(d.attachment, o.attachment)
}

// outdone tells whether the ledger has a newer attachment than the one that comes: another core
// may have heard of a device's move first.
func (s *Store) outdone(known, comes []byte) bool {
	if !s.cfg.Shared || known == nil {
		return false
	}
	old, err := link.AttachmentCounter(known)
	next, err2 := link.AttachmentCounter(comes)
	return err == nil && err2 == nil && next < old
}

// blobs is ids as Dialect.Blobs takes them.
func blobs(ids []api.DeviceID) string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = hex.EncodeToString(id[:])
	}
	b, _ := json.Marshal(texts) // of texts it cannot fail
	return string(b)
}

// say tells other cores of devices.
func (s *Store) say(ctx context.Context, tx *database.Tx, ids []api.DeviceID) error {
	if !s.cfg.Shared {
		return nil
	}
	return tx.Say(ctx, Said, ids)
}

// Presence is whether a device is there, as the core knows through which it comes.
type Presence struct {
	Device api.DeviceID
	Online bool
	// Heard is when there was last a sign of it (Unix milliseconds).
	Heard int64
}

// PutPresence notes, for other cores, who came and went (told), or was merely heard.
func (s *Store) PutPresence(ctx context.Context, list []Presence, told bool) error {
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b Presence) int { return bytes.Compare(a.Device[:], b.Device[:]) })
	return s.db.Write(ctx, func(tx *database.Tx) error {
		ids := make([]api.DeviceID, len(list))
		for i, p := range list {
			online := 0
			if p.Online {
				online = 1
			}
			ids[i] = p.Device
			if _, err := tx.ExecContext(ctx, `INSERT INTO presence (device, online, heard) VALUES (?,?,?) ON CONFLICT (device) DO UPDATE SET online = excluded.online, heard = excluded.heard`,
				p.Device[:], online, p.Heard); err != nil {
				return err
			}
		}
		if !told {
			return nil
		}
		return s.say(ctx, tx, ids)
	})
}

// Place is where a device is, as the ledger has it.
type Place struct {
	Presence
	// Attachment is as the device signed it; nil when there is none.
	Attachment []byte
}

// HeardSince tells which devices are there and were heard since a time.
func (s *Store) HeardSince(ctx context.Context, since time.Time) (out []Presence, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT device, heard FROM presence WHERE online = 1 AND heard > ?`, since.UnixMilli())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id []byte
		p := Presence{Online: true}
		if err := rows.Scan(&id, &p.Heard); err != nil {
			return nil, s.db.Explain(err)
		}
		copy(p.Device[:], id)
		out = append(out, p)
	}
	return out, s.db.Explain(rows.Err())
}

// Places tells where devices are; of all for nil.
func (s *Store) Places(ctx context.Context, ids []api.DeviceID) (out []Place, err error) {
	query, args := `SELECT d.device, d.attachment, coalesce(p.online, 0), coalesce(p.heard, 0) FROM devices d LEFT JOIN presence p ON p.device = d.device`, []any(nil)
	if ids != nil {
		query, args = query+` WHERE d.device IN `+s.db.Dialect().Blobs(), []any{blobs(ids)}
	}
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var p Place
		var id []byte
		var online int
		if err := rows.Scan(&id, &p.Attachment, &online, &p.Heard); err != nil {
			return nil, s.db.Explain(err)
		}
		copy(p.Device[:], id)
		p.Online = online != 0
		out = append(out, p)
	}
	return out, s.db.Explain(rows.Err())
}
