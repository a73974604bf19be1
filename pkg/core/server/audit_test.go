package server_test

import (
	"strconv"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// What is done, and what is refused, stands in the log with who, from where and by which request.
func TestAuditLog(t *testing.T) {
	c := walk(t)
	var made api.Object
	if code, e := c.callAs(c.owner, "POST", "/api/v1/configs?tenant=acme", doc("Config", "acme", "motd", `{"env":{"A":"b"}}`), &made); code != 201 {
		t.Fatal(code, e)
	}
	c.callAs(c.owner, "POST", "/api/v1/configs?tenant=acme&dryRun=true", doc("Config", "acme", "dry", `{"env":{}}`), nil)
	c.callAs(c.strangers["stranger"], "GET", "/api/v1/configs/motd?tenant=acme", "", nil)
	c.callAs(c.owner, "DELETE", "/api/v1/configs/motd?tenant=acme", "", nil)
	c.callAs(c.viewer, "PUT", "/api/v1/configs/"+canary+"?tenant=acme", doc("Config", "acme", canary, `{"env":{"A":"z"}}`), nil)
	c.callAs("tp1.nobody.x", "GET", "/api/v1/configs", "", nil)
	c.ask(c.owner, "GET", "/api/v1/devices/"+canary+"/exec?tenant=acme&app=a&argv=ls&argv=-l", "")
	var list struct{ Items []api.AuditEntry }
	get := func(query string) []api.AuditEntry {
		t.Helper()
		list.Items = nil
		if code, e := c.callAs(c.admin, "GET", "/api/v1/audit?"+query, "", &list); code != 200 {
			t.Fatal(code, e)
		}
		return list.Items
	}
	rows := get("tenant=acme&kind=Config&name=motd")
	if len(rows) != 3 || rows[0].Action != "delete" || rows[1].Outcome != api.AuditRefused || rows[2].Action != "create" {
		t.Fatalf("%+v", rows)
	}
	made1, gone, hidden := rows[2], rows[0], rows[1]
	if made1.Name != "owner" || made1.Actor == "" || made1.How == "" || made1.Source != "127.0.0.1" || made1.Request == "" || made1.UID != made.Metadata.UID || made1.New == nil || made1.Old != nil || made1.Tenant == "acme" {
		t.Errorf("a row that tells too little: %+v", made1)
	}
	if string(gone.Old) != string(made1.New) || gone.New != nil || hidden.Name != "stranger" || made1.Tenant != gone.Tenant {
		t.Errorf("%+v %+v", gone, hidden)
	}
	if rows := get("tenant=acme&name=dry"); len(rows) != 0 {
		t.Errorf("a dry run is in the log: %+v", rows)
	}
	if rows := get("tenant=acme&outcome=refused&actor=viewer"); len(rows) != 1 || rows[0].Action != "write" || rows[0].Object != canary {
		t.Errorf("a refusal: %+v", rows)
	}
	if rows := get("tenant=platform&action=authenticate"); len(rows) != 1 || rows[0].Outcome != api.AuditRefused || rows[0].Actor != "" {
		t.Errorf("a stranger: %+v", rows)
	}
	if rows := get("tenant=acme&action=exec"); len(rows) != 1 || rows[0].Message != "a ls -l" && rows[0].Message != "a  ls -l" {
		t.Errorf("a command: %+v", rows)
	}
	// Pages follow each other without a gap, over all tenants.
	var seen int64
	for before := ""; ; {
		var page struct {
			Items []api.AuditEntry
			Next  int64
		}
		if code, e := c.callAs(c.admin, "GET", "/api/v1/audit?tenant=*&limit=7"+before, "", &page); code != 200 {
			t.Fatal(code, e)
		}
		for _, e := range page.Items {
			if seen != 0 && e.Seq != seen-1 {
				t.Fatalf("row %d follows %d", e.Seq, seen)
			}
			seen = e.Seq
		}
		if before = "&before=" + strconv.FormatInt(page.Next, 10); page.Next == 0 {
			break
		}
	}
	if seen != 1 {
		t.Errorf("the last is row %d", seen)
	}
	if code, _ := c.callAs(c.viewer, "GET", "/api/v1/audit?tenant=acme", "", &list); code != 200 || len(list.Items) != 0 {
		t.Errorf("a viewer sees %d rows (%d)", len(list.Items), code)
	}
}
