//go:build cgo

package card

import (
	"math"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// busy tells how busy slices are, by the counters that cards have from Hopper on (NVML, "GPM
// Functions"): what ran between one look and the next. Nothing else tells it of a slice:
// utilisation and that of processes are not supported while a card is in slices. Where it
// cannot be known the answer is unknown, which is not nought. It is asked by one at a time.
type busy struct {
	lib      nvml.Interface
	now      func() time.Time
	lacking  bool // the library is older than these functions
	readings map[string]*reading
}

// reading is one slice's counters when they were read last.
type reading struct {
	counters nvml.GpmSample
	at       time.Time
	percent  int // between the two looks before
	asked    bool
}

const unknown = -1

// apart is how far two looks at the counters are to be from each other: the card refreshes
// them by itself, and NVML wants more than 100 ms.
const apart = 200 * time.Millisecond

func newBusy(lib nvml.Interface, now func() time.Time) *busy {
	b := &busy{lib: lib, now: now, readings: map[string]*reading{}}
	for _, name := range []string{"nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmMigSampleGet", "nvmlGpmMetricsGet", "nvmlGpmSampleFree"} {
		b.lacking = b.lacking || lib.Extensions().LookupSymbol(name) != nil // calling one would end the program
	}
	return b
}

// able tells whether a card has these counters.
func (b *busy) able(d nvml.Device) bool {
	if b.lacking {
		return false
	}
	support, ret := d.GpmQueryDeviceSupport()
	return ret == nvml.SUCCESS && support.IsSupportedDevice != 0
}

// percent is the part of the time since the last look in which a kernel ran on a slice.
func (b *busy) percent(d nvml.Device, slice string, instance int) int {
	before := b.readings[slice]
	now := b.now()
	if before != nil && now.Sub(before.at) < apart && !now.Before(before.at) {
		before.asked = true
		return before.percent
	}
	counters, ret := b.lib.GpmSampleAlloc()
	if ret != nvml.SUCCESS {
		return unknown // what was read last stays, to be held against the next
	}
	if ret := d.GpmMigSampleGet(instance, counters); ret != nvml.SUCCESS {
		counters.Free()
		return unknown
	}
	r := &reading{counters: counters, at: now, percent: unknown, asked: true}
	if before != nil {
		r.percent = b.between(before.counters, counters)
		before.counters.Free()
	}
	b.readings[slice] = r
	return r.percent
}

// between asks the library what two looks mean.
func (b *busy) between(one, two nvml.GpmSample) int {
	ask := nvml.GpmMetricsGetType{NumMetrics: 1, Sample1: one, Sample2: two}
	ask.Metrics[0].MetricId = uint32(nvml.GPM_METRIC_GRAPHICS_UTIL)
	ret := b.lib.GpmMetricsGet(&ask)
	told := ask.Metrics[0]
	if ret != nvml.SUCCESS || nvml.Return(told.NvmlReturn) != nvml.SUCCESS || math.IsNaN(told.Value) || told.Value < 0 {
		return unknown
	}
	return int(math.Round(min(told.Value, 100)))
}

// forget lets go of slices that were not asked about since it was called last: one of the
// same name later is another.
func (b *busy) forget() {
	for slice, r := range b.readings {
		if !r.asked {
			r.counters.Free()
			delete(b.readings, slice)
		}
		r.asked = false
	}
}
