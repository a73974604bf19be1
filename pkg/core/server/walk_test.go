package server_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/billing"
	"tributary.dev/tributary/pkg/core/rollout"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/tests/mutation"
)

// canary is in the name of everything that the owner has.
const canary = "canary-9d2"

// rooms play the rooms behind the server for one device of the owner and one of the stranger.
type rooms struct{ server.Devices }

var ownersBox, strangersBox = api.DeviceID{1}, api.DeviceID{2}

func (rooms) Approve(_ context.Context, key api.Key) (*api.Object, error) {
	return &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Name: key.Name, Tenant: key.Tenant}, Spec: []byte(`{}`)}, nil
}
func (r rooms) Retire(ctx context.Context, key api.Key) (*api.Object, error) {
	return r.Approve(ctx, key)
}
func (r rooms) Uncordon(ctx context.Context, key api.Key, _ string, _ int64) (*api.Object, error) {
	return r.Approve(ctx, key)
}
func (rooms) Inventory(context.Context, api.DeviceID) (*api.Inventory, error) {
	return &api.Inventory{CPU: &api.CPU{Model: canary}, Accelerators: []api.Accelerator{{ID: "GPU-0", Findings: []api.AcceleratorFinding{{Warning: api.Warning{Name: "gpu-xid", Since: 77}, Action: "move"}}}}}, nil
}
func (rooms) Unlock(context.Context, api.DeviceID, string, string, string) (server.UnlockAnswer, error) {
	return server.UnlockAnswer{Answer: canary}, nil
}
func (rooms) Open(context.Context, api.DeviceID, stream.Command) (*stream.Conn, error) {
	return nil, api.Errorf(api.Unavailable, "%s is away", canary)
}
func (rooms) Usage(context.Context, api.DeviceID) (*server.UsageReport, error) {
	return &server.UsageReport{}, nil
}
func (rooms) Records(context.Context, api.DeviceID, uint64, int) ([]server.RecordEntry, error) {
	return []server.RecordEntry{{Seq: 1, Kind: "event", Event: &api.Event{Name: "x", Subject: canary}}}, nil
}
func (rooms) Events(_ context.Context, of server.EventScope, _ int) (out []server.EventEntry, _ error) {
	for id, e := range map[api.DeviceID]server.EventEntry{ownersBox: {Tenant: "acme", Seq: 1, Event: api.Event{Name: canary}}, strangersBox: {Tenant: "other", Seq: 2, Event: api.Event{Name: "own"}}} {
		if of.Everybody || slices.Contains(of.Tenants, e.Tenant) || slices.Contains(of.Devices, id) {
			out = append(out, e)
		}
	}
	return out, nil
}

// bills plays billing: of one invoice, acme's.
type bills struct{ of *walked }

func (b bills) issued() *billing.Issued {
	acme, err := b.of.store.Get(b.of.t.Context(), api.Key{Tenant: api.DefaultTenant, Kind: api.KindTenant, Name: "acme"})
	if err != nil {
		b.of.t.Fatal(err)
	}
	text := []byte(`{"number":"` + canary + `"}`)
	return &billing.Issued{Number: canary, Kind: billing.KindInvoice, Tenant: acme.Metadata.UID, JSON: text, CSV: text, FOCUS: text, PDF: text}
}
func (b bills) Document(_ context.Context, number string) (*billing.Issued, error) {
	if number != canary {
		return nil, billing.NoInvoice(number)
	}
	return b.issued(), nil
}
func (b bills) Documents(_ context.Context, uid string) ([]*billing.Issued, error) {
	if d := b.issued(); uid == "" || uid == d.Tenant {
		return []*billing.Issued{d}, nil
	}
	return nil, nil
}
func (bills) Run(_ context.Context, tenants []string, _, _ string, _ bool) (out []*billing.Outcome, _ error) {
	for _, t := range tenants {
		out = append(out, &billing.Outcome{Tenant: t, Period: map[bool]string{true: canary}[t == "acme"]})
	}
	return out, nil
}
func (bills) Decide(context.Context, string, string, billing.Decision) error { return nil }
func (bills) Credit(context.Context, string, string, string, string, string) (*billing.Document, error) {
	return &billing.Document{Number: canary}, nil
}
func (bills) Cost(_ context.Context, tenant, _, by string) (*billing.Cost, error) {
	return &billing.Cost{Tenant: tenant, By: by, Period: map[bool]string{true: canary}[tenant == "acme"]}, nil
}
func (bills) Forecast(_ context.Context, tenant string) (*billing.Forecast, error) {
	return &billing.Forecast{Tenant: tenant, Period: canary}, nil
}
func (bills) Tenants(context.Context) ([]string, error) { return []string{"acme", "other"}, nil }

