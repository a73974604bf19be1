package store

import (
	"context"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
)

// ManifestRecord is the newest manifest of a device and what the next one needs.
type ManifestRecord struct {
	Device            api.DeviceID
	Epoch, Generation uint64
	// Raw is the signed manifest (COSE_Sign1).
	Raw []byte
	// Tombstones tells at which generation an item was removed, by its key.
	Tombstones map[string]uint64
	// Seals holds, for each sealed item, a hash of what was sealed and to whom: the
	// sealed bytes are random and cannot be compared.
	Seals map[string][32]byte
}

// Manifests keeps the newest manifest of each device.
type Manifests interface {
	// SaveManifests writes many in one transaction; a record replaces the device's older one.
	// Called twice with the same records it changes nothing.
	SaveManifests(ctx context.Context, records []*ManifestRecord) error
	// EachManifest calls f for every device, in no order, until f fails.
	EachManifest(ctx context.Context, f func(*ManifestRecord) error) error
	// EachManifestOf calls f for those of some devices that have one; of all for nil.
	EachManifestOf(ctx context.Context, of []api.DeviceID, f func(*ManifestRecord) error) error
	// DeleteManifest forgets a device's; it is no error when there is none.
	DeleteManifest(ctx context.Context, device api.DeviceID) error
}

// SaveManifests implements Manifests.
func (s *SQL) SaveManifests(ctx context.Context, records []*ManifestRecord) error {
	return s.tx(ctx, func(w *writer) error {
		stmt, err := w.PrepareContext(ctx, "INSERT INTO manifests (device, epoch, generation, raw, tombstones, seals) VALUES (?,?,?,?,?,?)"+
			" ON CONFLICT (device) DO UPDATE SET epoch = excluded.epoch, generation = excluded.generation, raw = excluded.raw, tombstones = excluded.tombstones, seals = excluded.seals")
		if err != nil {
			return err
		}
		defer stmt.Close()
		ids := make([]api.DeviceID, 0, len(records))
		for _, r := range records {
			ids = append(ids, r.Device)
			tombstones, err := cbor.Marshal(r.Tombstones)
			if err != nil {
				return err
			}
			seals, err := cbor.Marshal(r.Seals)
			if err != nil {
				return err
			}
			if _, err := stmt.ExecContext(ctx, r.Device[:], int64(r.Epoch), int64(r.Generation), r.Raw, tombstones, s.sealedSeals(r, seals)); err != nil {
				return err
			}
		}
		return w.Say(ctx, SaidManifest, ids)
	})
}

// EachManifest implements Manifests.
func (s *SQL) EachManifest(ctx context.Context, f func(*ManifestRecord) error) error {
	return s.EachManifestOf(ctx, nil, f)
}

// EachManifestOf implements Manifests.
func (s *SQL) EachManifestOf(ctx context.Context, of []api.DeviceID, f func(*ManifestRecord) error) error {
	query, args := "SELECT device, epoch, generation, raw, tombstones, seals FROM manifests", []any(nil)
	if of != nil {
		query, args = query+" WHERE device IN "+s.db.Dialect().Blobs(), []any{hexList(of)}
	}
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var r ManifestRecord
		var device, tombstones, seals []byte
		var epoch, generation int64
		if err := rows.Scan(&device, &epoch, &generation, &r.Raw, &tombstones, &seals); err != nil {
			return err
		}
		copy(r.Device[:], device)
		r.Epoch, r.Generation = uint64(epoch), uint64(generation)
		if err := cbor.Unmarshal(tombstones, &r.Tombstones); err != nil {
			return err
		}
		if seals, err = s.cfg.Vault.open(sealsPlace(r.Device), seals); err != nil {
			return fmt.Errorf("device %s: %w", r.Device, err)
		}
		if err := cbor.Unmarshal(seals, &r.Seals); err != nil {
			return err
		}
		if err := f(&r); err != nil {
			return err
		}
	}
	return rows.Err()
}

// DeleteManifest implements Manifests.
func (s *SQL) DeleteManifest(ctx context.Context, device api.DeviceID) error {
	_, err := s.db.ExecContext(ctx, "DELETE FROM manifests WHERE device = ?", device[:])
	return err
}
