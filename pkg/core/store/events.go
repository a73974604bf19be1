package store

import (
	"context"
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// The names of the events that the core notes of a device.
const (
	EventEnrolled = "device.enrolled"
	EventApproved = "device.approved"
	EventRetired  = "device.retired"
	// EventUncordoned is a person's word that a card or slice of a device is well.
	EventUncordoned = "device.uncordoned"
	EventOnline     = "device.online"
	EventOffline    = "device.offline"
	EventAlarm      = "device.alarm"  // its subject is the name of the warning
	EventUnlock     = "device.unlock" // somebody read the answer to a challenge, which its subject names
)

// DeviceEvent is an event that the core noted, by its own clock.
type DeviceEvent struct {
	// ID is set when it is read: it grows with every event.
	ID     int64
	Device api.DeviceID
	Label  string // the device's name then
	api.Event
}

// Events keeps what the core itself noted of devices.
type Events interface {
	// AppendEvents writes all or none.
	AppendEvents(ctx context.Context, list []DeviceEvent) error
	// AppendNew writes those of which there is none of the device and name since a time: another
	// core on the same database may have noted them.
	AppendNew(ctx context.Context, list []DeviceEvent, since time.Time) error
	// Events lists the newest first, of some devices, or of all for nil.
	Events(ctx context.Context, of []api.DeviceID, limit int) ([]DeviceEvent, error)
	// LastPresence tells of each device that ever came or went which of the two was last.
	LastPresence(ctx context.Context) (online map[api.DeviceID]bool, err error)
	// DropEvents forgets those before a time.
	DropEvents(ctx context.Context, before time.Time) error
}

// AppendEvents implements Events.
func (s *SQL) AppendEvents(ctx context.Context, list []DeviceEvent) error {
	if len(list) == 0 {
		return nil
	}
	return s.tx(ctx, func(w *writer) error { return appendEvents(ctx, w, list) })
}

// AppendNew implements Events.
func (s *SQL) AppendNew(ctx context.Context, list []DeviceEvent, since time.Time) error {
	if len(list) == 0 {
		return nil
	}
	return s.tx(ctx, func(w *writer) error {
		for _, e := range list {
			var there bool
			err := w.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM events WHERE device = ? AND name = ? AND time >= ?)", e.Device[:], e.Name, since.UnixMilli()).Scan(&there)
			if err == nil && !there {
				err = appendEvents(ctx, w, []DeviceEvent{e})
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func appendEvents(ctx context.Context, w *writer, list []DeviceEvent) error {
	stmt, err := w.PrepareContext(ctx, "INSERT INTO events (device, label, time, name, subject, message, actor) VALUES (?,?,?,?,?,?,?)")
	if err != nil {
		return err
	}
	defer stmt.Close()
	for _, e := range list {
		if _, err := stmt.ExecContext(ctx, e.Device[:], database.Legible(e.Label), e.Time, database.Legible(e.Name), database.Legible(e.Subject), database.Legible(e.Message), database.Legible(e.Actor)); err != nil {
			return err
		}
	}
	return nil
}

// manyDevices is from how many on Events goes back from the newest event rather than by
// the index of devices.
const manyDevices = 64

// Events implements Events.
func (s *SQL) Events(ctx context.Context, of []api.DeviceID, limit int) ([]DeviceEvent, error) {
	where, args := "1 = 1", []any{}
	if of != nil {
		column := "device"
		if len(of) > manyDevices {
			column = s.db.Dialect().Unindexed(column)
		}
		where, args = column+" IN "+s.db.Dialect().Blobs(), []any{hexList(of)}
	}
	rows, err := s.db.QueryContext(ctx, "SELECT id, device, label, time, name, subject, message, actor FROM events WHERE "+where+" ORDER BY id DESC LIMIT ?", append(args, limit)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []DeviceEvent
	for rows.Next() {
		var e DeviceEvent
		var id []byte
		if err := rows.Scan(&e.ID, &id, &e.Label, &e.Time, &e.Name, &e.Subject, &e.Message, &e.Actor); err != nil {
			return nil, err
		}
		copy(e.Device[:], id)
		out = append(out, e)
	}
	return out, rows.Err()
}

// hexList is ids as Dialect.Blobs takes them.
func hexList(ids []api.DeviceID) string {
	b := []byte{'['}
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, `"%x"`, id[:])
	}
	return string(append(b, ']'))
}

// LastPresence implements Events.
func (s *SQL) LastPresence(ctx context.Context) (map[api.DeviceID]bool, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT e.device, e.name FROM events e
		JOIN (SELECT max(id) AS id FROM events WHERE name IN (?, ?) GROUP BY device) newest ON newest.id = e.id`, EventOnline, EventOffline)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	online := map[api.DeviceID]bool{}
	for rows.Next() {
		var id []byte
		var name string
		if err := rows.Scan(&id, &name); err != nil {
			return nil, err
		}
		online[api.DeviceID(id)] = name == EventOnline
	}
	return online, rows.Err()
}

// DropEvents implements Events.
func (s *SQL) DropEvents(ctx context.Context, before time.Time) error {
	return s.tx(ctx, func(w *writer) error {
		_, err := w.ExecContext(ctx, "DELETE FROM events WHERE time < ?", before.UnixMilli())
		return err
	})
}
