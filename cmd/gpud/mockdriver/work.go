//go:build cgo

package mockdriver

import (
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// Work has the programs of a slice run for so much of the time, of 1, from now on.
func (d *Driver) Work(card int, slice uint32, load float64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.Cards[card].Slices {
		if s := &d.Cards[card].Slices[i]; s.ID == slice {
			now := d.Now()
			s.Ran, s.Since, s.Load = s.ran(now), now, load
		}
	}
	return d.save()
}

func (s *Slice) ran(now time.Time) time.Duration {
	return s.Ran + time.Duration(s.Load*float64(now.Sub(s.Since)))
}

// counters are a buffer as the library fills it: when, of which slice of which card, and how
// long its programs had run.
type counters struct {
	mock.GpmSample
	card  string
	slice uint32
	at    time.Time
	ran   time.Duration
}

// refreshed is how often a card refreshes its counters (nvml.h, nvmlGpmMigSampleGet: looks
// are to be further apart).
const refreshed = 100 * time.Millisecond

// wrapCounters answers what the library makes of two buffers.
func (d *Driver) wrapCounters() {
	d.GpmSampleAllocFunc = func() (nvml.GpmSample, nvml.Return) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.Counters++
		c := &counters{}
		c.FreeFunc = func() nvml.Return {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.Counters--
			return nvml.SUCCESS
		}
		return c, nvml.SUCCESS
	}
	d.GpmMetricsGetFunc = func(ask *nvml.GpmMetricsGetType) nvml.Return {
		one, two := ask.Sample1.(*counters), ask.Sample2.(*counters)
		if one.at.IsZero() || two.at.IsZero() || one.card != two.card || one.slice != two.slice {
			return nvml.ERROR_INVALID_ARGUMENT
		}
		for i := range ask.Metrics[:ask.NumMetrics] {
			m := &ask.Metrics[i]
			if m.MetricId != uint32(nvml.GPM_METRIC_GRAPHICS_UTIL) || two.at.Sub(one.at) <= refreshed {
				m.NvmlReturn = uint32(nvml.ERROR_UNKNOWN)
				continue
			}
			m.NvmlReturn, m.Value = uint32(nvml.SUCCESS), 100*float64(two.ran-one.ran)/float64(two.at.Sub(one.at))
		}
		return nvml.SUCCESS
	}
}

// wrapWork answers for a card's counters, which it has from Hopper on.
func (d *Driver) wrapWork(dev *server.Device, k *kept) {
	able := dev.Config.Architecture >= nvml.DEVICE_ARCH_HOPPER
	dev.GpmQueryDeviceSupportFunc = func() (nvml.GpmSupport, nvml.Return) {
		support := nvml.GpmSupport{Version: nvml.GPM_SUPPORT_VERSION}
		if able {
			support.IsSupportedDevice = 1
		}
		return support, nvml.SUCCESS
	}
	dev.GpmMigSampleGetFunc = func(slice int, into nvml.GpmSample) nvml.Return {
		d.mu.Lock()
		defer d.mu.Unlock()
		if !able || !k.MIG {
			return nvml.ERROR_NOT_SUPPORTED
		}
		i := slices.IndexFunc(k.Slices, func(s Slice) bool { return int(s.ID) == slice })
		if i < 0 {
			return nvml.ERROR_INVALID_ARGUMENT
		}
		c, now := into.(*counters), d.Now()
		c.card, c.slice, c.at, c.ran = k.UUID, k.Slices[i].ID, now, k.Slices[i].ran(now)
		return nvml.SUCCESS
	}
}
