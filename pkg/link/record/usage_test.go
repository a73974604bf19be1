package record

import (
	"bytes"
	"fmt"
	"math/rand"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// UsageRecord makes a lifelike usage record of n containers.
func UsageRecord(t testing.TB, seq uint64, n int) Record {
	t.Helper()
	r := rand.New(rand.NewSource(int64(seq)))
	services := []string{"web", "cache", "broker", "db", "agent", "camera", "vision", "mqtt", "modbus", "logs"}
	u := api.Usage{From: 1764000000000 + int64(seq)*900000, To: 1764000000000 + int64(seq+1)*900000}
	for i := range n {
		u.Uses = append(u.Uses, api.ContainerUse{App: fmt.Sprintf("site-app%d", i/3), Service: services[i%len(services)],
			RunMillis: 900000, CPUMicros: uint64(r.Int63n(20e6)), MemoryByteSeconds: uint64(r.Int63n(200e6)) * 900,
			RxBytes: uint64(r.Int63n(1e6)), TxBytes: uint64(r.Int63n(1e6))})
	}
	payload, err := EncodeUsage(u)
	if err != nil {
		t.Fatal(err)
	}
	return Record{Seq: seq, Last: seq, Kind: api.RecordUsage, Payload: payload}
}

// One usage record of ten containers is small on the wire: the day's budget of a
// device at rest is 50 kB and it sends 96 of them.
func TestUsageBatchIsSmall(t *testing.T) {
	key := newKey(t)
	for _, n := range []int{1, 4} {
		b := Batch{Epoch: 1764000000, First: 1001, Last: 1000 + uint64(n)}
		var plain int
		for i := range n {
			b.Records = append(b.Records, UsageRecord(t, 1001+uint64(i), 10))
			plain += len(b.Records[i].Payload)
		}
		raw, _, err := Seal(By(key), dev, b)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d records of 10 containers: %d bytes of CBOR, %d on the wire", n, plain, len(raw))
		if want := 110 + 290*n; len(raw) > want {
			t.Errorf("%d bytes on the wire, want at most %d", len(raw), want)
		}
	}
}

func drawUsage(t *rapid.T) api.Usage {
	u := api.Usage{From: rapid.Int64().Draw(t, "from"), To: rapid.Int64().Draw(t, "to")}
	u.Cut = rapid.IntRange(0, 3).Draw(t, "cut") == 0
	n := rapid.IntRange(0, 8).Draw(t, "n")
	for range n {
		u.Uses = append(u.Uses, api.ContainerUse{
			App: rapid.StringN(0, 12, 12).Draw(t, "app"), Service: rapid.StringN(0, 12, 12).Draw(t, "service"),
			RunMillis: rapid.Uint64().Draw(t, "run"), CPUMicros: rapid.Uint64().Draw(t, "cpu"), MemoryByteSeconds: rapid.Uint64().Draw(t, "mem"),
			RxBytes: rapid.Uint64().Draw(t, "rx"), TxBytes: rapid.Uint64Range(0, 3).Draw(t, "tx")})
		if rapid.IntRange(0, 3).Draw(t, "on a card") == 0 {
			for _, f := range u.Uses[len(u.Uses)-1].Accelerator.Fields() {
				*f = rapid.Uint64().Draw(t, "counter") >> rapid.IntRange(0, 64).Draw(t, "shift")
			}
		}
		if rapid.IntRange(0, 3).Draw(t, "metered") == 0 {
			u.Uses[len(u.Uses)-1].More = rapid.MapOfN(rapid.StringMatching("[a-z./]{0,30}"), rapid.Uint64(), 1, 4).Draw(t, "more")
		}
	}
	return u
}

// The encoder written by hand writes what the library does.
func TestEncodeUsageIsDeterministicCBOR(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := drawUsage(t)
		want, err := encMode().Marshal(u)
		if err != nil {
			t.Fatal(err)
		}
		got, err := EncodeUsage(u)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%x, %v; want %x", got, err, want)
		}
	})
}

