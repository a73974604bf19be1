package api

import (
	"encoding/json"
	"strings"
	"testing"
)

func priced(kind, name, spec string) *Object {
	return &Object{APIVersion: Version, Kind: kind, Metadata: Meta{Tenant: DefaultTenant, Name: name}, Spec: json.RawMessage(spec)}
}

// What makes no sense of prices, profiles and budgets is refused with its place.
func TestBillingKindsAreChecked(t *testing.T) {
	plan := func(price string) string {
		return `{"currency":"EUR","versions":[{"from":"2026-01-01","prices":[` + price + `]}]}`
	}
	for _, c := range []struct{ kind, name, spec, field string }{
		{KindPricePlan, "p", plan(`{"name":"cpu","model":"flat","meter":"cpu","unit":"core-hour","per":3600000000,"amount":"0.04"}`), ""},
		{KindPricePlan, "p", plan(`{"name":"x","model":"graduated","meter":"cpu","unit":"u","per":1,"tiers":[{"upTo":"9.5","amount":"1"},{"upTo":"10","amount":"1"},{"amount":"0"}]}`), ""},
		{KindPricePlan, "p", plan(`{"name":"x","model":"graduated","meter":"cpu","unit":"u","per":1,"tiers":[{"upTo":"10","amount":"1"},{"upTo":"9.5","amount":"1"},{"amount":"0"}]}`), "spec.versions[0].prices[0].tiers[1].upTo"},
		{KindPricePlan, "p", plan(`{"name":"x","model":"volume","meter":"cpu","unit":"u","per":1,"tiers":[{"upTo":"10","amount":"1"}]}`), "spec.versions[0].prices[0].tiers[0].upTo"},
		{KindPricePlan, "p", plan(`{"name":"x","model":"flat","meter":"cpu","unit":"u","per":0,"amount":"1"}`), "spec.versions[0].prices[0].per"},
		{KindPricePlan, "p", plan(`{"name":"x","model":"flat","meter":"cpu","unit":"u","per":1,"amount":"1e3"}`), "spec.versions[0].prices[0].amount"},
		{KindPricePlan, "p", plan(`{"name":"x","model":"flat","meter":"own","unit":"u","per":1,"amount":"1"}`), "spec.versions[0].prices[0].baseUnit"},
		{KindPricePlan, "p", plan(`{"name":"x","model":"package","meter":"cpu","unit":"u","per":1,"amount":"1","package":"0.0"}`), "spec.versions[0].prices[0].package"},
		{KindPricePlan, "p", plan(`{"name":"x","model":"subscription","amount":"1","meter":"cpu"}`), "spec.versions[0].prices[0].meter"},
		{KindPricePlan, "p", `{"currency":"EUR","versions":[{"from":"2026-02-01","prices":[]},{"from":"2026-01-31","prices":[]}]}`, "spec.versions[1].from"},
		{KindPricePlan, "p", `{"currency":"EUR","versions":[{"from":"2026-02-30","prices":[]}]}`, "spec.versions[0].from"},
		{KindBillingProfile, "billing", `{"legalName":"北京边缘科技有限公司","zone":"Asia/Shanghai","tax":{"name":"VAT","percent":"6"}}`, ""},
		{KindBillingProfile, "other", `{"legalName":"x"}`, "metadata.name"},
		{KindBillingProfile, "billing", `{"legalName":"x","zone":"Mars/Olympus"}`, "spec.zone"},
		{KindBillingProfile, "billing", `{"legalName":"x","zone":"Local"}`, "spec.zone"},
		{KindBillingProfile, "billing", `{"legalName":"a\nb"}`, "spec.legalName"},
		{KindBudget, "b", `{"amount":"100","thresholds":[50,100]}`, ""},
		{KindBudget, "b", `{"amount":"0"}`, "spec.amount"},
		{KindBudget, "b", `{"amount":"1","thresholds":[0]}`, "spec.thresholds[0]"},
	} {
		err := Validate(priced(c.kind, c.name, c.spec))
		if c.field == "" && err != nil || c.field != "" && (err == nil || !strings.Contains(err.Error(), c.field+": ")) {
			t.Errorf("%s %s: %v, want a fault at %q", c.kind, c.spec, err, c.field)
		}
	}
}

// A version of a plan never changes; new ones are appended.
func TestPriceVersionsNeverChange(t *testing.T) {
	version := func(from, amount string) string {
		return `{"from":"` + from + `","prices":[{"name":"cpu","model":"flat","meter":"cpu","unit":"s","per":1000000,"amount":"` + amount + `"}]}`
	}
	of := func(currency string, versions ...string) *Object {
		return priced(KindPricePlan, "p", `{"currency":"`+currency+`","versions":[`+strings.Join(versions, ",")+`]}`)
	}
	old := of("EUR", version("2026-01-01", "1"), version("2026-02-01", "2"))
	for what, c := range map[string]struct {
		o     *Object
		field string
	}{
		"as it is":  {of("EUR", version("2026-01-01", "1"), version("2026-02-01", "2")), ""},
		"appended":  {of("EUR", version("2026-01-01", "1"), version("2026-02-01", "2"), version("2026-03-01", "3")), ""},
		"changed":   {of("EUR", version("2026-01-01", "1"), version("2026-02-01", "2.5")), "spec.versions[1]"},
		"moved":     {of("EUR", version("2026-01-01", "1"), version("2026-02-02", "2")), "spec.versions[1]"},
		"dropped":   {of("EUR", version("2026-01-01", "1")), "spec.versions"},
		"before":    {of("EUR", version("2025-01-01", "1"), version("2026-01-01", "1"), version("2026-02-01", "2")), "spec.versions[0]"},
		"in pounds": {of("GBP", version("2026-01-01", "1"), version("2026-02-01", "2")), "spec.currency"},
	} {
		_, err := Admit(old, c.o)
		if c.field == "" && err != nil || c.field != "" && (err == nil || !strings.Contains(err.Error(), c.field+": ")) {
			t.Errorf("%s: %v, want a fault at %q", what, err, c.field)
		}
	}
}
