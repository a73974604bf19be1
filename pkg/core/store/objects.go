package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

const columns = "kind, tenant, name, uid, labels, annotations, spec, status, revision, generation, created, updated"

// Get implements Store.
func (s *SQL) Get(ctx context.Context, key api.Key) (*api.Object, error) {
	return s.get(ctx, s.db, key)
}

func (s *SQL) get(ctx context.Context, q database.Querier, key api.Key) (*api.Object, error) {
	if !storable(key) {
		return nil, NotFound(key)
	}
	row := q.QueryRowContext(ctx, sqlGet, key.Kind, key.Tenant, key.Name)
	obj, err := s.scan(row.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, NotFound(key)
	}
	return obj, err
}

// storable tells whether there may be an object of a key at all: people ask for any.
func storable(k api.Key) bool {
	return database.Text(k.Tenant) && database.Text(k.Kind) && database.Text(k.Name)
}

func (s *SQL) scan(row func(...any) error) (*api.Object, error) {
	o := &api.Object{APIVersion: api.Version}
	var labels, annotations string
	var spec, status []byte
	var created, updated int64
	m := &o.Metadata
	if err := row(&o.Kind, &m.Tenant, &m.Name, &m.UID, &labels, &annotations, &spec, &status, &m.Revision, &m.Generation, &created, &updated); err != nil {
		return nil, err
	}
	var err error
	if err = errors.Join(decodeMap(labels, &m.Labels), decodeMap(annotations, &m.Annotations)); err != nil {
		return nil, err
	}
	o.Spec, o.Status = spec, status
	c, u := time.UnixMilli(created).UTC(), time.UnixMilli(updated).UTC()
	m.Created, m.Updated = &c, &u
	if o.Kind == api.KindSecret {
		if o.Spec, err = s.cfg.Vault.open(placeOf(o), spec); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Key(), err)
		}
	}
	return o, nil
}

func decodeMap(text string, into *map[string]string) error {
	if text == "{}" {
		return nil
	}
	return json.Unmarshal([]byte(text), into)
}

func encodeMap(m map[string]string) string {
	if len(m) == 0 {
		return "{}"
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // a map of strings always encodes
	}
	return string(b)
}

