// Package store answers: what did people ask for, at which revision, and what
// changed since?
//
// It keeps the objects of pkg/api (spec by people, status by the core), the manifests
// signed for each device, the tokens of people, and the core's own counters, in
// SQLite or PostgreSQL, which pass the same suite, storetest.
package store

import (
	"context"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Store keeps objects. All methods may be called from any goroutine.
//
// Revisions come from one counter for the whole store: each write that changes
// something gets the next one, and a write that changes nothing gets none and is no
// event. Generations count the changes of one object's spec.
type Store interface {
	// Get returns an object, or an error of code NotFound.
	Get(ctx context.Context, key api.Key) (*api.Object, error)
	// List returns objects of one kind ordered by tenant and name, the cursor of the next page
	// ("" after the last), and the revision at which the page was read: watching from
	// it misses nothing.
	List(ctx context.Context, q Query) (items []*api.Object, next string, revision int64, err error)
	// Put creates or updates an object and returns it as stored. Metadata's UID,
	// Generation, Created and Updated are the store's to set. With Metadata.Revision
	// set the write succeeds only on that very revision (code Conflict else). A Tenant
	// whose place in the tree cannot be is refused (code Invalid).
	Put(ctx context.Context, obj *api.Object, opts PutOptions) (*api.Object, error)
	// PutStatus replaces the status of an object; it neither checks the revision nor
	// bumps the generation. Writing the status it has is no write.
	PutStatus(ctx context.Context, key api.Key, status any) error
	// PutStatuses is PutStatus for many objects in one transaction. Objects that do
	// not exist are passed over.
	PutStatuses(ctx context.Context, statuses map[api.Key]any) error
	// PutProbed is PutStatuses that may replace an object's probed labels, too.
	PutProbed(ctx context.Context, list []Probed) error
	// GetMany returns those of the objects that exist, as of one moment.
	GetMany(ctx context.Context, keys []api.Key) (map[api.Key]*api.Object, error)
	// Tenants gives the tree of tenants as of now.
	Tenants(ctx context.Context) (api.TenantTree, error)
	// Used tells how much of what Quotas bound a tenant has, with all below it, by the names of
	// api.QuotaSpec's fields. Put and Enrol refuse what is more than a Quota lets in (code Conflict).
	Used(ctx context.Context, tenant string) (map[string]int64, error)
	// Delete removes an object; revision 0 removes whatever is there. A Tenant that owns
	// anything, or that another lies below, stays (code Conflict): nobody could name its
	// objects any more.
	Delete(ctx context.Context, key api.Key, revision int64) error
	// Watch tells of every change after a revision (0: from now on, -1: from the very
	// first), oldest first, till
	// ctx ends. Changes of one object may be folded into the newest; the object sent is the
	// one stored at the time of sending. When the revision is older than the
	// history that is kept, or the reader falls behind it, the last event has Err set
	// (IsTooOld) and the channel closes: list again, then watch from that.
	Watch(ctx context.Context, w WatchQuery) <-chan Event
	// Reaches tells whether a watch from a revision would begin: an error that IsTooOld
	// when the history does not reach back to it, or the revision is not yet there (of
	// another life of the store, before it was restored).
	Reaches(from int64) error
}

// Query selects objects of one kind.
type Query struct {
	// Tenant limits the list to one; "" lists all tenants.
	Tenant string
	// Only limits it to what it says yes to, beside the selector; nil is no limit.
	Only func(*api.Object) bool
	Kind string
	// Selector is the text form of api.ParseSelector; "" selects all.
	Selector string
	// Limit bounds the page; 0 is no bound.
	Limit int
	// After is the cursor that the page before gave.
	After string
}

// PutOptions tune one Put.
type PutOptions struct {
	// Create refuses to replace an object that exists (code Conflict).
	Create bool
	// Update refuses to create one (code NotFound).
	Update bool
	// InTenant refuses to create an object of a tenant that does not exist (code Invalid).
	InTenant bool
	// Status, when not nil, is written with the spec in the same revision.
	Status any
	// Hold keeps the revision that is written from all devices: a Rollout gives it.
	Hold bool
	// Events are noted with the write.
	Events []DeviceEvent
	// DryRun does everything but the write. The object returned carries the revision
	// and generation it would have had.
	DryRun bool
}

// WatchQuery says what to watch.
type WatchQuery struct {
	Kinds  []string // none: every kind
	Tenant string   // "": every tenant
	From   int64
	// SpecOnly leaves out changes of nothing but status.
	SpecOnly bool
}

// EventType says what happened to an object.
type EventType string

// The types of event.
const (
	Changed EventType = "changed" // created or updated; Object is the newest
	Deleted EventType = "deleted" // Object holds the key alone
)

// Event is one change.
type Event struct {
	Type     EventType
	Object   *api.Object
	Revision int64 // watching again from it continues after this event
	Err      error
}

// errTooOld ends a watch whose revision is past the history.
var errTooOld = &api.Error{Code: api.Gone, Message: "the revision to watch from is not in the history that is kept", Remedy: "list again, then watch from the revision of the list"}

// IsTooOld reports whether a watch ended because the reader has to list again.
func IsTooOld(err error) bool { return err == errTooOld }

// NotFound is the error of an object that is not there.
func NotFound(key api.Key) error {
	if key.Kind == api.KindTenant {
		e := &api.Error{Code: api.NotFound, Message: "there is no Tenant " + key.Name, Remedy: "see `edgectl get tenants`"}
		if key.Name == api.DefaultTenant || key.Name == api.PlatformTenant {
			e.Message, e.Remedy = "the tenant "+key.Name+" is always there: no object stands for it", "name another; `edgectl get tenants` lists them"
		}
		return e
	}
	return &api.Error{Code: api.NotFound, Message: "there is no " + key.Kind + " " + key.Name + " in tenant " + key.Tenant, Remedy: "see `edgectl get " + strings.ToLower(key.Kind) + "s`"}
}
