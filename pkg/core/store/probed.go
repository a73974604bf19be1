package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"maps"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Probed is what is known of an object from below.
type Probed struct {
	Key    api.Key
	Status any
	// Labels replace those under api.Reserved when Relabel is set; people's stay.
	Labels  map[string]string
	Relabel bool
}

// GetMany implements Store.
func (s *SQL) GetMany(ctx context.Context, keys []api.Key) (map[api.Key]*api.Object, error) {
	out := make(map[api.Key]*api.Object, len(keys))
	err := s.db.Read(ctx, func(tx *database.Tx) error {
		for _, k := range keys {
			o, err := s.get(ctx, tx, k)
			if err != nil && api.CodeOf(err) == api.NotFound {
				continue
			}
			if err != nil {
				return err
			}
			out[k] = o
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// PutProbed implements Store.
func (s *SQL) PutProbed(ctx context.Context, list []Probed) error {
	return s.tx(ctx, func(w *writer) error {
		look, err := w.PrepareContext(ctx, "SELECT labels, status FROM objects WHERE kind = ? AND tenant = ? AND name = ?")
		if err != nil {
			return err
		}
		defer look.Close()
		put, err := w.PrepareContext(ctx, "UPDATE objects SET labels = ?, status = ?, revision = ? WHERE kind = ? AND tenant = ? AND name = ?")
		if err != nil {
			return err
		}
		defer put.Close()
		for _, p := range list {
			if err := putProbed(ctx, w, look, put, p); err != nil {
				return err
			}
		}
		return nil
	})
}

func putProbed(ctx context.Context, w *writer, look, put *sql.Stmt, p Probed) error {
	k := p.Key
	if !storable(k) {
		return nil
	}
	var oldText string
	var oldStatus []byte
	err := look.QueryRowContext(ctx, k.Kind, k.Tenant, k.Name).Scan(&oldText, &oldStatus)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	status, err := json.Marshal(p.Status)
	if err != nil {
		return err
	}
	text := oldText
	if p.Relabel {
		var old map[string]string
		if err := decodeMap(oldText, &old); err != nil {
			return err
		}
		if next := relabelled(old, p.Labels); !maps.Equal(next, old) {
			text = encodeMap(next)
		}
	}
	if text == oldText && bytes.Equal(status, oldStatus) {
		return nil
	}
	rev := w.changed(change{key: k, statusOnly: text == oldText})
	_, err = put.ExecContext(ctx, text, status, rev, k.Kind, k.Tenant, k.Name)
	return err
}

// relabelled replaces the labels under api.Reserved.
func relabelled(labels, probed map[string]string) map[string]string {
	next := map[string]string{}
	for k, v := range labels {
		if !strings.HasPrefix(k, api.Reserved) {
			next[k] = v
		}
	}
	for k, v := range probed {
		if strings.HasPrefix(k, api.Reserved) {
			next[k] = v
		}
	}
	return next
}
