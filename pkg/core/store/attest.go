package store

import (
	"context"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// What is said to other cores on the same database (database.Tx.Say).
const (
	SaidManifest    = "manifest"
	SaidAttestation = "attest"
)

// Say tells other cores on the same database of news about devices (database.Tx.Say).
func (s *SQL) Say(ctx context.Context, kind string, ids []api.DeviceID) error {
	return s.db.Write(ctx, func(tx *database.Tx) error { return tx.Say(ctx, kind, ids) })
}

// Tell tells them a text.
func (s *SQL) Tell(ctx context.Context, kind, text string) error {
	return s.db.Write(ctx, func(tx *database.Tx) error { return tx.Tell(ctx, kind, text) })
}

// Attestations keeps what the core knows of the devices' TPMs. It goes with the device.
type Attestations interface {
	PutAttestation(ctx context.Context, device api.DeviceID, record []byte) error
	EachAttestation(ctx context.Context, f func(device api.DeviceID, record []byte) error) error
}

// PutAttestation implements Attestations. It is durable when it returns.
func (s *SQL) PutAttestation(ctx context.Context, device api.DeviceID, record []byte) error {
	return s.db.Write(ctx, func(tx *database.Tx) error {
		if _, err := tx.ExecContext(ctx, "INSERT INTO attestations (device, record) VALUES (?, ?) ON CONFLICT (device) DO UPDATE SET record = excluded.record", device[:], record); err != nil {
			return err
		}
		return tx.Say(ctx, SaidAttestation, []api.DeviceID{device})
	})
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
