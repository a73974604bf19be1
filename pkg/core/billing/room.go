package billing

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/store"
)

// Source tells what was used. Both methods may be asked for a time again.
type Source interface {
	// Entries gives, in any order, all entries of a tenant (its uid) that began in [from, to).
	Entries(ctx context.Context, tenant string, from, to time.Time, each func(*api.UsageEntry) error) error
	// Gaps gives the times in [from, to) of which is not known what was used.
	Gaps(ctx context.Context, tenant string, from, to time.Time) ([]api.UsageGap, error)
}

// Config is what the room needs. All but Written is needed.
type Config struct {
	DB    *database.DB // the ledger's; Migrate was called
	Store store.Store
	Usage Source
	Heads Heads
	// Epoch is the core's: invoice numbers carry it, so that a core restored from a backup
	// gives none a second time.
	Epoch uint64
	Fonts Fonts
	Now   func() time.Time
	Log   *slog.Logger
	// Settle is how long usage may take from being received to being seen: an invoice counts
	// what was received before that.
	Settle time.Duration
	// Fired is told of thresholds of budgets, each once a month; may be nil.
	Fired func(budget api.Key, threshold int, s *api.BudgetStatus)
	// Written is called after each change that has reached the disk; of tests.
	Written func() error
}

// Room answers for what tenants owe. Its methods may be called from any goroutine, and by
// several processes on one database.
type Room struct {
	cfg Config
	db  *database.DB
}

// New makes the room.
func New(cfg Config) *Room {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Room{cfg: cfg, db: cfg.DB}
}

// Account is who a tenant is to its invoices, as of now.
type Account struct {
	Name, UID string
	Zone      *time.Location
	Terms     Terms
	Buyer     Party
	Seller    Party
	// Problem says why there can be no invoice; nil when there can.
	Problem *api.Error
}

// Account reads a tenant's profile, its plan, and the seller.
func (r *Room) Account(ctx context.Context, tenant string) (*Account, error) {
	a := &Account{Name: tenant, UID: tenant, Zone: time.UTC}
	if tenant != api.PlatformTenant && tenant != api.DefaultTenant {
		o, err := r.cfg.Store.Get(ctx, api.Key{Tenant: api.DefaultTenant, Kind: api.KindTenant, Name: tenant})
		if err != nil {
			return nil, err
		}
		a.UID = o.Metadata.UID
	}
	var profile, seller api.BillingProfileSpec
	found, err := r.spec(ctx, api.Key{Tenant: tenant, Kind: api.KindBillingProfile, Name: api.BillingProfileName}, &profile)
	if err != nil {
		return nil, err
	}
	if _, err := r.spec(ctx, api.Key{Tenant: api.PlatformTenant, Kind: api.KindBillingProfile, Name: api.BillingProfileName}, &seller); err != nil {
		return nil, err
	}
	if !found {
		a.Problem = &api.Error{Code: api.Invalid, Message: "the tenant " + tenant + " has no BillingProfile", Remedy: "apply one named " + api.BillingProfileName + " in the tenant, as somebody of the tenant above"}
		a.Terms = Terms{Currency: "XXX"}
		return a, nil
	}
	if a.Zone, err = profile.Location(); err != nil {
		return nil, err
	}
	a.Buyer, a.Seller = party(&profile, tenant, a.UID), party(&seller, api.PlatformTenant, api.PlatformTenant)
	a.Terms = Terms{Currency: profile.Currency, Zone: profile.Zone, Since: profile.Since, Tax: profile.Tax, Carbon: profile.CarbonGramsPerKWh, Sites: profile.Sites}
	return a, r.plan(ctx, a, &profile)
}

func party(p *api.BillingProfileSpec, tenant, uid string) Party {
	return Party{Tenant: tenant, UID: uid, LegalName: p.LegalName, Address: p.Address, Country: p.Country, TaxID: p.TaxID, Contact: p.Contact}
}

