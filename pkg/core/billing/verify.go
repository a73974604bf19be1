package billing

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Difference is something that is not as it was written, or does not follow from usage.
type Difference struct {
	Where string `json:"where"`
	What  string `json:"what"`
}

// Verdict is what a verification found.
type Verdict struct {
	Entries     int          `json:"entries"`
	Documents   int          `json:"documents"`
	Derived     int          `json:"derived"` // documents that were made again from usage
	Heads       int          `json:"heads"`   // kept outside
	Differences []Difference `json:"differences"`
}

func (v *Verdict) add(where, format string, args ...any) {
	v.Differences = append(v.Differences, Difference{where, fmt.Sprintf(format, args...)})
}

// Verify reads the whole ledger, holds it beside the heads that are kept outside, and makes
// every document again from usage and the versions of plans.
func (r *Room) Verify(ctx context.Context) (*Verdict, error) {
	v := &Verdict{Differences: []Difference{}}
	var entries []Entry
	var docs []*Issued
	err := r.db.Read(ctx, func(tx *database.Tx) (err error) {
		if entries, err = journal(ctx, tx, 0, 0); err != nil {
			return err
		}
		v.chain(entries)
		if err := v.strays(ctx, tx, entries); err != nil {
			return err
		}
		if err := v.series(ctx, tx, entries); err != nil {
			return err
		}
		if err := v.terms(ctx, tx); err != nil {
			return err
		}
		if err := v.decisions(ctx, tx, entries); err != nil {
			return err
		}
		if err := v.fired(ctx, tx, entries); err != nil {
			return err
		}
		if docs, err = v.documents(ctx, tx, entries); err != nil {
			return err
		}
		return v.runs(ctx, tx, docs)
	})
	if err != nil {
		return nil, err
	}
	heads, err := r.cfg.Heads.All(ctx)
	if err != nil {
		v.add("heads", "%v", err)
	}
	v.heads(heads, entries)
	return v, r.derive(ctx, v, docs)
}

// chain checks that entries are numbered, linked and balanced.
func (v *Verdict) chain(entries []Entry) {
	v.Entries = len(entries)
	prev := ""
	for i := range entries {
		e := &entries[i]
		where := fmt.Sprintf("journal entry %d (%s %s)", e.Seq, e.Kind, e.Ref)
		if e.Seq != int64(i)+1 {
			v.add(where, "entry %d is missing before it", i+1)
			return
		}
		if e.Prev != prev {
			v.add(where, "it does not follow the entry before")
		}
		if e.sum() != e.Hash {
			v.add(where, "it, or its postings, are not what was entered")
		}
		if !e.balanced() {
			v.add(where, "debits and credits differ")
		}
		prev = e.Hash
	}
}

