package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
)

// invoiceEntry is one document of a list.
type invoiceEntry struct {
	Number, Kind, Tenant, Period, Issued, Credits, Currency, Net, Tax, Gross string
}

// invoiceDoc is what a terminal shows of a document.
type invoiceDoc struct {
	Number, Kind, Credits, Reason, Period, Issued, Currency, Zone, Plan string
	Buyer, Seller                                                       struct{ LegalName, Tenant string }
	Lines                                                               []struct {
		ID, Text, Quantity, Unit, Net, TaxPercent, Tax, Gross string
		EnergyMillijoules                                     int64
	}
	Net, Tax, Gross string
	Taxes           []struct{ Name, Percent, Net, Tax string }
	Usage           struct{ Entries int64 }
	Decisions       []struct{ Subject, Action, Reason, By string }
	// Energy and carbon of all lines.
	EnergyMillijoules, CarbonMilligrams int64
}

// outcome is what a run made of one tenant.
type outcome struct {
	Tenant, Period string
	Document       *invoiceDoc
	Blockers       []struct{ Subject, Period, What, Remedy string }
	Issued         bool
}

// getInvoices lists documents: they are no objects, but people look for them where objects are.
func (a *app) getInvoices(cmd *cobra.Command, o getOptions) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	q := url.Values{}
	if o.tenants {
		q.Set("tenant", "*")
	}
	var raw struct {
		Items json.RawMessage `json:"items"`
	}
	if err := cl.Do(cmd.Context(), http.MethodGet, "/api/v1/invoices", q, nil, &raw); err != nil {
		return err
	}
	var list []invoiceEntry
	if err := json.Unmarshal(raw.Items, &list); err != nil {
		return err
	}
	switch o.output {
	case "json", "yaml":
		return a.printValue(map[string]any{"items": raw.Items}, o.output)
	case "name":
		for _, i := range list {
			fmt.Fprintln(a.Out, i.Number)
		}
		return nil
	case "table", "wide":
	default:
		return badOutput(o.output, "table, json, yaml or name")
	}
	t := &table{header: []string{"NUMBER", "KIND", "TENANT", "PERIOD", "ISSUED", "NET", "TAX", "GROSS", "CREDITS"}}
	for _, i := range list {
		t.rows = append(t.rows, []string{i.Number, i.Kind, i.Tenant, i.Period, i.Issued, i.Net + " " + i.Currency, i.Tax, i.Gross, orDash(i.Credits)})
	}
	if len(list) == 0 {
		fmt.Fprintln(a.Err, "there are no invoices"+a.inTenant())
		return nil
	}
	t.write(a.Out, !o.noHeader)
	return nil
}

// isInvoices reports whether a word names invoices where a kind is expected.
func isInvoices(word string) bool {
	return strings.EqualFold(word, "invoices") || strings.EqualFold(word, "invoice") || strings.EqualFold(word, "inv")
}

func (a *app) invoiceCommand() *cobra.Command {
	c := &cobra.Command{Use: "invoice", Short: "Show, save or credit an invoice", Args: cobra.NoArgs}
	var output string
	show := &cobra.Command{Use: "show NUMBER", Short: "Show an invoice or credit note as a table", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		var raw json.RawMessage
		if err := cl.Do(cmd.Context(), http.MethodGet, "/api/v1/invoices/"+url.PathEscape(args[0]), nil, nil, &raw); err != nil {
			return err
		}
		return a.showInvoice(raw, output)
	}}
	outputFlag(show, &output, "table, json or yaml")
	c.AddCommand(show, a.creditCommand())
	for format, what := range map[string]string{"pdf": "the PDF", "csv": "its lines as CSV", "focus": "the FOCUS 1.2 export", "json": "the JSON, byte for byte as it was issued"} {
		c.AddCommand(a.saveInvoice(format, what))
	}
	return c
}

func (a *app) showInvoice(raw json.RawMessage, output string) error {
	switch output {
	case "json", "yaml":
		return a.printValue(raw, output)
	case "table":
		var d invoiceDoc
		if err := json.Unmarshal(raw, &d); err != nil {
			return err
		}
		a.printInvoice(&d)
		return nil
	}
	return badOutput(output, "table, json or yaml")
}

