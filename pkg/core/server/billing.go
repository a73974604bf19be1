package server

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/billing"
	"tributary.dev/tributary/pkg/core/store"
)

// Billing answers for what tenants owe; tenants are named, but in documents known by uid.
type Billing interface {
	// Run makes drafts of a period, or issues its invoices.
	Run(ctx context.Context, tenants []string, period, actor string, final bool) ([]*billing.Outcome, error)
	// Decide records a decision about what blocks a period.
	Decide(ctx context.Context, tenant, period string, d billing.Decision) error
	// Credit issues a credit note of an invoice, or of an amount of a line of it.
	Credit(ctx context.Context, number, line, amount, reason, actor string) (*billing.Document, error)
	// Documents lists what was issued to a tenant by its uid, or to all for "".
	Documents(ctx context.Context, uid string) ([]*billing.Issued, error)
	Document(ctx context.Context, number string) (*billing.Issued, error)
	Cost(ctx context.Context, tenant, period, by string) (*billing.Cost, error)
	Forecast(ctx context.Context, tenant string) (*billing.Forecast, error)
	// Tenants lists who has a plan.
	Tenants(ctx context.Context) ([]string, error)
}

// InvoiceEntry is one document of a list.
type InvoiceEntry struct {
	Number   string        `json:"number"`
	Kind     string        `json:"kind" enum:"invoice,credit-note"`
	Tenant   string        `json:"tenant"`
	Period   string        `json:"period"`
	Issued   string        `json:"issued"`
	Credits  string        `json:"credits,omitempty"`
	Currency string        `json:"currency"`
	Net      billing.Money `json:"net"`
	Tax      billing.Money `json:"tax"`
	Gross    billing.Money `json:"gross"`
}

type (
	invoiceList struct {
		Items []InvoiceEntry `json:"items"`
	}
	// InvoicePath names one document.
	InvoicePath struct {
		Number string `path:"number" maxLength:"63"`
	}
	fileInput struct {
		InvoicePath
		Format string `path:"format" enum:"json,csv,pdf,focus" doc:"The form: all were made when the document was issued."`
	}
	fileOutput struct {
		ContentType string `header:"Content-Type"`
		Disposition string `header:"Content-Disposition"`
		Body        []byte
	}
	runInput struct {
		TenantQuery
		Body struct {
			Period string `json:"period" maxLength:"63" doc:"A month (2026-11), a day (2026-11-23) in the tenant's zone, or an hour of UTC (2026-11-23T14Z)."`
			Final  bool   `json:"final,omitempty" doc:"Issue the invoice; without it, only show what it would be."`
		}
	}
	runOutput struct {
		Body struct {
			Items []*billing.Outcome `json:"items"`
		}
	}
	decideInput struct {
		TenantQuery
		Body struct {
			Period  string `json:"period" maxLength:"63"`
			Subject string `json:"subject" maxLength:"512" doc:"As a draft's blockers have it."`
			Action  string `json:"action" enum:"waive,zero,price"`
			Amount  string `json:"amount,omitempty" maxLength:"40" doc:"With price: of unpriced usage for each unit of per base units, of a gap for all of it."`
			Unit    string `json:"unit,omitempty" maxLength:"63"`
			Per     int64  `json:"per,omitempty" minimum:"0"`
			Reason  string `json:"reason" maxLength:"1024"`
		}
	}
	creditInput struct {
		InvoicePath
		Body struct {
			Line   string `json:"line,omitempty" maxLength:"512" doc:"The id of a line; without it the whole invoice is taken back."`
			Amount string `json:"amount,omitempty" maxLength:"40" doc:"Net, with line."`
			Reason string `json:"reason" maxLength:"1024"`
		}
	}
	costInput struct {
		TenantQuery
		Period string `query:"period" maxLength:"63" doc:"The current month without it."`
		By     string `query:"by" maxLength:"320" default:"app" doc:"tenant, site, fleet, app, service, device, line, or label:KEY."`
	}
	costList struct {
		Items []*billing.Cost `json:"items"`
	}
)