// spec reads the spec of an object; false when it is not there.
func (r *Room) spec(ctx context.Context, key api.Key, into any) (bool, error) {
	o, err := r.cfg.Store.Get(ctx, key)
	if api.CodeOf(err) == api.NotFound && err != nil {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, json.Unmarshal(o.Spec, into)
}

// plan finds the plan that a profile names: the tenant's own, or of the nearest one above.
func (r *Room) plan(ctx context.Context, a *Account, profile *api.BillingProfileSpec) error {
	if a.Terms.Plan = profile.Plan; profile.Plan == "" {
		a.Problem = &api.Error{Code: api.Invalid, Field: "spec.plan", Message: "the BillingProfile of " + a.Name + " names no plan", Remedy: "name a PricePlan"}
		if a.Terms.Currency == "" {
			a.Terms.Currency = "XXX"
		}
		return nil
	}
	tree, err := r.cfg.Store.Tenants(ctx)
	if err != nil {
		return err
	}
	for _, tenant := range tree.Path(a.Name) {
		var plan api.PricePlanSpec
		found, err := r.spec(ctx, api.Key{Tenant: tenant, Kind: api.KindPricePlan, Name: profile.Plan}, &plan)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		if a.Terms.Versions = plan.Versions; a.Terms.Currency == "" {
			a.Terms.Currency = plan.Currency
		}
		if a.Terms.Currency != plan.Currency {
			a.Problem = &api.Error{Code: api.Invalid, Field: "spec.currency", Message: "the plan " + profile.Plan + " is in " + plan.Currency + ", the profile in " + a.Terms.Currency, Remedy: "name a plan in the profile's currency"}
		}
		_, err = digitsOf(a.Terms.Currency)
		return err
	}
	a.Problem = &api.Error{Code: api.Invalid, Field: "spec.plan", Message: "there is no PricePlan " + profile.Plan + " in " + a.Name + " or above", Remedy: "apply it, or name another"}
	if a.Terms.Currency == "" {
		a.Terms.Currency = "XXX"
	}
	return nil
}

// Zone tells where a tenant's days begin: what devices cut their intervals at. It is UTC for
// a tenant without a profile.
func (r *Room) Zone(ctx context.Context, tenant string) (*time.Location, error) {
	var profile api.BillingProfileSpec
	if _, err := r.spec(ctx, api.Key{Tenant: tenant, Kind: api.KindBillingProfile, Name: api.BillingProfileName}, &profile); err != nil {
		return nil, err
	}
	return profile.Location()
}

// MayRemove refuses to take away a plan that a profile names.
func (r *Room) MayRemove(ctx context.Context, o *api.Object) error {
	profiles, _, _, err := r.cfg.Store.List(ctx, store.Query{Kind: api.KindBillingProfile})
	if err != nil {
		return err
	}
	tree, err := r.cfg.Store.Tenants(ctx)
	if err != nil {
		return err
	}
	for _, p := range profiles {
		var spec api.BillingProfileSpec
		if err := json.Unmarshal(p.Spec, &spec); err != nil {
			return err
		}
		if spec.Plan == o.Metadata.Name && tree.Within(p.Metadata.Tenant, o.Metadata.Tenant) {
			return &api.Error{Code: api.Conflict, Message: "PricePlan " + o.Metadata.Name + " is in use: the BillingProfile of tenant " + p.Metadata.Tenant + " names it", Remedy: "name another plan there first"}
		}
	}
	return nil
}

// Tenants lists who has a BillingProfile that names a plan, by name.
func (r *Room) Tenants(ctx context.Context) (out []string, err error) {
	profiles, _, _, err := r.cfg.Store.List(ctx, store.Query{Kind: api.KindBillingProfile})
	for _, p := range profiles {
		var spec api.BillingProfileSpec
		if err := json.Unmarshal(p.Spec, &spec); err != nil {
			return nil, err
		}
		if spec.Plan != "" {
			out = append(out, p.Metadata.Tenant)
		}
	}
	slices.Sort(out)
	return out, err
}

// Blocker is something that a person has to settle before an invoice can be issued.
type Blocker struct {
	// Subject can be decided about; empty for what has to be mended instead.
	Subject string `json:"subject,omitempty"`
	Period  string `json:"period,omitempty"`
	What    string `json:"what"`
	Remedy  string `json:"remedy"`
}

func gapSubject(g *api.UsageGap) string {
	return "gap/" + g.Device + "/" + g.From.UTC().Format(time.RFC3339) + "/" + g.To.UTC().Format(time.RFC3339)
}
