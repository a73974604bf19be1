package audit

import (
	"context"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Query selects rows, the newest first.
type Query struct {
	// Tenants are the uids whose rows are asked for; nil is all.
	Tenants                            []string
	Actor, Action, Kind, Name, Outcome string
	From, To                           time.Time
	// Before is the cursor: rows with a lower number.
	Before int64
	Limit  int
}

// List gives a page of rows.
func List(ctx context.Context, db database.Querier, q Query) (out []api.AuditEntry, err error) {
	var where []string
	var args []any
	add := func(cond string, values ...any) { where, args = append(where, cond), append(args, values...) }
	if q.Tenants != nil {
		if len(q.Tenants) == 0 {
			return nil, nil
		}
		values := make([]any, len(q.Tenants))
		for i, t := range q.Tenants {
			values[i] = t
		}
		add("tenant IN (?"+strings.Repeat(",?", len(values)-1)+")", values...)
	}
	if q.Actor != "" {
		add("(actor = ? OR actor_name = ?)", q.Actor, q.Actor)
	}
	for column, v := range map[string]string{"action": q.Action, "kind": q.Kind, "name": q.Name, "outcome": q.Outcome} {
		if v != "" {
			add(column+" = ?", v)
		}
	}
	for _, v := range args {
		if s, ok := v.(string); ok && !database.Text(s) {
			return nil, nil // no row has it
		}
	}
	if !q.From.IsZero() {
		add("time >= ?", q.From.UnixMilli())
	}
	if !q.To.IsZero() {
		add("time < ?", q.To.UnixMilli())
	}
	if q.Before > 0 {
		add("seq < ?", q.Before)
	}
	text := "SELECT " + columns + " FROM audit"
	if len(where) > 0 {
		text += " WHERE " + strings.Join(where, " AND ")
	}
	rows, err := db.QueryContext(ctx, text+" ORDER BY seq DESC LIMIT ?", append(args, q.Limit)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		e, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, *e)
	}
	return out, rows.Err()
}