func (s *Server) billingRoutes() {
	if s.cfg.Billing == nil {
		return
	}
	op := func(id, method, path, summary string, needs access.Action, answer *huma.Schema) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"billing"}, MaxBodyBytes: maxBody, BodyReadTimeout: readDeadline,
			Middlewares: s.needs(needs, Each), Responses: s.responses(http.StatusOK, answer)}
	}
	huma.Register(s.api, op("list-invoices", http.MethodGet, "/api/v1/invoices", "Invoices and credit notes, oldest first", access.Read, s.schemaOf(new(invoiceList))),
		func(ctx context.Context, in *TenantQuery) (*struct{ Body invoiceList }, error) {
			items, err := s.invoices(ctx, in.Tenant)
			return &struct{ Body invoiceList }{invoiceList{items}}, s.fail(err)
		})
	huma.Register(s.api, op("get-invoice", http.MethodGet, "/api/v1/invoices/{number}", "One invoice or credit note", access.Read, s.schemaOf(new(billing.Document))),
		func(ctx context.Context, in *InvoicePath) (*struct{ Body json.RawMessage }, error) {
			d, _, err := s.invoice(ctx, in.Number)
			if err != nil {
				return nil, s.fail(err)
			}
			return &struct{ Body json.RawMessage }{d.JSON}, nil
		})
	file := op("get-invoice-file", http.MethodGet, "/api/v1/invoices/{number}/{format}", "The bytes of one as they were issued", access.Read, nil)
	file.Responses["200"].Content = map[string]*huma.MediaType{"application/pdf": {}, "text/csv": {}, "application/json": {}}
	huma.Register(s.api, file, s.invoiceFile)
	huma.Register(s.api, op("credit-invoice", http.MethodPost, "/api/v1/invoices/{number}/credit", "Issue a credit note", access.Bill, s.schemaOf(new(billing.Document))),
		func(ctx context.Context, in *creditInput) (*struct{ Body *billing.Document }, error) {
			_, tenant, err := s.invoice(ctx, in.Number)
			if err == nil {
				err = s.may(ctx, access.Bill, access.Resource{Tenant: tenant, Kind: access.Invoice, Name: in.Number})
			}
			if err != nil {
				return nil, s.fail(err)
			}
			note, err := s.cfg.Billing.Credit(ctx, in.Number, in.Body.Line, in.Body.Amount, in.Body.Reason, CallerOf(ctx).Name)
			return &struct{ Body *billing.Document }{note}, s.fail(err)
		})
	huma.Register(s.api, op("run-billing", http.MethodPost, "/api/v1/billing/run", "Make drafts of invoices, or issue them", access.Bill, s.schemaOf(new(struct {
		Items []*billing.Outcome `json:"items"`
	}))), s.runBilling)
	decide := op("decide-billing", http.MethodPost, "/api/v1/billing/decide", "Decide about unpriced usage or a gap that blocks an invoice", access.Bill, nil)
	decide.DefaultStatus, decide.Responses = http.StatusNoContent, s.responses(http.StatusNoContent, nil)
	huma.Register(s.api, decide, func(ctx context.Context, in *decideInput) (*struct{}, error) {
		if err := s.maybe(ctx, access.Bill, in.Tenant); err != nil {
			return nil, s.fail(err)
		}
		b := in.Body
		return nil, s.fail(s.cfg.Billing.Decide(ctx, in.Tenant, b.Period, billing.Decision{Subject: b.Subject, Action: b.Action, Amount: b.Amount, Unit: b.Unit, Per: b.Per, Reason: b.Reason, By: CallerOf(ctx).Name}))
	})
	huma.Register(s.api, op("cost", http.MethodGet, "/api/v1/cost", "What a period costs so far, before tax", access.Read, s.schemaOf(new(costList))), s.cost)
	huma.Register(s.api, op("forecast", http.MethodGet, "/api/v1/forecast", "What the month will cost, with the error of the method on earlier days", access.Read, s.schemaOf(new(billing.Forecast))),
		func(ctx context.Context, in *TenantQuery) (*struct{ Body *billing.Forecast }, error) {
			if err := s.maybe(ctx, access.Read, in.Tenant); err != nil {
				return nil, s.fail(err)
			}
			f, err := s.cfg.Billing.Forecast(ctx, in.Tenant)
			return &struct{ Body *billing.Forecast }{f}, s.fail(err)
		})
}

// maybe says whether the caller may do something with what a tenant owes: all of the tenant,
// not a site or a fleet of it.
func (s *Server) maybe(ctx context.Context, action access.Action, tenant string) error {
	if err := s.ownerOf(ctx, tenant, 0); err != nil {
		return err
	}
	return s.may(ctx, action, access.Resource{Tenant: tenant, Kind: access.Invoice})
}

// reaches lists those of tenants with which the caller may do something.
func (s *Server) reaches(ctx context.Context, action access.Action, tenants []string) []string {
	return slices.DeleteFunc(slices.Clone(tenants), func(t string) bool {
		if !CallerOf(ctx).May(action, access.Resource{Tenant: t, Kind: access.Invoice}) { // check: scope of invoices
			return true
		}
		return false
	})
}

// tenantNames maps the uids that documents know tenants by to their names.
func (s *Server) tenantNames(ctx context.Context) (map[string]string, error) {
	list, _, _, err := s.cfg.Store.List(ctx, store.Query{Kind: api.KindTenant})
	names := map[string]string{api.PlatformTenant: api.PlatformTenant, api.DefaultTenant: api.DefaultTenant}
	for _, o := range list {
		names[o.Metadata.UID] = o.Metadata.Name
	}
	return names, err
}

