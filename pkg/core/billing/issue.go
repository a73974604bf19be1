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

// prepared is an issue that begins.
type prepared struct {
	uid, period string
	run
}

// begin notes what issues are begun with, so that whoever goes on with them makes the same.
func (r *Room) begin(ctx context.Context, list []prepared) error {
	if len(list) == 0 {
		return nil
	}
	return r.write(ctx, func(tx *database.Tx) error {
		for _, x := range list {
			if _, err := tx.ExecContext(ctx, `INSERT INTO bill_runs (tenant, period, attempt, as_of, issued, actor, number) VALUES (?,?,?,?,?,?,'') ON CONFLICT (tenant, period, attempt) DO NOTHING`,
				x.uid, x.period, x.attempt, x.asOf.UnixMilli(), x.issued, x.actor); err != nil {
				return err
			}
		}
		return nil
	})
}

func busy(period string) error {
	return &api.Error{Code: api.Conflict, Message: "somebody else issues " + period + " at this moment", Remedy: "try again"}
}

// forget takes back an issue that was begun, cut off, and is blocked by now.
func (r *Room) forget(ctx context.Context, uid, period string) error {
	var n int64
	if err := r.db.QueryRowContext(ctx, `SELECT count(*) FROM bill_runs WHERE tenant = ? AND period = ? AND number = ''`, uid, period).Scan(&n); err != nil || n == 0 {
		return err
	}
	return r.write(ctx, func(tx *database.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM bill_runs WHERE tenant = ? AND period = ? AND number = ''`, uid, period)
		return err
	})
}

// finish numbers, renders and keeps a document, in one transaction with its entry in the journal.
func (r *Room) finish(ctx context.Context, d *drawn, x run) error {
	err := r.write(ctx, func(tx *database.Tx) error {
		doc := *d.doc
		doc.Kind, doc.Issued = KindInvoice, x.issued
		if err := r.settled(ctx, tx, &doc, d.known); err != nil {
			return err
		}
		if err := putTerms(ctx, tx, d.terms); err != nil {
			return err
		}
		if err := r.put(ctx, tx, &doc); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, `UPDATE bill_runs SET number = ? WHERE tenant = ? AND period = ? AND attempt = ? AND number = ''`, doc.Number, doc.Buyer.UID, doc.Period, x.attempt)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n != 1 {
			return fmt.Errorf("%w: %d runs", busy(doc.Period), n)
		}
		*d.doc = doc
		return nil
	})
	if err == nil {
		r.cfg.Log.Info("invoice issued", "number", d.doc.Number, "tenant", d.doc.Buyer.Tenant, "period", d.doc.Period, "gross", d.doc.Gross.String(), "currency", d.doc.Currency, "actor", x.actor)
	}
	return err
}

// settled takes the ledger for this transaction, and refuses a document that was made beside
// fewer of the tenant's than there are.
func (r *Room) settled(ctx context.Context, tx *database.Tx, doc *Document, known int) (err error) {
	series := map[string]string{KindInvoice: "INV", KindCreditNote: "CN"}[doc.Kind]
	n, err := next(ctx, tx, series, r.cfg.Epoch)
	if err != nil {
		return err
	}
	doc.Number = fmt.Sprintf("%s-%d-%06d", series, r.cfg.Epoch, n)
	var count int
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM bill_documents WHERE tenant = ?`, doc.Buyer.UID).Scan(&count); err != nil {
		return err
	}
	if count != known {
		return busy(doc.Period)
	}
	return nil
}

// put renders a document and keeps it.
func (r *Room) put(ctx context.Context, tx *database.Tx, doc *Document) (err error) {
	x := &Issued{Number: doc.Number, Kind: doc.Kind, Tenant: doc.Buyer.UID, Name: doc.Buyer.Tenant, Period: doc.Period, Refers: doc.Credits, From: doc.From, To: doc.To}
	if x.JSON, err = doc.JSON(); err != nil {
		return err
	}
	if x.CSV, err = doc.CSV(); err != nil {
		return err
	}
	if x.FOCUS, err = doc.FOCUS(); err != nil {
		return err
	}
	if x.PDF, err = doc.PDF(r.cfg.Fonts); err != nil {
		return err
	}
	e := &Entry{Kind: doc.Kind, Tenant: doc.Buyer.UID, Ref: doc.Number, Digest: x.digest(), Postings: postingsOf(doc)}
	if err := r.append(ctx, tx, e); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO bill_documents (number, kind, tenant, name, period, began, ended, refers, seq, json, csv, focus, pdf) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)`,
		x.Number, x.Kind, x.Tenant, x.Name, x.Period, x.From.Unix(), x.To.Unix(), x.Refers, e.Seq, x.JSON, x.CSV, x.FOCUS, x.PDF)
	return err
}

// putDecision keeps a decision, with its entry in the journal.
func (r *Room) putDecision(ctx context.Context, uid, period string, d Decision) error {
	body, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return r.write(ctx, func(tx *database.Tx) error {
		e := &Entry{Kind: entryDecision, Tenant: uid, Ref: period + " " + d.Subject, Digest: digestOf(body)}
		if err := r.append(ctx, tx, e); err != nil {
			return err
		}
		var n int64
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM bill_decisions WHERE tenant = ? AND period = ? AND subject = ?`, uid, period, d.Subject).Scan(&n); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO bill_decisions (tenant, period, subject, n, seq, body) VALUES (?,?,?,?,?,?)`, uid, period, d.Subject, n+1, e.Seq, body)
		return err
	})
}

func (r *Room) termsOf(ctx context.Context, d *Document) (*Terms, error) {
	return terms(ctx, r.db, d.Terms)
}

// Credit issues a credit note: of the whole invoice, which takes it back so that its period
// can be billed anew, or of an amount, net, of one of its lines.
func (r *Room) Credit(ctx context.Context, number, line, amount, reason, actor string) (*Document, error) {
	if strings.TrimSpace(reason) == "" || !api.Printable(reason) || len(reason) > 1024 {
		return nil, &api.Error{Code: api.Invalid, Field: "reason", Message: "a credit note needs its reason, in one line", Remedy: "say why"}
	}
	of, err := r.read(ctx, number)
	if err != nil {
		return nil, err
	}
	if of.Kind != KindInvoice {
		return nil, &api.Error{Code: api.Invalid, Message: number + " is no invoice", Remedy: "credit the invoice"}
	}
	docs, err := r.documentsOf(ctx, of.Buyer.UID)
	if err != nil {
		return nil, err
	}
	note, err := creditNote(of, docs, line, amount)
	if err != nil {
		return nil, err
	}
	now := r.cfg.Now()
	zone, err := (&api.BillingProfileSpec{Zone: of.Zone}).Location()
	if err != nil {
		return nil, err
	}
	note.Reason, note.Issued = reason, today(now, zone)
	if err := r.keepHead(ctx); err != nil {
		return nil, err
	}
	err = r.write(ctx, func(tx *database.Tx) error {
		if err := r.settled(ctx, tx, note, len(docs)); err != nil {
			return err
		}
		return r.put(ctx, tx, note)
	})
	if err != nil {
		return nil, err
	}
	r.cfg.Log.Info("credit note issued", "number", note.Number, "of", number, "tenant", of.Buyer.Tenant, "gross", note.Gross.String(), "actor", actor)
	return note, r.keepHead(ctx)
}

// creditNote decides what a credit note says.
func creditNote(of *Document, docs []*Document, line, amount string) (*Document, error) {
	left := map[string]int64{}
	for _, l := range of.Lines {
		left[l.ID] += l.Net.Minor
	}
	credited := false
	for _, d := range docs {
		if d.Credits != of.Number {
			continue
		}
		if d.whole(docs) {
			return nil, &api.Error{Code: api.Conflict, Message: of.Number + " was credited whole by " + d.Number, Remedy: "nothing is left to credit"}
		}
		credited = true
		for _, l := range d.Lines {
			left[l.Corrects] += l.Net.Minor
		}
	}
	note := *of
	note.Kind, note.Credits, note.Lines, note.Decisions, note.Corrected = KindCreditNote, of.Number, nil, nil, nil
	taxName := ""
	if len(of.Taxes) > 0 {
		taxName = of.Taxes[0].Name
	}
	if line == "" {
		if credited { // check: a whole credit after a part
			return nil, &api.Error{Code: api.Conflict, Message: "a part of " + of.Number + " was credited", Remedy: "credit the lines that are left"}
		}
		if len(of.Lines) == 0 {
			return nil, &api.Error{Code: api.Conflict, Message: of.Number + " has no lines", Remedy: "nothing is left to credit"}
		}
		for _, l := range of.Lines {
			note.Lines = append(note.Lines, reversed(l))
		}
		note.total(taxName, of.Net.Digits)
		return &note, nil
	}
	at := slices.IndexFunc(of.Lines, func(l Line) bool { return l.ID == line })
	if at < 0 {
		return nil, &api.Error{Code: api.NotFound, Field: "line", Message: of.Number + " has no line " + line, Remedy: "see `edgectl invoice show " + of.Number + "`"}
	}
	if !api.IsDecimal(amount) {
		return nil, &api.Error{Code: api.Invalid, Field: "amount", Message: amount + " is no amount", Remedy: `write a decimal, net, such as "12.50"`}
	}
	minor, err := rounded(dec(amount), one, of.Net.Digits)
	if err != nil {
		return nil, err
	}
	l := of.Lines[at]
	if minor <= 0 || minor > left[l.ID] { // check: no more than was charged
		return nil, &api.Error{Code: api.Invalid, Field: "amount", Message: "of " + l.ID + " " + Money{left[l.ID], of.Net.Digits}.String() + " is left to credit", Remedy: "credit that at most"}
	}
	note.Lines = []Line{{ID: "credit/" + l.ID, Kind: LineCredit, Text: "Credit: " + l.Text, Corrects: l.ID, From: l.From, To: l.To, TaxPercent: l.TaxPercent, Parts: []Part{{Net: Money{-minor, of.Net.Digits}}}}}
	if err := note.Lines[0].tax(Money{-minor, of.Net.Digits}); err != nil {
		return nil, err
	}
	note.total(taxName, of.Net.Digits)
	return &note, nil
}

// reversed is a line taken back.
func reversed(l Line) Line {
	l.Net, l.Tax, l.Gross = l.Net.neg(), l.Tax.neg(), l.Gross.neg()
	l.EnergyMillijoules, l.CarbonMilligrams = -l.EnergyMillijoules, -l.CarbonMilligrams
	l.BaseQuantity, l.Quantity = negated(l.BaseQuantity), negated(l.Quantity)
	l.Tiers = nil
	l.Parts = slices.Clone(l.Parts)
	for i := range l.Parts {
		p := &l.Parts[i]
		p.Net, p.EnergyMillijoules, p.BaseQuantity = p.Net.neg(), -p.EnergyMillijoules, negated(p.BaseQuantity)
	}
	return l
}

func negated(n string) string {
	switch {
	case n == "" || n == "0":
		return n
	case strings.HasPrefix(n, "-"):
		return n[1:]
	}
	return "-" + n
}
