package server

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/audit"
	"tributary.dev/tributary/pkg/core/store"
)

// Audit is the audit log. What changes objects is written down by the store; here comes what
// changes none: refusals and commands.
type Audit interface {
	// Note returns when the row is on the disk.
	Note(ctx context.Context, e api.AuditEntry) error
	List(ctx context.Context, q audit.Query) ([]api.AuditEntry, error)
}

// withCaller has everything that is done with a context told as a caller's.
func withCaller(ctx context.Context, c *access.Caller) context.Context {
	o := api.OriginOf(ctx)
	o.Actor, o.Name, o.How = c.UID, c.Name, c.How
	return context.WithValue(api.WithOrigin(ctx, o), callerKey{}, c)
}

// note writes down what was refused; that it was refused does not depend on it.
func (s *Server) note(ctx context.Context, e api.AuditEntry) {
	if err := s.mustNote(ctx, e); err != nil {
		s.cfg.Log.Error("a refusal is not in the audit log", "action", e.Action, "err", err)
	}
}

// mustNote writes down what must not happen unless it is written down.
func (s *Server) mustNote(ctx context.Context, e api.AuditEntry) error {
	if s.cfg.Audit == nil {
		return nil
	}
	return s.cfg.Audit.Note(ctx, e)
}

type (
	auditInput struct {
		TenantQuery
		Actor   string    `query:"actor" maxLength:"253" doc:"The uid or the name of who did it."`
		Action  string    `query:"action" maxLength:"63" doc:"What was done: create, update, delete, exec …"`
		Kind    string    `query:"kind" maxLength:"63" doc:"The kind of what it was done to."`
		Name    string    `query:"name" maxLength:"253" doc:"The name of what it was done to."`
		Outcome string    `query:"outcome" enum:"done,refused,failed"`
		From    time.Time `query:"from" doc:"Not before this time (RFC 3339)."`
		To      time.Time `query:"to" doc:"Before this time (RFC 3339)."`
		Before  int64     `query:"before" minimum:"0" doc:"Cursor: what the page before gave as next."`
		Limit   int       `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	}
	auditOutput struct{ Body auditList }
	auditList   struct {
		Items []api.AuditEntry `json:"items"`
		Next  int64            `json:"next,omitempty" doc:"Pass as before for the next page; absent on the last."`
	}
)

func (s *Server) auditRoute() {
	if s.cfg.Audit == nil {
		return
	}
	op := huma.Operation{OperationID: "audit", Method: http.MethodGet, Path: "/api/v1/audit", Summary: "Who did what, the newest first", Tags: []string{"audit"},
		Description: "Rows of the tenants that the caller administrates. `cored audit verify` proves that none was changed.",
		Middlewares: s.needs(access.Audit, Each), Responses: s.responses(http.StatusOK, s.schemaOf(new(auditList)))}
	huma.Register(s.api, op, func(ctx context.Context, in *auditInput) (*auditOutput, error) {
		q := audit.Query{Actor: in.Actor, Action: in.Action, Kind: in.Kind, Name: in.Name, Outcome: in.Outcome, From: in.From, To: in.To, Before: in.Before, Limit: in.Limit}
		var err error
		if q.Tenants, err = s.auditedTenants(ctx, in.Tenant); err != nil {
			return nil, s.fail(err)
		}
		items, err := s.cfg.Audit.List(ctx, q)
		if err != nil {
			return nil, s.fail(err)
		}
		out := &auditOutput{Body: auditList{Items: append([]api.AuditEntry{}, items...)}}
		if len(items) == in.Limit {
			out.Body.Next = items[len(items)-1].Seq
		}
		return out, nil
	})
}

// auditedTenants are the uids of the tenants whose rows the caller asks for and may see; nil is all.
func (s *Server) auditedTenants(ctx context.Context, tenant string) ([]string, error) {
	if err := s.ownerOf(ctx, tenant, 0); err != nil {
		return nil, err
	}
	view := CallerOf(ctx).Of(access.Audit, api.KindTenant)
	if tenant == "*" && view.Everything {
		return nil, nil
	}
	known := map[string]string{api.PlatformTenant: api.PlatformTenant, api.DefaultTenant: api.DefaultTenant}
	objects, _, _, err := s.cfg.Store.List(ctx, store.Query{Kind: api.KindTenant, Tenant: api.DefaultTenant})
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		known[o.Metadata.Name] = o.Metadata.UID
	}
	uids := []string{}
	for name, uid := range known {
		if tenant != "*" && tenant != name {
			continue
		}
		if !view.Whole(name) { // check: scope of the audit log
			continue
		}
		uids = append(uids, uid)
	}
	return uids, nil
}
