package store

import (
	"context"
	"database/sql"
	"fmt"
	"io"

	"tributary.dev/tributary/pkg/api"
)

// sealedSpec is what goes into the column of a spec.
func (s *SQL) sealedSpec(o *api.Object) []byte {
	if o.Kind != api.KindSecret || s.cfg.Vault == nil {
		return o.Spec
	}
	return s.cfg.Vault.seal(placeOf(o), o.Spec)
}

// sealedSeals is what goes into the column of a manifest's seals.
func (s *SQL) sealedSeals(r *ManifestRecord, raw []byte) []byte {
	if len(r.Seals) == 0 || s.cfg.Vault == nil {
		return raw
	}
	return s.cfg.Vault.seal(sealsPlace(r.Device), raw)
}

// HasSealed reports whether anything in the database needs a key.
func (s *SQL) HasSealed(ctx context.Context) (sealed bool, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM objects WHERE kind = ?1 AND substr(spec, 1, 1) = ?2)
		OR EXISTS (SELECT 1 FROM manifests WHERE substr(seals, 1, 1) = ?2)
		OR EXISTS (SELECT 1 FROM revisions WHERE kind = ?1 AND substr(spec, 1, 1) = ?2)`, api.KindSecret, []byte{sealedMark}).Scan(&sealed)
	return sealed, err
}

// Reseal encrypts by the newest key whatever is in clear or under an older one, then
// forgets the older keys. It may be stopped and repeated at any time. What was in clear
// stands in free pages until Wipe.
func (s *SQL) Reseal(ctx context.Context) error {
	if s.cfg.Vault == nil {
		return nil
	}
	err := s.tx(ctx, func(w *writer) error {
		clear, err := s.resealSpecs(ctx, w)
		if err != nil {
			return err
		}
		more, err := s.resealSeals(ctx, w)
		if err != nil {
			return err
		}
		old, err := s.resealRevisions(ctx, w)
		if err == nil && s.cfg.Sealed != nil {
			err = s.cfg.Sealed(ctx, w.Tx, s.sealAgain)
		}
		if err != nil || !clear && !more && !old {
			return err
		}
		return setCounter(ctx, w, "wipe", 1)
	})
	if err != nil {
		return fmt.Errorf("encrypt the secrets in the database: %w", err)
	}
	_, err = s.cfg.Vault.prune()
	return err
}

// sealAgain seals a value by the newest key, if it is not.
func (s *SQL) sealAgain(place string, sealed []byte) ([]byte, error) {
	if s.cfg.Vault.current(sealed) {
		return sealed, nil
	}
	plain, err := s.cfg.Vault.open(place, sealed)
	if err != nil {
		return nil, err
	}
	return s.cfg.Vault.seal(place, plain), nil
}

// Rotate makes a new key and encrypts everything by it; the old key is forgotten.
func (s *SQL) Rotate(ctx context.Context, random io.Reader) error {
	if s.cfg.Vault == nil {
		return api.Errorf(api.Internal, "the store has no keys")
	}
	s.rotation.Lock()
	defer s.rotation.Unlock()
	if err := s.cfg.Vault.add(random); err != nil {
		return err
	}
	return s.Reseal(ctx)
}

// resealSpecs does the secrets, and reports whether any was in clear.
func (s *SQL) resealSpecs(ctx context.Context, w *writer) (clear bool, err error) {
	rows, err := w.QueryContext(ctx, "SELECT kind, tenant, name, uid, generation, spec FROM objects WHERE kind = ?", api.KindSecret)
	if err != nil {
		return false, err
	}
	todo := map[*api.Object][]byte{}
	err = each(rows, func() error {
		o := &api.Object{}
		var spec []byte
		if err := rows.Scan(&o.Kind, &o.Metadata.Tenant, &o.Metadata.Name, &o.Metadata.UID, &o.Metadata.Generation, &spec); err != nil {
			return err
		}
		if !s.cfg.Vault.current(spec) {
			todo[o] = spec
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	for o, spec := range todo {
		clear = clear || !isSealed(spec)
		if o.Spec, err = s.cfg.Vault.open(placeOf(o), spec); err != nil {
			return false, fmt.Errorf("%s: %w", o.Key(), err)
		}
		if _, err := w.ExecContext(ctx, "UPDATE objects SET spec = ? WHERE kind = ? AND tenant = ? AND name = ?", s.sealedSpec(o), o.Kind, o.Metadata.Tenant, o.Metadata.Name); err != nil {
			return false, err
		}
	}
	return clear, nil
}

// emptyMap is a CBOR map without entries, and nothing: neither tells anything.
var emptyMap = map[string]bool{"\xa0": true, "\xf6": true, "": true}

// resealSeals does what manifests tell of secrets, and reports whether any was in clear.
func (s *SQL) resealSeals(ctx context.Context, w *writer) (clear bool, err error) {
	rows, err := w.QueryContext(ctx, "SELECT device, seals FROM manifests")
	if err != nil {
		return false, err
	}
	todo := map[api.DeviceID][]byte{}
	err = each(rows, func() error {
		var device, seals []byte
		if err := rows.Scan(&device, &seals); err != nil {
			return err
		}
		if !emptyMap[string(seals)] && !s.cfg.Vault.current(seals) {
			todo[api.DeviceID(device)] = seals
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	for id, seals := range todo {
		clear = clear || !isSealed(seals)
		plain, err := s.cfg.Vault.open(sealsPlace(id), seals)
		if err != nil {
			return false, fmt.Errorf("device %s: %w", id, err)
		}
		if _, err := w.ExecContext(ctx, "UPDATE manifests SET seals = ? WHERE device = ?", s.cfg.Vault.seal(sealsPlace(id), plain), id[:]); err != nil {
			return false, err
		}
	}
	return clear, nil
}

func each(rows *sql.Rows, f func() error) error {
	defer rows.Close()
	for rows.Next() {
		if err := f(); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Wipe takes out of the database's files what was in clear before, which else stays there
// until its room is used again. What is left to do is noted in the database, so that a core
// that ends on the way does it at its next start.
func (s *SQL) Wipe(ctx context.Context) error {
	due, err := s.counter(ctx, s.db, "wipe")
	if err != nil || due == 0 {
		return err
	}
	if err := s.db.Wipe(ctx); err != nil {
		return err
	}
	return s.tx(ctx, func(w *writer) error { return setCounter(ctx, w, "wipe", 0) })
}