func doc(kind, tenant, name, spec string) string {
	return `{"apiVersion":"tributary/v1","kind":"` + kind + `","metadata":{"tenant":"` + tenant + `","name":"` + name + `"},"spec":` + spec + `}`
}

// specs are the least of each kind that people write by themselves.
func specs() map[string]string {
	return map[string]string{api.KindSite: `{}`, api.KindConfig: `{"env":{"A":"b"}}`, api.KindSecret: `{"data":{"a":"b"}}`, api.KindApp: `{"artifact":"acme/apps/a@sha256:` + strings.Repeat("0", 64) + `"}`,
		api.KindFleet: `{"selector":{"matchLabels":{"role":"shop"}}}`, api.KindJoinToken: `{}`, api.KindExpectedDevice: `{"serial":"` + canary + `","code":"` + strings.Repeat("A", 26) + `"}`,
		api.KindServiceAccount: `{}`, api.KindRoleBinding: `{"role":"viewer","subjects":[{"serviceAccount":"nobody"}]}`, api.KindRelease: `{"artifact":"os/vm@sha256:` + strings.Repeat("0", 64) + `"}`,
		api.KindTrainingJob: `{"trainer":"autoencoder"}`, api.KindPricePlan: `{"currency":"EUR","versions":[{"from":"2026-01-01","prices":[]}]}`, api.KindBillingProfile: `{"legalName":"` + canary + `"}`, api.KindBudget: `{"amount":"5"}`, api.KindIncident: `{"note":"` + canary + `"}`,
		api.KindRollout:    `{"target":{"selector":{"matchLabels":{"role":"shop"}}},"change":[{"kind":"Config","name":"` + canary + `"}]}`,
		api.KindQuota:      `{"devices":1000000,"note":"` + canary + `"}`,
		api.KindFlowPolicy: `{"interface":{"name":"enp*"},"rules":[{"name":"r","match":{"vlan":1},"drop":true}]}`, api.KindNetworkPolicy: `{"selector":{"matchLabels":{"a":"b"}},"functions":[{"match":{"driver":"ice"},"virtualFunctions":1}]}`}
}

// walked is a core with an owner, acme, and strangers to it.
type walked struct {
	*core
	owner     string
	strangers map[string]string // their tokens
}