// saveInvoice writes one form of a document to a file, or to standard output.
func (a *app) saveInvoice(format, what string) *cobra.Command {
	var file string
	c := &cobra.Command{Use: format + " NUMBER", Short: "Save " + what, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		body, err := cl.Open(cmd.Context(), http.MethodGet, "/api/v1/invoices/"+url.PathEscape(args[0])+"/"+format, nil, nil, "")
		if err != nil {
			return err
		}
		defer body.Close()
		b, err := io.ReadAll(io.LimitReader(body, 256<<20))
		if err != nil {
			return &api.Error{Code: api.Unavailable, Message: "the answer was cut off", Remedy: "try again", Err: err}
		}
		if file == "-" {
			_, err = a.Out.Write(b)
			return err
		}
		if file == "" {
			file = args[0] + map[string]string{"focus": ".focus.csv"}[format]
			if format != "focus" {
				file += "." + format
			}
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(a.Err, "%s: %s\n", file, bytesText(uint64(len(b))))
		return nil
	}}
	c.Flags().StringVarP(&file, "file", "f", "", "where to (default: NUMBER."+format+" here); - is standard output")
	return c
}

// printInvoice draws a document.
func (a *app) printInvoice(d *invoiceDoc) {
	title := map[string]string{"invoice": "Invoice", "credit-note": "Credit note", "draft": "Draft"}[d.Kind]
	fmt.Fprintln(a.Out, printable(strings.TrimSpace(fmt.Sprintf("%s %s of %s (%s), issued %s", title, d.Number, d.Period, d.Zone, orDash(d.Issued)))))
	fmt.Fprintln(a.Out, printable(d.Seller.LegalName+" to "+d.Buyer.LegalName+" ("+d.Buyer.Tenant+"), plan "+d.Plan))
	if d.Credits != "" {
		fmt.Fprintln(a.Out, printable("credits "+d.Credits+": "+d.Reason))
	}
	fmt.Fprintln(a.Out)
	t := &table{header: []string{"LINE", "ID", "QUANTITY", "NET", "TAX %", "TAX", "GROSS", "ENERGY"}}
	for _, l := range d.Lines {
		t.rows = append(t.rows, []string{clip(l.Text, 48), clip(l.ID, 40), orDash(strings.TrimSpace(l.Quantity + " " + l.Unit)), l.Net, l.TaxPercent, l.Tax, l.Gross, kWh(l.EnergyMillijoules)})
	}
	t.rows = append(t.rows, []string{"total", "", d.Currency, d.Net, "", d.Tax, d.Gross, kWh(d.EnergyMillijoules)})
	t.write(a.Out, true)
	fmt.Fprintln(a.Out)
	for _, x := range d.Taxes {
		fmt.Fprintln(a.Out, printable(fmt.Sprintf("%s %s %% of %s: %s", x.Name, x.Percent, x.Net, x.Tax)))
	}
	if d.CarbonMilligrams > 0 {
		fmt.Fprintf(a.Out, "carbon: %.3f kg CO2e\n", float64(d.CarbonMilligrams)/1e6)
	}
	for _, x := range d.Decisions {
		fmt.Fprintln(a.Out, printable("decided by "+x.By+": "+x.Subject+": "+x.Action+" ("+x.Reason+")"))
	}
	fmt.Fprintf(a.Out, "of %d entries of usage\n", d.Usage.Entries)
}

func kWh(mj int64) string {
	if mj == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f kWh", float64(mj)/3.6e9)
}

func (a *app) creditCommand() *cobra.Command {
	var in struct {
		Line   string `json:"line,omitempty"`
		Amount string `json:"amount,omitempty"`
		Reason string `json:"reason"`
	}
	c := &cobra.Command{Use: "credit NUMBER --reason TEXT [--line ID --amount NET]", Short: "Issue a credit note: of the whole invoice, or of an amount of a line", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if err := cl.Do(cmd.Context(), http.MethodPost, "/api/v1/invoices/"+url.PathEscape(args[0])+"/credit", nil, in, &raw); err != nil {
				return err
			}
			return a.showInvoice(raw, "table")
		}}
	c.Flags().StringVar(&in.Line, "line", "", "id of the line (default: the whole invoice)")
	c.Flags().StringVar(&in.Amount, "amount", "", "how much of the line, net")
	c.Flags().StringVar(&in.Reason, "reason", "", "why; it is printed")
	c.MarkFlagsRequiredTogether("line", "amount")
	return c
}

