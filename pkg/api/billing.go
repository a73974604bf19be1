package api

import (
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/pattern"
)

// The kinds that say what usage costs, and who pays.
const (
	KindPricePlan      = "PricePlan"
	KindBillingProfile = "BillingProfile"
	KindBudget         = "Budget"
)

// BillingProfileName is the name of a tenant's one BillingProfile.
const BillingProfileName = "billing"

// PricePlanSpec is a list of prices in versions. A version never changes: a new one is
// appended, and is in force from a midnight on, in the zone of the tenant that pays.
type PricePlanSpec struct {
	// Currency is that of all amounts: three letters (ISO 4217).
	Currency string `json:"currency"`
	// Versions are in the order of their From. Before the first nothing has a price.
	Versions []PriceVersion `json:"versions"`
}

// PriceVersion holds the prices from a day on, up to the next version.
type PriceVersion struct {
	// From is the first day, YYYY-MM-DD; it begins at midnight in the paying tenant's zone.
	From string `json:"from"`
	// Prices are asked in their order: the first that matches an entry of usage charges it.
	Prices []Price `json:"prices"`
	// Free names meters that cost nothing. Usage of a meter that has neither a price nor
	// stands here blocks invoices.
	Free []string `json:"free,omitempty"`
}

// Price says what one thing costs. Amounts and counts are decimals in quotes. What is per
// month is prorated by days where only a part of the month is billed.
type Price struct {
	// Name is the name of the invoice's line, unique in the version.
	Name string `json:"name"`
	// Description is what the line says; empty: the name.
	Description string `json:"description,omitempty"`
	// Model is flat, graduated, volume, package or subscription.
	Model string `json:"model"`
	// Meter is whose usage it charges (see the meters of UsageEntry); none for a subscription.
	Meter string `json:"meter,omitempty"`
	// Class narrows it to a class of the meter, such as of the link.
	Class string `json:"class,omitempty"`
	// App narrows it to the usage of an app by its name.
	App string `json:"app,omitempty"`
	// Labels narrows it to devices whose labels, then in force, it selects.
	Labels *Selector `json:"labels,omitempty"`
	// Unit is what is sold, such as core-hour, and Per how many of the meter's base units it is.
	Unit string `json:"unit,omitempty"`
	Per  int64  `json:"per,omitempty"`
	// BaseUnit is the meter's base unit, where it is none of the meters of devices: usage in
	// another unit is not charged by this price.
	BaseUnit string `json:"baseUnit,omitempty"`
	// Amount is the price of a unit (flat), of a package, or of a month (subscription).
	Amount string `json:"amount,omitempty"`
	// Tiers are those of graduated (each part of the quantity at its tier's price) and volume
	// (all of it at the price of the tier that it reaches). The last has no UpTo.
	Tiers []PriceTier `json:"tiers,omitempty"`
	// Package is how many units are sold together; a begun package counts whole.
	Package string `json:"package,omitempty"`
	// Included is how many units a month cost nothing.
	Included string `json:"included,omitempty"`
	// Minimum is what the line costs at least, in a month.
	Minimum string `json:"minimum,omitempty"`
	// PerDevice multiplies a subscription by the devices that used anything.
	PerDevice bool `json:"perDevice,omitempty"`
	// Tax is the line's rate in percent, where it differs from the profile's.
	Tax string `json:"tax,omitempty"`
}

// EntryUnit is the base unit of what the price charges.
func (p *Price) EntryUnit() string {
	if p.BaseUnit != "" {
		return p.BaseUnit
	}
	return MeterUnit(p.Meter)
}

// PriceTier is one tier: up to and including UpTo units a month.
type PriceTier struct {
	UpTo   string `json:"upTo,omitempty"`
	Amount string `json:"amount"`
	// Fixed is charged once, in the month in which the tier is reached.
	Fixed string `json:"fixed,omitempty"`
}

// The models of prices.
const (
	ModelFlat         = "flat"
	ModelGraduated    = "graduated"
	ModelVolume       = "volume"
	ModelPackage      = "package"
	ModelSubscription = "subscription"
)

var priceModels = []string{ModelFlat, ModelGraduated, ModelVolume, ModelPackage, ModelSubscription}

