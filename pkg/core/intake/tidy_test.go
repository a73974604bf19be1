package intake

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
)

// Whatever was recorded and however often the ledger is tidied, every day's totals stay,
// old days take one row between two cut points, and what comes again is known.
func TestTidyKeepsTotals(t *testing.T) {
	key := newKey(t)
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		now := time.UnixMilli(100 * dayMillis).Add(5 * time.Hour)
		s := open(rt, Config{Place: filepath.Join(dir, "ledger.db"), Now: func() time.Time { return now }})
		defer s.Close()
		b := newBox(rt, 1, key)
		at := int64(90 * dayMillis)
		var cuts []int64
		for range rapid.IntRange(1, 40).Draw(rt, "records") {
			from := at
			at += rapid.Int64Range(1, dayMillis/2).Draw(rt, "long")
			u := api.Usage{From: from, To: at, Cut: rapid.IntRange(0, 4).Draw(rt, "cut") == 0}
			if u.Cut {
				cuts = append(cuts, at)
			}
			for svc := range rapid.IntRange(0, 3).Draw(rt, "services") {
				u.Uses = append(u.Uses, api.ContainerUse{App: "shop", Service: fmt.Sprint("s", svc), RunMillis: 7, CPUMicros: rapid.Uint64Range(0, 1<<40).Draw(rt, "cpu"),
					Accelerator: api.AcceleratorUse{HeldMillis: rapid.Uint64Range(0, 3).Draw(rt, "held"), EnergyMillijoules: rapid.Uint64Range(0, 1).Draw(rt, "energy")},
					More:        map[string]uint64{"vf": rapid.Uint64Range(0, 9).Draw(rt, "vf")}})
			}
			payload, err := record.EncodeUsage(u)
			if err != nil {
				rt.Fatal(err)
			}
			b.append(api.RecordUsage, payload)
		}
		n := len(b.recs)
		half := (n + 1) / 2
		want(rt, s, link.Accepted, uint64(half), b.cut(rt, 1, half, false))
		if half < n {
			want(rt, s, link.Accepted, uint64(n), b.cut(rt, half+1, n, false))
		}
		before := days(rt, s, b.id)
		older := rapid.Bool().Draw(rt, "of an older core")
		if older && half < n { // whose batches were not kept
			if _, err := s.db.ExecContext(context.Background(), `DELETE FROM verbatim WHERE last <= ?`, half); err != nil {
				rt.Fatal(err)
			}
		}
		now = now.Add(time.Duration(rapid.IntRange(0, 40).Draw(rt, "days later")) * 24 * time.Hour)
		for range 2 {
			if err := s.Tidy(context.Background(), Retention{Intervals: 5 * 24 * time.Hour}); err != nil {
				rt.Fatal(err)
			}
			if after := days(rt, s, b.id); !reflect.DeepEqual(before, after) {
				rt.Fatalf("totals by day were %+v, are %+v", before, after)
			}
		}
		if !older {
			checkRows(rt, s, cuts, now.UnixMilli()-5*dayMillis)
			checkRecords(rt, s, b)
		}
		checkBetween(rt, s, b)
		want(rt, s, link.Duplicate, uint64(n), b.cut(rt, 1, half, true), b.cut(rt, 1, half, false))
		b.use(rt, 1)
		want(rt, s, link.Accepted, uint64(n+1), b.cut(rt, n, n+1, true))
	})
}

