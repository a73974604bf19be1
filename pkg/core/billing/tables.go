package billing

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"math/big"
	"strconv"
	"strings"
	"time"
)

func writeCSV(rows [][]string) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	if err := w.WriteAll(rows); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// cell keeps a text that outside usage chose from being a formula where a table is opened.
func cell(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}

// CSV is the document's lines as a table (RFC 4180).
func (d *Document) CSV() ([]byte, error) {
	rows := [][]string{{"number", "kind", "credits", "period", "issued", "buyer", "line", "lineKind", "text", "corrects", "from", "to", "quantity", "unit", "baseQuantity", "baseUnit",
		"currency", "net", "taxPercent", "tax", "gross", "energyMillijoules", "carbonMilligrams", "reason"}}
	for i := range d.Lines {
		l := &d.Lines[i]
		rows = append(rows, []string{d.Number, d.Kind, d.Credits, d.Period, d.Issued, cell(d.Buyer.LegalName), cell(l.ID), l.Kind, cell(l.Text), l.Corrects, l.From.Format(time.RFC3339), l.To.Format(time.RFC3339),
			l.Quantity, cell(l.Unit), l.BaseQuantity, cell(l.BaseUnit), d.Currency, l.Net.String(), l.TaxPercent, l.Tax.String(), l.Gross.String(),
			strconv.FormatInt(l.EnergyMillijoules, 10), strconv.FormatInt(l.CarbonMilligrams, 10), cell(l.Reason)})
	}
	return writeCSV(rows)
}

// focusColumns are those of the FinOps Open Cost and Usage Specification 1.2 that are told
// (all mandatory ones, and of the others what there is), and ours, which begin with x_.
var focusColumns = []string{"BilledCost", "BillingAccountId", "BillingAccountName", "BillingAccountType", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
	"ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "EffectiveCost",
	"InvoiceId", "InvoiceIssuerName", "ListCost", "PricingCategory", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "RegionId", "RegionName",
	"ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "SkuId", "SkuMeter", "SkuPriceId", "Tags",
	"x_App", "x_Corrects", "x_EnergyMillijoules", "x_Fleet", "x_Service"}

// FOCUS is the document by the FinOps Open Cost and Usage Specification 1.2: a row for each
// part of a line, and one for each line's tax. An empty field is null. No unit prices are
// told: a line is rounded, and tiers have no one price.
func (d *Document) FOCUS() ([]byte, error) {
	rows := [][]string{focusColumns}
	for i := range d.Lines {
		l := &d.Lines[i]
		for j := range l.Parts {
			rows = append(rows, d.focusRow(l, &l.Parts[j], l.Parts[j].Net))
		}
		if l.Tax.Minor != 0 {
			rows = append(rows, d.focusRow(l, nil, l.Tax))
		}
	}
	return writeCSV(rows)
}

// focusRow is one row; a nil part is the line's tax.
func (d *Document) focusRow(l *Line, p *Part, cost Money) []string {
	seller := cell(cmp.Or(d.Seller.LegalName, d.Seller.Tenant))
	v := map[string]string{"BilledCost": cost.String(), "ContractedCost": cost.String(), "EffectiveCost": cost.String(), "ListCost": cost.String(),
		"BillingAccountId": d.Buyer.UID, "BillingAccountName": cell(d.Buyer.LegalName), "BillingAccountType": "Tenant", "BillingCurrency": d.Currency,
		"BillingPeriodStart": focusTime(d.From), "BillingPeriodEnd": focusTime(d.To), "ChargePeriodStart": focusTime(l.From), "ChargePeriodEnd": focusTime(l.To),
		"ChargeDescription": cell(l.Text), "InvoiceId": d.Number, "InvoiceIssuerName": seller, "ProviderName": seller, "PublisherName": seller,
		"ServiceCategory": serviceCategory(l), "ServiceName": cell(serviceName(l)), "x_Corrects": l.Corrects}
	v["ChargeCategory"], v["ChargeFrequency"] = "Usage", "Usage-Based"
	switch {
	case p == nil:
		v["ChargeCategory"], v["ChargeDescription"], v["ChargeFrequency"] = "Tax", "Tax of "+l.TaxPercent+" % on "+l.Text, "One-Time"
	case l.Kind == LineSubscription:
		v["ChargeCategory"], v["ChargeFrequency"] = "Purchase", "Recurring"
	case l.Kind == LineInterim:
		v["ChargeCategory"], v["ChargeFrequency"] = "Adjustment", "One-Time"
	case l.Kind == LineCredit:
		v["ChargeCategory"], v["ChargeFrequency"] = "Credit", "One-Time"
	}
	if l.Kind == LineCorrection || d.Kind == KindCreditNote {
		v["ChargeClass"] = "Correction"
	}
	if p != nil {
		d.focusPart(v, l, p)
	}
	row := make([]string, len(focusColumns))
	for i, name := range focusColumns {
		row[i] = v[name]
	}
	return row
}