func walk(t *testing.T) *walked {
	c := &walked{strangers: map[string]string{}}
	c.core = start(t, func(cfg *server.Config) {
		cfg.Billing = bills{c}
		db := cfg.Store.(*store.SQL)
		cfg.Rollouts = rollout.Room{Loop: rollout.New(rollout.Config{Store: db, Most: 10, Now: time.Now, Log: cfg.Log})}
		cfg.Admission = map[string]server.Admission{api.KindRollout: server.AdmitRollout(cfg.Rollouts)}
		cfg.Devices, cfg.Inventories, cfg.Ledger, cfg.Streams, cfg.Unlocks = rooms{}, rooms{}, rooms{}, rooms{}, rooms{}
		cfg.Finder = server.NewFinder(cfg.Store)
		go func() { _ = cfg.Finder.Run(t.Context()) }()
	})
	c.seed()
	docs := doc("Tenant", "", "acme", `{}`) + doc("Tenant", "", "other", `{}`)
	for name, in := range map[string]string{"owner": "acme", "stranger": "other", "sited": "acme", "fleeted": "acme"} {
		role, at := "tenant-admin", ""
		switch name {
		case "sited":
			at = `,"site":"elsewhere"`
		case "fleeted":
			at = `,"fleet":"others"`
		}
		docs += doc("ServiceAccount", in, name, `{}`) + doc("RoleBinding", in, name, `{"role":"`+role+`","subjects":[{"serviceAccount":"`+name+`"}]`+at+`}`)
	}
	docs += doc("RoleBinding", "acme", "bills", `{"role":"billing","subjects":[{"serviceAccount":"owner"}]}`)
	docs += doc("Fleet", "acme", "others", `{"selector":{"matchLabels":{"role":"elsewhere"}}}`)
	if code, e := c.call("POST", "/api/v1/apply", docs, nil); code != 200 {
		t.Fatal(code, e)
	}
	for name, in := range map[string]string{"owner": "acme", "stranger": "other", "sited": "acme", "fleeted": "acme"} {
		token, err := c.store.CreateTokenOf(t.Context(), name, api.Key{Tenant: in, Kind: api.KindServiceAccount, Name: name}, time.Time{}, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if c.strangers[name] = token; name == "owner" {
			c.owner = token
			delete(c.strangers, name)
		}
	}
	return c
}

// seed puts one object of each kind into acme, as it was at first.
func (c *walked) seed() {
	for i := range api.Kinds {
		kind, tenant, name := api.Kinds[i].Name, "acme", canary
		o := &api.Object{APIVersion: api.Version, Kind: kind, Metadata: api.Meta{Tenant: tenant, Name: name}, Spec: json.RawMessage(specs()[kind])}
		status := any(nil)
		switch kind {
		case api.KindTenant: // canary lies below acme
			o.Metadata.Tenant, o.Spec = api.DefaultTenant, json.RawMessage(`{"parent":"acme"}`)
			acme := &api.Object{APIVersion: api.Version, Kind: kind, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: "acme"}, Spec: json.RawMessage(`{}`)}
			if _, err := c.store.Put(c.t.Context(), acme, store.PutOptions{}); err != nil {
				c.t.Fatal(err)
			}
		case api.KindPricePlan, api.KindBillingProfile, api.KindQuota: // of a tenant below, whose prices the owner makes
			o.Metadata.Tenant, o.Metadata.Name = pricedTenant, pricedName(kind)
			below := &api.Object{APIVersion: api.Version, Kind: api.KindTenant, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: pricedTenant}, Spec: json.RawMessage(`{"parent":"acme"}`)}
			if _, err := c.store.Put(c.t.Context(), below, store.PutOptions{}); err != nil {
				c.t.Fatal(err)
			}
		case api.KindDevice:
			o.Spec, status = json.RawMessage(`{}`), api.DeviceStatus{ID: ownersBox}
		case api.KindRollout:
			status = api.RolloutStatus{Phase: api.RolloutQueued, Change: []api.RolloutChange{{RevisionRef: api.RevisionRef{Kind: api.KindConfig, Name: canary, Revision: 1}}}}
		}
		if _, err := c.store.Put(c.t.Context(), o, store.PutOptions{Status: status}); err != nil {
			c.t.Fatal(err)
		}
	}
}

// ask gives the status and the text of an answer; of a stream, until all that was there has come.
func (c *walked) ask(token, method, path, body string) (int, string) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if strings.HasPrefix(path, "/api/v1/devices/") && method == "GET" && strings.Count(path, "/") > 4 && !strings.Contains(path, "inventory") {
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", stream.Protocol)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	var text []byte
	for b := make([]byte, 4096); ; {
		n, err := resp.Body.Read(b)
		if text = append(text, b[:n]...); err == io.EOF || strings.Contains(string(text), "event: synced") {
			return resp.StatusCode, string(text)
		} else if err != nil {
			c.t.Fatal(err)
		}
	}
}

const pricedTenant = "acme-priced"

func pricedName(kind string) string {
	switch kind {
	case api.KindBillingProfile:
		return api.BillingProfileName
	case api.KindQuota:
		return api.QuotaName
	}
	return canary
}

// probe is one request about what is acme's. want is the owner's status.
type probe struct {
	method, path, body string
	want               int
}

