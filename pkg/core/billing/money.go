package billing

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/apd/v3"
	"golang.org/x/text/currency"

	"tributary.dev/tributary/pkg/api"
)

// Money is an amount in the smallest unit of a currency, which has Digits digits behind the
// point. As JSON it is a decimal in quotes, such as "12.30".
type Money struct {
	Minor  int64
	Digits int32
}

// String writes the amount as a decimal.
func (m Money) String() string { return apd.New(m.Minor, -m.Digits).Text('f') }

// MarshalJSON implements json.Marshaler.
func (m Money) MarshalJSON() ([]byte, error) { return []byte(`"` + m.String() + `"`), nil }

// UnmarshalJSON implements json.Unmarshaler.
func (m *Money) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	whole, fraction, _ := strings.Cut(text, ".")
	minor, err := strconv.ParseInt(whole+fraction, 10, 64)
	if err != nil || len(fraction) > 6 {
		return fmt.Errorf("%q is no amount", text)
	}
	*m = Money{minor, int32(len(fraction))}
	return nil
}

func (m Money) plus(o Money) Money { return Money{m.Minor + o.Minor, max(m.Digits, o.Digits)} }
func (m Money) neg() Money         { return Money{-m.Minor, m.Digits} }

// digitsOf is how many digits amounts of a currency have behind the point (ISO 4217).
func digitsOf(code string) (int32, error) {
	unit, err := currency.ParseISO(code)
	if err != nil {
		return 0, &api.Error{Code: api.Invalid, Field: "spec.currency", Message: strconv.Quote(code) + " is no currency", Remedy: "write its three letters (ISO 4217), such as EUR"}
	}
	scale, _ := currency.Standard.Rounding(unit)
	return int32(scale), nil
}

var one = big.NewInt(1)

// exact computes without rounding: only sums and products go through it.
var exact = apd.BaseContext

// dec reads a decimal that was checked when it was written; "" is 0.
func dec(text string) *apd.Decimal {
	if text == "" {
		return new(apd.Decimal)
	}
	d, _, err := apd.NewFromString(text)
	if err != nil {
		panic("a decimal that was not checked: " + text)
	}
	return d
}

func whole(n *big.Int) *apd.Decimal {
	return apd.NewWithBigInt(new(apd.BigInt).SetMathBigInt(n), 0)
}

func sum(a, b *apd.Decimal) *apd.Decimal {
	out := new(apd.Decimal)
	must(exact.Add(out, a, b))
	return out
}

func product(a *apd.Decimal, others ...*apd.Decimal) *apd.Decimal {
	out := new(apd.Decimal).Set(a)
	for _, b := range others {
		must(exact.Mul(out, out, b))
	}
	return out
}

func minus(a *apd.Decimal) *apd.Decimal { return new(apd.Decimal).Neg(a) }

// must ends the program where an exact sum or product fails: decimals are bounded when they
// are written, so that only exponents beyond any sense could do that.
func must(_ apd.Condition, err error) {
	if err != nil {
		panic(err)
	}
}

// scaled gives a decimal as a fraction of two whole numbers.
func scaled(d *apd.Decimal) (num, den *big.Int) {
	num, den = new(big.Int).Set(d.Coeff.MathBigInt()), big.NewInt(1)
	if d.Negative {
		num.Neg(num)
	}
	ten := big.NewInt(10)
	if d.Exponent >= 0 {
		return num.Mul(num, new(big.Int).Exp(ten, big.NewInt(int64(d.Exponent)), nil)), den
	}
	return num, new(big.Int).Exp(ten, big.NewInt(-int64(d.Exponent)), nil)
}

// rounded is num/den as a whole number of 10^-digits: the one place where rounding happens,
// a half away from zero.
func rounded(num *apd.Decimal, den *big.Int, digits int32) (int64, error) {
	n, d := scaled(num)
	n.Mul(n, new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(digits)), nil))
	d.Mul(d, den)
	negative := n.Sign() < 0
	n.Abs(n).Lsh(n, 1).Add(n, d).Quo(n, d.Lsh(d, 1))
	if !n.IsInt64() || n.Int64() == math.MaxInt64 {
		return 0, &api.Error{Code: api.TooLarge, Message: "an amount is beyond measure", Remedy: "check the plan's prices, and how many base units a unit has (per)"}
	}
	if negative {
		return -n.Int64(), nil
	}
	return n.Int64(), nil
}

// ceiling is num/den rounded up to a whole number.
func ceiling(num *apd.Decimal, den *apd.Decimal) *big.Int {
	n, d := scaled(num)
	n2, d2 := scaled(den)
	n.Mul(n, d2)
	d.Mul(d, n2)
	q, r := new(big.Int).QuoRem(n, d, new(big.Int))
	if r.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	return q
}

// share divides an amount among weights, by largest remainder: the parts sum up to the whole,
// and none is further than one unit from its exact share. Among equal remainders the earlier
// gets more, so the order has to be settled. Weights of both signs, or none, share by count.
func share(amount int64, weights []*big.Int) []int64 {
	out := make([]int64, len(weights))
	if len(weights) == 0 {
		return out
	}
	total := new(big.Int)
	mixed := false
	for _, w := range weights {
		mixed = mixed || w.Sign()*total.Sign() < 0
		total.Add(total, w)
	}
	if mixed || total.Sign() == 0 {
		one := make([]*big.Int, len(weights))
		for i := range one {
			one[i] = big.NewInt(1)
		}
		weights, total = one, big.NewInt(int64(len(one)))
	}
	total.Abs(total)
	type rest struct {
		at int
		r  *big.Int
	}
	rests := make([]rest, len(weights))
	size := new(big.Int).Abs(big.NewInt(amount))
	left := new(big.Int).Set(size)
	for i, w := range weights {
		q, r := new(big.Int).QuoRem(new(big.Int).Mul(size, new(big.Int).Abs(w)), total, new(big.Int))
		out[i], rests[i] = q.Int64(), rest{i, r}
		left.Sub(left, q)
	}
	slices.SortStableFunc(rests, func(a, b rest) int { return cmp.Or(b.r.Cmp(a.r), cmp.Compare(a.at, b.at)) })
	for i := range left.Int64() {
		out[rests[i].at]++
	}
	if amount < 0 {
		for i := range out {
			out[i] = -out[i]
		}
	}
	return out
}

// shown writes num/den with six digits at most, for people; what counts is exact elsewhere.
func shown(num *apd.Decimal, den *big.Int) string {
	n, d := scaled(num)
	text := new(big.Rat).SetFrac(n, d.Mul(d, den)).FloatString(6)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}
