package store

import (
	"context"
	"fmt"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// tenantThere refuses a tenant that does not exist. It is asked in the transaction that
// writes, so that no tenant goes in between.
func (s *SQL) tenantThere(ctx context.Context, q database.Querier, name string) error {
	if name == api.DefaultTenant {
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

// tenantEmpty refuses to take away a tenant that owns anything.
func tenantEmpty(ctx context.Context, q database.Querier, name string) error {
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