// Columns are a packing only: the payload comes out byte for byte, also when it
// is no usage at all.
func TestColumnsAreLossless(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var rs []Record
		for i := range rapid.IntRange(1, 5).Draw(t, "records") {
			payload, err := EncodeUsage(drawUsage(t))
			if err != nil {
				t.Fatal(err)
			}
			if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
				payload = rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "payload")
			}
			n := uint64(5 + i)
			rs = append(rs, Record{Seq: n, Last: n, Kind: api.RecordUsage, Payload: payload})
		}
		if rapid.Bool().Draw(t, "summed") {
			rs[len(rs)-1].Last += 9
			rs[len(rs)-1].End = Hash{3}
		}
		packing, body, err := pack(rs)
		if err != nil {
			t.Fatal(err)
		}
		got, err := unpack(packing, body, 5)
		if err != nil {
			t.Fatal(err)
		}
		for i := range rs {
			if !bytes.Equal(got[i].Payload, rs[i].Payload) || got[i].Last != rs[i].Last || got[i].End != rs[i].End {
				t.Fatalf("packing %d, record %d: %x, want %x", packing, i, got[i].Payload, rs[i].Payload)
			}
		}
	})
}

func BenchmarkOpen100(b *testing.B) {
	key := newKey(b)
	batch := Batch{Epoch: 1, First: 1, Last: 100}
	for i := range 100 {
		batch.Records = append(batch.Records, UsageRecord(b, uint64(i+1), 1))
	}
	raw, _, err := Seal(By(key), dev, batch)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(len(raw)), "wire-bytes")
	for b.Loop() {
		if _, _, err := Open(Of(key.Public()), raw, dev, Hash{}); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzDecodeUsage(f *testing.F) {
	f.Add(UsageRecord(f, 1, 3).Payload)
	f.Add([]byte{0xa3, 1, 0, 2, 0, 3, 0xf6})
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := DecodeUsage(b)
		if err != nil {
			return
		}
		again, err := EncodeUsage(u)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := DecodeUsage(again); err != nil || len(v.Uses) != len(u.Uses) {
			t.Fatalf("%+v, %v", v, err)
		}
	})
}

func FuzzDecodeEvent(f *testing.F) {
	b, err := EncodeEvent(api.Event{Time: 1, Name: "app.started", Subject: "shop", Message: "m", Actor: "a"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := DecodeEvent(b); err == nil {
			if _, err := EncodeEvent(e); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestKPI(t *testing.T) {
	k := api.KPI{Name: "ptp.offset", Unit: "ns", From: 1000, To: 901000, Count: 900, Missing: 1, Min: -40, Max: 55, Mean: 2, RMS: 17}
	b, err := EncodeKPI(k)
	if err != nil || len(b) > 60 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if got, err := DecodeKPI(b); err != nil || got != k {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []api.KPI{{}, {Name: "a", Count: 1, Min: 2, Max: 1}, {Name: strings.Repeat("a", maxKPI)}} {
		b, err := EncodeKPI(bad)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeKPI(b); err == nil {
			t.Errorf("%+v", got)
		}
	}
}

func FuzzDecodeKPI(f *testing.F) {
	b, err := EncodeKPI(api.KPI{Name: "ptp.offset", Unit: "ns", From: 1000, To: 901000, Count: 900, Min: -40, Max: 55})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := DecodeKPI(b)
		if err != nil {
			return
		}
		again, err := EncodeKPI(k)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeKPI(again); err != nil || got != k {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

// A sum keeps what each meter counted, and is none across a cut point.
func TestSumUsage(t *testing.T) {
	a := api.Usage{From: 1, To: 2, Uses: []api.ContainerUse{{App: "a", More: map[string]uint64{"vf": 1, "storage": 3}}}}
	b := api.Usage{From: 2, To: 3, Cut: true, Uses: []api.ContainerUse{{App: "a", More: map[string]uint64{"vf": 5}}}}
	sum, err := SumUsage(a, b)
	if err != nil || !sum.Cut || sum.From != 1 || sum.To != 3 || sum.Uses[0].More["vf"] != 6 || sum.Uses[0].More["storage"] != 3 || a.Uses[0].More["vf"] != 1 {
		t.Errorf("%+v, %v", sum, err)
	}
	if sum, err = SumUsage(b, a); err == nil {
		t.Errorf("summed across a cut point: %+v", sum)
	}
}
