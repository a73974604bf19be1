package billing

import (
	"cmp"
	"encoding/json"
	"math/big"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// The kinds of documents.
const (
	KindInvoice    = "invoice"
	KindCreditNote = "credit-note"
	KindDraft      = "draft"
)

// Party is who sells, or pays.
type Party struct {
	Tenant    string   `json:"tenant"`
	UID       string   `json:"uid"`
	LegalName string   `json:"legalName"`
	Address   []string `json:"address,omitempty"`
	Country   string   `json:"country,omitempty"`
	TaxID     string   `json:"taxID,omitempty"`
	Contact   string   `json:"contact,omitempty"`
}

// Document is an invoice, a credit note, or the draft of an invoice. All that is printed of it,
// and all by which it is derived again, is in it.
type Document struct {
	Format string `json:"format"`
	Kind   string `json:"kind"`
	// Number is the document's: kind, epoch of the core and place, without gaps. None for a draft.
	Number string `json:"number,omitempty"`
	// Credits is the invoice that a credit note is of, Reason why.
	Credits  string    `json:"credits,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Period   string    `json:"period"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Issued   string    `json:"issued,omitempty"` // YYYY-MM-DD, in the buyer's zone
	AsOf     time.Time `json:"asOf"`             // usage received later is not in it
	Seller   Party     `json:"seller"`
	Buyer    Party     `json:"buyer"`
	Currency string    `json:"currency"`
	Zone     string    `json:"zone"`
	Plan     string    `json:"plan"`
	Terms    string    `json:"terms"` // digest of what it was rated by
	Lines    []Line    `json:"lines"`
	Net      Money     `json:"net"`
	Tax      Money     `json:"tax"`
	Gross    Money     `json:"gross"`
	Taxes    []TaxSum  `json:"taxes"`
	// Energy and carbon of the lines, and energy that no line charges for.
	EnergyMillijoules      int64 `json:"energyMillijoules"`
	CarbonMilligrams       int64 `json:"carbonMilligrams"`
	OtherEnergyMillijoules int64 `json:"otherEnergyMillijoules,omitempty"`
	// Usage tells which entries were counted, Decisions what people said about others, and
	// Corrected the same of earlier periods that were rated again.
	Usage     Counted     `json:"usage"`
	Decisions []Decision  `json:"decisions,omitempty"`
	Corrected []Corrected `json:"corrected,omitempty"`
}

// Corrected is an earlier period that was rated again.
type Corrected struct {
	Period    string     `json:"period"`
	Invoice   string     `json:"invoice"`
	Usage     Counted    `json:"usage"`
	Decisions []Decision `json:"decisions,omitempty"`
}

// TaxSum sums up the lines of one rate.
type TaxSum struct {
	Name    string `json:"name"`
	Percent string `json:"percent"`
	Net     Money  `json:"net"`
	Tax     Money  `json:"tax"`
}

const documentFormat = "tributary-invoice/1"

// total sums up the lines.
func (d *Document) total(taxName string, digits int32) {
	d.Net, d.Tax, d.Gross, d.Taxes = Money{0, digits}, Money{0, digits}, Money{0, digits}, []TaxSum{}
	d.EnergyMillijoules, d.CarbonMilligrams = 0, 0
	for i := range d.Lines {
		l := &d.Lines[i]
		d.Net, d.Tax, d.Gross = d.Net.plus(l.Net), d.Tax.plus(l.Tax), d.Gross.plus(l.Gross)
		if l.Kind != LineInterim {
			d.EnergyMillijoules += l.EnergyMillijoules
			d.CarbonMilligrams += l.CarbonMilligrams
		}
		at := slices.IndexFunc(d.Taxes, func(s TaxSum) bool { return s.Percent == l.TaxPercent })
		if at < 0 {
			at = len(d.Taxes)
			d.Taxes = append(d.Taxes, TaxSum{Name: cmp.Or(taxName, "tax"), Percent: l.TaxPercent, Net: Money{0, digits}, Tax: Money{0, digits}})
		}
		d.Taxes[at].Net, d.Taxes[at].Tax = d.Taxes[at].Net.plus(l.Net), d.Taxes[at].Tax.plus(l.Tax)
	}
	slices.SortFunc(d.Taxes, func(a, b TaxSum) int { return dec(a.Percent).Cmp(dec(b.Percent)) })
}

func (d *Document) period() Period { return Period{d.Period, d.From, d.To} }

// JSON is the document's own form, of which the others are made.
func (d *Document) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(d, "", "  ")
	return append(b, '\n'), err
}

func readDocument(b []byte) (*Document, error) {
	d := &Document{}
	if err := json.Unmarshal(b, d); err != nil {
		return nil, api.Errorf(api.Internal, "a document in the ledger cannot be read: %v", err)
	}
	return d, nil
}

// owed is what was charged for one line of a period so far.
type owed struct {
	line         Line
	net, tax     int64
	energy, co2  int64
	base         *big.Int
	parts        map[Of]int64
	partBase     map[Of]*big.Int
	partEnergies map[Of]int64
}

func newOwed(l Line) *owed {
	return &owed{line: l, base: new(big.Int), parts: map[Of]int64{}, partBase: map[Of]*big.Int{}, partEnergies: map[Of]int64{}}
}

