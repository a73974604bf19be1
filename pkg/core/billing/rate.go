package billing

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Terms are all that decides what usage costs, but for the usage.
type Terms struct {
	Plan     string             `json:"plan"`
	Currency string             `json:"currency"`
	Zone     string             `json:"zone"`
	Since    string             `json:"since,omitempty"`
	Tax      *api.Tax           `json:"tax,omitempty"`
	Carbon   string             `json:"carbonGramsPerKWh,omitempty"`
	Sites    map[string]string  `json:"sites,omitempty"`
	Versions []api.PriceVersion `json:"versions"`
}

// Digest names the terms by their content.
func (t *Terms) Digest() string {
	b, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings and numbers alone
	}
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// Of says whose usage a part of a line is.
type Of struct {
	Device     string `json:"device,omitempty"`
	DeviceName string `json:"deviceName,omitempty"`
	App        string `json:"app,omitempty"`
	AppName    string `json:"appName,omitempty"`
	Service    string `json:"service,omitempty"`
	Site       string `json:"site,omitempty"`
	Fleet      string `json:"fleet,omitempty"`
	// Labels is a JSON object, its keys in order, so that Of can be compared.
	Labels string `json:"labels,omitempty"`
	// Day is set where parts are by day, for forecasts.
	Day string `json:"day,omitempty"`
}

func (o Of) compare(p Of) int {
	return cmp.Or(cmp.Compare(o.Site, p.Site), cmp.Compare(o.Fleet, p.Fleet), cmp.Compare(o.DeviceName, p.DeviceName), cmp.Compare(o.Device, p.Device),
		cmp.Compare(o.AppName, p.AppName), cmp.Compare(o.App, p.App), cmp.Compare(o.Service, p.Service), cmp.Compare(o.Labels, p.Labels), cmp.Compare(o.Day, p.Day))
}

// OfEntry tells of an entry whose it is.
func OfEntry(e *api.UsageEntry) Of {
	o := Of{Device: e.Device, DeviceName: e.DeviceName, App: e.App, AppName: e.AppName, Service: e.Service, Site: e.Site, Fleet: e.Fleet}
	if len(e.Labels) > 0 {
		b, _ := json.Marshal(e.Labels) // strings alone; keys come sorted
		o.Labels = string(b)
	}
	return o
}

// segment is a part of a period in which one version of the plan is in force, or none.
type segment struct {
	from, to time.Time
	version  *api.PriceVersion
	num, den int64 // its part of the month
}

// thing is a meter as usage names it.
type thing struct{ meter, class, unit string }

// Tally is usage as far as prices need to know it: sums of exact whole numbers. It does not
// matter in which order entries are added, and tallies of parts merge into that of the whole.
type Tally struct {
	terms    *Terms
	period   Period
	zone     *time.Location
	segments []segment
	by       func(*api.UsageEntry) Of

	used     []map[int]map[Of]*big.Int // by segment, and place of the price in its version
	energy   []map[Of]*big.Int         // by segment: millijoules
	devices  []map[string]Of           // by segment: who used anything
	unpriced map[thing]*Unpriced
	count    int64
	mixed    [sha256.Size]byte
}

// Unpriced is usage that no price is for.
type Unpriced struct {
	Meter    string `json:"meter"`
	Class    string `json:"class,omitempty"`
	Unit     string `json:"unit"`
	Quantity string `json:"quantity"` // in base units
	Entries  int    `json:"entries"`
	Why      string `json:"why"`

	parts map[Of]*big.Int
}

// Subject is the name under which a person decides about it.
func (u *Unpriced) Subject() string { return "unpriced/" + u.Meter + "/" + u.Class + "/" + u.Unit }

// NewTally begins to count the usage of a period. by says how lines are split.
func NewTally(t *Terms, p Period, by func(*api.UsageEntry) Of) (*Tally, error) {
	zone, err := (&api.BillingProfileSpec{Zone: t.Zone}).Location()
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Field: "spec.zone", Message: "there is no zone " + strconv.Quote(t.Zone), Remedy: "write one as Europe/Berlin"}
	}
	n := &Tally{terms: t, period: p, zone: zone, by: by, unpriced: map[thing]*Unpriced{}}
	if n.segments, err = segmentsOf(t, p, zone); err != nil {
		return nil, err
	}
	for range n.segments {
		n.used, n.energy, n.devices = append(n.used, map[int]map[Of]*big.Int{}), append(n.energy, map[Of]*big.Int{}), append(n.devices, map[string]Of{})
	}
	return n, nil
}

// segmentsOf cuts a period at the midnights at which versions of the plan begin, and at the
// tenant's first day.
func segmentsOf(t *Terms, p Period, zone *time.Location) (out []segment, err error) {
	var since time.Time
	if t.Since != "" {
		if since, err = dayOf(t.Since, zone); err != nil {
			return nil, err
		}
	}
	cut := func(from, to time.Time, v *api.PriceVersion) {
		if from.Before(p.From) {
			from = p.From
		}
		if to.After(p.To) {
			to = p.To
		}
		if from.Before(to) {
			s := segment{from: from, to: to, version: v}
			s.num, s.den = fraction(from, to, zone)
			out = append(out, s)
		}
	}
	begin := p.From
	if since.After(begin) { // what was before the first day is nobody's to pay
		begin = since
	}
	at, in := begin, (*api.PriceVersion)(nil)
	for i := range t.Versions {
		from, err := dayOf(t.Versions[i].From, zone)
		if err != nil {
			return nil, err
		}
		if from.After(at) {
			cut(at, from, in)
			at = from
		}
		in = &t.Versions[i]
	}
	cut(at, p.To, in)
	return out, nil
}