// strays finds postings of no entry.
func (v *Verdict) strays(ctx context.Context, tx *database.Tx, entries []Entry) error {
	var n, all int64
	for i := range entries {
		n += int64(len(entries[i].Postings))
	}
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM bill_postings`).Scan(&all); err != nil || n == all {
		return err
	}
	v.add("postings", "%d belong to no entry", all-n)
	return nil
}

func (v *Verdict) heads(heads []Head, entries []Entry) {
	v.Heads = len(heads)
	for _, h := range heads {
		switch {
		case h.Seq > int64(len(entries)):
			v.add("heads", "entry %d is known outside the database, where the ledger ends at %d", h.Seq, len(entries))
		case h.Seq > 0 && entries[h.Seq-1].Hash != h.Hash:
			v.add(fmt.Sprintf("journal entry %d", h.Seq), "outside the database it is known by another hash: the ledger was written anew")
		}
	}
}

// series checks that numbers have no gaps and go up to the last that was given.
func (v *Verdict) series(ctx context.Context, tx *database.Tx, entries []Entry) error {
	rows, err := tx.QueryContext(ctx, `SELECT series, epoch, last FROM bill_series ORDER BY series, epoch`)
	if err != nil {
		return err
	}
	defer rows.Close()
	given := map[string]int64{}
	for i := range entries {
		if series, n, ok := numberOf(entries[i].Ref); ok && entries[i].Kind != entryDecision && entries[i].Kind != entryBudget {
			if given[series]++; given[series] != n {
				v.add("numbers "+series, "%s stands where number %d should", entries[i].Ref, given[series])
			}
		}
	}
	given["journal-0"] = int64(len(entries))
	for rows.Next() {
		var name string
		var epoch, last int64
		if err := rows.Scan(&name, &epoch, &last); err != nil {
			return err
		}
		key := fmt.Sprintf("%s-%d", name, epoch)
		if given[key] != last {
			v.add("numbers "+key, "the last is said to be %d, and %d are there", last, given[key])
		}
		delete(given, key)
	}
	for key, n := range given {
		if n > 0 {
			v.add("numbers "+key, "which number is the last is forgotten")
		}
	}
	return rows.Err()
}

// numberOf splits INV-1-000007.
func numberOf(ref string) (series string, n int64, ok bool) {
	at := strings.LastIndexByte(ref, '-')
	if at < 0 {
		return "", 0, false
	}
	_, err := fmt.Sscanf(ref[at+1:], "%d", &n)
	return ref[:at], n, err == nil
}

func (v *Verdict) terms(ctx context.Context, tx *database.Tx) error {
	rows, err := tx.QueryContext(ctx, `SELECT digest, body FROM bill_terms ORDER BY digest`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var digest string
		var body []byte
		if err := rows.Scan(&digest, &body); err != nil {
			return err
		}
		if digestOf(body) != digest {
			v.add("terms "+digest, "they are not what invoices were rated by")
		}
	}
	return rows.Err()
}

// about maps entries of a kind by their number.
func about(entries []Entry, kinds ...string) map[int64]*Entry {
	out := map[int64]*Entry{}
	for i := range entries {
		if slices.Contains(kinds, entries[i].Kind) {
			out[entries[i].Seq] = &entries[i]
		}
	}
	return out
}

func (v *Verdict) decisions(ctx context.Context, tx *database.Tx, entries []Entry) error {
	left := about(entries, entryDecision)
	rows, err := tx.QueryContext(ctx, `SELECT tenant, period, subject, n, seq, body FROM bill_decisions ORDER BY seq`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var tenant, period, subject string
		var n, seq int64
		var body []byte
		if err := rows.Scan(&tenant, &period, &subject, &n, &seq, &body); err != nil {
			return err
		}
		e, ref := left[seq], period+" "+subject
		var d Decision
		switch {
		case e == nil:
			v.add("decision "+ref, "the journal has no such decision")
		case e.Digest != digestOf(body) || e.Ref != ref || e.Tenant != tenant || n != 1 || json.Unmarshal(body, &d) != nil || d.Subject != subject:
			v.add("decision "+ref, "it is not what was decided")
		}
		delete(left, seq)
	}
	for _, e := range left {
		v.add("decision "+e.Ref, "it is missing")
	}
	return rows.Err()
}

func (v *Verdict) fired(ctx context.Context, tx *database.Tx, entries []Entry) error {
	left := map[string]*Entry{}
	for _, e := range about(entries, entryBudget) {
		left[e.Ref] = e
	}
	rows, err := tx.QueryContext(ctx, `SELECT budget, period, threshold, spent FROM bill_fired`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var budget, period, spent string
		var threshold int
		if err := rows.Scan(&budget, &period, &threshold, &spent); err != nil {
			return err
		}
		ref := firedRef(budget, period, threshold)
		if e := left[ref]; e == nil || e.Digest != digestOf([]byte(spent)) {
			v.add("budget "+ref, "the journal does not know that this threshold was told of so")
		}
		delete(left, ref)
	}
	for ref := range left {
		v.add("budget "+ref, "that this threshold was told of is forgotten")
	}
	return rows.Err()
}

// documents checks that each is there by its bytes.
func (v *Verdict) documents(ctx context.Context, tx *database.Tx, entries []Entry) (out []*Issued, err error) {
	left := about(entries, entryInvoice, entryCredit)
	list, err := documents(ctx, tx, "")
	if err != nil {
		return nil, err
	}
	for _, short := range list {
		d, err := document(ctx, tx, short.Number)
		if err != nil {
			return nil, err
		}
		e := left[d.Seq]
		doc, bad := readDocument(d.JSON)
		switch {
		case e == nil || e.Ref != d.Number:
			v.add(d.Number, "the journal has no such document")
		case e.Digest != d.digest():
			v.add(d.Number, "its bytes are not those that were issued")
		case bad != nil || doc.Number != d.Number || doc.Kind != d.Kind || doc.Buyer.UID != d.Tenant || doc.Buyer.Tenant != d.Name || doc.Period != d.Period || doc.Credits != d.Refers || !doc.From.Equal(d.From) || !doc.To.Equal(d.To) || e.Tenant != d.Tenant || e.Kind != d.Kind:
			v.add(d.Number, "it is listed as something else than it is")
		}
		delete(left, d.Seq)
		out = append(out, d)
	}
	for _, e := range left {
		v.add(e.Ref, "the document is missing")
	}
	v.Documents = len(out)
	return out, nil
}

// runs checks what issues were begun with.
func (v *Verdict) runs(ctx context.Context, tx *database.Tx, docs []*Issued) error {
	left := map[string]*Issued{}
	for _, d := range docs {
		if d.Kind == KindInvoice {
			left[d.Number] = d
		}
	}
	rows, err := tx.QueryContext(ctx, `SELECT tenant, period, as_of, issued, number FROM bill_runs WHERE number <> ''`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var tenant, period, issued, number string
		var asOf int64
		if err := rows.Scan(&tenant, &period, &asOf, &issued, &number); err != nil {
			return err
		}
		d := left[number]
		if d == nil {
			v.add("run of "+period, "its document %s is missing", number)
			continue
		}
		doc, err := readDocument(d.JSON)
		if err != nil || d.Tenant != tenant || d.Period != period || doc.AsOf.UnixMilli() != asOf || doc.Issued != issued {
			v.add("run of "+period, "%s was begun with something else", number)
		}
		delete(left, number)
	}
	for number := range left {
		v.add(number, "the run that issued it is forgotten")
	}
	return rows.Err()
}

// derive makes every document again.
func (r *Room) derive(ctx context.Context, v *Verdict, list []*Issued) error {
	before := map[string][]*Document{}
	for _, x := range list {
		was, err := readDocument(x.JSON)
		if err != nil {
			continue // was told
		}
		again, err := r.again(ctx, was, before[x.Tenant])
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			v.add(was.Number, "it cannot be made again: %v", err)
		} else {
			v.compare(was, again)
		}
		v.Derived++
		before[x.Tenant] = append(before[x.Tenant], was)
	}
	return nil
}

// again makes a document from usage and terms, beside those that were before it.
func (r *Room) again(ctx context.Context, was *Document, before []*Document) (*Document, error) {
	if was.Kind == KindCreditNote {
		at := slices.IndexFunc(before, func(d *Document) bool { return d.Number == was.Credits })
		if at < 0 {
			return nil, api.Errorf(api.NotFound, "its invoice %s is missing", was.Credits)
		}
		line, amount := "", ""
		if len(was.Lines) > 0 && was.Lines[0].Kind == LineCredit {
			line, amount = was.Lines[0].Corrects, was.Lines[0].Net.neg().String()
		}
		note, err := creditNote(before[at], before, line, amount)
		if err == nil {
			note.Number, note.Reason, note.Issued = was.Number, was.Reason, was.Issued
		}
		return note, err
	}
	t, err := r.termsOf(ctx, was)
	if err != nil {
		return nil, err
	}
	doc := *was
	d := &drawn{doc: &doc, terms: t}
	now, err := r.rate(ctx, was.Buyer.UID, t, was.period(), was.AsOf, &was.Decisions)
	if err != nil {
		return nil, err
	}
	doc.Terms, doc.Plan, doc.Currency = t.Digest(), t.Plan, t.Currency
	doc.Lines, doc.OtherEnergyMillijoules, doc.Usage, doc.Corrected = append([]Line{}, now.lines...), now.other, now.usage, nil
	if err := r.beside(ctx, d, was.Buyer.UID, standing(before), was); err != nil {
		return nil, err
	}
	if len(d.blockers) > 0 {
		return nil, api.Errorf(api.Conflict, "%s", d.blockers[0].What)
	}
	return &doc, d.sum(t)
}

// compare names where a document differs from what follows from usage.
func (v *Verdict) compare(was, again *Document) {
	same := func(a, b any) bool {
		x, err1 := json.Marshal(a)
		y, err2 := json.Marshal(b)
		return err1 == nil && err2 == nil && string(x) == string(y)
	}
	if same(was, again) {
		return
	}
	n := len(v.Differences)
	lines := map[string]*Line{}
	for i := range again.Lines {
		lines[again.Lines[i].ID+again.Lines[i].Corrects] = &again.Lines[i]
	}
	for i := range was.Lines {
		l := &was.Lines[i]
		key := l.ID + l.Corrects
		switch now := lines[key]; {
		case now == nil:
			v.add(was.Number, "line %s (%s) does not follow from usage", l.ID, l.Net)
		case !same(l, now):
			v.add(was.Number, "line %s says %s for %s %s, where usage gives %s for %s %s", l.ID, l.Net, l.Quantity, l.Unit, now.Net, now.Quantity, now.Unit)
		}
		delete(lines, key)
	}
	for _, l := range lines {
		v.add(was.Number, "line %s (%s) follows from usage, and is missing", l.ID, l.Net)
	}
	if was.Usage != again.Usage {
		v.add(was.Number, "it was made of %d entries of usage, now %d, with another digest", was.Usage.Entries, again.Usage.Entries)
	}
	if len(v.Differences) == n {
		v.add(was.Number, "its sums say %s net, where usage gives %s, or what else it says differs", was.Net, again.Net)
	}
}
