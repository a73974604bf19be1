package main

import (
	"net/http"
	"path/filepath"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/tests/place"
	"tributary.dev/tributary/tests/wait"
)

// The database's server is killed under a core with a device: the core stays, says so, and goes
// on by itself. Devices keep what they have meanwhile; nothing is lost or counted twice.
func TestDatabaseAway(t *testing.T) {
	pg, err := databasetest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pg.Stop) // after the core's end
	at, err := pg.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := startWith(t, options{data: data(filepath.Join(t.TempDir(), "core")), database: at, mqtt: place.Left()}, func(*core) {})
	b := attach(t, r.join("box"), r.c.mqttAddress())
	healthy := func() int {
		resp, err := r.http.Get(r.url + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	// counted is 0 while the database is not there.
	counted := func() (n uint64) {
		var u server.UsageReport
		if e := r.call("GET", "/api/v1/usage?device=box", "", &u); e != nil && e.Code != api.Unavailable {
			t.Fatal(e)
		}
		for _, of := range u.Totals {
			n += of.RunMillis
		}
		return n
	}
	b.use(0, 1000, 1000)
	wait.Until(t, "the first usage is counted", func() bool { _, n := r.used("box"); return n == 1000 })
	total := uint64(1000)
	for round := range 2 {
		pg.Kill()
		b.use(int64(total), int64(total)+1000, 1000)
		b.report("version", []string{"one", "two"}[round])
		total += 1000
		wait.Until(t, "the core is not ready", func() bool { return healthy() == http.StatusServiceUnavailable })
		e := r.call("GET", "/api/v1/devices/box", "", nil)
		if e == nil || e.Code != api.Unavailable || e.Remedy == "" {
			t.Errorf("a request without a database: %+v", e)
		}
		if e = r.call("POST", "/api/v1/apply", configDocs, nil); e == nil || e.Code != api.Unavailable || e.Remedy == "" {
			t.Errorf("an apply without a database: %+v", e)
		}
		wait.Until(t, "the link tells of it", func() bool {
			for _, w := range r.c.end.Warnings() {
				if w.Name == "store-away" {
					return true
				}
			}
			return false
		})
		pg.Again(t)
		wait.Until(t, "everything is counted once", func() bool { return counted() == total })
		wait.Until(t, "the core is ready", func() bool { return healthy() == http.StatusOK })
		wait.Until(t, "what was reported meanwhile is seen", func() bool { return r.device("box").Version == []string{"one", "two"}[round] })
	}
	r.must("POST", "/api/v1/apply", configDocs, nil)
	wait.Until(t, "what is applied afterwards reaches the device", func() bool {
		m := b.end.Manifest()
		return m != nil && len(m.Manifest.Items["config/motd"].Body) > 0
	})
	if u, n := r.used("box"); n != total || u.Intervals != 3 {
		t.Errorf("%+v", u)
	}
}