// BillingProfileSpec says who a tenant is to its invoices. That of the tenant platform is
// the seller. Whoever runs the tenant above writes it.
type BillingProfileSpec struct {
	// LegalName and Address stand on invoices.
	LegalName string   `json:"legalName"`
	Address   []string `json:"address,omitempty"`
	// Country has two letters (ISO 3166).
	Country string `json:"country,omitempty"`
	// TaxID is the tenant's number at the tax office.
	TaxID   string `json:"taxID,omitempty"`
	Contact string `json:"contact,omitempty"`
	// Zone is where the tenant's days begin (IANA), such as Europe/Berlin. Empty: UTC.
	Zone string `json:"zone,omitempty"`
	// Currency is that of the invoices; the plan's has to be the same. Empty: the plan's.
	Currency string `json:"currency,omitempty"`
	// Plan names the PricePlan, of this tenant or else of the nearest one above.
	Plan string `json:"plan,omitempty"`
	// Since is the first day that is billed, YYYY-MM-DD. Empty: all there is.
	Since string `json:"since,omitempty"`
	// Tax is what lines are taxed with, unless their price says otherwise.
	Tax *Tax `json:"tax,omitempty"`
	// CarbonGramsPerKWh is what a kilowatt-hour emits; Sites tells of sites that differ.
	CarbonGramsPerKWh string            `json:"carbonGramsPerKWh,omitempty"`
	Sites             map[string]string `json:"sites,omitempty"`
}

// Tax is a tax by its name and rate.
type Tax struct {
	Name    string `json:"name"`
	Percent string `json:"percent"`
}

// BudgetSpec bounds what a calendar month of a tenant, or a part of it, should cost, net.
type BudgetSpec struct {
	// Amount is in the currency of the tenant's invoices.
	Amount string `json:"amount"`
	// Thresholds are percents of the amount; each is told of once a month. Default: 50, 80, 100.
	Thresholds []int `json:"thresholds,omitempty"`
	// Site, Fleet, App, Device and Labels narrow the budget to what they name.
	Site   string    `json:"site,omitempty"`
	Fleet  string    `json:"fleet,omitempty"`
	App    string    `json:"app,omitempty"`
	Device string    `json:"device,omitempty"`
	Labels *Selector `json:"labels,omitempty"`
}

// BudgetStatus is how much of it is spent.
type BudgetStatus struct {
	Period   string `json:"period"`
	Currency string `json:"currency,omitempty"`
	Spent    string `json:"spent"`
	Percent  int    `json:"percent"`
	// Fired are the thresholds that were crossed in the period.
	Fired []int     `json:"fired,omitempty"`
	As    time.Time `json:"asOf"`
	// Problem says why it is not known what was spent.
	Problem string `json:"problem,omitempty"`
}

// AllThresholds gives the thresholds, lowest first.
func (s *BudgetSpec) AllThresholds() []int {
	if len(s.Thresholds) == 0 {
		return []int{50, 80, 100}
	}
	t := slices.Clone(s.Thresholds)
	slices.Sort(t)
	return slices.Compact(t)
}

var (
	decimalText  = pattern.New(`^[0-9]{1,18}(\.[0-9]{1,18})?$`)
	currencyText = pattern.New(`^[A-Z]{3}$`)
	countryText  = pattern.New(`^[A-Z]{2}$`)
)

// IsDecimal reports whether a text is an amount as plans and decisions have it.
func IsDecimal(s string) bool { return decimalText.MatchString(s) }

// Bounds of plans: what an invoice can show, and integers can count.
const (
	maxPrices   = 256
	maxVersions = 512
	maxTiers    = 64
)

// decimal checks a decimal; zero tells whether 0 makes sense.
func (f *findings) decimal(text, field string, needed, zero bool) {
	switch {
	case text == "" && !needed:
	case !decimalText.MatchString(text):
		f.addf(field, `write a decimal in quotes, such as "0.04"`, "%s is no decimal", quote(text))
	case !zero && !slices.ContainsFunc([]byte(text), func(b byte) bool { return b >= '1' && b <= '9' }):
		f.add(field, "it is zero", "give more than zero, or leave it out")
	}
}

func (f *findings) day(text, field string) {
	if _, err := time.Parse(time.DateOnly, text); err != nil {
		f.addf(field, "write a day as 2026-11-01", "%s is no day", quote(text))
	}
}

func validatePricePlan(s *PricePlanSpec, f *findings) {
	if !currencyText.MatchString(s.Currency) {
		f.addf("spec.currency", "write its three letters (ISO 4217), such as EUR", "%s is no currency", quote(s.Currency))
	}
	if len(s.Versions) == 0 || len(s.Versions) > maxVersions {
		f.addf("spec.versions", "give 1 to 512", "there are %d versions", len(s.Versions))
		return
	}
	for i := range s.Versions {
		v, at := &s.Versions[i], index("spec.versions", i)
		f.day(v.From, join(at, "from"))
		if i > 0 && v.From <= s.Versions[i-1].From {
			f.addf(join(at, "from"), "list versions in the order of their days, each with another", "%s does not come after %s", v.From, s.Versions[i-1].From)
		}
		if len(v.Prices) > maxPrices {
			f.addf(join(at, "prices"), "give 256 at most", "there are %d prices", len(v.Prices))
			continue
		}
		seen := map[string]bool{}
		for j := range v.Prices {
			p, at := &v.Prices[j], index(join(at, "prices"), j)
			validatePrice(p, at, f)
			if seen[p.Name] {
				f.addf(join(at, "name"), "give each price of a version another name", "%s is there twice", quote(p.Name))
			}
			seen[p.Name] = true
		}
		for j, m := range v.Free {
			validateMeter(m, index(join(at, "free"), j), f)
		}
	}
}

