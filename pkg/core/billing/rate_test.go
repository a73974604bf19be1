package billing

import (
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

var november = Period{Name: "2026-11", From: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)}

// plan is terms of one version with all models of prices.
func plan(prices ...api.Price) *Terms {
	return &Terms{Plan: "standard", Currency: "EUR", Tax: &api.Tax{Name: "VAT", Percent: "19"}, Carbon: "380", Sites: map[string]string{"hill": "20"},
		Versions: []api.PriceVersion{{From: "2026-01-01", Prices: prices, Free: []string{"runtime", "energy"}}}}
}

// entry makes an entry of a meter on a day of November.
func entry(n int, device, app, meter string, quantity int64, day int) api.UsageEntry {
	from := november.From.AddDate(0, 0, day).Add(time.Hour)
	return api.UsageEntry{ID: "r/" + device + "/1/" + strconv.Itoa(n) + "/0", Tenant: "t1", TenantName: "acme", Device: device, DeviceName: "box-" + device, App: app, AppName: "app-" + app, Service: "web",
		Site: map[bool]string{true: "hill", false: "dale"}[device < "c"], Meter: meter, Unit: api.MeterUnit(meter), Quantity: quantity, From: from, To: from.Add(time.Hour), Received: from.Add(2 * time.Hour)}
}

func rate(t testing.TB, terms *Terms, p Period, entries ...api.UsageEntry) (*Tally, *Rated) {
	t.Helper()
	n, err := NewTally(terms, p, OfEntry)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		n.Add(&entries[i])
	}
	r, err := n.Lines(nil)
	if err != nil {
		t.Fatal(err)
	}
	return n, r
}

func text(v any) string {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		panic(err)
	}
	return string(b)
}

// counted is the independent price of a quantity: one base unit after the other, whole
// numbers alone. Amounts are cents of a unit, upTo units.
type plainTier struct{ upTo, amount, fixed int64 }

func counted(model string, tiers []plainTier, pack, included, minimum, per, quantity int64) int64 {
	quantity -= included * per
	quantity = max(quantity, 0)
	cents := int64(0) // times per
	switch model {
	case api.ModelFlat:
		cents = quantity * tiers[0].amount
	case api.ModelPackage:
		for left := quantity; left > 0; left -= pack * per {
			cents += tiers[0].amount * per
		}
	case api.ModelGraduated:
		entered := map[int]bool{}
		for b := int64(1); b <= quantity; b++ {
			k := 0
			for tiers[k].upTo > 0 && b > tiers[k].upTo*per {
				k++
			}
			cents += tiers[k].amount
			if !entered[k] {
				entered[k], cents = true, cents+tiers[k].fixed*per
			}
		}
	case api.ModelVolume:
		k := 0
		for tiers[k].upTo > 0 && quantity > tiers[k].upTo*per {
			k++
		}
		if quantity > 0 {
			cents = quantity*tiers[k].amount + tiers[k].fixed*per
		}
	}
	cents = max(cents, minimum*per)
	return (2*cents + per) / (2 * per) // a half goes up
}

func cents(n int64) string { return fmt.Sprintf("%d.%02d", n/100, n%100) }

// Every model agrees with counting unit by unit, at and around the bounds of tiers above all.
func TestPricesAgreeWithCounting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		per := rapid.Int64Range(1, 7).Draw(t, "per")
		pack, included, minimum := rapid.Int64Range(1, 9).Draw(t, "package"), rapid.Int64Range(0, 5).Draw(t, "included"), rapid.Int64Range(0, 300).Draw(t, "minimum")
		var tiers []plainTier
		price := api.Price{Name: "x", Meter: api.MeterInference, Unit: "thing", Per: per, Included: strconv.FormatInt(included, 10), Minimum: cents(minimum)}
		bound, bounds := int64(0), []int64{0}
		for range rapid.IntRange(0, 4).Draw(t, "tiers") {
			bound += rapid.Int64Range(1, 12).Draw(t, "wide")
			tiers = append(tiers, plainTier{bound, rapid.Int64Range(0, 50).Draw(t, "amount"), rapid.Int64Range(0, 99).Draw(t, "fixed")})
			bounds = append(bounds, bound)
		}
		tiers = append(tiers, plainTier{0, rapid.Int64Range(0, 50).Draw(t, "amount"), rapid.Int64Range(0, 99).Draw(t, "fixed")})
		price.Model = rapid.SampledFrom([]string{api.ModelFlat, api.ModelPackage, api.ModelGraduated, api.ModelVolume}).Draw(t, "model")
		switch price.Model {
		case api.ModelFlat:
			price.Amount = cents(tiers[0].amount)
		case api.ModelPackage:
			price.Amount, price.Package = cents(tiers[0].amount), strconv.FormatInt(pack, 10)
		default:
			for _, x := range tiers {
				p := api.PriceTier{Amount: cents(x.amount), Fixed: cents(x.fixed)}
				if x.upTo > 0 {
					p.UpTo = strconv.FormatInt(x.upTo, 10)
				}
				price.Tiers = append(price.Tiers, p)
			}
		}
		at := rapid.SampledFrom(bounds).Draw(t, "bound")
		quantity := max(0, (at+included)*per+rapid.Int64Range(-2, 2).Draw(t, "beside"))
		if rapid.Bool().Draw(t, "anywhere") {
			quantity = rapid.Int64Range(0, 400).Draw(t, "quantity")
		}
		c := chargeFor(&price, big.NewInt(quantity), 30, 30)
		got, err := rounded(c.num, c.den, 2)
		if want := counted(price.Model, tiers, pack, included, minimum, per, quantity); err != nil || got != want {
			t.Fatalf("%s of %d/%d costs %d (%v), counted %d: %s", price.Model, quantity, per, got, err, want, text(price))
		}
	})
}