// probes gives the requests by which each operation of the API is tried, by method and path.
func probes() map[string][]probe {
	all := map[string][]probe{}
	for _, k := range api.Kinds {
		base, tenant := "/api/v1/"+k.Plural, "tenant=acme"
		name, spec := canary, specs()[k.Name]
		body := doc(k.Name, "acme", name, spec)
		made := strings.ReplaceAll(body, name, name+"-new")
		if k.Name == api.KindTenant {
			tenant, body, made = "", doc(k.Name, "", name, `{"parent":"acme","displayName":"x"}`), doc(k.Name, "", name+"-new", `{"parent":"acme"}`)
		}
		if k.Name == api.KindPricePlan || k.Name == api.KindBillingProfile || k.Name == api.KindQuota {
			name, tenant = pricedName(k.Name), "tenant="+pricedTenant
			body, made = doc(k.Name, pricedTenant, name, spec), doc(k.Name, pricedTenant, name+"-new", spec)
		}
		if k.Name == api.KindDevice {
			body = doc(k.Name, "acme", name, `{"site":"hill"}`)
		}
		all["get "+base] = []probe{{"GET", base + "?" + tenant, "", 200}, {"GET", base + "?tenant=*", "", 200}, {"GET", base + "?watch=true&" + tenant, "", 200}, {"GET", base + "?watch=true&tenant=*", "", 200}}
		all["get "+base+"/{name}"] = []probe{{"GET", base + "/" + name + "?" + tenant, "", 200}}
		all["put "+base+"/{name}"] = []probe{{"PUT", base + "/" + name + "?" + tenant, body, 200}}
		all["delete "+base+"/{name}"] = []probe{{"DELETE", base + "/" + name + "?" + tenant, "", 204}}
		all["post "+base] = []probe{{"POST", base + "?" + tenant, made, 201}}
		if k.Name == api.KindDevice {
			all["post "+base] = []probe{{"POST", base + "?" + tenant, body, 409}} // devices are not made so
		}
		if k.Name == api.KindBillingProfile || k.Name == api.KindQuota {
			all["post "+base] = []probe{{"POST", base + "?" + tenant, body, 409}} // there is one
		}
	}
	device := "/api/v1/devices/{name}"
	of := func(verb, query string) string {
		return "/api/v1/devices/" + canary + "/" + verb + "?tenant=acme" + query
	}
	for _, verb := range []string{"approve", "retire"} {
		all["post "+device+"/"+verb] = []probe{{"POST", of(verb, ""), "", 200}}
	}
	all["post "+device+"/uncordon"] = []probe{{"POST", of("uncordon", ""), `{"id":"GPU-0"}`, 200}}
	all["post "+device+"/unlock"] = []probe{{"POST", of("unlock", ""), `{"challenge":"AAAA"}`, 200}}
	all["get "+device+"/inventory"] = []probe{{"GET", of("inventory", ""), "", 200}}
	for verb, query := range map[string]string{"logs": "&app=a", "exec": "&app=a&argv=ls", "port-forward": "&app=a&port=80", "console": "", "line": "&line=rshim0", "top": ""} {
		all["get "+device+"/"+verb] = []probe{{"GET", of(verb, query), "", 503}} // the device is away
	}
	for _, order := range []string{"pause", "promote", "abort", "keep", "undo"} {
		all["post /api/v1/rollouts/{name}/"+order] = []probe{{"POST", "/api/v1/rollouts/" + canary + "/" + order + "?tenant=acme", "", map[string]int{"pause": 409, "promote": 409}[order]}}
		if all["post /api/v1/rollouts/{name}/"+order][0].want == 0 {
			all["post /api/v1/rollouts/{name}/"+order][0].want = 200
		}
	}
	all["post /api/v1/rollouts/{name}/resume"] = []probe{{"POST", "/api/v1/rollouts/" + canary + "/resume?tenant=acme", "", 409}} // it was not paused
	all["post /api/v1/rollouts/{name}/approve"] = []probe{{"POST", "/api/v1/rollouts/" + canary + "/approve?tenant=acme", "", 409}}
	all["get /api/v1/rollouts/{name}/devices"] = []probe{{"GET", "/api/v1/rollouts/" + canary + "/devices?tenant=acme", "", 200}}
	all["post /api/v1/rollout-plan"] = []probe{{"POST", "/api/v1/rollout-plan", doc("Rollout", "acme", canary+"-plan", specs()[api.KindRollout]), 200}}
	revisions := "/api/v1/revisions/config/" + canary
	all["get /api/v1/revisions/{kind}/{name}"] = []probe{{"GET", revisions + "?tenant=acme", "", 200}}
	all["post /api/v1/revisions/{kind}/{name}/undo"] = []probe{{"POST", revisions + "/undo?tenant=acme&to=1", "", 409}} // there is one alone
	all["post /api/v1/revisions/{kind}/{name}/revoke"] = []probe{{"POST", revisions + "/revoke?tenant=acme&revision=1", "", 409}}
	all["post "+device+"/pin"] = []probe{{"POST", of("pin", ""), `{"kind":"Config","object":"` + canary + `"}`, 204}}
	for _, query := range []string{"tenant=acme", "tenant=*", "tenant=acme&kind=Device&name=" + canary, "tenant=*&actor=owner"} {
		all["get /api/v1/audit"] = append(all["get /api/v1/audit"], probe{"GET", "/api/v1/audit?" + query, "", 200})
	}
	all["get /api/v1/usage"] = []probe{{"GET", "/api/v1/usage?tenant=acme&device=" + canary, "", 200}}
	all["get /api/v1/records"] = []probe{{"GET", "/api/v1/records?tenant=acme&device=" + canary, "", 200}}
	for _, query := range []string{"tenant=acme", "tenant=*", "tenant=acme&device=" + canary} {
		all["get /api/v1/events"] = append(all["get /api/v1/events"], probe{"GET", "/api/v1/events?" + query, "", 200}, probe{"GET", "/api/v1/events?watch=true&" + query, "", 200})
	}
	for _, query := range []string{"tenant=acme", "tenant=*", "tenant=*&kind=Device", "tenant=acme&kind=App&sort=-name", "tenant=*&q=" + canary} {
		all["get /api/v1/search"] = append(all["get /api/v1/search"], probe{"GET", "/api/v1/search?" + query, "", 200})
	}
	all["get /api/v1/invoices"] = []probe{{"GET", "/api/v1/invoices?tenant=acme", "", 200}, {"GET", "/api/v1/invoices?tenant=*", "", 200}}
	all["get /api/v1/invoices/{number}"] = []probe{{"GET", "/api/v1/invoices/" + canary, "", 200}}
	for _, format := range []string{"json", "csv", "pdf", "focus"} {
		all["get /api/v1/invoices/{number}/{format}"] = append(all["get /api/v1/invoices/{number}/{format}"], probe{"GET", "/api/v1/invoices/" + canary + "/" + format, "", 200})
	}
	all["post /api/v1/invoices/{number}/credit"] = []probe{{"POST", "/api/v1/invoices/" + canary + "/credit", `{"reason":"x"}`, 200}}
	all["post /api/v1/billing/run"] = []probe{{"POST", "/api/v1/billing/run?tenant=acme", `{"period":"2026-11","final":true}`, 200}}
	all["post /api/v1/billing/decide"] = []probe{{"POST", "/api/v1/billing/decide?tenant=acme", `{"period":"2026-11","subject":"x","action":"waive","reason":"x"}`, 204}}
	all["get /api/v1/cost"] = []probe{{"GET", "/api/v1/cost?tenant=acme&by=site", "", 200}, {"GET", "/api/v1/cost?tenant=*", "", 200}}
	all["get /api/v1/forecast"] = []probe{{"GET", "/api/v1/forecast?tenant=acme", "", 200}}
	all["post /api/v1/apply"] = []probe{{"POST", "/api/v1/apply?dryRun=true", doc("Config", "acme", canary, `{"env":{"A":"c"}}`), 200}, {"POST", "/api/v1/apply", doc("Secret", "acme", canary, `{"data":{"a":"c"}}`), 200},
		{"POST", "/api/v1/apply", doc("Tenant", "", canary+"-below", `{"parent":"acme"}`), 200}}
	return all
}

