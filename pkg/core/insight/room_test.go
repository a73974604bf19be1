package insight

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// testRoom is a room over a real store, with a ledger of findings that the test fills.
type testRoom struct {
	*Room
	t      *testing.T
	db     *store.SQL
	now    time.Time
	ledger []Finding
}

func openRoom(t *testing.T) *testRoom {
	var uid atomic.Int64
	r := &testRoom{t: t, now: now}
	db, err := store.Open(t.Context(), store.Config{Now: func() time.Time { return r.now }, NewUID: func() string { return fmt.Sprint("uid", uid.Add(1)) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	r.db = db
	r.start()
	return r
}

// start is a start of the core.
func (r *testRoom) start() {
	r.Room = New(Config{Store: r.db, Rules: rules, Now: func() time.Time { return r.now }, Log: slog.New(slog.DiscardHandler),
		Findings: func(_ context.Context, after int64, limit int) ([]Finding, int64, error) {
			list := r.ledger[min(after, int64(len(r.ledger))):]
			list = list[:min(limit, len(list))]
			return list, after + int64(len(list)), nil
		}})
}

// look reads the store anew and decides once.
func (r *testRoom) look() []api.IncidentStatus {
	r.t.Helper()
	var all []*api.Object
	for _, kind := range []string{api.KindDevice, api.KindIncident} {
		list, _, _, err := r.db.List(r.t.Context(), store.Query{Kind: kind})
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, list...)
	}
	if err := r.Reset(all); err != nil {
		r.t.Fatal(err)
	}
	if err := r.Room.look(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	list, _, _, err := r.db.List(r.t.Context(), store.Query{Kind: api.KindIncident})
	if err != nil {
		r.t.Fatal(err)
	}
	var out []api.IncidentStatus
	for _, o := range list {
		var s api.IncidentStatus
		if err := json.Unmarshal(o.Status, &s); err != nil {
			r.t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

func (r *testRoom) device(n int, parent string, online bool, spec string) {
	r.t.Helper()
	seen := r.now
	o := &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: fmt.Sprint("box-", n)}, Spec: []byte(spec)}
	if _, err := r.db.Put(r.t.Context(), o, store.PutOptions{Status: api.DeviceStatus{ID: id(n), Parent: parent, Online: online, LastSeen: &seen}}); err != nil {
		r.t.Fatal(err)
	}
}

func TestRoom(t *testing.T) {
	r := openRoom(t)
	const approved = `{"approved":true,"site":"hill"}`
	r.device(1, "core", false, approved)
	r.device(2, id(1).String(), false, approved)
	r.device(3, "core", false, `{"approved":true,"retired":true}`)
	r.device(4, "core", false, `{}`)
	if got := r.look(); len(got) != 0 {
		t.Fatalf("at once: %+v", got)
	}
	r.now = r.now.Add(3 * time.Minute)
	got := r.look()
	if len(got) != 1 || got[0].Link == nil || got[0].Link.Child != "box-1" || got[0].Link.Parent != "core" || !slices.Equal(got[0].Devices, []string{"box-1", "box-2"}) || !slices.Equal(got[0].Sites, []string{"hill"}) || r.Open() != 1 {
		t.Fatalf("incidents are %+v", got)
	}
	revision := r.revision()
	if r.look(); r.revision() != revision {
		t.Error("nothing is new, and something is written")
	}
	r.device(1, "core", true, approved)
	r.device(2, id(1).String(), true, approved)
	if got = r.look(); len(got) != 1 || got[0].State != api.IncidentClosed || got[0].Closed == nil || r.Open() != 0 {
		t.Fatalf("all is back, and incidents are %+v", got)
	}
	r.now = r.now.Add(time.Hour)
	r.ledger = append(r.ledger, Finding{Device: id(2), At: api.RecordPosition{Epoch: 1, Seq: 5}, Time: r.now, Subject: "cpu.busy", Message: "cpu.busy is 99 %"})
	for range 3 { // read again, and after a start of the core
		if got = r.look(); len(got) != 2 || r.Open() != 1 {
			t.Fatalf("after a finding: %+v", got)
		}
		r.start()
	}
	for _, s := range got {
		if s.Cause == api.CauseAnomaly && (s.Findings != 1 || s.Message != "cpu.busy is 99 %" || !slices.Equal(s.Devices, []string{"box-2"})) {
			t.Errorf("the anomaly is %+v", s)
		}
	}
}

// TestDeletedStays: what a person deleted is not raised again by the same record.
func TestDeletedStays(t *testing.T) {
	r := openRoom(t)
	r.device(1, "core", true, `{"approved":true}`)
	r.ledger = []Finding{{Device: id(1), At: api.RecordPosition{Epoch: 1, Seq: 5}, Time: r.now, Subject: "cpu.busy"}}
	if got := r.look(); len(got) != 1 {
		t.Fatalf("incidents are %+v", got)
	}
	list, _, _, err := r.db.List(t.Context(), store.Query{Kind: api.KindIncident})
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if err := r.db.Delete(t.Context(), list[0].Key(), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := r.look(); len(got) != 0 {
			t.Fatalf("incidents are %+v", got)
		}
		r.start()
	}
}

// TestRun: the loop hears of devices by the store's watch.
func TestRun(t *testing.T) {
	r := openRoom(t)
	r.cfg.Rules.Patience = 0
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	events := r.db.Watch(ctx, store.WatchQuery{Kinds: []string{api.KindIncident}, From: -1})
	r.device(1, "core", false, `{"approved":true}`)
	if e := <-events; e.Err != nil || e.Object.Kind != api.KindIncident {
		t.Errorf("the first event is %+v", e)
	}
	cancel()
	if err := <-done; err != nil && ctx.Err() == nil {
		t.Error(err)
	}
}

func (r *testRoom) revision() int64 {
	_, _, revision, err := r.db.List(r.t.Context(), store.Query{Kind: api.KindIncident})
	if err != nil {
		r.t.Fatal(err)
	}
	return revision
}
