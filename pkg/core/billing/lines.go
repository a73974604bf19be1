package billing

import (
	"cmp"
	"math/big"
	"time"

	"github.com/cockroachdb/apd/v3"

	"tributary.dev/tributary/pkg/api"
)

// The kinds of lines.
const (
	LineUsage        = "usage"
	LineSubscription = "subscription"
	LineDecision     = "decision"   // what a person decided about unpriced usage or a gap
	LineCorrection   = "correction" // of a period that was invoiced before
	LineInterim      = "interim"    // less what was invoiced of a part of the period
	LineCredit       = "credit"     // of a credit note
)

// Line is one line of an invoice. Net was rounded once, and so was its tax.
type Line struct {
	// ID is the same whenever the same thing is rated again.
	ID   string `json:"id"`
	Kind string `json:"kind"`
	Text string `json:"text"`
	// Period is the one that a correction or an interim is of, Corrects the document.
	Period   string    `json:"period,omitempty"`
	Corrects string    `json:"corrects,omitempty"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Version  string    `json:"version,omitempty"` // of the plan: its first day
	Meter    string    `json:"meter,omitempty"`
	Class    string    `json:"class,omitempty"`
	Model    string    `json:"model,omitempty"`
	// Quantity is in Unit and for people; BaseQuantity is exact, in BaseUnit.
	Quantity     string     `json:"quantity,omitempty"`
	Unit         string     `json:"unit,omitempty"`
	Per          int64      `json:"per,omitempty"` // base units of a unit
	BaseQuantity string     `json:"baseQuantity,omitempty"`
	BaseUnit     string     `json:"baseUnit,omitempty"`
	Tiers        []TierPart `json:"tiers,omitempty"`
	Net          Money      `json:"net"`
	TaxPercent   string     `json:"taxPercent,omitempty"`
	Tax          Money      `json:"tax"`
	Gross        Money      `json:"gross"`
	// Energy that what the line charges for was measured to draw, and what that emitted.
	EnergyMillijoules int64  `json:"energyMillijoules,omitempty"`
	CarbonMilligrams  int64  `json:"carbonMilligrams,omitempty"`
	Parts             []Part `json:"parts,omitempty"`
	Reason            string `json:"reason,omitempty"`
}

// Part is a part of a line: the parts' nets sum up to the line's, and so do their energies.
type Part struct {
	Of
	BaseQuantity      string `json:"baseQuantity,omitempty"`
	Net               Money  `json:"net"`
	EnergyMillijoules int64  `json:"energyMillijoules,omitempty"`
}

// Rated is what usage costs by terms.
type Rated struct {
	Lines []Line
	// Energy that no line charges for.
	OtherEnergyMillijoules int64
}

// Lines prices what was counted. Decisions add lines for what no price is for. It is a pure
// function of terms, entries, period and decisions.
func (n *Tally) Lines(decisions []Decision) (*Rated, error) {
	digits, err := digitsOf(n.terms.Currency)
	if err != nil {
		return nil, err
	}
	r := &Rated{}
	for i := range n.segments {
		s := &n.segments[i]
		var lines []Line
		if s.version != nil {
			for j := range s.version.Prices {
				line, err := n.price(i, j, digits)
				if err != nil {
					return nil, err
				}
				if line != nil {
					lines = append(lines, *line)
				}
			}
		}
		r.OtherEnergyMillijoules += n.energise(n.energy[i], lines)
		r.Lines = append(r.Lines, lines...)
	}
	decided, err := n.decided(decisions, digits)
	if err != nil {
		return nil, err
	}
	r.Lines = append(r.Lines, decided...)
	for i := range r.Lines {
		if err := n.carbon(&r.Lines[i]); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// price makes the line of one price in one segment; nil where there is nothing to charge.
func (n *Tally) price(at, price int, digits int32) (*Line, error) {
	s := &n.segments[at]
	p := &s.version.Prices[price]
	l := &Line{ID: p.Name + "@" + s.version.From, Kind: LineUsage, Text: cmp.Or(p.Description, p.Name), From: s.from, To: s.to, Version: s.version.From, Model: p.Model,
		Meter: p.Meter, Class: p.Class, TaxPercent: n.taxOf(p)}
	parts := n.used[at][price]
	var c charge
	if p.Model == api.ModelSubscription {
		count := int64(1)
		parts = nil
		if p.PerDevice {
			if count = int64(len(n.devices[at])); count == 0 {
				return nil, nil
			}
			parts = map[Of]*big.Int{}
			for _, of := range n.devices[at] {
				addTo(parts, of, big.NewInt(1))
			}
		}
		c = subscription(p, count, s.num, s.den)
		l.Kind, l.Quantity, l.Unit = LineSubscription, shown(apd.New(count*s.num, 0), big.NewInt(s.den)), cmp.Or(p.Unit, "month")
	} else {
		total := new(big.Int)
		for _, q := range parts {
			total.Add(total, q)
		}
		if parts == nil && p.Minimum == "" {
			return nil, nil
		}
		c = chargeFor(p, total, s.num, s.den)
		l.Quantity, l.Unit, l.BaseQuantity, l.BaseUnit, l.Tiers = shown(whole(total), big.NewInt(p.Per)), p.Unit, total.String(), p.EntryUnit(), c.tiers
		l.Per = p.Per
	}
	return l, l.settle(c, parts, digits)
}

func (n *Tally) taxOf(p *api.Price) string {
	if p != nil && p.Tax != "" {
		return p.Tax
	}
	if n.terms.Tax != nil {
		return n.terms.Tax.Percent
	}
	return "0"
}

// settle rounds a line, once, and splits what came out.
func (l *Line) settle(c charge, parts map[Of]*big.Int, digits int32) error {
	net, err := rounded(c.num, c.den, digits)
	if err != nil {
		return err
	}
	if err := l.tax(Money{net, digits}); err != nil {
		return err
	}
	if len(parts) == 0 {
		parts = map[Of]*big.Int{{}: new(big.Int)}
	}
	keys, weights := sortedParts(parts)
	for i, minor := range share(net, weights) {
		part := Part{Of: keys[i], Net: Money{minor, digits}}
		if l.BaseQuantity != "" {
			part.BaseQuantity = weights[i].String()
		}
		l.Parts = append(l.Parts, part)
	}
	return nil
}

// tax sets net, tax and gross.
func (l *Line) tax(net Money) error {
	tax, err := rounded(product(apd.New(net.Minor, -net.Digits), dec(l.TaxPercent)), big.NewInt(100), net.Digits)
	if err != nil {
		return err
	}
	l.Net, l.Tax = net, Money{tax, net.Digits}
	l.Gross = l.Net.plus(l.Tax)
	return nil
}

// energise gives each line its part of the energy that was measured of whom it charges, by
// what it costs; what is left belongs to no line. The sum is what was measured.
func (n *Tally) energise(energy map[Of]*big.Int, lines []Line) (left int64) {
	keys, amounts := sortedParts(energy)
	type place struct{ line, part int }
	at := map[Of][]place{}
	for i := range lines {
		for j := range lines[i].Parts {
			at[lines[i].Parts[j].Of] = append(at[lines[i].Parts[j].Of], place{i, j})
		}
	}
	for i, of := range keys {
		places := at[of]
		if len(places) == 0 {
			left += amounts[i].Int64()
			continue
		}
		weights := make([]*big.Int, len(places))
		for j, p := range places {
			weights[j] = big.NewInt(lines[p.line].Parts[p.part].Net.Minor)
		}
		for j, mj := range share(amounts[i].Int64(), weights) {
			lines[places[j].line].Parts[places[j].part].EnergyMillijoules += mj
			lines[places[j].line].EnergyMillijoules += mj
		}
	}
	return left
}

// carbon is what a line's energy emitted, by the sites where it was drawn: rounded once.
func (n *Tally) carbon(l *Line) error {
	if n.terms.Carbon == "" && len(n.terms.Sites) == 0 {
		return nil
	}
	total := new(apd.Decimal)
	for i := range l.Parts {
		grams := dec(n.terms.Carbon)
		if site, ok := n.terms.Sites[l.Parts[i].Site]; ok && l.Parts[i].Site != "" {
			grams = dec(site)
		}
		total = sum(total, product(apd.New(l.Parts[i].EnergyMillijoules, 0), grams))
	}
	var err error
	l.CarbonMilligrams, err = rounded(total, big.NewInt(3_600_000_000), 3) // millijoules of a kilowatt-hour
	return err
}

// Decision is a person's word about what blocks an invoice.
type Decision struct {
	// Subject is Unpriced.Subject or gapSubject.
	Subject string `json:"subject"`
	// Action is waive (nothing is charged, and no line says so), zero (a line of nothing) or
	// price: of unpriced usage Amount for each Per base units; of a gap, Amount.
	Action string    `json:"action"`
	Amount string    `json:"amount,omitempty"`
	Unit   string    `json:"unit,omitempty"`
	Per    int64     `json:"per,omitempty"`
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	At     time.Time `json:"at"`
}

// What a person may decide.
const (
	ActionWaive = "waive"
	ActionZero  = "zero"
	ActionPrice = "price"
)

// decided makes the lines of decisions: in the order of their subjects.
func (n *Tally) decided(decisions []Decision, digits int32) (out []Line, err error) {
	unpriced := map[string]*Unpriced{}
	for _, u := range n.unpriced {
		unpriced[u.Subject()] = u
	}
	for _, d := range newest(decisions) {
		l := Line{ID: d.Subject, Kind: LineDecision, From: n.period.From, To: n.period.To, Reason: d.Reason, TaxPercent: n.taxOf(nil)}
		u := unpriced[d.Subject]
		if d.Action == ActionWaive || u == nil && !isGap(d.Subject) {
			continue
		}
		c := charge{num: new(apd.Decimal), den: big.NewInt(1)}
		var parts map[Of]*big.Int
		if u == nil {
			l.Text = "Time of which is not known what was used: " + d.Subject
			if d.Action == ActionPrice {
				c.num = dec(d.Amount)
			}
		} else {
			total := new(big.Int)
			for _, q := range u.parts {
				total.Add(total, q)
			}
			parts = u.parts
			l.Text, l.Meter, l.Class, l.BaseQuantity, l.BaseUnit = "Usage without a price: "+u.Meter, u.Meter, u.Class, total.String(), u.Unit
			l.Quantity, l.Unit = total.String(), u.Unit
			if d.Action == ActionPrice {
				per := big.NewInt(max(d.Per, 1))
				l.Quantity, l.Unit, l.Model = shown(whole(total), per), cmp.Or(d.Unit, u.Unit), api.ModelFlat
				l.Per = per.Int64()
				c.num, c.den = product(whole(total), dec(d.Amount)), per
			}
		}
		if err := l.settle(c, parts, digits); err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}