// notOfATenant are the operations that tell nothing of any tenant, or are the platform's.
var notOfATenant = []string{"get /healthz", "get /metrics", "get /schemas/{file}", "get /api/v1/whoami", "get /api/v1/version", "get /api/v1/changes", // TestChangesAreHeard walks the last
	// Of whoever asks, or of nobody yet: TestPeople.
	"get /api/v1/login", "post /api/v1/login", "post /api/v1/logout", "post /api/v1/setup", "post /api/v1/password", "post /api/v1/factor", "put /api/v1/factor", "delete /api/v1/factor",
	"post /api/v1/recoverycodes", "get /api/v1/sessions", "delete /api/v1/sessions/{id}",
	// People are the platform's: TestPeopleAreThePlatforms.
	"get /api/v1/people", "post /api/v1/people", "get /api/v1/people/{uid}", "patch /api/v1/people/{uid}", "post /api/v1/people/{uid}/reset", "delete /api/v1/people/{uid}/sessions"}

// Whoever is not bound to a tenant sees nothing of it by any operation of the API: each answer
// is the one for a tenant, or a part of one, that was never there. The owner succeeds at each.
func TestStrangersSeeNothing(t *testing.T) {
	c := walk(t)
	raw, err := c.server.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var api struct{ Paths map[string]map[string]any }
	if err := json.Unmarshal(raw, &api); err != nil {
		t.Fatal(err)
	}
	all := probes()
	for path, methods := range api.Paths {
		for method := range methods {
			if op := method + " " + path; all[op] == nil && !slices.Contains(notOfATenant, op) {
				t.Errorf("nobody tries %s as a stranger", op)
			}
		}
	}
	for _, op := range slices.Sorted(maps.Keys(all)) {
		for _, p := range all[op] {
			status, text := c.ask(c.owner, p.method, p.path, p.body)
			if status != p.want || status == 200 && !strings.Contains(op, "usage") && !strings.Contains(text, canary) {
				t.Errorf("the owner gets %d by %s %s: %s", status, p.method, p.path, text)
				continue
			}
			if p.method != "GET" {
				c.seed() // what the owner took away
			}
			for who, token := range c.strangers {
				c.unseen(who, token, p)
			}
		}
	}
}