func validateMeter(name, field string, f *findings) {
	if name == "" || len(name) > 128 || !Printable(name) {
		f.addf(field, "name a meter, such as cpu or network.rx", "%s is no meter", quote(name))
	}
}

// Printable reports whether a text is short of control characters.
func Printable(s string) bool {
	return !slices.ContainsFunc([]rune(s), func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd })
}

func validatePrice(p *Price, at string, f *findings) {
	validateName(p.Name, join(at, "name"), f)
	validateText(p.Description, join(at, "description"), f)
	if !slices.Contains(priceModels, p.Model) {
		f.addf(join(at, "model"), "the models are flat, graduated, volume, package and subscription", "there is no model %s", quote(p.Model))
		return
	}
	not := func(set bool, field string) {
		if set {
			f.addf(join(at, field), "leave it out, or choose another model", "a price of model %s has none", p.Model)
		}
	}
	subscription, tiered := p.Model == ModelSubscription, p.Model == ModelGraduated || p.Model == ModelVolume
	if subscription {
		for field, text := range map[string]string{"meter": p.Meter, "class": p.Class, "app": p.App, "included": p.Included, "minimum": p.Minimum} {
			not(text != "", field)
		}
		not(p.Per != 0, "per")
		not(p.Labels != nil, "labels")
	} else {
		validateMeter(p.Meter, join(at, "meter"), f)
		if p.Per < 1 {
			f.add(join(at, "per"), "how much a unit is, is not said", "give how many of the meter's base units one unit has: 3600000000 us for a core-hour")
		}
		if p.Unit == "" || len(p.Unit) > 63 || !Printable(p.Unit) {
			f.add(join(at, "unit"), "what is sold has no name", "give one, such as core-hour")
		}
		if known := MeterUnit(p.Meter); p.BaseUnit == "" && known == "" || known != "" && p.BaseUnit != "" && p.BaseUnit != known {
			f.addf(join(at, "baseUnit"), "give the unit that the meter's entries have; those of devices' meters are known", "of what the meter %s counts is not said", quote(p.Meter))
		}
		not(p.PerDevice, "perDevice")
	}
	if p.Labels != nil {
		p.Labels.validate(join(at, "labels"), f)
	}
	f.decimal(p.Amount, join(at, "amount"), !tiered, true)
	not(tiered && p.Amount != "", "amount")
	f.decimal(p.Package, join(at, "package"), p.Model == ModelPackage, false)
	not(p.Model != ModelPackage && p.Package != "", "package")
	f.decimal(p.Included, join(at, "included"), false, true)
	f.decimal(p.Minimum, join(at, "minimum"), false, true)
	f.decimal(p.Tax, join(at, "tax"), false, true)
	not(!tiered && len(p.Tiers) > 0, "tiers")
	if tiered {
		validateTiers(p.Tiers, join(at, "tiers"), f)
	}
}

func validateTiers(tiers []PriceTier, at string, f *findings) {
	if len(tiers) == 0 || len(tiers) > maxTiers {
		f.addf(at, "give 1 to 64, the last without upTo", "there are %d tiers", len(tiers))
		return
	}
	for i, t := range tiers {
		at, last := index(at, i), i == len(tiers)-1
		f.decimal(t.Amount, join(at, "amount"), true, true)
		f.decimal(t.Fixed, join(at, "fixed"), false, true)
		f.decimal(t.UpTo, join(at, "upTo"), !last, false)
		switch {
		case last && t.UpTo != "":
			f.add(join(at, "upTo"), "what is above the last tier has no price", "leave upTo of the last tier out")
		case !last && i > 0 && decimalText.MatchString(t.UpTo) && decimalText.MatchString(tiers[i-1].UpTo) && !decimalLess(tiers[i-1].UpTo, t.UpTo):
			f.addf(join(at, "upTo"), "list tiers from the lowest up", "%s is not above %s", t.UpTo, tiers[i-1].UpTo)
		}
	}
}

// decimalLess compares two decimals.
func decimalLess(a, b string) bool {
	x, ok1 := new(big.Rat).SetString(a)
	y, ok2 := new(big.Rat).SetString(b)
	return ok1 && ok2 && x.Cmp(y) < 0
}