// The bounds that a drawn case may miss, said outright.
func TestTierBounds(t *testing.T) {
	graduated := api.Price{Model: api.ModelGraduated, Per: 10, Tiers: []api.PriceTier{{UpTo: "2.5", Amount: "1"}, {UpTo: "5", Amount: "0.5", Fixed: "3"}, {Amount: "0.1"}}}
	volume := graduated
	volume.Model = api.ModelVolume
	for _, c := range []struct {
		price    *api.Price
		quantity int64
		want     int64
	}{
		{&graduated, 0, 0}, {&graduated, 25, 250}, {&graduated, 26, 250 + 300 + 5}, {&graduated, 50, 250 + 300 + 125}, {&graduated, 51, 250 + 300 + 125 + 1}, {&graduated, -26, -555},
		{&volume, 25, 250}, {&volume, 26, 130 + 300}, {&volume, 50, 250 + 300}, {&volume, 51, 51},
		{&api.Price{Model: api.ModelPackage, Per: 10, Package: "3", Amount: "2"}, 30, 200}, {&api.Price{Model: api.ModelPackage, Per: 10, Package: "3", Amount: "2"}, 31, 400},
		{&api.Price{Model: api.ModelFlat, Per: 3, Amount: "0.01"}, 1, 0}, {&api.Price{Model: api.ModelFlat, Per: 2, Amount: "0.01"}, 1, 1}, {&api.Price{Model: api.ModelFlat, Per: 2, Amount: "0.01"}, -1, -1},
	} {
		x := chargeFor(c.price, big.NewInt(c.quantity), 1, 1)
		if got, err := rounded(x.num, x.den, 2); err != nil || got != c.want {
			t.Errorf("%s of %d costs %d, %v; want %d", c.price.Model, c.quantity, got, err, c.want)
		}
	}
}

func drawEntries(t *rapid.T) (out []api.UsageEntry) {
	meters := []string{api.MeterCPU, api.MeterMemory, api.MeterNetworkRx, api.MeterEnergy, "unheard.of"}
	for i := range rapid.IntRange(0, 30).Draw(t, "entries") {
		e := entry(i, rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "device"), rapid.SampledFrom([]string{"x", "y"}).Draw(t, "app"), rapid.SampledFrom(meters).Draw(t, "meter"),
			rapid.Int64Range(0, 1<<62).Draw(t, "quantity"), rapid.IntRange(-1, 31).Draw(t, "day"))
		if e.Meter == api.MeterEnergy {
			e.Quantity %= 1 << 40
		}
		if e.Unit == "" {
			e.Unit = "1"
		}
		out = append(out, e)
	}
	return out
}

// twoVersions has prices that change in the month, at a midnight.
func twoVersions() *Terms {
	terms := plan(api.Price{Name: "cpu", Model: api.ModelGraduated, Meter: api.MeterCPU, Unit: "core-hour", Per: 3_600_000_000, Included: "10", Tiers: []api.PriceTier{{UpTo: "100000", Amount: "0.031"}, {Amount: "0.0000007"}}},
		api.Price{Name: "memory", Model: api.ModelFlat, Meter: api.MeterMemory, Unit: "GiB-hour", Per: 3600 << 30, Amount: "0.0042", Minimum: "3"},
		api.Price{Name: "base", Model: api.ModelSubscription, Amount: "19.99", PerDevice: true})
	later := terms.Versions[0]
	later.From = "2026-11-12"
	later.Prices = slices.Clone(later.Prices)
	later.Prices[1].Amount = "0.0050"
	terms.Versions = append(terms.Versions, later)
	return terms
}