// unseen holds the answer to a stranger beside the one that asks for what was never there.
func (c *walked) unseen(who, token string, p probe) {
	c.t.Helper()
	// Of acme a part is theirs who are bound to a site or a fleet of it: to them only its things are hidden.
	never := strings.NewReplacer("acme", "neverland", canary, "nothing-at-all")
	back := strings.NewReplacer("neverland", "acme", "nothing-at-all", canary)
	if who != "stranger" {
		never, back = strings.NewReplacer(canary, "nothing-at-all"), strings.NewReplacer("nothing-at-all", canary)
	}
	if who != "stranger" && p.method != "GET" {
		if status, text := c.ask(token, p.method, p.path, p.body); status < 400 {
			c.t.Errorf("%s gets %d by %s %s: %s", who, status, p.method, p.path, text)
		}
		return
	}
	status, text := c.ask(token, p.method, p.path, p.body)
	wantStatus, want := c.ask(token, p.method, never.Replace(p.path), never.Replace(p.body))
	if status < 300 && strings.Contains(text, canary) {
		c.t.Fatalf("%s is seen: %s %s: %s", who, p.method, p.path, text)
	}
	if status != wantStatus || back.Replace(want) != text && !strings.Contains(p.path, "watch") {
		c.t.Errorf("%s is told apart from what never was: %s %s:\n%d %s\n%d %s", who, p.method, p.path, status, text, wantStatus, want)
	}
}