func validateBillingProfile(s *BillingProfileSpec, f *findings) {
	if s.LegalName == "" {
		f.add("spec.legalName", "the invoice has nobody to go to", "give the name that contracts have")
	}
	for field, text := range map[string]string{"legalName": s.LegalName, "taxID": s.TaxID, "contact": s.Contact} {
		validateLine(text, join("spec", field), f)
	}
	if len(s.Address) > 8 {
		f.addf("spec.address", "give 8 lines at most", "the address has %d lines", len(s.Address))
	}
	for i, line := range s.Address {
		validateLine(line, index("spec.address", i), f)
	}
	if s.Country != "" && !countryText.MatchString(s.Country) {
		f.addf("spec.country", "write its two letters (ISO 3166), such as DE", "%s is no country", quote(s.Country))
	}
	if _, err := s.Location(); err != nil {
		f.addf("spec.zone", "write one as Europe/Berlin", "there is no zone %s", quote(s.Zone))
	}
	if s.Currency != "" && !currencyText.MatchString(s.Currency) {
		f.addf("spec.currency", "write its three letters (ISO 4217), such as EUR", "%s is no currency", quote(s.Currency))
	}
	if s.Plan != "" {
		validateName(s.Plan, "spec.plan", f)
	}
	if s.Since != "" {
		f.day(s.Since, "spec.since")
	}
	if s.Tax != nil {
		validateLine(s.Tax.Name, "spec.tax.name", f)
		f.decimal(s.Tax.Percent, "spec.tax.percent", true, true)
	}
	f.decimal(s.CarbonGramsPerKWh, "spec.carbonGramsPerKWh", false, true)
	for _, site := range sortedKeys(s.Sites) {
		validateName(site, join("spec.sites", site), f)
		f.decimal(s.Sites[site], join("spec.sites", site), true, true)
	}
}

func validateLine(s, field string, f *findings) {
	validateText(s, field, f)
	if !Printable(s) {
		f.add(field, "the text has control characters or more than one line", "write it in one line")
	}
}

// Location is the zone in which the tenant's days begin.
func (s *BillingProfileSpec) Location() (*time.Location, error) {
	if s.Zone == "" {
		return time.UTC, nil
	}
	if s.Zone == "Local" {
		return nil, fmt.Errorf("the zone %s is where the core happens to run", s.Zone)
	}
	return time.LoadLocation(s.Zone)
}

func validateBudget(s *BudgetSpec, f *findings) {
	f.decimal(s.Amount, "spec.amount", true, false)
	for i, t := range s.Thresholds {
		if t < 1 || t > 1000 {
			f.addf(index("spec.thresholds", i), "give percents from 1 to 1000", "%d is out of range", t)
		}
	}
	if len(s.Thresholds) > 16 {
		f.addf("spec.thresholds", "give 16 at most", "there are %d thresholds", len(s.Thresholds))
	}
	for field, name := range map[string]string{"site": s.Site, "fleet": s.Fleet, "app": s.App, "device": s.Device} {
		if name != "" {
			validateName(name, join("spec", field), f)
		}
	}
	if s.Labels != nil {
		s.Labels.validate("spec.labels", f)
	}
}

// same compares versions; lists without anything in them are all the same.
func (v PriceVersion) same(o PriceVersion) bool {
	return v.From == o.From && slices.Equal(v.Free, o.Free) && slices.EqualFunc(v.Prices, o.Prices, func(a, b Price) bool {
		a.Tiers, b.Tiers = append([]PriceTier(nil), a.Tiers...), append([]PriceTier(nil), b.Tiers...)
		return reflect.DeepEqual(a, b)
	})
}

// admitPricePlan keeps versions as they are: usage was, or may have been, charged by them.
func admitPricePlan(old, o *Object, f *findings) {
	var was, is PricePlanSpec
	if json.Unmarshal(old.Spec, &was) != nil || json.Unmarshal(orEmpty(o.Spec), &is) != nil {
		return
	}
	if was.Currency != is.Currency {
		f.addf("spec.currency", "make another plan", "the plan is in %s, and stays so", was.Currency)
	}
	for i := range was.Versions {
		at := index("spec.versions", i)
		if i >= len(is.Versions) {
			f.addf("spec.versions", "give all versions, and append a new one", "the version of %s is missing", was.Versions[i].From)
			return
		}
		if !was.Versions[i].same(is.Versions[i]) { // check: versions never change
			f.addf(at, "leave it as it is, and append a version with the day from which the new prices hold", "the version of %s never changes", was.Versions[i].From)
		}
	}
}