// add counts a line, or with sign -1 takes it away.
func (o *owed) add(l *Line, sign int64) {
	o.net, o.tax, o.energy, o.co2 = o.net+sign*l.Net.Minor, o.tax+sign*l.Tax.Minor, o.energy+sign*l.EnergyMillijoules, o.co2+sign*l.CarbonMilligrams
	addBase(o.base, l.BaseQuantity, sign)
	for i := range l.Parts {
		p := &l.Parts[i]
		o.parts[p.Of] += sign * p.Net.Minor
		o.partEnergies[p.Of] += sign * p.EnergyMillijoules
		if o.partBase[p.Of] == nil {
			o.partBase[p.Of] = new(big.Int)
		}
		addBase(o.partBase[p.Of], p.BaseQuantity, sign)
	}
}

func addBase(to *big.Int, text string, sign int64) {
	if n, ok := new(big.Int).SetString(text, 10); ok {
		to.Add(to, n.Mul(n, big.NewInt(sign)))
	}
}

// corrections are the lines by which what a period costs now differs from what was invoiced
// for it: invoice is the period's, and charged all lines about it that stand.
func corrections(invoice *Document, now []Line, charged []Line) (out []Line) {
	all := map[string]*owed{}
	var order []string
	count := func(id string, l *Line, sign int64) {
		if all[id] == nil {
			all[id] = newOwed(*l)
			order = append(order, id)
		}
		all[id].add(l, sign)
	}
	for i := range now {
		count(now[i].ID, &now[i], 1)
	}
	for i := range charged {
		count(charged[i].ID, &charged[i], -1)
	}
	for _, id := range order {
		if l, ok := all[id].difference(invoice); ok {
			out = append(out, l)
		}
	}
	return out
}

// difference makes a line of what is left; false when nothing is.
func (o *owed) difference(invoice *Document) (Line, bool) {
	digits := o.line.Net.Digits
	l := o.line
	l.Kind, l.Period, l.Corrects, l.Tiers, l.Parts, l.Quantity, l.BaseQuantity, l.Unit, l.Per = LineCorrection, invoice.Period, invoice.Number, nil, nil, "", "", "", 0
	l.Text = "Correction of " + invoice.Period + " (" + invoice.Number + "): " + o.line.Text
	l.Net, l.Tax, l.EnergyMillijoules, l.CarbonMilligrams = Money{o.net, digits}, Money{o.tax, digits}, o.energy, o.co2
	l.Gross = l.Net.plus(l.Tax)
	if o.line.BaseQuantity != "" {
		l.BaseQuantity, l.Quantity, l.Unit = o.base.String(), o.base.String(), o.line.BaseUnit
	}
	some := o.net != 0 || o.tax != 0 || o.energy != 0 || o.co2 != 0 || o.base.Sign() != 0
	for of, net := range o.parts {
		p := Part{Of: of, Net: Money{net, digits}, EnergyMillijoules: o.partEnergies[of]}
		if o.line.BaseQuantity != "" {
			p.BaseQuantity = o.partBase[of].String()
		}
		if net != 0 || p.EnergyMillijoules != 0 || o.partBase[of].Sign() != 0 {
			l.Parts = append(l.Parts, p)
			some = true
		}
	}
	slices.SortFunc(l.Parts, func(a, b Part) int { return a.Of.compare(b.Of) })
	return l, some
}

// chargedFor collects, of documents that stand, the lines about a period: its invoice's own,
// and corrections of it.
func chargedFor(invoice *Document, docs []*Document) (out []Line) {
	for _, l := range invoice.Lines {
		if l.Kind == LineUsage || l.Kind == LineSubscription || l.Kind == LineDecision {
			out = append(out, l)
		}
	}
	for _, d := range docs {
		for _, l := range d.Lines {
			if l.Kind == LineCorrection && l.Period == invoice.Period && l.Corrects == invoice.Number {
				out = append(out, l)
			}
		}
	}
	return out
}

// interim deducts what was invoiced of a part of the period, at each rate of tax.
func interim(d *Document, taxes map[string][2]int64) (out []Line) {
	for _, percent := range slices.SortedFunc(keysOf(taxes), func(a, b string) int { return dec(a).Cmp(dec(b)) }) {
		sums := taxes[percent]
		l := Line{ID: "interim/" + d.Number + "/" + percent, Kind: LineInterim, Text: "Less " + d.Number + " of " + d.Period, Period: d.Period, Corrects: d.Number, From: d.From, To: d.To,
			TaxPercent: percent, Net: Money{-sums[0], d.Net.Digits}, Tax: Money{-sums[1], d.Net.Digits}}
		l.Gross = l.Net.plus(l.Tax)
		l.Parts = []Part{{Net: l.Net}}
		out = append(out, l)
	}
	return out
}

func keysOf[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// sumsByTax sums up net and tax of lines by their rate.
func sumsByTax(lines []Line) map[string][2]int64 {
	out := map[string][2]int64{}
	for _, l := range lines {
		s := out[l.TaxPercent]
		out[l.TaxPercent] = [2]int64{s[0] + l.Net.Minor, s[1] + l.Tax.Minor}
	}
	return out
}
