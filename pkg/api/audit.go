package api

import (
	"context"
	"time"
)

// Origin is where a change or a question comes from.
type Origin struct {
	// Actor is the uid of the person or service account; empty for the core itself and for
	// strangers. Name is how they are called.
	Actor string `json:"actor,omitempty" doc:"The uid of the person or service account; absent for the core itself and for strangers."`
	Name  string `json:"actorName,omitempty"`
	// How tells by what they were known: "token ID", "session ID"; "core" is the core itself.
	How string `json:"how,omitempty" doc:"By what the actor was known: token ID, session ID; core: the core itself, or who has root there."`
	// Source is the address that the request came from, Request its number.
	Source  string `json:"source,omitempty" doc:"The address that the request came from."`
	Request string `json:"request,omitempty" doc:"The request's number, X-Request-Id."`
}

// AuditEntry is one row of the audit log.
type AuditEntry struct {
	Seq   int64     `json:"seq" doc:"Counts rows, without gaps."`
	Epoch uint64    `json:"epoch" doc:"The core's epoch."`
	Time  time.Time `json:"time"`
	// Tenant is the uid, TenantName the name at that time.
	Tenant     string `json:"tenant" doc:"The tenant's uid."`
	TenantName string `json:"tenantName"`
	Origin
	Action string `json:"action"`
	Kind   string `json:"kind,omitempty"`
	Object string `json:"name,omitempty"`
	UID    string `json:"uid,omitempty"`
	// Old and New are keyed digests of what was changed, before and after.
	Old     []byte `json:"old,omitempty" doc:"Keyed digest of what stood there before."`
	New     []byte `json:"new,omitempty" doc:"Keyed digest of what stands there since."`
	Outcome string `json:"outcome" enum:"done,refused,failed"`
	Message string `json:"message,omitempty"`
	// Count is how often it happened, when repetitions were folded into one row.
	Count int64  `json:"count,omitempty" doc:"How often, where repetitions were folded into one row."`
	Hash  []byte `json:"hash" doc:"SHA-256 over this row and the hash of the one before."`
}

// The outcomes of an AuditEntry.
const (
	AuditDone    = "done"
	AuditRefused = "refused"
	AuditFailed  = "failed"
)

type originKey struct{}

// WithOrigin has everything that is done with a context told as somebody's.
func WithOrigin(ctx context.Context, o Origin) context.Context {
	return context.WithValue(ctx, originKey{}, o)
}

// OriginOf tells whose doing it is; the core's own, when nobody said.
func OriginOf(ctx context.Context) Origin {
	if o, ok := ctx.Value(originKey{}).(Origin); ok {
		return o
	}
	return Origin{Name: "core", How: "core"}
}
