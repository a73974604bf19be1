package billing

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/sfnt"

	"tributary.dev/tributary/pkg/api"
)

// mandatory are the columns that the FinOps Open Cost and Usage Specification 1.2 demands of
// every data set (feature level Mandatory of its column definitions).
var mandatory = strings.Fields(`BilledCost BillingAccountId BillingAccountName BillingCurrency BillingPeriodEnd BillingPeriodStart ChargeCategory ChargeClass ChargeDescription
	ChargePeriodEnd ChargePeriodStart ContractedCost EffectiveCost InvoiceIssuerName ListCost PricingQuantity PricingUnit ProviderName PublisherName ServiceCategory ServiceName`)

// mayBeNull are those of them that the specification lets be null.
var mayBeNull = []string{"BillingAccountName", "ChargeClass", "ChargeDescription", "PricingQuantity", "PricingUnit"}

// values are what the specification allows in columns that take no other.
var values = map[string][]string{
	"ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"}, "ChargeClass": {"", "Correction"}, "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
	"PricingCategory": {"", "Standard", "Dynamic", "Committed", "Other"},
	"ServiceCategory": {"AI and Machine Learning", "Analytics", "Business Applications", "Compute", "Databases", "Developer Tools", "Multicloud", "Identity", "Integration", "Internet of Things",
		"Management and Governance", "Media", "Migration", "Mobile", "Networking", "Security", "Storage", "Web", "Other"},
}

// papersOf makes invoices with every kind of line, and credit notes.
func papersOf(t *testing.T) (w *world, out []*Issued) {
	w = begin(t, "")
	w.entry("acme", entry(80, "a", "x", "=cmd|' /C calc'!A0", 5_000, 1))
	w.use.entries[w.uid["acme"]][len(w.use.entries[w.uid["acme"]])-1].Unit = "1"
	if err := w.Decide(t.Context(), "acme", "2026-11", Decision{Subject: "unpriced/=cmd|' /C calc'!A0//1", Action: ActionPrice, Amount: "0.01", Reason: "as agreed", By: "Ada"}); err != nil {
		t.Fatal(err)
	}
	if day := w.issue1("acme", "2026-11-03"); !day.Issued {
		t.Fatal("not issued", text(day.Blockers))
	}
	month := w.issue1("acme", "2026-11").Document
	if month.Number == "" {
		t.Fatal("not issued")
	}
	w.issue1("beta", "2026-11")
	if _, err := w.Credit(t.Context(), month.Number, "base@2026-01-01", "1", "an outage", "t"); err != nil {
		t.Fatal(err)
	}
	late := entry(90, "a", "x", api.MeterCPU, 1<<40, 7)
	w.now = time.Date(2027, 1, 3, 0, 0, 0, 0, time.UTC)
	late.Received = w.now.Add(-time.Hour)
	w.entry("acme", late)
	w.issue1("acme", "2026-12")
	list, err := w.Documents(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		full, err := w.Document(t.Context(), d.Number)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, full)
	}
	return w, out
}

// The export has what FOCUS 1.2 demands, and sums up to what is to be paid.
func TestFOCUS(t *testing.T) {
	_, papers := papersOf(t)
	categories := map[string]bool{}
	for _, paper := range papers {
		rows, err := csv.NewReader(bytes.NewReader(paper.FOCUS)).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range mandatory {
			if !slices.Contains(rows[0], name) {
				t.Errorf("the column %s is missing", name)
			}
		}
		doc, err := readDocument(paper.JSON)
		if err != nil {
			t.Fatal(err)
		}
		sum := new(big.Rat)
		for _, row := range rows[1:] {
			v := map[string]string{}
			for i, name := range rows[0] {
				v[name] = row[i]
			}
			focusRow(t, v)
			categories[v["ChargeCategory"]+v["ChargeClass"]] = true
			cost, ok := new(big.Rat).SetString(v["BilledCost"])
			if !ok || v["InvoiceId"] != doc.Number {
				t.Fatalf("row %v", v)
			}
			sum.Add(sum, cost)
		}
		if want, _ := new(big.Rat).SetString(doc.Gross.String()); sum.Cmp(want) != 0 {
			t.Errorf("the rows of %s sum up to %s, to be paid are %s", doc.Number, sum.FloatString(2), doc.Gross)
		}
	}
	for _, c := range []string{"Usage", "Purchase", "Tax", "Adjustment", "CreditCorrection", "UsageCorrection"} {
		if !categories[c] {
			t.Errorf("no row of %s is tried", c)
		}
	}
}