// List implements Store. The cursor is "tenant/name" of the last object of a page; a
// tenant is a DNS label, so the first slash divides the two.
func (s *SQL) List(ctx context.Context, q Query) (items []*api.Object, next string, revision int64, err error) {
	selector, err := api.ParseSelector(q.Selector)
	if err != nil {
		return nil, "", 0, err
	}
	text, args := "SELECT "+columns+" FROM objects WHERE kind = ?", []any{q.Kind}
	if !database.Text(q.Tenant) || !database.Text(q.Kind) {
		return nil, "", 0, api.Errorf(api.Invalid, "there is no kind %q of tenant %q", q.Kind, q.Tenant)
	}
	if q.Tenant != "" {
		text, args = text+" AND tenant = ?", append(args, q.Tenant)
	}
	if q.After != "" {
		tenant, name, ok := strings.Cut(q.After, "/")
		if !ok || !database.Text(q.After) {
			return nil, "", 0, &api.Error{Code: api.Invalid, Field: "after", Message: "not a cursor of this list", Remedy: "pass what the page before gave as next"}
		}
		text, args = text+" AND (tenant, name) > (?, ?)", append(args, tenant, name)
	}
	err = s.db.Read(ctx, func(tx *database.Tx) error {
		if revision, err = s.counter(ctx, tx, "revision"); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, text+" ORDER BY tenant, name", args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			obj, err := s.scan(rows.Scan)
			if err != nil {
				return err
			}
			if q.Selector != "" && !selector.Matches(obj.Metadata.Labels) || q.Only != nil && !q.Only(obj) {
				continue
			}
			if q.Limit > 0 && len(items) == q.Limit {
				last := items[len(items)-1].Metadata
				next = last.Tenant + "/" + last.Name
				return nil
			}
			items = append(items, obj)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", 0, err
	}
	return items, next, revision, nil
}

// Put implements Store.
func (s *SQL) Put(ctx context.Context, obj *api.Object, opts PutOptions) (out *api.Object, err error) {
	var status json.RawMessage
	if opts.Status != nil {
		if status, err = json.Marshal(opts.Status); err != nil {
			return nil, err
		}
	}
	err = s.tx(ctx, func(w *writer) error {
		old, err := s.get(ctx, w, obj.Key())
		if err != nil && api.CodeOf(err) != api.NotFound {
			return err
		}
		var wrote bool
		if out, wrote, err = merge(old, obj, status, opts); err != nil || !wrote {
			return err
		}
		out.Metadata.Revision = w.changed(change{key: out.Key()})
		s.stamp(out, old)
		if old == nil {
			if err := s.reserve(ctx, w, out); err != nil {
				return err
			}
		}
		if opts.DryRun {
			return errDryRun
		}
		if old == nil && opts.InTenant {
			if err := s.tenantThere(ctx, w, out.Metadata.Tenant); err != nil {
				return err
			}
		}
		if out.Kind == api.KindTenant {
			if err := errors.Join(s.tenantPlaced(ctx, w, out), s.reserveMove(ctx, w, old, out)); err != nil {
				return err
			}
		}
		if err := s.writeRow(ctx, w, out); err != nil {
			return err
		}
		if len(opts.Events) > 0 {
			if err := appendEvents(ctx, w, opts.Events); err != nil {
				return err
			}
		}
		action := "update"
		if old == nil {
			action = "create"
		}
		s.audited(w, action, old, out)
		return s.revise(ctx, w, out, opts.Hold)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// merge decides what a Put makes of the object that is there (nil: none), and whether
// that is a change at all.
func merge(old, obj *api.Object, status json.RawMessage, opts PutOptions) (out *api.Object, wrote bool, err error) {
	key, m := obj.Key(), obj.Metadata
	switch {
	case old == nil && (opts.Update || m.Revision != 0):
		return nil, false, NotFound(key)
	case old != nil && opts.Create:
		return nil, false, &api.Error{Code: api.Conflict, Message: key.Kind + " " + key.Name + " exists already", Remedy: "change it with PUT or `edgectl apply`"}
	case old != nil && m.Revision != 0 && m.Revision != old.Metadata.Revision:
		return nil, false, &api.Error{Code: api.Conflict, Field: "metadata.revision",
			Message: key.Kind + " " + key.Name + " was changed by somebody else since you read it", Remedy: "read it again and repeat your change"}
	}
	if !storable(key) {
		return nil, false, api.Errorf(api.Invalid, "no database can hold the name %q of tenant %q", key.Name, key.Tenant)
	}
	out = &api.Object{APIVersion: api.Version, Kind: obj.Kind, Metadata: m, Spec: compact(obj.Spec), Status: status}
	if old == nil {
		out.Metadata.Generation = 1
		return out, true, nil
	}
	if status == nil {
		out.Status = old.Status
	}
	out.Metadata.Generation = old.Metadata.Generation
	if !bytes.Equal(out.Spec, old.Spec) {
		out.Metadata.Generation++
	} else if bytes.Equal(out.Status, old.Status) && maps.Equal(m.Labels, old.Metadata.Labels) && maps.Equal(m.Annotations, old.Metadata.Annotations) {
		return old, false, nil
	}
	return out, true, nil
}

// compact brings JSON into one form, so that layout is no change.
func compact(raw json.RawMessage) json.RawMessage {
	var b bytes.Buffer
	if len(raw) == 0 || json.Compact(&b, raw) != nil {
		return raw
	}
	return b.Bytes()
}

// stamp sets what the store alone decides.
func (s *SQL) stamp(out, old *api.Object) {
	now := s.cfg.Now().UTC().Truncate(time.Millisecond)
	out.Metadata.Updated = &now
	if old == nil {
		out.Metadata.UID, out.Metadata.Created = s.cfg.NewUID(), &now
	} else {
		out.Metadata.UID, out.Metadata.Created = old.Metadata.UID, old.Metadata.Created
	}
}

func (s *SQL) writeRow(ctx context.Context, tx *writer, o *api.Object) error {
	m := o.Metadata
	_, err := tx.ExecContext(ctx, sqlWrite, o.Kind, m.Tenant, m.Name, m.UID,
		encodeMap(m.Labels), encodeMap(m.Annotations), s.sealedSpec(o), []byte(o.Status), m.Revision, m.Generation, m.Created.UnixMilli(), m.Updated.UnixMilli())
	return err
}

// PutStatus implements Store.
func (s *SQL) PutStatus(ctx context.Context, key api.Key, status any) error {
	return s.tx(ctx, func(w *writer) error {
		found, err := putStatus(ctx, w, key, status, true)
		if err == nil && !found {
			return NotFound(key)
		}
		return err
	})
}

// PutStatuses implements Store.
func (s *SQL) PutStatuses(ctx context.Context, statuses map[api.Key]any) error {
	return s.tx(ctx, func(w *writer) error {
		for key, status := range statuses {
			if _, err := putStatus(ctx, w, key, status, true); err != nil {
				return err
			}
		}
		return nil
	})
}

func putStatus(ctx context.Context, w *writer, key api.Key, status any, statusOnly bool) (found bool, err error) {
	raw, err := json.Marshal(status)
	if err != nil || !storable(key) {
		return false, err
	}
	var old []byte
	err = w.QueryRowContext(ctx, sqlStatus, key.Kind, key.Tenant, key.Name).Scan(&old)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil || bytes.Equal(old, raw) {
		return true, err
	}
	rev := w.changed(change{key: key, statusOnly: statusOnly})
	_, err = w.ExecContext(ctx, sqlPutStatus, raw, rev, key.Kind, key.Tenant, key.Name)
	return true, err
}

// Delete implements Store.
func (s *SQL) Delete(ctx context.Context, key api.Key, revision int64) error {
	return s.tx(ctx, func(w *writer) error {
		old, err := s.get(ctx, w, key)
		if err != nil {
			return err
		}
		if revision != 0 && old.Metadata.Revision != revision {
			return &api.Error{Code: api.Conflict, Field: "metadata.revision", Message: key.Kind + " " + key.Name + " was changed by somebody else since you read it", Remedy: "read it again"}
		}
		if key.Kind == api.KindTenant {
			if err := s.tenantEmpty(ctx, w, key.Name); err != nil {
				return err
			}
		}
		if key.Kind == api.KindServiceAccount { // nobody else shall ever come by its tokens
			if err := s.dropTokens(ctx, w, key.Tenant, "account = ?", old.Metadata.UID); err != nil {
				return err
			}
		}
		if err := s.forget(ctx, w, old); err != nil {
			return err
		}
		w.changed(change{key: key, deleted: true})
		s.audited(w, "delete", old, nil)
		_, err = w.ExecContext(ctx, "DELETE FROM objects WHERE kind = ? AND tenant = ? AND name = ?", key.Kind, key.Tenant, key.Name)
		return err
	})
}