// Add counts one entry. It belongs to the time when it began; one of another time, and of
// before the tenant's first day, is passed over.
func (n *Tally) Add(e *api.UsageEntry) {
	at := slices.IndexFunc(n.segments, func(s segment) bool { return !e.From.Before(s.from) && e.From.Before(s.to) })
	if at < 0 {
		return
	}
	n.count++
	mix(&n.mixed, e)
	of := n.by(e)
	if e.Device != "" {
		n.devices[at][e.Device] = smaller(n.devices[at], e.Device, Of{Device: of.Device, DeviceName: of.DeviceName, Site: of.Site, Fleet: of.Fleet, Labels: of.Labels, Day: of.Day})
	}
	if e.Meter == api.MeterEnergy && e.Unit == api.MeterUnit(api.MeterEnergy) {
		addTo(n.energy[at], of, big.NewInt(e.Quantity))
	}
	v := n.segments[at].version
	if v != nil {
		if i := slices.IndexFunc(v.Prices, func(p api.Price) bool { return matches(&p, e) }); i >= 0 {
			if n.used[at][i] == nil {
				n.used[at][i] = map[Of]*big.Int{}
			}
			addTo(n.used[at][i], of, big.NewInt(e.Quantity))
			return
		}
		if slices.Contains(v.Free, e.Meter) {
			return
		}
	}
	k := thing{e.Meter, e.Class, e.Unit}
	u := n.unpriced[k]
	if u == nil {
		u = &Unpriced{Meter: e.Meter, Class: e.Class, Unit: e.Unit, parts: map[Of]*big.Int{}}
		n.unpriced[k] = u
	}
	u.Entries++
	addTo(u.parts, of, big.NewInt(e.Quantity))
}

// smaller keeps, of a device that is seen at several places, one that does not depend on the order.
func smaller(m map[string]Of, device string, of Of) Of {
	if was, ok := m[device]; ok && was.compare(of) <= 0 {
		return was
	}
	return of
}

func addTo(m map[Of]*big.Int, of Of, q *big.Int) {
	if m[of] == nil {
		m[of] = new(big.Int)
	}
	m[of].Add(m[of], q)
}

// mix adds an entry's digest to the sum of all, which is the same in any order.
func mix(into *[sha256.Size]byte, e *api.UsageEntry) {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings, numbers and times alone
	}
	h := sha256.Sum256(b)
	mixIn(into, &h)
}

func mixIn(into, h *[sha256.Size]byte) {
	carry := 0
	for i := len(into) - 1; i >= 0; i-- {
		s := int(into[i]) + int(h[i]) + carry
		into[i], carry = byte(s), s>>8
	}
}

// matches reports whether a price charges an entry.
func matches(p *api.Price, e *api.UsageEntry) bool {
	return p.Model != api.ModelSubscription && p.Meter == e.Meter && p.EntryUnit() == e.Unit && (p.Class == "" || p.Class == e.Class) && (p.App == "" || p.App == e.AppName) &&
		(p.Labels == nil || p.Labels.Matches(e.Labels))
}

// Merge adds what another tally of the same terms and period counted.
func (n *Tally) Merge(o *Tally) {
	for i := range n.segments {
		for price, parts := range o.used[i] {
			if n.used[i][price] == nil {
				n.used[i][price] = map[Of]*big.Int{}
			}
			for of, q := range parts {
				addTo(n.used[i][price], of, q)
			}
		}
		for of, q := range o.energy[i] {
			addTo(n.energy[i], of, q)
		}
		for device, of := range o.devices[i] {
			n.devices[i][device] = smaller(n.devices[i], device, of)
		}
	}
	for k, u := range o.unpriced {
		if n.unpriced[k] == nil {
			n.unpriced[k] = &Unpriced{Meter: u.Meter, Class: u.Class, Unit: u.Unit, parts: map[Of]*big.Int{}}
		}
		n.unpriced[k].Entries += u.Entries
		for of, q := range u.parts {
			addTo(n.unpriced[k].parts, of, q)
		}
	}
	n.count += o.count
	mixIn(&n.mixed, &o.mixed)
}

// Counted tells which entries were counted: how many, and a digest that any other set would not have.
type Counted struct {
	Entries int64  `json:"entries"`
	Digest  string `json:"digest"`
}

// Usage tells which entries were counted.
func (n *Tally) Usage() Counted {
	return Counted{n.count, "sha256-sum:" + hex.EncodeToString(n.mixed[:])}
}

// Unpriced lists the usage that no price is for, by name.
func (n *Tally) Unpriced() (out []*Unpriced) {
	for _, u := range n.unpriced {
		total := new(big.Int)
		for _, q := range u.parts {
			total.Add(total, q)
		}
		u.Quantity, u.Why = total.String(), "no price of the plan is for this meter, nor is it among those that are free"
		if len(n.terms.Versions) == 0 {
			u.Why = "the tenant has no price plan"
		} else if slices.ContainsFunc(n.segments, func(s segment) bool { return s.version == nil }) && len(n.segments) == 1 {
			u.Why = "no version of the plan is in force yet"
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b *Unpriced) int { return cmp.Compare(a.Subject(), b.Subject()) })
	return out
}

// sortedParts gives the parts of a line in the one order that they have.
func sortedParts(parts map[Of]*big.Int) ([]Of, []*big.Int) {
	keys := slices.SortedFunc(maps.Keys(parts), Of.compare)
	weights := make([]*big.Int, len(keys))
	for i, k := range keys {
		weights[i] = parts[k]
	}
	return keys, weights
}
