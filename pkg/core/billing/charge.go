package billing

import (
	"math/big"

	"github.com/cockroachdb/apd/v3"

	"tributary.dev/tributary/pkg/api"
)

// TierPart is what a quantity was charged at one tier.
type TierPart struct {
	UpTo     string `json:"upTo,omitempty"`
	Quantity string `json:"quantity"` // in units, for people
	Amount   string `json:"amount"`   // of a unit
	Fixed    string `json:"fixed,omitempty"`
}

// charge is the exact price of a quantity, as num/den of the currency.
type charge struct {
	num   *apd.Decimal
	den   *big.Int
	tiers []TierPart
}

// chargeFor says what a quantity of base units costs by a price that is in force for num/den
// of the month. Whatever is per month (what is included, tiers, fixed parts, the minimum) is
// prorated by that. It works on numerators over per*den alone, so nothing is rounded. A
// negative quantity, of corrections, costs the negative of what the quantity would.
func chargeFor(p *api.Price, quantity *big.Int, num, den int64) charge {
	c := charge{num: new(apd.Decimal), den: new(big.Int).Mul(big.NewInt(p.Per), big.NewInt(den))}
	monthly := product(apd.New(num, 0), apd.New(p.Per, 0)) // what one unit a month is, over c.den
	units := whole(new(big.Int).Mul(new(big.Int).Abs(quantity), big.NewInt(den)))
	if included := product(dec(p.Included), monthly); units.Cmp(included) > 0 {
		units = sum(units, minus(included))
	} else {
		units = new(apd.Decimal)
	}
	switch p.Model {
	case api.ModelFlat:
		c.num = product(units, dec(p.Amount))
	case api.ModelPackage:
		size := product(dec(p.Package), whole(c.den))
		c.num = product(whole(ceiling(units, size)), dec(p.Amount), whole(c.den))
	case api.ModelGraduated:
		c.graduated(p.Tiers, units, monthly)
	case api.ModelVolume:
		c.volume(p.Tiers, units, monthly)
	}
	if least := product(dec(p.Minimum), monthly); quantity.Sign() >= 0 && c.num.Cmp(least) < 0 {
		c.num = least
	}
	if quantity.Sign() < 0 {
		c.num = minus(c.num)
	}
	return c
}

// graduated charges each part of the units at the price of the tier that it is in.
func (c *charge) graduated(tiers []api.PriceTier, units, monthly *apd.Decimal) {
	below := new(apd.Decimal)
	for i := range tiers {
		t := &tiers[i]
		if units.Cmp(below) <= 0 {
			return
		}
		top := units
		if bound := product(dec(t.UpTo), monthly); t.UpTo != "" && bound.Cmp(units) < 0 {
			top = bound
		}
		c.tier(t, sum(top, minus(below)), monthly)
		below = top
	}
}

// volume charges all units at the price of the tier that they reach.
func (c *charge) volume(tiers []api.PriceTier, units, monthly *apd.Decimal) {
	if units.Sign() == 0 {
		return
	}
	for i := range tiers {
		t := &tiers[i]
		if t.UpTo == "" || units.Cmp(product(dec(t.UpTo), monthly)) <= 0 {
			c.tier(t, units, monthly)
			return
		}
	}
}

func (c *charge) tier(t *api.PriceTier, part, monthly *apd.Decimal) {
	c.num = sum(c.num, sum(product(part, dec(t.Amount)), product(dec(t.Fixed), monthly)))
	c.tiers = append(c.tiers, TierPart{UpTo: t.UpTo, Quantity: shown(part, c.den), Amount: t.Amount, Fixed: t.Fixed})
}

// subscription is what a price costs for num/den of the month, count times.
func subscription(p *api.Price, count, num, den int64) charge {
	return charge{num: product(dec(p.Amount), apd.New(count, 0), apd.New(num, 0)), den: big.NewInt(den)}
}
