package usage

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/database/databasetest"
)

func TestMain(m *testing.M) { os.Exit(databasetest.Run(m)) }

var (
	box   = api.DeviceID{1}
	start = time.UnixMilli(1_764_000_000_000)
)

func after(hours int) time.Time { return start.Add(time.Duration(hours) * time.Hour) }

// ledger plays the ledger.
type ledger struct {
	records []*Record
	heard   time.Time
	holes   []Hole
}

func (l *ledger) Between(_ context.Context, id api.DeviceID, from, to time.Time, each func(*Record) error) error {
	for _, r := range l.records {
		if at := time.UnixMilli(r.Usage.From); id == box && !at.Before(from) && at.Before(to) {
			if err := each(r); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *ledger) Heard(context.Context, api.DeviceID) (time.Time, []Hole, error) {
	return l.heard, l.holes, nil
}

func (l *ledger) use(from, to int, cpu uint64) {
	n := uint64(len(l.records) + 1)
	l.records = append(l.records, &Record{Epoch: 7, Seq: n, Last: n, Received: after(100), Usage: &api.Usage{From: after(from).UnixMilli(), To: after(to).UnixMilli(),
		Uses: []api.ContainerUse{{App: "shop", Service: "web", CPUMicros: cpu, RxBytes: 10, More: map[string]uint64{"network.rx/cellular": 4, "unheard-of": 1}}}}})
}

func room(t *testing.T, place string, l *ledger) *Room {
	t.Helper()
	db, err := database.Open(t.Context(), database.Config{Place: place, Schema: "ledger"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return New(Config{DB: db, Records: l, Now: func() time.Time { return after(1000) }})
}

func object(t *testing.T, kind, tenant, name, uid string, hour int, labels map[string]string, spec any, status any) *api.Object {
	t.Helper()
	at := after(hour)
	o := &api.Object{Kind: kind, Metadata: api.Meta{Tenant: tenant, Name: name, UID: uid, Labels: labels, Updated: &at}}
	var err1, err2 error
	o.Spec, err1 = json.Marshal(spec)
	if status != nil {
		o.Status, err2 = json.Marshal(status)
	}
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return o
}

func device(t *testing.T, hour int, site, role string) *api.Object {
	return object(t, api.KindDevice, "acme", "box", "dev-1", hour, map[string]string{"role": role}, api.DeviceSpec{Site: site}, api.DeviceStatus{ID: box})
}

func listed(objects ...*api.Object) func() ([]*api.Object, error) {
	return func() ([]*api.Object, error) { return objects, nil }
}

func entries(t *testing.T, r *Room, tenant string) (out []api.UsageEntry) {
	t.Helper()
	if err := r.Entries(t.Context(), tenant, after(0), after(1000), func(e *api.UsageEntry) error { out = append(out, *e); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// A late record is told by what was in force when it was used, also when the core heard of
// the change after a restart.
func TestUseIsToldByItsOwnTime(t *testing.T) {
	for name, place := range map[string]string{"sqlite": filepath.Join(t.TempDir(), "ledger.db"), "postgres": databasetest.Postgres(t)} {
		t.Run(name, func(t *testing.T) { ownTime(t, place) })
	}
}

func ownTime(t *testing.T, place string) {
	l := &ledger{heard: after(2000)}
	r := room(t, place, l)
	acme := object(t, api.KindTenant, api.PlatformTenant, "acme", "ten-1", 0, nil, api.TenantSpec{}, nil)
	shop := object(t, api.KindApp, "acme", "shop", "app-1", 0, nil, api.AppSpec{}, nil)
	fields := object(t, api.KindFleet, "acme", "fields", "fl-1", 0, nil, api.FleetSpec{Selector: api.Selector{MatchLabels: map[string]string{"role": "field"}}, Apps: []string{"shop"}}, nil)
	tests := object(t, api.KindFleet, "acme", "tests", "fl-2", 0, nil, api.FleetSpec{Selector: api.Selector{MatchLabels: map[string]string{"role": "test"}}, Apps: []string{"shop"}}, nil)
	if err := r.Settle(t.Context(), listed(acme, shop, fields, tests, device(t, 0, "berlin", "field"))); err != nil {
		t.Fatal(err)
	}
	moved := []*api.Object{acme, shop, fields, tests, device(t, 10, "rome", "test")}
	for range 2 { // it may be repeated
		if err := r.Settle(t.Context(), listed(moved...)); err != nil {
			t.Fatal(err)
		}
	}
	l.use(2, 3, 5)
	l.use(10, 11, 6)
	l.records[1].Last += 3
	l.use(20, 21, 7)
	if err := r.Gone(t.Context(), moved[4].Key(), after(20)); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	ids := map[string]bool{}
	for _, e := range entries(t, r, "ten-1") {
		got[fmt.Sprint(e.Site, e.Fleet, e.Labels["role"], e.App, e.Device, " ", api.MeterKey(e.Meter, e.Class), e.Unit, e.Coarse)] += e.Quantity
		if ids[e.ID] {
			t.Errorf("two entries are %s", e.ID)
		}
		ids[e.ID] = true
		if id, epoch, seq, _, err := api.ParseRecordEntryID(e.ID); err != nil || id != box || epoch != 7 || seq == 0 {
			t.Errorf("%s: %v", e.ID, err)
		}
	}
	want := map[string]int64{"berlinfieldsfieldapp-1dev-1 cpuusfalse": 5, "berlinfieldsfieldapp-1dev-1 network.rxBfalse": 6, "berlinfieldsfieldapp-1dev-1 network.rx/cellularBfalse": 4,
		"rometeststestapp-1dev-1 cpuustrue": 6, "rometeststestapp-1dev-1 network.rxBtrue": 6, "rometeststestapp-1dev-1 network.rx/cellularBtrue": 4}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v\nwant %v", got, want)
	}
	if other := entries(t, r, "ten-2"); len(other) != 0 {
		t.Errorf("another tenant sees %+v", other)
	}
}

// What is not known is told: silence, lost records, and sums across a change of who pays.
func TestGaps(t *testing.T) {
	l := &ledger{heard: after(40), holes: []Hole{{after(5), after(6), api.GapLost}, {after(60), after(61), api.GapUnknown}}}
	r := room(t, filepath.Join(t.TempDir(), "ledger.db"), l)
	acme := object(t, api.KindTenant, api.PlatformTenant, "acme", "ten-1", 0, nil, api.TenantSpec{}, nil)
	for _, d := range []*api.Object{device(t, 0, "berlin", "field"), device(t, 10, "rome", "field")} {
		if err := r.Settle(t.Context(), listed(acme, d)); err != nil {
			t.Fatal(err)
		}
	}
	l.use(8, 12, 1)
	l.use(20, 24, 1)
	l.records[0].Last, l.records[1].Last = 2, 9
	gaps, err := r.Gaps(t.Context(), "ten-1", after(0), after(50))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range gaps {
		got = append(got, fmt.Sprint(g.DeviceName, " ", g.Why, " ", g.From.Sub(start).Hours(), " ", g.To.Sub(start).Hours()))
	}
	if want := []string{"box lost 5 6", "box away 40 50", "box coarse 8 12"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Whatever the times of the versions, the one in force is the newest that is not later.
func TestInForce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		times := rapid.SliceOfNDistinct(rapid.Int64Range(0, 50), 1, 8, rapid.ID).Draw(t, "times")
		slices.Sort(times)
		var vs []version
		for _, at := range times {
			vs = append(vs, version{since: at})
		}
		when := rapid.Int64Range(-5, 60).Draw(t, "when")
		want := times[0]
		for _, since := range times {
			if since <= when {
				want = since
			}
		}
		if got := at(vs, when); got.since != want {
			t.Fatalf("at %d of %v: %d, want %d", when, times, got.since, want)
		}
	})
}