func (a *app) billingCommand() *cobra.Command {
	c := &cobra.Command{Use: "billing", Short: "Make drafts, issue invoices, decide what blocks them, forecast", Args: cobra.NoArgs}
	c.AddCommand(a.billingRun("draft", "Show what the invoice of a period would be as of now", false), a.billingRun("issue", "Issue the invoice of a period; one that is issued stays as it is", true), a.decideCommand(), a.forecastCommand())
	return c
}

func (a *app) billingRun(use, short string, final bool) *cobra.Command {
	var tenants bool
	var output string
	c := &cobra.Command{Use: use + " PERIOD", Short: short, Long: short + ".\n\nA period is a month (2026-11) or a day (2026-11-23) in the tenant's zone, or an hour of UTC (2026-11-23T14Z).", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			q := url.Values{}
			if tenants {
				q.Set("tenant", "*")
			}
			var raw json.RawMessage
			if err := cl.Do(cmd.Context(), http.MethodPost, "/api/v1/billing/run", q, map[string]any{"period": args[0], "final": final}, &raw); err != nil {
				return err
			}
			if output == "json" || output == "yaml" {
				return a.printValue(raw, output)
			}
			if output != "table" {
				return badOutput(output, "table, json or yaml")
			}
			var list struct{ Items []outcome }
			if err := json.Unmarshal(raw, &list); err != nil {
				return err
			}
			return a.printOutcomes(list.Items, final)
		}}
	c.Flags().BoolVarP(&tenants, "all-tenants", "A", false, "of every tenant that has a plan")
	outputFlag(c, &output, "table, json or yaml")
	return c
}

func (a *app) printOutcomes(list []outcome, final bool) error {
	blocked := 0
	for i, o := range list {
		if i > 0 {
			fmt.Fprintln(a.Out)
		}
		if o.Document != nil {
			a.printInvoice(o.Document)
		}
		for _, b := range o.Blockers {
			fmt.Fprintln(a.Out, printable("blocked: "+b.What))
			fmt.Fprintln(a.Out, "  → "+printable(b.Remedy))
		}
		if len(o.Blockers) > 0 {
			blocked++
		}
	}
	if final && blocked > 0 {
		return &api.Error{Code: api.Conflict, Message: fmt.Sprintf("%d of %d invoices are blocked", blocked, len(list)), Remedy: "do what stands below each, and issue again"}
	}
	return nil
}

func (a *app) decideCommand() *cobra.Command {
	in := struct {
		Period  string `json:"period"`
		Subject string `json:"subject"`
		Action  string `json:"action"`
		Amount  string `json:"amount,omitempty"`
		Unit    string `json:"unit,omitempty"`
		Per     int64  `json:"per,omitempty"`
		Reason  string `json:"reason"`
	}{}
	c := &cobra.Command{Use: "decide PERIOD SUBJECT waive|zero|price --reason TEXT", Short: "Decide about unpriced usage or a gap that blocks an invoice", Args: cobra.ExactArgs(3),
		Long: "Decide about unpriced usage or a gap that blocks an invoice; a draft names the subjects.\n\nwaive charges nothing, zero makes a line of nothing, price charges --amount (of usage: for each --per base units). It is recorded, with who decided and why.",
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			in.Period, in.Subject, in.Action = args[0], args[1], args[2]
			return cl.Do(cmd.Context(), http.MethodPost, "/api/v1/billing/decide", nil, in, nil)
		}}
	c.Flags().StringVar(&in.Amount, "amount", "", "with price: a decimal, net")
	c.Flags().Int64Var(&in.Per, "per", 0, "with price: how many base units a unit is (default 1)")
	c.Flags().StringVar(&in.Unit, "unit", "", "with price: the unit's name")
	c.Flags().StringVar(&in.Reason, "reason", "", "why; it is printed")
	return c
}

