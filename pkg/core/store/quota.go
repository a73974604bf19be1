package store

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// reserve refuses an object that would be more than a Quota of its tenant, or of one above, lets in. It
// is asked in the transaction that writes: two writers at once never exceed one together.
func (s *SQL) reserve(ctx context.Context, w *writer, o *api.Object) error {
	more, err := quantities(o.Kind, o.Spec)
	if err != nil || more == nil {
		return err
	}
	tree, err := s.tenants(ctx, w)
	if err != nil {
		return err
	}
	return s.fits(ctx, w, tree, tree.Path(o.Metadata.Tenant), more)
}

// reserveMove refuses to hang a tenant, with what it and all below it have, where that is too much.
func (s *SQL) reserveMove(ctx context.Context, w *writer, old, o *api.Object) error {
	var was, is api.TenantSpec
	if old == nil || json.Unmarshal(orEmpty(old.Spec), &was) != nil || json.Unmarshal(orEmpty(o.Spec), &is) != nil || was.ParentOf() == is.ParentOf() {
		return nil
	}
	tree, err := s.tenants(ctx, w)
	if err != nil {
		return err
	}
	moved, err := s.used(ctx, w, tree, o.Metadata.Name, quotaFields)
	if err != nil {
		return err
	}
	already := tree.Path(o.Metadata.Name)
	var above []string // that did not have it before
	for _, t := range tree.Path(is.ParentOf()) {
		if !slices.Contains(already, t) {
			above = append(above, t)
		}
	}
	return s.fits(ctx, w, tree, above, moved)
}

var quotaFields = []string{"apps", "devices", "trainingJobs", "trainingRanks"}

// fits asks the Quotas of tenants whether so much more comes in.
func (s *SQL) fits(ctx context.Context, q database.Querier, tree api.TenantTree, tenants []string, more map[string]int64) error {
	for _, tenant := range tenants {
		o, err := s.get(ctx, q, api.Key{Tenant: tenant, Kind: api.KindQuota, Name: api.QuotaName})
		if err != nil && api.CodeOf(err) == api.NotFound {
			continue
		}
		if err != nil {
			return err
		}
		var spec api.QuotaSpec
		if err := json.Unmarshal(orEmpty(o.Spec), &spec); err != nil {
			return err
		}
		bounds := spec.Bounds()
		var asked []string
		for _, name := range slices.Sorted(maps.Keys(more)) {
			if _, ok := bounds[name]; ok && more[name] > 0 {
				asked = append(asked, name)
			}
		}
		if len(asked) == 0 {
			continue
		}
		used, err := s.used(ctx, q, tree, tenant, asked)
		if err != nil {
			return err
		}
		for _, name := range asked {
			if used[name]+more[name] > bounds[name] { // check: quota
				return &api.Error{Code: api.Conflict, Field: "metadata.tenant", Message: fmt.Sprintf("the quota of tenant %s is %d %s: %d are used, and this takes %d more", tenant, bounds[name], name, used[name], more[name]),
					Remedy: "delete what is not needed, or ask whoever runs the tenant above " + tenant + " for a larger Quota"}
			}
		}
	}
	return nil
}

// Used tells how much of what Quotas bound a tenant has, with all below it.
func (s *SQL) Used(ctx context.Context, tenant string) (used map[string]int64, err error) {
	err = s.db.Read(ctx, func(q *database.Tx) error {
		tree, err := s.tenants(ctx, q)
		if err != nil {
			return err
		}
		used, err = s.used(ctx, q, tree, tenant, quotaFields)
		return err
	})
	return used, err
}

func (s *SQL) used(ctx context.Context, q database.Querier, tree api.TenantTree, top string, fields []string) (map[string]int64, error) {
	var in []any
	for _, name := range tree.Names() {
		if tree.Within(name, top) {
			in = append(in, name)
		}
	}
	used := map[string]int64{}
	if len(in) == 0 {
		return used, nil
	}
	where := " FROM objects WHERE kind = ? AND tenant IN (?" + strings.Repeat(",?", len(in)-1) + ")"
	for field, kind := range map[string]string{"devices": api.KindDevice, "apps": api.KindApp} {
		if !slices.Contains(fields, field) {
			continue
		}
		var n int64
		if err := q.QueryRowContext(ctx, "SELECT count(*)"+where, append([]any{kind}, in...)...).Scan(&n); err != nil {
			return nil, err
		}
		used[field] = n
	}
	if !slices.Contains(fields, "trainingJobs") && !slices.Contains(fields, "trainingRanks") {
		return used, nil
	}
	return used, usedByTraining(ctx, q, where, in, used)
}

// usedByTraining counts trainings that are not over.
func usedByTraining(ctx context.Context, q database.Querier, where string, in []any, used map[string]int64) error {
	rows, err := q.QueryContext(ctx, "SELECT spec, status"+where, append([]any{api.KindTrainingJob}, in...)...)
	if err != nil {
		return err
	}
	defer rows.Close()
	used["trainingJobs"], used["trainingRanks"] = 0, 0
	for rows.Next() {
		var spec, raw []byte
		var status api.TrainingJobStatus
		if err := rows.Scan(&spec, &raw); err != nil {
			return err
		}
		if err := json.Unmarshal(orEmpty(raw), &status); err != nil {
			return err
		}
		if status.Final() {
			continue
		}
		more, err := quantities(api.KindTrainingJob, spec)
		if err != nil {
			return err
		}
		for name, n := range more {
			used[name] += n
		}
	}
	return rows.Err()
}

func quantities(kind string, raw json.RawMessage) (map[string]int64, error) {
	var job api.TrainingJobSpec
	if kind == api.KindTrainingJob {
		if err := json.Unmarshal(orEmpty(raw), &job); err != nil {
			return nil, err
		}
	}
	return api.Quantities(kind, &job), nil
}
