package store

import (
	"context"
	"encoding/json"

	"tributary.dev/tributary/pkg/api"
)

// Box is what the core keeps of a device for its whole life, beside its object.
type Box struct {
	Device       api.DeviceID
	Tenant, Name string
	// PublicKey and SealKey are in PKIX DER form.
	PublicKey, SealKey []byte
	// Token is the UID of the JoinToken by which it came.
	Token string
}

// Enrolment is everything that one enrolment writes, all or none.
type Enrolment struct {
	Box Box
	// Object is the Device to create, with its Status; nil when it exists.
	Object *api.Object
	Status any
	// Token is the join token as it was read, TokenStatus what becomes of its status;
	// nil when nothing is used up.
	Token       *api.Object
	TokenStatus any
	// Event is noted along with it; nil when the box was there before.
	Event *DeviceEvent
}

// Boxes keeps the keys of devices.
type Boxes interface {
	// Enrol writes an enrolment. It fails with code Conflict when the token or the name
	// was changed or taken meanwhile: read again, decide again.
	Enrol(ctx context.Context, e Enrolment) error
	// BoxOf finds the device of a name; nil when there is none.
	BoxOf(ctx context.Context, tenant, name string) (*Box, error)
	// EachBox calls f for every device that ever enrolled and was not deleted.
	EachBox(ctx context.Context, f func(Box) error) error
	// DeleteBox forgets a device; it is no error when it is not known.
	DeleteBox(ctx context.Context, device api.DeviceID) error
}

// Enrol implements Boxes.
func (s *SQL) Enrol(ctx context.Context, e Enrolment) error {
	return s.tx(ctx, func(w *writer) error {
		if e.Token != nil {
			now, err := s.get(ctx, w, e.Token.Key())
			if err != nil {
				return err
			}
			if now.Metadata.Revision != e.Token.Metadata.Revision {
				return api.Errorf(api.Conflict, "the join token was used at the same moment")
			}
			if _, err := putStatus(ctx, w, e.Token.Key(), e.TokenStatus, false); err != nil {
				return err
			}
		}
		if e.Object != nil {
			status, err := json.Marshal(e.Status)
			if err != nil {
				return err
			}
			old, err := s.get(ctx, w, e.Object.Key())
			if err != nil && api.CodeOf(err) != api.NotFound {
				return err
			}
			out, _, err := merge(old, e.Object, status, PutOptions{Create: true})
			if err != nil {
				return err
			}
			out.Metadata.Revision = w.changed(change{key: out.Key()})
			s.stamp(out, nil)
			if err := s.reserve(ctx, w, out); err != nil {
				return err
			}
			if err := s.writeRow(ctx, w, out); err != nil {
				return err
			}
			s.audited(w, "enrol", nil, out)
		}
		if e.Event != nil {
			if err := appendEvents(ctx, w, []DeviceEvent{*e.Event}); err != nil {
				return err
			}
		}
		b := e.Box
		_, err := w.ExecContext(ctx, sqlPutBox, b.Device[:], b.Tenant, b.Name, b.PublicKey, b.SealKey, b.Token)
		return err
	})
}

// BoxOf implements Boxes.
func (s *SQL) BoxOf(ctx context.Context, tenant, name string) (found *Box, err error) {
	err = s.eachBox(ctx, func(b Box) error { found = &b; return nil }, " WHERE tenant = ? AND name = ?", tenant, name)
	return found, err
}

// EachBox implements Boxes.
func (s *SQL) EachBox(ctx context.Context, f func(Box) error) error { return s.eachBox(ctx, f, "") }

func (s *SQL) eachBox(ctx context.Context, f func(Box) error, where string, args ...any) error {
	rows, err := s.db.QueryContext(ctx, "SELECT device, tenant, name, public_key, seal_key, token FROM boxes"+where, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var b Box
		var device []byte
		if err := rows.Scan(&device, &b.Tenant, &b.Name, &b.PublicKey, &b.SealKey, &b.Token); err != nil {
			return err
		}
		copy(b.Device[:], device)
		if err := f(b); err != nil {
			return err
		}
	}
	return rows.Err()
}

// DeleteBox implements Boxes.
func (s *SQL) DeleteBox(ctx context.Context, device api.DeviceID) error {
	return s.tx(ctx, func(w *writer) error {
		if _, err := w.ExecContext(ctx, "DELETE FROM attestations WHERE device = ?", device[:]); err != nil {
			return err
		}
		_, err := w.ExecContext(ctx, "DELETE FROM boxes WHERE device = ?", device[:])
		return err
	})
}