func focusRow(t *testing.T, v map[string]string) {
	t.Helper()
	for _, name := range mandatory {
		if v[name] == "" && !slices.Contains(mayBeNull, name) {
			t.Errorf("%s is null: %v", name, v)
		}
	}
	for name, allowed := range values {
		if !slices.Contains(allowed, v[name]) {
			t.Errorf("%s is %q", name, v[name])
		}
	}
	for _, name := range []string{"BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"} {
		if at, err := time.Parse("2006-01-02T15:04:05Z", v[name]); err != nil || at.IsZero() {
			t.Errorf("%s is %q", name, v[name])
		}
	}
	priced := (v["ChargeCategory"] == "Usage" || v["ChargeCategory"] == "Purchase") && v["ChargeClass"] == ""
	for _, name := range []string{"PricingQuantity", "PricingUnit", "PricingCategory", "SkuId", "SkuPriceId"} {
		if priced && v[name] == "" || v["ChargeCategory"] == "Tax" && v[name] != "" {
			t.Errorf("%s of a row of %s is %q", name, v["ChargeCategory"], v[name])
		}
	}
	if (v["PricingQuantity"] == "") != (v["PricingUnit"] == "") || v["ChargeCategory"] != "Usage" && v["ConsumedQuantity"] != "" || priced && v["ChargeCategory"] == "Usage" && v["ConsumedQuantity"] == "" {
		t.Errorf("quantities of %v", v)
	}
	var tags map[string]string
	if v["Tags"] != "" && json.Unmarshal([]byte(v["Tags"]), &tags) != nil {
		t.Errorf("tags %q", v["Tags"])
	}
	for name, text := range v {
		if text != "" && strings.ContainsRune("=+@", rune(text[0])) {
			t.Errorf("%s would be a formula: %s", name, text)
		}
	}
}

// The table of lines has a row for each, and none is a formula.
func TestCSV(t *testing.T) {
	_, papers := papersOf(t)
	for _, paper := range papers {
		rows, err := csv.NewReader(bytes.NewReader(paper.CSV)).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		doc, _ := readDocument(paper.JSON)
		if len(rows) != len(doc.Lines)+1 {
			t.Errorf("%s has %d rows for %d lines", doc.Number, len(rows), len(doc.Lines))
		}
		for _, row := range rows {
			for _, text := range row {
				if text != "" && strings.ContainsRune("=+@", rune(text[0])) {
					t.Errorf("a formula: %s", text)
				}
			}
		}
	}
}

// The same document makes the same PDF; Chinese names are printed by the other font, or by
// their numbers where there is none.
func TestPDF(t *testing.T) {
	_, papers := papersOf(t)
	fonts, err := LoadFonts("")
	if err != nil || fonts.Other == nil {
		t.Fatalf("no font with Chinese, which tests/install-deps installs: %v", err)
	}
	for _, paper := range papers {
		doc, err := readDocument(paper.JSON)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range []Fonts{{}, fonts} {
			a, err := doc.PDF(f)
			if err != nil {
				t.Fatal(err)
			}
			b, err := doc.PDF(f)
			if err != nil || !bytes.Equal(a, b) {
				t.Errorf("%s is printed in two ways", doc.Number)
			}
			if !bytes.HasPrefix(a, []byte("%PDF-")) || !bytes.HasSuffix(bytes.TrimSpace(a), []byte("%%EOF")) {
				t.Errorf("%s is no PDF", doc.Number)
			}
			chinese := strings.Contains(doc.Buyer.LegalName, "北京")
			if embeds := bytes.Contains(a, []byte("utf8other")) || bytes.Count(a, []byte("/FontFile2")) > 2; f.Other != nil && chinese && !embeds {
				t.Errorf("%s has no font with Chinese", doc.Number)
			}
			if dir := os.Getenv("PDF_DIR"); dir != "" {
				name := dir + "/" + doc.Number + map[bool]string{true: "", false: "-bare"}[f.Other != nil] + ".pdf"
				if err := os.WriteFile(name, a, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	s := &sheet{}
	s.main = mustParse(t, false, fonts)
	if got := s.runs("A北"); len(got) != 1 || got[0].text != "A[U+5317]" || !s.lacked {
		t.Errorf("without a font: %v", got)
	}
	s = &sheet{main: mustParse(t, false, fonts), other: mustParse(t, true, fonts)}
	if got := s.runs("A北B"); len(got) != 3 || !got[1].other || got[1].text != "北" || s.lacked {
		t.Errorf("with a font: %v", got)
	}
	if _, err := LoadFonts("/etc/passwd"); api.CodeOf(err) != api.Invalid {
		t.Errorf("a font that is none: %v", err)
	}
}

// A long invoice goes on on the next page.
func TestPDFHasPages(t *testing.T) {
	_, papers := papersOf(t)
	doc, _ := readDocument(papers[1].JSON)
	for range 5 {
		doc.Lines = append(doc.Lines, doc.Lines...)
	}
	b, err := doc.PDF(Fonts{})
	if err != nil || bytes.Count(b, []byte("/Type /Page\n")) < 3 {
		t.Errorf("%d lines are on %d pages, %v", len(doc.Lines), bytes.Count(b, []byte("/Type /Page\n")), err)
	}
}

func mustParse(t *testing.T, other bool, fonts Fonts) *sfnt.Font {
	t.Helper()
	b := goregular.TTF
	if other {
		b = fonts.Other
	}
	f, err := sfnt.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
