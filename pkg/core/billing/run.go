package billing

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// rating is one period of a tenant, rated as of a time.
type rating struct {
	lines     []Line
	other     int64 // energy of no line
	usage     Counted
	decisions []Decision // those that count
	blockers  []Blocker
}

// rate counts and prices a period, as of a time. decided nil asks the database, and finds what
// blocks; with decisions of a document that was issued nothing does.
func (r *Room) rate(ctx context.Context, tenant string, t *Terms, p Period, asOf time.Time, decided *[]Decision) (*rating, error) {
	return r.rateBy(ctx, tenant, t, p, asOf, decided, OfEntry)
}

func (r *Room) rateBy(ctx context.Context, tenant string, t *Terms, p Period, asOf time.Time, decided *[]Decision, by func(*api.UsageEntry) Of) (*rating, error) {
	tally, err := NewTally(t, p, by)
	if err != nil {
		return nil, err
	}
	err = r.cfg.Usage.Entries(ctx, tenant, p.From, p.To, func(e *api.UsageEntry) error {
		if !e.Received.After(asOf) {
			tally.Add(e)
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	out := &rating{usage: tally.Usage()}
	if decided != nil {
		out.decisions = *decided
	} else if err := r.open(ctx, out, tally, tenant, p); err != nil {
		return nil, err
	}
	rated, err := tally.Lines(out.decisions)
	if err != nil {
		return nil, err
	}
	out.lines, out.other = rated.Lines, rated.OtherEnergyMillijoules
	return out, nil
}

// open finds what has to be decided, and what of it was.
func (r *Room) open(ctx context.Context, out *rating, tally *Tally, tenant string, p Period) error {
	all, err := decisions(ctx, r.db, tenant, p.Name)
	if err != nil {
		return err
	}
	known := map[string]Decision{}
	for _, d := range newest(all) {
		known[d.Subject] = d
	}
	block := func(subject, what string) {
		d, ok := known[subject]
		if ok {
			out.decisions = append(out.decisions, d)
		}
		if !ok { // check: a decision is needed
			out.blockers = append(out.blockers, Blocker{Subject: subject, Period: p.Name, What: what, Remedy: "decide: edgectl billing decide " + p.Name + " '" + subject + "' waive|zero|price --reason …"})
		}
	}
	for _, u := range tally.Unpriced() {
		name := u.Meter
		if u.Class != "" {
			name += " of class " + u.Class
		}
		block(u.Subject(), u.Quantity+" "+u.Unit+" of "+name+" have no price: "+u.Why)
	}
	gaps, err := r.cfg.Usage.Gaps(ctx, tenant, p.From, p.To)
	if err != nil {
		return err
	}
	slices.SortFunc(gaps, func(a, b api.UsageGap) int { return cmp.Compare(gapSubject(&a), gapSubject(&b)) })
	for i := range gaps {
		g := &gaps[i]
		block(gapSubject(g), "what "+cmp.Or(g.DeviceName, g.Device)+" used from "+g.From.UTC().Format(time.RFC3339)+" to "+g.To.UTC().Format(time.RFC3339)+" is not known: "+g.Why)
	}
	return nil
}

// drawn is a document in the making, with what keeps it from being issued.
type drawn struct {
	doc      *Document
	blockers []Blocker
	terms    *Terms
	known    int // documents of the tenant that it was made beside
}

// draw makes the draft of a period: what it costs, less what was invoiced of parts of it, and
// the corrections of earlier periods.
func (r *Room) draw(ctx context.Context, a *Account, p Period, asOf time.Time) (*drawn, error) {
	issued, err := r.documentsOf(ctx, a.UID)
	if err != nil {
		return nil, err
	}
	d := &drawn{terms: &a.Terms, known: len(issued), doc: &Document{Format: documentFormat, Kind: KindDraft, Period: p.Name, From: p.From, To: p.To, AsOf: asOf, Seller: a.Seller, Buyer: a.Buyer,
		Currency: a.Terms.Currency, Zone: a.Zone.String(), Plan: a.Terms.Plan, Terms: a.Terms.Digest()}}
	now, err := r.rate(ctx, a.UID, &a.Terms, p, asOf, nil)
	if err != nil {
		return nil, err
	}
	d.blockers = now.blockers
	d.doc.Lines, d.doc.OtherEnergyMillijoules, d.doc.Usage, d.doc.Decisions = append([]Line{}, now.lines...), now.other, now.usage, now.decisions
	stand := standing(issued)
	if err := r.beside(ctx, d, a.UID, stand, nil); err != nil {
		return nil, err
	}
	return d, d.sum(&a.Terms)
}

func (d *drawn) sum(t *Terms) error {
	digits, err := digitsOf(t.Currency)
	if err != nil {
		return err
	}
	name := ""
	if t.Tax != nil {
		name = t.Tax.Name
	}
	d.doc.total(name, digits)
	return nil
}

// beside adds to a draft what other documents that stand make of it. With was, the document
// that was issued, only what that corrected is corrected, by its decisions.
func (r *Room) beside(ctx context.Context, d *drawn, tenant string, stand []*Document, was *Document) error {
	p := d.doc.period()
	for _, o := range stand {
		if o.Kind != KindInvoice || !o.period().overlaps(p) {
			continue
		}
		if !o.period().within(p) || o.period() == p {
			d.blockers = append(d.blockers, Blocker{What: o.Number + " of " + o.Period + " was issued for this time", Remedy: "bill another period, or credit " + o.Number + " whole"})
			continue
		}
		d.doc.Lines = append(d.doc.Lines, interim(o, sumsByTax(chargedFor(o, stand)))...)
	}
	for _, o := range stand {
		if o.Kind != KindInvoice || !o.To.After(d.doc.AsOf.Add(-correctFor)) || o.period().overlaps(p) || slices.ContainsFunc(stand, func(x *Document) bool {
			return x.Kind == KindInvoice && x.Number != o.Number && o.period().within(x.period())
		}) {
			continue
		}
		if err := r.correct(ctx, d, tenant, o, stand, was); err != nil {
			return err
		}
	}
	return nil
}

// correctFor is how long after its end a period is looked at for usage that came late.
const correctFor = 400 * 24 * time.Hour

// correct rates the period of an invoice again, under its own terms, and adds what differs
// from all that was invoiced for it.
func (r *Room) correct(ctx context.Context, d *drawn, tenant string, o *Document, stand []*Document, was *Document) error {
	var decided *[]Decision
	if was != nil {
		at := slices.IndexFunc(was.Corrected, func(c Corrected) bool { return c.Invoice == o.Number })
		if at < 0 {
			return nil
		}
		decided = &was.Corrected[at].Decisions
	}
	t, err := terms(ctx, r.db, o.Terms)
	if err != nil {
		return err
	}
	again, err := r.rate(ctx, tenant, t, o.period(), d.doc.AsOf, decided)
	if err != nil {
		return err
	}
	if t.Currency != d.doc.Currency {
		d.blockers = append(d.blockers, Blocker{What: o.Number + " is in " + t.Currency + ", and cannot be corrected in " + d.doc.Currency, Remedy: "credit it, and bill its period again"})
		return nil
	}
	d.blockers = append(d.blockers, again.blockers...)
	lines := corrections(o, again.lines, chargedFor(o, stand))
	if len(lines) == 0 && len(again.blockers) == 0 {
		return nil
	}
	d.doc.Lines = append(d.doc.Lines, lines...)
	d.doc.Corrected = append(d.doc.Corrected, Corrected{Period: o.Period, Invoice: o.Number, Usage: again.usage, Decisions: again.decisions})
	return nil
}

// documentsOf reads all documents of a tenant.
func (r *Room) documentsOf(ctx context.Context, uid string) (out []*Document, err error) {
	list, err := r.Documents(ctx, uid)
	if err != nil {
		return nil, err
	}
	for _, x := range list {
		d, err := readDocument(x.JSON)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// Outcome is what a run made of one tenant.
type Outcome struct {
	Tenant   string    `json:"tenant"`
	Period   string    `json:"period"`
	Document *Document `json:"document,omitempty"`
	Blockers []Blocker `json:"blockers,omitempty"`
	// Issued tells that the document is issued, now or before.
	Issued bool `json:"issued"`
}

// Draft says what an invoice of a period would be as of now. It writes nothing.
func (r *Room) Draft(ctx context.Context, tenant, period string) (*Outcome, error) {
	a, p, err := r.of(ctx, tenant, period)
	if err != nil {
		return nil, err
	}
	out := &Outcome{Tenant: tenant, Period: p.Name}
	if a.Problem != nil {
		out.Blockers = []Blocker{{What: a.Problem.Message, Remedy: a.Problem.Remedy}}
		return out, nil
	}
	d, err := r.draw(ctx, a, p, r.cfg.Now().UTC().Truncate(time.Millisecond))
	if err != nil {
		return nil, err
	}
	out.Document, out.Blockers = d.doc, append(d.blockers, r.unripe(p)...)
	return out, nil
}

func (r *Room) of(ctx context.Context, tenant, period string) (*Account, Period, error) {
	a, err := r.Account(ctx, tenant)
	if err != nil {
		return nil, Period{}, err
	}
	p, err := ParsePeriod(period, a.Zone)
	return a, p, err
}

// unripe tells of a period that has not ended, or just has.
func (r *Room) unripe(p Period) []Blocker {
	if at := p.To.Add(r.cfg.Settle); r.cfg.Now().Before(at) { // check: a period has to end
		return []Blocker{{What: "the period " + p.Name + " ends at " + p.To.Format(time.RFC3339), Remedy: "issue it after " + at.Format(time.RFC3339)}}
	}
	return nil
}

// Issue makes the invoice of a period final: numbered, rendered and entered into the ledger.
// It may be repeated: what is issued stays as it is, and a run that was cut off anywhere ends
// with the bytes that it would have had.
func (r *Room) Issue(ctx context.Context, tenant, period, actor string) (*Outcome, error) {
	out, err := r.Run(ctx, []string{tenant}, period, actor, true)
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// Run issues the invoices of a period of tenants (nil: all that have a plan), or makes their
// drafts. A tenant whose invoice is blocked keeps nobody else's from being issued. All
// invoices of a run are of one moment, which is noted before the first is made.
func (r *Room) Run(ctx context.Context, tenants []string, period, actor string, final bool) (out []*Outcome, err error) {
	if tenants == nil {
		if tenants, err = r.Tenants(ctx); err != nil {
			return nil, err
		}
	}
	if final {
		if err := r.keepHead(ctx); err != nil { // of a run that was cut off before it did
			return nil, err
		}
		if err := r.prepare(ctx, tenants, period, actor); err != nil {
			return nil, err
		}
	}
	for _, tenant := range tenants {
		var o *Outcome
		if final {
			o, err = r.issue(ctx, tenant, period)
		} else {
			o, err = r.Draft(ctx, tenant, period)
		}
		if err != nil {
			return out, err
		}
		out = append(out, o)
	}
	return out, nil
}

// prepare notes what the issues of a run are begun with, of tenants for which none is begun.
func (r *Room) prepare(ctx context.Context, tenants []string, period, actor string) error {
	now := r.cfg.Now()
	asOf := now.Add(-r.cfg.Settle).UTC().Truncate(time.Millisecond)
	var begun []prepared
	for _, tenant := range tenants {
		a, p, err := r.of(ctx, tenant, period)
		if err != nil {
			return err
		}
		if a.Problem != nil || len(r.unripe(p)) > 0 {
			continue
		}
		x, err := runOf(ctx, r.db, a.UID, p.Name)
		if err != nil {
			return err
		}
		if x.attempt > 0 {
			if x.number == "" { // check: what was begun goes on
				continue
			}
			if whole, err := r.creditedWhole(ctx, a.UID, x.number); err != nil {
				return err
			} else if !whole {
				continue
			}
		}
		begun = append(begun, prepared{a.UID, p.Name, run{attempt: x.attempt + 1, asOf: asOf, issued: today(now, a.Zone), actor: actor}})
	}
	return r.begin(ctx, begun)
}

// issue goes on with an issue that is begun.
func (r *Room) issue(ctx context.Context, tenant, period string) (*Outcome, error) {
	a, p, err := r.of(ctx, tenant, period)
	if err != nil {
		return nil, err
	}
	out := &Outcome{Tenant: tenant, Period: p.Name}
	x, err := runOf(ctx, r.db, a.UID, p.Name)
	if err != nil {
		return nil, err
	}
	switch {
	case x.number != "":
		out.Document, err = r.read(ctx, x.number)
		out.Issued = true
		return out, err
	case x.attempt == 0 && a.Problem != nil:
		out.Blockers = []Blocker{{What: a.Problem.Message, Remedy: a.Problem.Remedy}}
		return out, nil
	case x.attempt == 0:
		out.Blockers = r.unripe(p)
		return out, nil
	}
	d, err := r.draw(ctx, a, p, x.asOf)
	if err != nil {
		return nil, err
	}
	if a.Problem != nil {
		d.blockers = append(d.blockers, Blocker{What: a.Problem.Message, Remedy: a.Problem.Remedy})
	}
	if out.Document, out.Blockers = d.doc, d.blockers; len(d.blockers) > 0 {
		return out, r.forget(ctx, a.UID, p.Name)
	}
	if err := r.finish(ctx, d, x); err != nil {
		return nil, err
	}
	out.Issued = true
	return out, r.keepHead(ctx)
}

func (r *Room) read(ctx context.Context, number string) (*Document, error) {
	b, err := r.Document(ctx, number)
	if err != nil {
		return nil, err
	}
	return readDocument(b.JSON)
}

// creditedWhole reports whether an invoice was taken back.
func (r *Room) creditedWhole(ctx context.Context, uid, number string) (bool, error) {
	docs, err := r.documentsOf(ctx, uid)
	return !slices.ContainsFunc(standing(docs), func(d *Document) bool { return d.Number == number }), err
}

// Decide records a person's decision about what blocks a period.
func (r *Room) Decide(ctx context.Context, tenant, period string, d Decision) error {
	a, p, err := r.of(ctx, tenant, period)
	if err != nil {
		return err
	}
	switch {
	case !slices.Contains([]string{ActionWaive, ActionZero, ActionPrice}, d.Action):
		return &api.Error{Code: api.Invalid, Field: "action", Message: "there is no action " + d.Action, Remedy: "waive, zero or price"}
	case strings.TrimSpace(d.Reason) == "" || !api.Printable(d.Reason) || len(d.Reason) > 1024:
		return &api.Error{Code: api.Invalid, Field: "reason", Message: "a decision needs its reason, in one line", Remedy: "say why"}
	case (d.Action == ActionPrice) != (d.Amount != ""):
		return &api.Error{Code: api.Invalid, Field: "amount", Message: "an amount goes with price, and price with an amount", Remedy: "give --amount with price alone"}
	case d.Amount != "" && !api.IsDecimal(d.Amount), d.Per < 0, len(d.Unit) > 63, !api.Printable(d.Unit):
		return &api.Error{Code: api.Invalid, Field: "amount", Message: "not an amount, for so many base units of a unit", Remedy: `write a decimal, such as "0.04"`}
	}
	// What can be decided is what blocks: of a period that is invoiced, what came late.
	terms := &a.Terms
	docs, err := r.documentsOf(ctx, a.UID)
	if err != nil {
		return err
	}
	for _, o := range standing(docs) {
		if o.Kind == KindInvoice && o.Period == p.Name {
			if terms, err = r.termsOf(ctx, o); err != nil {
				return err
			}
		}
	}
	if a.Problem != nil && terms == &a.Terms {
		return a.Problem
	}
	now, err := r.rate(ctx, a.UID, terms, p, r.cfg.Now(), nil)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(now.blockers, func(b Blocker) bool { return b.Subject == d.Subject }) { // check: only what blocks is decided
		e := &api.Error{Code: api.NotFound, Field: "subject", Message: d.Subject + " does not block " + p.Name, Remedy: "see `edgectl billing draft " + p.Name + "`"}
		if slices.ContainsFunc(now.decisions, func(x Decision) bool { return x.Subject == d.Subject }) {
			e.Code, e.Message, e.Remedy = api.Conflict, d.Subject+" of "+p.Name+" is decided", "a decision stands; credit the invoice where it was wrong"
		}
		return e
	}
	d.At = r.cfg.Now().UTC().Truncate(time.Millisecond)
	if err := r.putDecision(ctx, a.UID, p.Name, d); err != nil {
		return err
	}
	return r.keepHead(ctx)
}