// focusPart tells what a part of a line is of.
func (d *Document) focusPart(v map[string]string, l *Line, p *Part) {
	v["RegionId"], v["RegionName"], v["ResourceId"], v["ResourceName"], v["Tags"] = p.Site, p.Site, p.Device, p.DeviceName, p.Labels
	v["x_App"], v["x_Fleet"], v["x_Service"], v["x_EnergyMillijoules"] = cell(p.AppName), p.Fleet, cell(p.Service), strconv.FormatInt(p.EnergyMillijoules, 10)
	if p.Device != "" {
		v["ResourceType"] = "Device"
	}
	if kind := v["ChargeCategory"]; kind != "Usage" && kind != "Purchase" {
		return
	}
	v["PricingCategory"] = "Standard"
	name, _, _ := strings.Cut(l.ID, "@")
	v["SkuId"], v["SkuPriceId"], v["SkuMeter"] = cell(d.Plan+"/"+name), cell(d.Plan+"/"+l.ID), cell(cmp.Or(l.Meter, "subscription"))
	switch {
	case l.Kind == LineSubscription:
		if q, ok := new(big.Rat).SetString(l.Quantity); ok {
			v["PricingQuantity"], v["PricingUnit"] = trimmed(q.Quo(q, big.NewRat(int64(len(l.Parts)), 1))), l.Unit
		}
	case p.BaseQuantity != "":
		v["ConsumedQuantity"], v["ConsumedUnit"] = p.BaseQuantity, cell(l.BaseUnit)
		if q, ok := new(big.Rat).SetString(p.BaseQuantity); ok {
			v["PricingQuantity"], v["PricingUnit"] = trimmed(q.Quo(q, big.NewRat(max(l.Per, 1), 1))), cell(l.Unit)
		}
	default:
		v["ConsumedQuantity"], v["ConsumedUnit"], v["PricingQuantity"], v["PricingUnit"] = "1", "Count", "1", "Count"
	}
}

func trimmed(q *big.Rat) string {
	return strings.TrimSuffix(strings.TrimRight(q.FloatString(12), "0"), ".")
}

func focusTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

func serviceName(l *Line) string {
	switch {
	case l.Meter != "":
		return l.Meter
	case l.Kind == LineSubscription:
		return "subscription"
	}
	return "billing"
}

// serviceCategory is one of those that the specification knows.
func serviceCategory(l *Line) string {
	switch {
	case strings.HasPrefix(l.Meter, "gpu.") || l.Meter == "inferences":
		return "AI and Machine Learning"
	case strings.HasPrefix(l.Meter, "network.") || l.Meter == "vf":
		return "Networking"
	case l.Meter == "storage":
		return "Storage"
	case l.Meter == "cpu" || l.Meter == "memory" || l.Meter == "runtime":
		return "Compute"
	case l.Kind == LineSubscription:
		return "Internet of Things"
	}
	return "Other"
}
