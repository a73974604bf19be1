package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/cmd/edgectl/cli"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/intake"
	"tributary.dev/tributary/pkg/core/store"
)

// coredSays runs one of its commands.
func coredSays(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// edgectl asks a running core.
func edgectl(r *running, args ...string) (string, error) {
	r.t.Helper()
	var out, errs bytes.Buffer
	env := map[string]string{"EDGECTL_SERVER": r.url, "EDGECTL_TOKEN": r.token, "EDGECTL_CA": r.c.o.data.path("ca/root.crt"), "EDGECTL_TENANT": "acme", "HOME": r.t.TempDir()}
	if code := cli.Main(context.Background(), args, cli.Streams{In: strings.NewReader(""), Out: &out, Err: &errs}, func(name string) (string, bool) { v, ok := env[name]; return v, ok }); code != 0 {
		return out.String(), fmt.Errorf("exit %d: %s", code, errs.String())
	}
	return out.String(), nil
}

const billed = `
apiVersion: tributary/v1
kind: Tenant
metadata: {name: acme}
---
apiVersion: tributary/v1
kind: BillingProfile
metadata: {tenant: platform, name: billing}
spec: {legalName: Tributary Betriebs-GmbH}
---
apiVersion: tributary/v1
kind: PricePlan
metadata: {tenant: platform, name: standard}
spec:
  currency: EUR
  versions:
    - from: "2020-01-01"
      prices:
        - {name: cpu, description: Processor time, model: flat, meter: cpu, unit: core-hour, per: 3600000000, amount: "0.5"}
        - {name: rx, model: flat, meter: network.rx, unit: GB, per: 1000000000, amount: "2"}
      free: [runtime, memory]
---
apiVersion: tributary/v1
kind: BillingProfile
metadata: {tenant: acme, name: billing}
spec: {legalName: 北京边缘科技有限公司, plan: standard, zone: Asia/Shanghai, tax: {name: VAT, percent: "6"}}
---
apiVersion: tributary/v1
kind: Budget
metadata: {tenant: acme, name: all}
spec: {amount: "2"}
`

// From what a device recorded to an invoice, by the commands that people have; and what was
// altered is named.
func TestBilling(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir)
	must := func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	has := func(what, out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s has no %q:\n%s", what, w, out)
			}
		}
	}
	r.must("POST", "/api/v1/apply", billed, nil)
	box := &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Tenant: "acme", Name: "box"}, Spec: []byte(`{"site":"hill"}`)}
	if _, err := r.c.store.Put(t.Context(), box, store.PutOptions{Status: api.DeviceStatus{ID: api.DeviceID{7}}}); err != nil {
		t.Fatal(err)
	}
	hour := time.Now().UTC().Truncate(time.Hour).Add(-2 * time.Hour)
	ledger, err := database.Open(t.Context(), database.Config{Place: filepath.Join(dir, "ledger.db"), Schema: intake.Schema})
	if err != nil {
		t.Fatal(err)
	}
	defer ledger.Close()
	exec := func(text string, args ...any) {
		t.Helper()
		if _, err := ledger.ExecContext(t.Context(), text, args...); err != nil {
			t.Fatal(err)
		}
	}
	id := api.DeviceID{7}
	exec(`INSERT INTO devices (dev, device) VALUES (70, ?)`, id[:])
	exec(`INSERT INTO services (svc, app, service) VALUES (71, 'shop', 'web')`)
	exec(`INSERT INTO usage (dev, epoch, seq, svc, last, began, ended, run_ms, cpu_us, mem_bs, rx_bytes, tx_bytes) VALUES (70, 1, 1, 71, 1, ?, ?, 1000, 7200000000, 5, 500000000, 9)`, hour.UnixMilli(), hour.Add(time.Hour).UnixMilli())
	exec(`INSERT INTO batches (dev, epoch, last, first, hash, taken) VALUES (70, 1, 1, 1, x'00', ?)`, hour.Add(time.Hour).UnixMilli())
	period := hour.Format("2006-01-02T15Z")

	has("the draft", must(edgectl(r, "billing", "draft", period)), "blocked: 9 B of network.tx have no price", "Processor time", "1.00")
	if _, err := edgectl(r, "billing", "issue", period); err == nil {
		t.Error("a blocked invoice is issued")
	}
	if out, err := coredSays(t, "billing", "close", period, "--data", dir); err == nil || !strings.Contains(out, "network.tx have no price") {
		t.Errorf("cored closes it: %s, %v", out, err)
	}
	must(edgectl(r, "billing", "decide", period, "unpriced/network.tx//B", "zero", "--reason", "not sold yet"))
	has("the cost", must(edgectl(r, "cost", "--by", "site", "--period", period)), "hill", "2.00 EUR")
	has("the forecast", must(edgectl(r, "billing", "forecast")), "acme", "unknown")
	has("a run of cored", must(coredSays(t, "billing", "run", period, "--data", dir)), "acme", "draft", "2.12 EUR")
	has("the close", must(coredSays(t, "billing", "close", period, "--data", dir)), "INV-1-000001", "2.12 EUR")
	has("the invoice", must(edgectl(r, "invoice", "show", "INV-1-000001")), "北京边缘科技有限公司", "Processor time", "2 core-hour", "2.12", "not sold yet")
	has("the list", must(edgectl(r, "get", "invoices")), "INV-1-000001", "acme", period)
	has("the PDF", must(edgectl(r, "invoice", "pdf", "INV-1-000001", "-f", "-")), "%PDF-")
	has("the export", must(edgectl(r, "invoice", "focus", "INV-1-000001", "-f", "-")), "BilledCost")
	has("the credit note", must(edgectl(r, "invoice", "credit", "INV-1-000001", "--line", "rx@2020-01-01", "--amount", "0.40", "--reason", "an outage")), "CN-1-000001", "-0.42")
	if err := r.c.billing.CheckBudgets(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := time.Now(); hour.In(time.FixedZone("", 8*3600)).Month() == now.In(time.FixedZone("", 8*3600)).Month() {
		has("the budget", must(edgectl(r, "get", "budgets")), "100 %", "50,80,100")
	}
	if err := r.call("DELETE", "/api/v1/priceplans/standard?tenant=platform", "", nil); err == nil || err.Code != api.Conflict {
		t.Errorf("a plan in use is deleted: %v", err)
	}

	// What is verified, and what is not as it was.
	has("verify", must(coredSays(t, "billing", "verify", "--data", dir)), "2 documents, of which 2 were made again", ": 0 differences")
	exec(`UPDATE usage SET cpu_us = cpu_us + 3600000000 WHERE dev = 70`)
	out, err := coredSays(t, "billing", "verify", "--data", dir)
	has("verify of altered usage", out, "INV-1-000001: line cpu@2020-01-01 says 1.00 for 2 core-hour, where usage gives 1.50 for 3 core-hour")
	if api.CodeOf(err) != api.Conflict {
		t.Errorf("verify ends with %v", err)
	}
	exec(`UPDATE usage SET cpu_us = cpu_us - 3600000000 WHERE dev = 70`)
	heads := filepath.Join(dir, "billing.heads")
	b, err := os.ReadFile(heads)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string][2]string{"a torn line is none": {string(b) + `{"seq":9`, ": 0 differences"}, "a forged line": {strings.Replace(string(b), `"seq":1,`, `"seq":2,`, 1), "line 1 of"}} {
		if err := os.WriteFile(heads, []byte(c[0]), 0o600); err != nil {
			t.Fatal(err)
		}
		out, _ := coredSays(t, "billing", "verify", "--data", dir)
		has(what, out, c[1])
	}
}
