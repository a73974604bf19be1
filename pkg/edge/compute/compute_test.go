package compute

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func box() *api.Inventory {
	return &api.Inventory{
		CPU: &api.CPU{Online: "0-6", Isolated: "2-3,6-7"},
		Nodes: []api.Node{
			{ID: 0, CPUs: "0-3", HugePages: []api.HugePages{{SizeKiB: 2048, Count: 512}, {SizeKiB: 1 << 20, Count: 0}}},
			{ID: 1, CPUs: "4-7", HugePages: []api.HugePages{{SizeKiB: 1 << 20, Count: 4}}},
		},
	}
}

func TestList(t *testing.T) {
	var got []string
	for _, d := range List(box()) {
		got = append(got, d.ID+" "+string(rune('0'+d.NUMA))+" "+d.Fault)
	}
	want := []string{"cpu2 0 ", "cpu3 0 ", "cpu6 1 ", "cpu7 1 it is offline", "2M@0 0 ", "1G@1 1 "}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if List(&api.Inventory{}) != nil {
		t.Error("an empty box gives something")
	}
}

func TestPrepare(t *testing.T) {
	p := Pool{Inventory: box}
	e, err := p.Prepare(t.Context(), "cpu6", 1, api.Claim{})
	if err != nil || e.CPU == nil || *e.CPU != 6 || e.NUMA != 1 {
		t.Errorf("%+v %v", e, err)
	}
	e, err = p.Prepare(t.Context(), "1G@1", 3, api.Claim{})
	if err != nil || e.HugePages != 3<<30 || e.PageSize != "1G" {
		t.Errorf("%+v %v", e, err)
	}
	if _, err := p.Prepare(t.Context(), "cpu9", 1, api.Claim{}); err == nil {
		t.Error("a processor that is not there was prepared")
	}
}

func TestSizes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kib := rapid.Int64Range(1, 1<<30).Draw(t, "KiB")
		if got := sizeKiB(SizeName(kib)); got != kib {
			t.Fatalf("%d → %s → %d", kib, SizeName(kib), got)
		}
	})
}
