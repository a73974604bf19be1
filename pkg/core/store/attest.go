package store

import (
	"context"

	"tributary.dev/tributary/pkg/api"
)

// Attestations keeps what the core knows of the devices' TPMs. It goes with the device.
type Attestations interface {
	PutAttestation(ctx context.Context, device api.DeviceID, record []byte) error
	EachAttestation(ctx context.Context, f func(device api.DeviceID, record []byte) error) error
}

// PutAttestation implements Attestations. It is durable when it returns.
func (s *SQL) PutAttestation(ctx context.Context, device api.DeviceID, record []byte) error {
	_, err := s.db.ExecContext(ctx, "INSERT INTO attestations (device, record) VALUES (?, ?) ON CONFLICT (device) DO UPDATE SET record = excluded.record", device[:], record)
	return err
}

// EachAttestation implements Attestations.
func (s *SQL) EachAttestation(ctx context.Context, f func(device api.DeviceID, record []byte) error) error {
	rows, err := s.db.QueryContext(ctx, "SELECT device, record FROM attestations")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var device, record []byte
		if err := rows.Scan(&device, &record); err != nil {
			return err
		}
		var id api.DeviceID
		copy(id[:], device)
		if err := f(id, record); err != nil {
			return err
		}
	}
	return rows.Err()
}

// EventStateKey is noted when a person approves that a box gets the key of its state back, and
// when the core gives it: the subject is "approved" or "given".
const EventStateKey = "device.state-key"
