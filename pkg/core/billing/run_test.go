package billing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"os"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/tests/mutation"
)

func TestMain(m *testing.M) { os.Exit(databasetest.Run(m)) }

// source is usage in memory.
type source struct {
	entries map[string][]api.UsageEntry
	gaps    map[string][]api.UsageGap
}

func (s *source) Entries(_ context.Context, tenant string, from, to time.Time, each func(*api.UsageEntry) error) error {
	for i := range s.entries[tenant] {
		e := s.entries[tenant][i]
		if !e.From.Before(from) && e.From.Before(to) {
			if err := each(&e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *source) Gaps(_ context.Context, tenant string, from, to time.Time) (out []api.UsageGap, _ error) {
	for _, g := range s.gaps[tenant] {
		if g.From.Before(to) && from.Before(g.To) {
			out = append(out, g)
		}
	}
	return out, nil
}

// outside keeps heads in memory.
type outside struct {
	sync.Mutex
	list []Head
}

func (o *outside) Add(_ context.Context, h Head) error {
	o.Lock()
	defer o.Unlock()
	if n := len(o.list); n == 0 || o.list[n-1] != h {
		o.list = append(o.list, h)
	}
	return nil
}
func (o *outside) All(context.Context) ([]Head, error) { return o.list, nil }

// world is a core with two tenants that pay.
type world struct {
	*Room
	t     testing.TB
	place string
	now   time.Time
	use   *source
	heads *outside
	uid   map[string]string
	left  *atomic.Int64 // writes before it is cut; below 0: never
}

var errCut = errors.New("cut")

func object(kind, tenant, name string, spec any) *api.Object {
	b, _ := json.Marshal(spec)
	return &api.Object{APIVersion: api.Version, Kind: kind, Metadata: api.Meta{Tenant: tenant, Name: name}, Spec: b}
}

func (w *world) put(o *api.Object) *api.Object {
	w.t.Helper()
	out, err := w.cfg.Store.Put(w.t.Context(), o, store.PutOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

var standard = api.PricePlanSpec{Currency: "EUR", Versions: []api.PriceVersion{{From: "2026-01-01", Free: []string{"runtime", "energy"}, Prices: []api.Price{
	{Name: "cpu", Description: "Processor time", Model: api.ModelGraduated, Meter: api.MeterCPU, Unit: "core-hour", Per: 3_600_000_000, Included: "1", Tiers: []api.PriceTier{{UpTo: "10", Amount: "0.5"}, {Amount: "0.1"}}},
	{Name: "rx", Model: api.ModelFlat, Meter: api.MeterNetworkRx, Unit: "GB", Per: 1_000_000_000, Amount: "0.07", Tax: "7"},
	{Name: "base", Model: api.ModelSubscription, Amount: "30"}}}}}

// begin makes a world in a database; "" is a SQLite file.
func begin(t testing.TB, place string) *world {
	w := &world{t: t, place: place, now: time.Date(2026, 12, 2, 9, 0, 0, 0, time.UTC), use: &source{entries: map[string][]api.UsageEntry{}, gaps: map[string][]api.UsageGap{}}, heads: &outside{}, uid: map[string]string{}, left: new(atomic.Int64)}
	w.left.Store(-1)
	if place == "" {
		w.place = filepath.Join(t.TempDir(), "ledger.db")
	}
	n := 0
	objects, err := store.Open(t.Context(), store.Config{Now: func() time.Time { return w.now }, NewUID: func() string { n++; return fmt.Sprintf("uid%d", n) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objects.Close() })
	w.open(objects, 1)
	w.put(object(api.KindBillingProfile, api.PlatformTenant, api.BillingProfileName, api.BillingProfileSpec{LegalName: "Tributary Betriebs-GmbH", Address: []string{"Am Rand 1", "10115 Berlin"}, Country: "DE", TaxID: "DE999999999"}))
	w.put(object(api.KindPricePlan, api.PlatformTenant, "standard", standard))
	for _, of := range [][2]string{{"acme", "Acme GmbH"}, {"beta", "北京边缘科技有限公司"}} {
		tenant, legal := of[0], of[1]
		w.uid[tenant] = w.put(object(api.KindTenant, api.DefaultTenant, tenant, api.TenantSpec{})).Metadata.UID
		w.put(object(api.KindBillingProfile, tenant, api.BillingProfileName, api.BillingProfileSpec{LegalName: legal, Plan: "standard", Tax: &api.Tax{Name: "VAT", Percent: "19"}, CarbonGramsPerKWh: "380"}))
		for i, d := range []string{"a", "b", "d"} {
			w.entry(tenant, entry(10*i, d, "x", api.MeterCPU, 3_600_000_000*int64(i+2)+int64(i), i+1))
			w.entry(tenant, entry(10*i+1, d, "y", api.MeterNetworkRx, 1_234_567_891*int64(i+1), 29))
			w.entry(tenant, entry(10*i+2, d, "x", api.MeterEnergy, 777_777_777, 3))
		}
	}
	return w
}

// open is what a process begins with.
func (w *world) open(objects store.Store, epoch uint64) {
	c := database.Config{Place: w.place, Schema: "ledger"}
	db, err := database.Open(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { db.Close() })
	if err := Migrate(w.t.Context(), db); err != nil {
		w.t.Fatal(err)
	}
	w.Room = New(Config{DB: db, Store: objects, Usage: w.use, Heads: w.heads, Epoch: epoch, Now: func() time.Time { return w.now }, Settle: time.Minute, Written: func() error {
		if w.left.Load() == 0 {
			return errCut
		}
		w.left.Add(-1)
		return nil
	}})
}

func (w *world) entry(tenant string, e api.UsageEntry) {
	e.Tenant, e.TenantName = w.uid[tenant], tenant
	w.use.entries[e.Tenant] = append(w.use.entries[e.Tenant], e)
}

func (w *world) issue1(tenant, period string) *Outcome {
	w.t.Helper()
	o, err := w.Issue(w.t.Context(), tenant, period, "tester")
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

// papers are all bytes that were issued.
func (w *world) papers() string {
	w.t.Helper()
	list, err := w.Documents(w.t.Context(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	var out strings.Builder
	for _, d := range list {
		full, err := w.Document(w.t.Context(), d.Number)
		if err != nil {
			w.t.Fatal(err)
		}
		fmt.Fprintln(&out, full.Number, full.Seq, full.digest())
	}
	return out.String()
}

func (w *world) verified(what string, want ...string) {
	w.t.Helper()
	v, err := w.Verify(w.t.Context())
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
	var got []string
	for _, d := range v.Differences {
		got = append(got, d.Where+": "+d.What)
	}
	all := strings.Join(got, "\n")
	if len(want) == 0 && len(got) > 0 {
		w.t.Errorf("%s: %s", what, all)
	}
	for _, s := range want {
		if !strings.Contains(all, s) {
			w.t.Errorf("%s: verify does not name %q:\n%s", what, s, all)
		}
	}
}

// both runs a test on SQLite and PostgreSQL.
func both(t *testing.T, f func(t *testing.T, w *world)) {
	t.Run("sqlite", func(t *testing.T) { f(t, begin(t, "")) })
	t.Run("postgres", func(t *testing.T) { f(t, begin(t, databasetest.Postgres(t))) })
}

// A run that is killed after any of its writes, and run again days later, ends with the very bytes.
func TestRunIsCutAndGoesOn(t *testing.T) {
	want := ""
	for n := -1; ; n++ {
		w := begin(t, "")
		w.left.Store(int64(n))
		out, err := w.Run(t.Context(), nil, "2026-11", "tester", true)
		if n >= 0 && err == nil {
			if n < 5 {
				t.Fatalf("a run of two tenants wrote %d times", n)
			}
			return
		}
		if n < 0 {
			if err != nil || len(out) != 2 || !out[0].Issued || !out[1].Issued {
				t.Fatal(text(out), err)
			}
			want = w.papers()
			w.verified("whole")
			continue
		}
		if !errors.Is(err, errCut) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		w.left.Store(-1)
		w.now = w.now.AddDate(0, 0, 3)
		late := entry(99, "a", "x", api.MeterCPU, 1<<40, 5) // came after the run had begun
		late.Received = w.now
		w.entry("acme", late)
		w.open(w.cfg.Store, 1)
		if _, err := w.Run(t.Context(), nil, "2026-11", "another", true); err != nil {
			t.Fatalf("again after %d: %v", n, err)
		}
		if got := w.papers(); got != want {
			t.Fatalf("cut at %d: other bytes:\n%s\n%s", n, got, want)
		}
		w.verified(fmt.Sprint("cut at ", n))
	}
}

// Usage that comes late is in the draft, or corrects: once, by its own versions, in the next invoice.
func TestLateUsage(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		before, err := w.Draft(t.Context(), "acme", "2026-11")
		if err != nil {
			t.Fatal(err)
		}
		first := w.issue1("acme", "2026-11")
		if !first.Issued || first.Document.Net != before.Document.Net || first.Document.Number != "INV-1-000001" {
			t.Fatalf("the draft says %s, the invoice %s", before.Document.Net, text(first))
		}
		papers := w.papers()
		// 1 included of 9 core-hours at 0.5, tax 19; 7.407… GB at 0.07, tax 7; 30.
		if d := first.Document; d.Net.String() != "34.52" || d.Tax.String() != "6.50" || d.Gross.String() != "41.02" || len(d.Taxes) != 2 {
			t.Errorf("it costs %s + %s", d.Net, d.Tax)
		}
		// Prices change; what is late is of November, by November's prices.
		next := standard
		next.Versions = append(slices.Clone(next.Versions), api.PriceVersion{From: "2026-12-01", Prices: []api.Price{{Name: "base", Model: api.ModelSubscription, Amount: "31"}, {Name: "cpu", Model: api.ModelFlat, Meter: api.MeterCPU, Unit: "core-hour", Per: 3_600_000_000, Amount: "100"}}})
		w.put(object(api.KindPricePlan, api.PlatformTenant, "standard", next))
		late := entry(90, "a", "x", api.MeterCPU, 3_600_000_000*4, 7)
		late.Received, w.now = w.now.Add(time.Hour), time.Date(2027, 1, 3, 0, 0, 0, 0, time.UTC)
		w.entry("acme", late)
		second := w.issue1("acme", "2026-12")
		var got []string
		for _, l := range second.Document.Lines {
			got = append(got, l.Kind+" "+l.ID+" "+l.Net.String())
		}
		// Above 10 after the included one: 2 at 0.5, 2 at 0.1.
		if want := "subscription base@2026-12-01 31.00,correction cpu@2026-01-01 1.20"; strings.Join(got, ",") != want {
			t.Errorf("December: %v, want %s", got, want)
		}
		if !strings.HasPrefix(w.papers(), papers) {
			t.Error("an issued invoice has changed")
		}
		w.now = time.Date(2027, 2, 3, 0, 0, 0, 0, time.UTC)
		if third := w.issue1("acme", "2027-01"); len(third.Document.Lines) != 1 {
			t.Errorf("corrected twice: %s", text(third.Document.Lines))
		}
		w.verified("with corrections")
		if again := w.issue1("acme", "2026-11"); again.Document.Number != first.Document.Number || !again.Issued {
			t.Error("issued again")
		}
		balances, err := w.Balances(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		total := int64(0)
		for _, b := range balances {
			total += b.Minor
		}
		if total != 0 || len(balances) != 4 {
			t.Errorf("balances: %v", balances)
		}
	})
}

// A day that is billed on order is deducted from its month.
func TestInterimIsDeducted(t *testing.T) {
	w := begin(t, "")
	day, hour := w.issue1("acme", "2026-11-02"), w.issue1("acme", "2026-11-03T01Z")
	if day.Document.Lines[len(day.Document.Lines)-1].Net.String() != "1.00" {
		t.Errorf("a day of the subscription: %s", text(day.Document.Lines))
	}
	month := w.issue1("acme", "2026-11")
	_, alone := rate(t, &Terms{Currency: "EUR", Tax: &api.Tax{Name: "VAT", Percent: "19"}, Versions: standard.Versions}, november, w.use.entries[w.uid["acme"]]...)
	sum := int64(0)
	for _, l := range alone.Lines {
		sum += l.Net.Minor
	}
	if got := day.Document.Net.Minor + hour.Document.Net.Minor + month.Document.Net.Minor; got != sum {
		t.Errorf("in parts %d, whole %d: %s", got, sum, text(month.Document.Lines))
	}
	if o := w.issue1("acme", "2026-11-04"); o.Issued || len(o.Blockers) != 1 {
		t.Errorf("a day of a month that is billed: %s", text(o))
	}
	late := entry(90, "a", "x", api.MeterCPU, 3_600_000_000*4, 2)
	late.Received, w.now = w.now.Add(time.Hour), time.Date(2027, 1, 3, 0, 0, 0, 0, time.UTC)
	w.entry("acme", late)
	december, corrected := w.issue1("acme", "2026-12"), 0
	for _, l := range december.Document.Lines {
		if l.Kind == LineCorrection && l.Net.Minor != 0 {
			corrected++
		}
	}
	if corrected != 1 {
		t.Errorf("the month and its parts are corrected %d times: %s", corrected, text(december.Document.Lines))
	}
	w.verified("with parts")
}

// Credit notes: of a line, no more than it was; of a whole invoice, which is then billed anew.
func TestCredits(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		a, b := w.issue1("acme", "2026-11").Document, w.issue1("beta", "2026-11").Document
		part, err := w.Credit(ctx, a.Number, "base@2026-01-01", "12.50", "an outage", "tester")
		if err != nil || part.Number != "CN-1-000001" || part.Gross.String() != "-14.88" || part.Credits != a.Number {
			t.Fatal(text(part), err)
		}
		whole, err := w.Credit(ctx, b.Number, "", "", "sent to the wrong office", "tester")
		if err != nil || whole.Gross != b.Gross.neg() {
			t.Fatal(text(whole), err)
		}
		w.put(object(api.KindBillingProfile, "beta", api.BillingProfileName, api.BillingProfileSpec{LegalName: "Beta, Shanghai", Plan: "standard"}))
		anew := w.issue1("beta", "2026-11")
		if !anew.Issued || anew.Document.Number != "INV-1-000003" || anew.Document.Buyer.LegalName != "Beta, Shanghai" {
			t.Errorf("billed anew: %s", text(anew))
		}
		balances, err := w.Balances(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range balances {
			if p.Account == "receivable/"+w.uid["beta"] && p.Minor != anew.Document.Gross.Minor {
				t.Errorf("beta owes %d", p.Minor)
			}
		}
		w.verified("with credits")
		w.open(w.cfg.Store, 2) // restored from a backup
		if n := w.issue1("acme", "2026-10").Document.Number; n != "INV-2-000001" {
			t.Errorf("in the second epoch the number is %s", n)
		}
		w.verified("in two epochs")
	})
}

// What must not happen does not.
func TestRefusals(t *testing.T) {
	refused := func(t *testing.T, w *world, what string, err error, o *Outcome) {
		t.Helper()
		if err == nil && (o == nil || o.Issued) {
			t.Errorf("%s: it happened", what)
		}
	}
	t.Run("unpriced", func(t *testing.T) {
		w := begin(t, "")
		w.entry("acme", entry(80, "a", "x", api.MeterStorage, 5, 1))
		o, err := w.Issue(t.Context(), "acme", "2026-11", "tester")
		refused(t, w, "issue", err, o)
	})
	t.Run("gap", func(t *testing.T) {
		w := begin(t, "")
		w.use.gaps[w.uid["acme"]] = []api.UsageGap{{Device: "a", From: november.From, To: november.From.Add(time.Hour), Why: api.GapLost}}
		o, err := w.Issue(t.Context(), "acme", "2026-11", "tester")
		refused(t, w, "issue", err, o)
	})
	t.Run("early", func(t *testing.T) {
		w := begin(t, "")
		w.now = november.To.Add(30 * time.Second)
		o, err := w.Issue(t.Context(), "acme", "2026-11", "tester")
		refused(t, w, "issue", err, o)
	})
	t.Run("nothing to decide", func(t *testing.T) {
		w := begin(t, "")
		refused(t, w, "decide", w.Decide(t.Context(), "acme", "2026-11", Decision{Subject: "unpriced/cpu//us", Action: ActionWaive, Reason: "x", By: "t"}), nil)
	})
	t.Run("whole after a part", func(t *testing.T) {
		w := begin(t, "")
		n := w.issue1("acme", "2026-11").Document.Number
		if _, err := w.Credit(t.Context(), n, "base@2026-01-01", "1", "x", "t"); err != nil {
			t.Fatal(err)
		}
		_, err := w.Credit(t.Context(), n, "", "", "x", "t")
		refused(t, w, "credit", err, nil)
	})
	t.Run("more than it was", func(t *testing.T) {
		w := begin(t, "")
		n := w.issue1("acme", "2026-11").Document.Number
		if _, err := w.Credit(t.Context(), n, "base@2026-01-01", "29", "x", "t"); err != nil {
			t.Fatal(err)
		}
		_, err := w.Credit(t.Context(), n, "base@2026-01-01", "1.01", "x", "t")
		refused(t, w, "credit", err, nil)
	})
}

// Each refusal needs its check.
func TestRefusalsNeedTheirChecks(t *testing.T) {
	checks := slices.DeleteFunc(mutation.Marked(t, "^TestRefusals$", "run.go", "issue.go"), func(c mutation.Check) bool { return c.Name == "what was begun goes on" })
	mutation.Prove(t, mutation.Each(t, checks, "TestRefusals", "it happened", map[string]string{"unpriced": "", "gap": "a decision is needed", "early": "a period has to end",
		"nothing to decide": "only what blocks is decided", "whole after a part": "a whole credit after a part", "more than it was": "no more than was charged"})...)
}

// A person's decision unblocks, is printed with its reason, and is taken once.
func TestDecisions(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		ctx, uid := t.Context(), w.uid["acme"]
		w.entry("acme", entry(80, "a", "x", api.MeterStorage, 5_000, 1))
		w.use.gaps[uid] = []api.UsageGap{{Tenant: uid, Device: "d", DeviceName: "box-d", From: november.From, To: november.From.Add(time.Hour), Why: api.GapLost}}
		o := w.issue1("acme", "2026-11")
		if o.Issued || len(o.Blockers) != 2 {
			t.Fatal(text(o))
		}
		if other := w.issue1("beta", "2026-11"); !other.Issued {
			t.Error("another tenant's is blocked, too")
		}
		for i, d := range []Decision{{Action: ActionPrice, Amount: "0.002", Per: 2, Unit: "pair"}, {Action: ActionZero}} {
			d.Subject, d.Reason, d.By = o.Blockers[i].Subject, "agreed by letter", "Ada"
			if d.Action == ActionZero {
				d.Action, d.Amount = ActionPrice, "1.23"
			}
			if err := w.Decide(ctx, "acme", "2026-11", d); err != nil {
				t.Fatal(err)
			}
			if err := w.Decide(ctx, "acme", "2026-11", d); api.CodeOf(err) != api.Conflict {
				t.Errorf("decided twice: %v", err)
			}
		}
		o = w.issue1("acme", "2026-11")
		if !o.Issued || len(o.Document.Decisions) != 2 || o.Document.Net.Minor != 3452+500+123 {
			t.Fatal(text(o))
		}
		w.verified("with decisions")
		w.now = time.Date(2027, 1, 3, 0, 0, 0, 0, time.UTC)
		w.use.gaps[uid] = nil // it came after all
		december := w.issue1("acme", "2026-12")
		if l := december.Document.Lines; len(l) != 2 || l[1].Kind != LineCorrection || l[1].Net.String() != "-1.23" {
			t.Errorf("the gap's price is given back: %s", text(l))
		}
		w.verified("with a gap that was filled")
	})
}

// Two processes that issue at once make one invoice, and numbers without gaps.
func TestTwoIssueAtOnce(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		first, second := w.Room, w
		second.open(first.cfg.Store, 1)
		var g sync.WaitGroup
		for _, r := range []*Room{first, second.Room, first, second.Room} {
			g.Go(func() {
				if _, err := r.Run(t.Context(), nil, "2026-11", "t", true); err != nil && api.CodeOf(err) != api.Conflict {
					t.Error(err)
				}
			})
		}
		g.Wait()
		if _, err := w.Run(t.Context(), nil, "2026-11", "t", true); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(w.papers(), "\n"); n != 2 {
			t.Errorf("%d documents: %s", n, w.papers())
		}
		w.verified("two at once")
	})
}

// Whatever table is altered, verify names it.
func TestVerifyNamesWhatWasAltered(t *testing.T) {
	made := begin(t, "")
	ctx := t.Context()
	made.entry("acme", entry(80, "a", "x", api.MeterStorage, 5_000, 1))
	if err := made.Decide(ctx, "acme", "2026-11", Decision{Subject: "unpriced/storage//B.s", Action: ActionZero, Reason: "so", By: "t"}); err != nil {
		t.Fatal(err)
	}
	made.issue1("acme", "2026-11")
	n := made.issue1("beta", "2026-11").Document.Number
	if _, err := made.Credit(ctx, n, "base@2026-01-01", "1", "x", "t"); err != nil {
		t.Fatal(err)
	}
	made.put(object(api.KindBudget, "acme", "all", api.BudgetSpec{Amount: "1"}))
	made.now = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	if err := made.CheckBudgets(ctx); err != nil {
		t.Fatal(err)
	}
	made.verified("as it is")
	for _, c := range []struct{ sql, want string }{
		{`UPDATE bill_journal SET at = at + 1 WHERE seq = 2`, "journal entry 2"},
		{`DELETE FROM bill_journal WHERE seq = 2`, "entry 2 is missing"},
		{`DELETE FROM bill_journal WHERE seq = (SELECT max(seq) FROM bill_journal)`, "known outside the database"},
		{`UPDATE bill_postings SET minor = minor + 1 WHERE seq = 3 AND n = 0`, "journal entry 3"},
		{`INSERT INTO bill_postings (seq, n, account, currency, minor) VALUES (99, 0, 'x', 'EUR', 1)`, "belong to no entry"},
		{`DELETE FROM bill_postings WHERE seq = 2`, "journal entry 2"},
		{`UPDATE bill_documents SET pdf = x'00' WHERE number = 'INV-1-000001'`, "INV-1-000001: its bytes"},
		{`UPDATE bill_documents SET tenant = 'other' WHERE number = 'INV-1-000001'`, "listed as something else"},
		{`DELETE FROM bill_documents WHERE number = 'INV-1-000002'`, "INV-1-000002: the document is missing"},
		{`UPDATE bill_decisions SET body = replace(body, 'so', 'no')`, "it is not what was decided"},
		{`DELETE FROM bill_decisions`, "decision 2026-11 unpriced/storage//B.s: it is missing"},
		{`UPDATE bill_terms SET body = x'7b7d'`, "not what invoices were rated by"},
		{`DELETE FROM bill_terms`, "it cannot be made again"},
		{`UPDATE bill_runs SET as_of = as_of + 1`, "was begun with something else"},
		{`DELETE FROM bill_runs`, "the run that issued it is forgotten"},
		{`UPDATE bill_series SET last = last + 1 WHERE series = 'INV'`, "numbers INV-1"},
		{`DELETE FROM bill_series WHERE series = 'CN'`, "numbers CN-1"},
		{`UPDATE bill_fired SET spent = '0'`, "does not know that this threshold"},
		{`DELETE FROM bill_fired`, "is forgotten"},
	} {
		w := *made
		w.place = filepath.Join(t.TempDir(), "copy.db")
		if err := made.db.BackupTo(ctx, w.place); err != nil {
			t.Fatal(err)
		}
		w.open(made.cfg.Store, 1)
		if _, err := w.db.ExecContext(ctx, c.sql); err != nil {
			t.Fatalf("%s: %v", c.sql, err)
		}
		w.verified(c.sql, c.want)
		w.db.Close()
	}
	// The whole chain written anew, hashes and all: only the heads outside tell.
	made.heads.list[1].Hash = "sha256:another"
	made.verified("another head", "the ledger was written anew")
	made.heads.list[1].Hash = ""
	made.heads.list = made.heads.list[:1]
	// Usage that is not what it was.
	e := &made.use.entries[made.uid["beta"]][0]
	e.Quantity += 3_600_000_000 * 5
	made.verified("altered usage", "INV-1-000002: line cpu@2026-01-01 says", "with another digest")
	e.Quantity -= 3_600_000_000 * 5
	e.ID = "r/other"
	made.verified("another entry of the same quantity", "with another digest")
}

// A threshold is told of once a month, however often and by however many.
func TestBudgetsFireOnce(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.now = time.Date(2026, 11, 5, 12, 0, 0, 0, time.UTC)
		told := map[string]int{}
		w.cfg.Fired = func(b api.Key, threshold int, _ *api.BudgetStatus) { told[fmt.Sprint(b.Name, threshold)]++ }
		w.put(object(api.KindBudget, "acme", "all", api.BudgetSpec{Amount: "36", Thresholds: []int{90, 100}}))
		w.put(object(api.KindBudget, "acme", "dale", api.BudgetSpec{Amount: "4", Site: "dale", Thresholds: []int{40, 60}}))
		for range 3 {
			if err := w.CheckBudgets(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.open(w.cfg.Store, 1)
			w.cfg.Fired = func(b api.Key, threshold int, _ *api.BudgetStatus) { told[fmt.Sprint(b.Name, threshold)]++ }
		}
		o, err := w.cfg.Store.Get(t.Context(), api.Key{Tenant: "acme", Kind: api.KindBudget, Name: "all"})
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(told) != "map[all90:1 dale40:1]" {
			t.Errorf("told of %v, the status is %s", told, o.Status)
		}
		var s api.BudgetStatus
		if json.Unmarshal(o.Status, &s) != nil || s.Percent < 90 || s.Percent >= 100 || !slices.Equal(s.Fired, []int{90}) || s.Period != "2026-11" {
			t.Errorf("status %s", o.Status)
		}
		w.verified("with budgets")
	})
}

// Costs by anything sum up to the whole.
func TestCostsSumUp(t *testing.T) {
	w := begin(t, "")
	for i := range w.use.entries[w.uid["acme"]] {
		w.use.entries[w.uid["acme"]][i].Labels = map[string]string{"tier": []string{"gold", "tin"}[i%2]}
	}
	for _, by := range append(slices.Clone(CostBy), "label:tier") {
		c, err := w.Cost(t.Context(), "acme", "2026-11", by)
		if err != nil {
			t.Fatal(err)
		}
		sum := int64(0)
		for _, row := range c.Rows {
			sum += row.Net.Minor
		}
		if sum != c.Net.Minor || c.Net.String() != "34.52" || len(c.Blockers) > 0 {
			t.Errorf("by %s: %s", by, text(c))
		}
		if by == "label:tier" && len(c.Rows) != 3 {
			t.Errorf("by label: %s", text(c.Rows))
		}
	}
	if _, err := w.Cost(t.Context(), "acme", "2026-11", "mood"); api.CodeOf(err) != api.Invalid {
		t.Error(err)
	}
}

// The forecast's method, on series whose end is known.
func TestForecastMethod(t *testing.T) {
	flat := slices.Repeat([]float64{5}, 30)
	if e, n := backTest(flat, 10); e != 0 || n != 23 {
		t.Errorf("a flat series: %v %% in %d", e, n)
	}
	week := slices.Repeat([]float64{1, 2, 3, 4, 5, 9, 9}, 5)
	if e, n := backTest(week, 5); e != 0 || n != 28 {
		t.Errorf("a series of weeks: %v %% in %d", e, n)
	}
	if got := predict(week, 9); !slices.Equal(got, []float64{1, 2, 3, 4, 5, 9, 9, 1, 2}) {
		t.Errorf("the days to come: %v", got)
	}
	growing := make([]float64, 28)
	for i := range growing {
		growing[i] = float64(i + 1)
	}
	// It knows no trend: after 27 days, 28 is expected to be the mean of 7, 14 and 21.
	if e, _ := backTest(growing, 1); e < 40 || e > 70 {
		t.Errorf("a growing series is off by %v %%", e)
	}
	if e, n := backTest(flat[:7], 5); e != 0 || n != 0 {
		t.Errorf("without a past there is no error: %v %d", e, n)
	}
	w := begin(t, "")
	w.use.entries[w.uid["acme"]] = nil
	w.now = time.Date(2026, 11, 15, 12, 0, 0, 0, time.UTC)
	for i := range 40 {
		e := entry(i, "a", "x", api.MeterNetworkRx, 100_000_000_000, i-26)
		w.entry("acme", e)
	}
	f, err := w.Forecast(t.Context(), "acme")
	// 7 a day and 30 for the month.
	if err != nil || f.Spent.String() != "128.00" || f.Expected.String() != "240.00" || f.ErrorPercent != 0 || f.Tried == 0 || f.Days != 16 {
		t.Errorf("forecast %s, %v", text(f), err)
	}
}

func TestMoneyIsReadBack(t *testing.T) {
	for _, m := range []Money{{0, 2}, {-5, 2}, {1234, 0}, {100000, 3}, {-123456, 2}} {
		b, _ := json.Marshal(m)
		var got Money
		if err := json.Unmarshal(b, &got); err != nil || got != m {
			t.Errorf("%v is written %s and read %v, %v", m, b, got, err)
		}
	}
}
