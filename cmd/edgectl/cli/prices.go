package cli

import (
	"fmt"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// billingColumns chooses the columns of the kinds that say what usage costs, and who pays.
func (a *app) billingColumns(t *table, kind string) {
	switch kind {
	case api.KindPricePlan:
		t.header = []string{"NAME", "CURRENCY", "VERSIONS", "NEWEST", "PRICES", "AGE"}
		t.row = a.planRow
	case api.KindBillingProfile:
		t.header = []string{"NAME", "LEGAL NAME", "ZONE", "CURRENCY", "PLAN", "TAX", "AGE"}
		t.row = a.profileRow
	case api.KindBudget:
		t.header = []string{"NAME", "AMOUNT", "OF", "PERIOD", "SPENT", "PERCENT", "TOLD", "AGE"}
		t.row = a.budgetRow
	}
}

func (a *app) planRow(o *api.Object) []string {
	var s api.PricePlanSpec
	_ = readSpec(o, &s)
	newest, prices := "-", "-"
	if n := len(s.Versions); n > 0 {
		newest = s.Versions[n-1].From
		var names []string
		for _, p := range s.Versions[n-1].Prices {
			names = append(names, p.Name)
		}
		prices = orDash(clip(strings.Join(names, ","), 60))
	}
	return []string{o.Metadata.Name, s.Currency, strconv.Itoa(len(s.Versions)), newest, prices, a.age(o.Metadata.Created)}
}

func (a *app) profileRow(o *api.Object) []string {
	var s api.BillingProfileSpec
	_ = readSpec(o, &s)
	tax := "-"
	if s.Tax != nil {
		tax = s.Tax.Name + " " + s.Tax.Percent + " %"
	}
	zone := s.Zone
	if zone == "" {
		zone = "UTC"
	}
	return []string{o.Metadata.Name, clip(s.LegalName, 40), zone, orDash(s.Currency), orDash(s.Plan), tax, a.age(o.Metadata.Created)}
}

func (a *app) budgetRow(o *api.Object) []string {
	var s api.BudgetSpec
	var st api.BudgetStatus
	_ = readSpec(o, &s)
	_ = readStatus(o, &st)
	var of, told []string
	for _, part := range [][2]string{{"site", s.Site}, {"fleet", s.Fleet}, {"app", s.App}, {"device", s.Device}} {
		if part[1] != "" {
			of = append(of, part[0]+" "+part[1])
		}
	}
	if s.Labels != nil {
		of = append(of, s.Labels.String())
	}
	for _, n := range st.Fired {
		told = append(told, strconv.Itoa(n))
	}
	percent := "-"
	if st.Period != "" {
		percent = fmt.Sprintf("%d %%", st.Percent)
	}
	spent := strings.TrimSpace(st.Spent + " " + st.Currency)
	if st.Problem != "" {
		spent = "unknown"
	}
	return []string{o.Metadata.Name, s.Amount, orDash(clip(strings.Join(of, ", "), 40)), orDash(st.Period), orDash(spent), percent, orDash(strings.Join(told, ",")), a.age(o.Metadata.Created)}
}