// The order of entries does not matter, parts rate as the whole, splits and energy sum up.
func TestRatingIsASum(t *testing.T) {
	terms := twoVersions()
	rapid.Check(t, func(t *rapid.T) {
		entries := drawEntries(t)
		make := func(list []api.UsageEntry) *Tally {
			n, err := NewTally(terms, november, OfEntry)
			if err != nil {
				t.Fatal(err)
			}
			for i := range list {
				n.Add(&list[i])
			}
			return n
		}
		lines := func(n *Tally) *Rated {
			r, err := n.Lines(nil)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		wholeTally := make(entries)
		want := lines(wholeTally)
		mixed := slices.Clone(entries)
		rand.New(rand.NewPCG(uint64(len(entries)), 7)).Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		if n := make(mixed); text(lines(n)) != text(want) || n.Usage() != wholeTally.Usage() || text(n.Unpriced()) != text(wholeTally.Unpriced()) {
			t.Fatal("another order costs something else")
		}
		cut := rapid.IntRange(0, len(entries)).Draw(t, "cut")
		parts := make(mixed[:cut])
		parts.Merge(make(mixed[cut:]))
		if text(lines(parts)) != text(want) || parts.Usage() != wholeTally.Usage() || text(parts.Unpriced()) != text(wholeTally.Unpriced()) {
			t.Fatal("in parts it costs something else")
		}
		energy := want.OtherEnergyMillijoules
		for _, l := range want.Lines {
			var net, mj int64
			for _, p := range l.Parts {
				net, mj = net+p.Net.Minor, mj+p.EnergyMillijoules
			}
			if net != l.Net.Minor || mj != l.EnergyMillijoules || l.Gross.Minor != l.Net.Minor+l.Tax.Minor {
				t.Fatalf("the parts of %s sum up to %d and %d mJ: %s", l.ID, net, mj, text(l))
			}
			energy += mj
		}
		for _, e := range entries {
			if e.Meter == api.MeterEnergy && !e.From.Before(november.From) && e.From.Before(november.To) {
				energy -= e.Quantity
			}
		}
		if energy != 0 {
			t.Fatalf("%d mJ were made or lost", energy)
		}
	})
}

// Largest remainder: exact in sum, none further than one from its share.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		amount := rapid.Int64Range(-1_000_000, 1_000_000).Draw(t, "amount")
		var weights []*big.Int
		total := new(big.Int)
		for range rapid.IntRange(1, 12).Draw(t, "n") {
			w := big.NewInt(rapid.Int64Range(0, 1<<50).Draw(t, "w"))
			weights = append(weights, w)
			total.Add(total, w)
		}
		got := int64(0)
		for i, part := range share(amount, weights) {
			got += part
			if total.Sign() == 0 {
				continue
			}
			off := new(big.Rat).Sub(big.NewRat(part, 1), new(big.Rat).Mul(big.NewRat(amount, 1), new(big.Rat).SetFrac(weights[i], total)))
			if off.Abs(off).Cmp(big.NewRat(1, 1)) >= 0 {
				t.Fatalf("part %d of %d is off by %s", i, amount, off.FloatString(3))
			}
		}
		if got != amount {
			t.Fatalf("the parts of %d sum up to %d", amount, got)
		}
	})
	if got := share(100, []*big.Int{big.NewInt(1), big.NewInt(1), big.NewInt(1)}); !slices.Equal(got, []int64{34, 33, 33}) {
		t.Errorf("100 in three: %v", got)
	}
}