func (a *app) forecastCommand() *cobra.Command {
	var output string
	c := &cobra.Command{Use: "forecast", Short: "Show what the month will cost, and how far the method was off on earlier days", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		var raw json.RawMessage
		if err := cl.Do(cmd.Context(), http.MethodGet, "/api/v1/forecast", nil, nil, &raw); err != nil {
			return err
		}
		if output == "json" || output == "yaml" {
			return a.printValue(raw, output)
		}
		if output != "table" {
			return badOutput(output, "table, json or yaml")
		}
		var f struct {
			Tenant, Period, Currency, Spent, Expected string
			ErrorPercent                              float64
			Tried, Days                               int
			Blockers                                  []struct{ What string }
		}
		if err := json.Unmarshal(raw, &f); err != nil {
			return err
		}
		off := "unknown"
		if f.Tried > 0 {
			off = fmt.Sprintf("%.1f %% (%d days tried)", f.ErrorPercent, f.Tried)
		}
		t := &table{header: []string{"TENANT", "PERIOD", "SPENT", "EXPECTED", "DAYS LEFT", "MEAN ERROR"}}
		t.rows = [][]string{{f.Tenant, f.Period, f.Spent + " " + f.Currency, f.Expected + " " + f.Currency, strconv.Itoa(f.Days), off}}
		t.write(a.Out, true)
		for _, b := range f.Blockers {
			fmt.Fprintln(a.Out, printable("not in it: "+b.What))
		}
		return nil
	}}
	outputFlag(c, &output, "table, json or yaml")
	return c
}

func (a *app) costCommand() *cobra.Command {
	var by, period, output string
	var tenants bool
	c := &cobra.Command{Use: "cost", Short: "Show what a period costs so far, by app, site, fleet, device, label or tenant", Args: cobra.NoArgs,
		Example: "  edgectl cost --by site\n  edgectl cost --by label:team --period 2026-10\n  edgectl cost --by tenant -A",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			q := url.Values{"by": {by}}
			if period != "" {
				q.Set("period", period)
			}
			if tenants {
				q.Set("tenant", "*")
			}
			return a.cost(cmd, cl, q, output)
		}}
	c.Flags().StringVar(&by, "by", "app", "tenant, site, fleet, app, service, device, line, or label:KEY")
	c.Flags().StringVar(&period, "period", "", "a month, a day, or an hour of UTC (default: this month)")
	c.Flags().BoolVarP(&tenants, "all-tenants", "A", false, "of every tenant that has a plan")
	outputFlag(c, &output, "table, json or yaml")
	return c
}

func (a *app) cost(cmd *cobra.Command, cl *client.Client, q url.Values, output string) error {
	var raw struct {
		Items json.RawMessage `json:"items"`
	}
	if err := cl.Do(cmd.Context(), http.MethodGet, "/api/v1/cost", q, nil, &raw); err != nil {
		return err
	}
	if output == "json" || output == "yaml" {
		return a.printValue(raw, output)
	}
	if output != "table" {
		return badOutput(output, "table, json or yaml")
	}
	var list []struct {
		Tenant, Period, Currency, Net string
		AsOf                          time.Time
		Rows                          []struct {
			Name, Net         string
			EnergyMillijoules int64
		}
		Blockers []struct{ What string }
	}
	if err := json.Unmarshal(raw.Items, &list); err != nil {
		return err
	}
	t := &table{header: []string{"TENANT", "PERIOD", strings.ToUpper(q.Get("by")), "NET", "ENERGY"}}
	for _, c := range list {
		for _, r := range c.Rows {
			t.rows = append(t.rows, []string{c.Tenant, c.Period, orDash(r.Name), r.Net + " " + c.Currency, kWh(r.EnergyMillijoules)})
		}
		t.rows = append(t.rows, []string{c.Tenant, c.Period, "total", c.Net + " " + c.Currency, ""})
	}
	t.write(a.Out, true)
	for _, c := range list {
		for _, b := range c.Blockers {
			fmt.Fprintln(a.Out, printable("not in it ("+c.Tenant+"): "+b.What))
		}
	}
	return nil
}