// checkRows looks that rows follow each other and go across no cut point, and that before a
// time there is but one between two of these on a UTC day.
func checkRows(t testing_, s *Store, cuts []int64, before int64) {
	t.Helper()
	rows, err := s.db.QueryContext(context.Background(), `SELECT DISTINCT seq, last, began, ended, cut FROM usage ORDER BY seq`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	type place struct {
		day  int64
		cuts int
	}
	seen := map[place]bool{}
	for next := int64(1); rows.Next(); {
		var seq, last, began, ended int64
		var cut bool
		if err := rows.Scan(&seq, &last, &began, &ended, &cut); err != nil {
			t.Fatal(err)
		}
		passed, _ := slices.BinarySearch(cuts, ended)
		if from, _ := slices.BinarySearch(cuts, began+1); from != passed || seq != next || cut != slices.Contains(cuts, ended) {
			t.Fatalf("row %d to %d after %d goes from %d to %d (cut: %v); cut points are %v", seq, last, next-1, began, ended, cut, cuts)
		}
		if at := (place{ended / dayMillis, passed}); (at.day+1)*dayMillis <= before {
			if seen[at] {
				t.Fatalf("two rows of day %d after %d cut points", at.day, at.cuts)
			}
			seen[at] = true
		}
		next = last + 1
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}

// checkRecords looks that each record of a box can be told as it was sent, and led back to a
// batch under its device's signature.
func checkRecords(t testing_, s *Store, b *box) {
	t.Helper()
	list, err := s.Records(context.Background(), b.id, 0, 0)
	if err != nil || len(list) != len(b.recs) {
		t.Fatalf("%d of %d records, %v", len(list), len(b.recs), err)
	}
	for i, e := range list {
		if want, err := b.recs[i].Usage(); err != nil || e.Seq != b.recs[i].Seq || !reflect.DeepEqual(*e.Usage, want) {
			t.Fatalf("record %d is %+v, was %+v, %v", e.Seq, e.Usage, want, err)
		}
		batch, err := s.BatchOf(context.Background(), b.id, e.Epoch, e.Seq)
		if err != nil {
			t.Fatal(err)
		}
		signed, _, err := record.Open(record.Of(b.key.Public()), batch.Raw, b.id, batch.Prev)
		if err != nil || !reflect.DeepEqual(signed.Records[e.Seq-signed.First].Payload, b.recs[i].Payload) {
			t.Fatalf("record %d: %+v, %v", e.Seq, signed, err)
		}
	}
	if _, err := s.BatchOf(context.Background(), b.id, b.epoch, uint64(len(b.recs)+1)); api.CodeOf(err) != api.NotFound {
		t.Fatalf("a batch of a record that is not there: %v", err)
	}
}

// checkBetween looks that all that was used is told by time, from batches, and from rows where
// those are not kept.
func checkBetween(t testing_, s *Store, b *box) {
	t.Helper()
	var want uint64
	for i := range b.recs {
		u, err := b.recs[i].Usage()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range u.Uses {
			want += c.CPUMicros
		}
	}
	var got uint64
	err := s.Between(context.Background(), b.id, time.UnixMilli(0), time.UnixMilli(200*dayMillis), func(e *Entry) error {
		for _, c := range e.Usage.Uses {
			got += c.CPUMicros
		}
		return nil
	})
	if err != nil || got != want {
		t.Fatalf("%d, %v; want %d", got, err, want)
	}
}

// What has nothing to tidy is looked at, and nothing more: records come in meanwhile.
func TestTidyLeavesTheTidyAlone(t *testing.T) {
	now := time.UnixMilli(100 * dayMillis)
	path := filepath.Join(t.TempDir(), "ledger.db")
	s := open(t, Config{Place: path, Now: func() time.Time { return now }})
	defer s.Close()
	others, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer others.Close()
	b := newBox(t, 1, newKey(t))
	b.use(t, 1)
	want(t, s, link.Accepted, 1, b.cut(t, 1, 1, false))
	keep := Retention{Intervals: 24 * time.Hour, Events: 24 * time.Hour}
	writes := func() bool {
		conn, err := others.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		var before, after int
		version := func(v *int) {
			// It grows with each commit of another connection.
			if err := conn.QueryRowContext(t.Context(), "PRAGMA data_version").Scan(v); err != nil {
				t.Fatal(err)
			}
		}
		version(&before)
		if err := s.Tidy(t.Context(), keep); err != nil {
			t.Fatal(err)
		}
		version(&after)
		return before != after
	}
	if err := s.Tidy(t.Context(), keep); err != nil { // the usage of the test's boxes is of 1970
		t.Fatal(err)
	}
	// Somebody else's lock on the file stands for a commit that takes its time.
	other, err := others.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	if writes() { // fails as busy, when it would write
		t.Error("wrote for nothing")
	}
	if _, err := other.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	b.append(api.RecordTelemetry, []byte{1})
	want(t, s, link.Accepted, 2, b.cut(t, 2, 2, false))
	now = now.Add(48 * time.Hour)
	if !writes() {
		t.Error("old telemetry stays")
	}
}

// days are the totals by UTC day, as a bill would ask for them.
func days(t testing_, s *Store, id api.DeviceID) map[int][]Total {
	t.Helper()
	out := map[int][]Total{}
	for day := 89; day < 112; day++ {
		u, err := s.Usage(context.Background(), id, time.UnixMilli(int64(day)*dayMillis-1), time.UnixMilli(int64(day+1)*dayMillis-1))
		if err != nil {
			t.Fatal(err)
		}
		if len(u.Totals) > 0 {
			out[day] = u.Totals
		}
	}
	return out
}

// Old events and telemetry go, audits and what a device lost stay.
func TestTidyDropsDetail(t *testing.T) { onBoth(t, tidyDropsDetail) }

func tidyDropsDetail(t *testing.T, place string) {
	now := time.UnixMilli(100 * dayMillis)
	s := open(t, Config{Place: place, Now: func() time.Time { return now }})
	defer s.Close()
	b := newBox(t, 1, newKey(t))
	event, err := record.EncodeEvent(api.Event{Time: now.UnixMilli(), Name: "restarted"})
	if err != nil {
		t.Fatal(err)
	}
	b.append(api.RecordEvent, event)
	b.append(api.RecordAudit, event)
	b.append(api.RecordTelemetry, []byte("warm"))
	lost := record.Record{Seq: 4, Last: 4, Kind: record.Lost, End: b.chain[3].Next(record.Record{Seq: 4, Last: 4, Kind: api.RecordUsage})}
	b.recs, b.chain = append(b.recs, lost), append(b.chain, b.chain[3].Next(lost))
	want(t, s, link.Accepted, 4, b.cut(t, 1, 4, false))
	b.append(api.RecordTelemetry, []byte("cold"))
	kinds := func() (out []api.RecordKind) {
		t.Helper()
		if err := s.Tidy(t.Context(), Retention{Intervals: 30 * 24 * time.Hour, Events: 60 * 24 * time.Hour}); err != nil {
			t.Fatal(err)
		}
		list, err := s.Records(t.Context(), b.id, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			out = append(out, e.Kind)
		}
		return out
	}
	if got := kinds(); len(got) != 4 {
		t.Errorf("fresh: %v", got)
	}
	now = now.Add(40 * 24 * time.Hour)
	want(t, s, link.Accepted, 5, b.cut(t, 5, 5, false))
	if got, keep := kinds(), []api.RecordKind{api.RecordEvent, api.RecordAudit, record.Lost, api.RecordTelemetry}; !reflect.DeepEqual(got, keep) {
		t.Errorf("after 40 days: %v, want %v", got, keep)
	}
	now = now.Add(40 * 24 * time.Hour)
	if got, keep := kinds(), []api.RecordKind{api.RecordAudit, record.Lost}; !reflect.DeepEqual(got, keep) {
		t.Errorf("after 80 days: %v, want %v", got, keep)
	}
}