// invoices lists what the caller may read of a tenant, or of all for "*". What belongs to a
// tenant that is gone is the platform's.
func (s *Server) invoices(ctx context.Context, tenant string) ([]InvoiceEntry, error) {
	if tenant != "*" {
		if err := s.maybe(ctx, access.Read, tenant); err != nil {
			return nil, err
		}
	}
	names, err := s.tenantNames(ctx)
	if err != nil {
		return nil, err
	}
	uid := ""
	for u, name := range names {
		if name == tenant {
			uid = u
		}
	}
	list, err := s.cfg.Billing.Documents(ctx, uid)
	if err != nil {
		return nil, err
	}
	out := []InvoiceEntry{}
	for _, d := range list {
		of := names[d.Tenant]
		if of == "" {
			of = api.PlatformTenant
		}
		if len(s.reaches(ctx, access.Read, []string{of})) == 0 {
			continue
		}
		var doc billing.Document
		if err := json.Unmarshal(d.JSON, &doc); err != nil {
			return nil, err
		}
		out = append(out, InvoiceEntry{Number: d.Number, Kind: d.Kind, Tenant: doc.Buyer.Tenant, Period: d.Period, Issued: doc.Issued, Credits: doc.Credits, Currency: doc.Currency, Net: doc.Net, Tax: doc.Tax, Gross: doc.Gross})
	}
	return out, nil
}

// invoice reads a document that the caller may read, and the tenant that it is of.
func (s *Server) invoice(ctx context.Context, number string) (*billing.Issued, string, error) {
	d, err := s.cfg.Billing.Document(ctx, number)
	if err != nil {
		return nil, "", err
	}
	names, err := s.tenantNames(ctx)
	if err != nil {
		return nil, "", err
	}
	tenant := names[d.Tenant]
	if tenant == "" {
		tenant = api.PlatformTenant
	}
	if !CallerOf(ctx).May(access.Read, access.Resource{Tenant: tenant, Kind: access.Invoice, Name: number}) { // check: scope of an invoice
		return nil, "", billing.NoInvoice(number)
	}
	return d, tenant, nil
}

func (s *Server) invoiceFile(ctx context.Context, in *fileInput) (*fileOutput, error) {
	d, _, err := s.invoice(ctx, in.Number)
	if err != nil {
		return nil, s.fail(err)
	}
	out := &fileOutput{ContentType: "application/json", Body: d.JSON}
	name := d.Number + "." + in.Format
	switch in.Format {
	case "csv":
		out.ContentType, out.Body = "text/csv; charset=utf-8", d.CSV
	case "focus":
		out.ContentType, out.Body, name = "text/csv; charset=utf-8", d.FOCUS, d.Number+".focus.csv"
	case "pdf":
		out.ContentType, out.Body = "application/pdf", d.PDF
	}
	out.Disposition = `attachment; filename="` + name + `"`
	return out, nil
}

func (s *Server) runBilling(ctx context.Context, in *runInput) (*runOutput, error) {
	tenants := []string{in.Tenant}
	if in.Tenant == "*" {
		all, err := s.cfg.Billing.Tenants(ctx)
		if err != nil {
			return nil, s.fail(err)
		}
		tenants = s.reaches(ctx, access.Bill, all)
	} else if err := s.maybe(ctx, access.Bill, in.Tenant); err != nil {
		return nil, s.fail(err)
	}
	out := &runOutput{}
	var err error
	out.Body.Items, err = s.cfg.Billing.Run(ctx, tenants, in.Body.Period, CallerOf(ctx).Name, in.Body.Final)
	if out.Body.Items == nil {
		out.Body.Items = []*billing.Outcome{}
	}
	return out, s.fail(err)
}

func (s *Server) cost(ctx context.Context, in *costInput) (*struct{ Body costList }, error) {
	tenants := []string{in.Tenant}
	if in.Tenant == "*" {
		all, err := s.cfg.Billing.Tenants(ctx)
		if err != nil {
			return nil, s.fail(err)
		}
		tenants = s.reaches(ctx, access.Read, all)
	} else if err := s.maybe(ctx, access.Read, in.Tenant); err != nil {
		return nil, s.fail(err)
	}
	out := &struct{ Body costList }{costList{[]*billing.Cost{}}}
	for _, tenant := range tenants {
		c, err := s.cfg.Billing.Cost(ctx, tenant, in.Period, in.By)
		if err != nil {
			return nil, s.fail(err)
		}
		out.Body.Items = append(out.Body.Items, c)
	}
	return out, nil
}