// A watch tells a stranger nothing of what happens at the owner's, and ends when what its
// reader may see is taken away.
func TestStrangersHearNothing(t *testing.T) {
	c := walk(t)
	for who, token := range c.strangers {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", c.url+"/api/v1/devices?watch=true&tenant=*", nil)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		until := func(mark string) string {
			t.Helper()
			var text []byte
			for b := make([]byte, 4096); !strings.Contains(string(text), mark); {
				n, err := resp.Body.Read(b)
				if text = append(text, b[:n]...); err != nil && !strings.Contains(string(text), mark) {
					t.Errorf("%s hears %s and then %v, not %s", who, text, err, mark)
					break
				}
			}
			return string(text)
		}
		until("synced")
		put := func(tenant, name, spec, label string) {
			t.Helper()
			o := &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Tenant: tenant, Name: name, Labels: map[string]string{"role": label}}, Spec: json.RawMessage(spec)}
			if _, err := c.store.Put(t.Context(), o, store.PutOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		put("acme", canary, `{"site":"x"}`, who)
		if err := c.store.Delete(t.Context(), api.Key{Tenant: "acme", Kind: api.KindDevice, Name: canary}, 0); err != nil {
			t.Fatal(err)
		}
		tenant := map[string]string{"stranger": "other"}[who]
		if tenant == "" {
			tenant = "acme"
		}
		put(tenant, "own", `{"site":"elsewhere"}`, "elsewhere")
		if text := until(`"name":"own"`); strings.Contains(text, canary) {
			t.Errorf("%s is seen by a watch: %s", who, text)
		}
		// It leaves what they may see, and later they may see nothing at all.
		put(tenant, "own", `{"site":"gone"}`, "gone")
		if who != "stranger" {
			until("event: deleted")
		}
		if code, e := c.call("DELETE", "/api/v1/rolebindings/"+who+"?tenant="+tenant, "", nil); code != 204 {
			t.Fatal(code, e)
		}
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond): // the watch looks again when something happens
					put(tenant, "own", fmt.Sprintf(`{"site":"s%d"}`, i), "elsewhere")
				}
			}
		}()
		text := make(chan string, 1)
		go func() { text <- until("event: error") }()
		select {
		case <-text:
		case <-time.After(5 * time.Second):
			t.Errorf("%s is seen to hear on though nothing is theirs any more", who)
		}
		close(stop)
		<-stopped
		cancel()
		resp.Body.Close()
		c.seed()
	}
}

// Who may act within a fleet alone does not say which devices that are.
func TestAFleetIsNotWidened(t *testing.T) {
	c := walk(t)
	const path = "/api/v1/fleets/others?tenant=acme"
	for _, x := range []struct {
		spec string
		want int
	}{{`{"selector":{"matchLabels":{"role":"elsewhere"}},"settings":{"meterInterval":"1m"}}`, 200}, {`{"selector":{"matchLabels":{"role":"shop"}}}`, 403}} {
		if code, text := c.ask(c.strangers["fleeted"], "PUT", path, doc("Fleet", "acme", "others", x.spec)); code != x.want {
			t.Errorf("%s: it is seen to be %d, want %d: %s", x.spec, code, x.want, text)
		}
	}
	if code, text := c.ask(c.owner, "PUT", path, doc("Fleet", "acme", "others", `{"selector":{"matchLabels":{"role":"shop"}}}`)); code != 200 {
		t.Errorf("the owner: %d %s", code, text)
	}
}

// TestScopesCount: without any of the checks of scope, what is the owner's is seen.
func TestScopesCount(t *testing.T) {
	heard := []string{"scope of watches", "scope as of now"}
	var checks []mutation.Check
	for _, m := range mutation.Marked(t, "^TestStrangersSeeNothing$", "audit.go", "auth.go", "objects.go", "records.go", "search.go", "watch.go", "billing.go") {
		if m.Name == "whom a fleet picks" {
			m.Test, m.Says = "^TestAFleetIsNotWidened$", "it is seen to be 200"
			checks = append(checks, m)
		}
		if !strings.HasPrefix(m.Name, "scope") {
			continue
		}
		if m.Says = "is seen"; slices.Contains(heard, m.Name) {
			m.Test = "^TestStrangersHearNothing$"
		}
		if m.Name == "scope" { // the role refuses all the same, and so tells that there is something
			m.Says = "is told apart"
		}
		checks = append(checks, m)
	}
	if len(checks) < 6 {
		t.Fatalf("only %d checks are marked", len(checks))
	}
	mutation.Prove(t, checks...)
}
