package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// tenantThere refuses a tenant that does not exist. It is asked in the transaction that
// writes, so that no tenant goes in between.
func (s *SQL) tenantThere(ctx context.Context, q database.Querier, name string) error {
	if name == api.DefaultTenant || name == api.PlatformTenant {
		return nil
	}
	_, err := s.get(ctx, q, api.Key{Tenant: api.DefaultTenant, Kind: api.KindTenant, Name: name})
	if err != nil && api.CodeOf(err) == api.NotFound {
		return NoTenant(name)
	}
	return err
}

// NoTenant is the refusal of an object of a tenant that does not exist.
func NoTenant(name string) error {
	return &api.Error{Code: api.Invalid, Field: "metadata.tenant", Message: "there is no tenant " + name, Remedy: "mend the name, or apply a Tenant " + name + " first or along with it"}
}

// tenantPlaced refuses a tenant whose parent is not there or lies below it.
func (s *SQL) tenantPlaced(ctx context.Context, q database.Querier, o *api.Object) error {
	var spec api.TenantSpec
	if err := json.Unmarshal(orEmpty(o.Spec), &spec); err != nil {
		return err
	}
	tree, err := s.tenants(ctx, q)
	if err != nil {
		return err
	}
	return tree.Place(o.Metadata.Name, spec.ParentOf())
}

// Tenants implements Store.
func (s *SQL) Tenants(ctx context.Context) (api.TenantTree, error) { return s.tenants(ctx, s.db) }

func (s *SQL) tenants(ctx context.Context, q database.Querier) (api.TenantTree, error) {
	rows, err := q.QueryContext(ctx, "SELECT name, spec FROM objects WHERE kind = ? AND tenant = ?", api.KindTenant, api.DefaultTenant)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	tree := api.TenantTree{}
	for rows.Next() {
		var name string
		var raw []byte
		var spec api.TenantSpec
		if err := rows.Scan(&name, &raw); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(orEmpty(raw), &spec); err != nil {
			return nil, fmt.Errorf("the tenant %s: %w", name, err)
		}
		tree[name] = spec.ParentOf()
	}
	return tree, rows.Err()
}

func orEmpty(raw []byte) []byte {
	if len(raw) == 0 {
		return []byte("{}")
	}
	return raw
}

// tenantEmpty refuses to take away a tenant that owns anything or has others below it.
func (s *SQL) tenantEmpty(ctx context.Context, q database.Querier, name string) error {
	tree, err := s.tenants(ctx, q)
	if err != nil {
		return err
	}
	if below := tree.Below(name); name != api.DefaultTenant && len(below) > 0 {
		return &api.Error{Code: api.Conflict, Message: "Tenant " + name + " has others below it: " + strings.Join(below[:min(len(below), 10)], ", "),
			Remedy: "delete those first, or give them another spec.parent"}
	}
	const shown = 10
	var total int
	if err := q.QueryRowContext(ctx, "SELECT count(*) FROM objects WHERE tenant = ?", name).Scan(&total); err != nil || total == 0 {
		return err
	}
	rows, err := q.QueryContext(ctx, "SELECT kind, name FROM objects WHERE tenant = ? ORDER BY kind, name LIMIT ?", name, shown)
	if err != nil {
		return err
	}
	defer rows.Close()
	var owned []string
	for rows.Next() {
		var kind, object string
		if err := rows.Scan(&kind, &object); err != nil {
			return err
		}
		owned = append(owned, kind+" "+object)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	list := strings.Join(owned, ", ")
	if total > shown {
		list += fmt.Sprintf(" and %d more", total-shown)
	}
	return &api.Error{Code: api.Conflict, Message: "Tenant " + name + " is not empty: it has " + list,
		Remedy: "delete those first, with `--tenant " + name + "`"}
}