// Prices change at a midnight of the tenant's zone; months with a change of clocks are 31 and
// 30 days as others.
func TestPricesChangeAtMidnight(t *testing.T) {
	terms := plan(api.Price{Name: "cpu", Model: api.ModelFlat, Meter: api.MeterCPU, Unit: "s", Per: 1, Amount: "1"}, api.Price{Name: "base", Model: api.ModelSubscription, Amount: "31"})
	later := terms.Versions[0]
	later.From, later.Prices = "2026-10-20", slices.Clone(later.Prices)
	later.Prices[0].Amount, later.Prices[1].Amount = "10", "62"
	terms.Versions, terms.Zone = append(terms.Versions, later), "Europe/Berlin"
	zone, _ := time.LoadLocation("Europe/Berlin")
	october, err := ParsePeriod("2026-10", zone)
	if err != nil || october.To.Sub(october.From) != 31*24*time.Hour+time.Hour {
		t.Fatal(october, err)
	}
	before, after := entry(1, "a", "x", api.MeterCPU, 1, 0), entry(2, "a", "x", api.MeterCPU, 1, 0)
	before.From, after.From = time.Date(2026, 10, 19, 21, 59, 59, 0, time.UTC), time.Date(2026, 10, 19, 22, 0, 0, 0, time.UTC)
	_, r := rate(t, terms, october, before, after)
	got := map[string]string{}
	for _, l := range r.Lines {
		got[l.ID] = l.Net.String()
	}
	want := map[string]string{"cpu@2026-01-01": "1.00", "base@2026-01-01": "19.00", "cpu@2026-10-20": "10.00", "base@2026-10-20": "24.00"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	day, err := ParsePeriod("2026-10-25", zone) // of 25 hours
	if err != nil || day.To.Sub(day.From) != 25*time.Hour {
		t.Fatal(day, err)
	}
	if num, den := fraction(day.From, day.To, zone); num != 1 || den != 31 {
		t.Errorf("a day of 25 hours is %d/%d of the month", num, den)
	}
	hour, err := ParsePeriod("2026-10-25T14Z", zone)
	if err != nil {
		t.Fatal(err)
	}
	if num, den := fraction(hour.From, hour.To, zone); num != 3600 || den != (31*24+1)*3600 {
		t.Errorf("an hour is %d/%d of the month", num, den)
	}
	terms.Since = "2026-10-17"
	if _, r := rate(t, terms, october, before); r.Lines[1].Net.String() != "3.00" { // three days at 31 a month
		t.Errorf("from the 17th the subscription costs %s", text(r.Lines))
	}
}

// What has no price is told, and costs neither nothing nor anything.
func TestUnpricedIsTold(t *testing.T) {
	terms := plan(api.Price{Name: "cpu", Model: api.ModelFlat, Meter: api.MeterCPU, Unit: "s", Per: 1_000_000, Amount: "0.01", App: "app-x", Labels: &api.Selector{MatchLabels: map[string]string{"tier": "gold"}}})
	gold, plain, other, free := entry(1, "a", "x", api.MeterCPU, 5_000_000, 1), entry(2, "a", "x", api.MeterCPU, 7, 1), entry(3, "a", "y", api.MeterCPU, 9, 1), entry(4, "a", "x", api.MeterRuntime, 9, 1)
	gold.Labels, other.Labels = map[string]string{"tier": "gold"}, map[string]string{"tier": "gold"}
	unit := gold
	unit.ID, unit.Unit = "e/s/1", "hours"
	n, r := rate(t, terms, november, gold, plain, other, free, unit)
	var got []string
	for _, u := range n.Unpriced() {
		got = append(got, fmt.Sprint(u.Subject(), " ", u.Quantity, " ", u.Entries))
	}
	if want := "unpriced/cpu//hours 5000000 1,unpriced/cpu//us 16 2"; strings.Join(got, ",") != want {
		t.Errorf("unpriced: %v, want %s", got, want)
	}
	if len(r.Lines) != 1 || r.Lines[0].Net.String() != "0.05" || r.Lines[0].Tax.String() != "0.01" {
		t.Errorf("lines: %s", text(r.Lines))
	}
	for action, want := range map[string]string{ActionWaive: "", ActionZero: "0.00", ActionPrice: "3.20"} {
		r, err := n.Lines([]Decision{{Subject: "unpriced/cpu//us", Action: ActionZero}, {Subject: "unpriced/cpu//us", Action: action, Amount: "2", Per: 10, Reason: "so"}})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if len(r.Lines) > 1 {
			got = r.Lines[1].Net.String()
		}
		if got != want {
			t.Errorf("%s makes %q, want %q", action, got, want)
		}
	}
}

// Energy goes to who is charged, its carbon by the site.
func TestEnergyAndCarbon(t *testing.T) {
	terms := plan(api.Price{Name: "cpu", Model: api.ModelFlat, Meter: api.MeterCPU, Unit: "s", Per: 1, Amount: "1"}, api.Price{Name: "rx", Model: api.ModelFlat, Meter: api.MeterNetworkRx, Unit: "B", Per: 1, Amount: "3"})
	_, r := rate(t, terms, november, entry(1, "a", "x", api.MeterCPU, 1, 1), entry(2, "a", "x", api.MeterNetworkRx, 1, 1), entry(3, "a", "x", api.MeterEnergy, 3_600_000_000, 1),
		entry(4, "d", "x", api.MeterCPU, 1, 1), entry(5, "d", "x", api.MeterEnergy, 3_600_000_000, 1), entry(6, "d", "y", api.MeterEnergy, 17, 1))
	// Box a stands at the hill (20 g): a quarter of its kWh is the processor's. Box d does not (380 g).
	if r.OtherEnergyMillijoules != 17 || r.Lines[0].EnergyMillijoules != 4_500_000_000 || r.Lines[1].EnergyMillijoules != 2_700_000_000 || r.Lines[0].CarbonMilligrams != 385_000 || r.Lines[1].CarbonMilligrams != 15_000 {
		t.Errorf("energy: %s", text(r))
	}
}
