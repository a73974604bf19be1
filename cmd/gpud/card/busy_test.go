//go:build cgo

package card

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"

	"tributary.dev/tributary/cmd/gpud/mockdriver"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
)

// desk is a card in two slices, by a clock of its own.
type desk struct {
	*testing.T
	*mockdriver.Driver
	cards *Cards
	at    time.Time
	made  []*api.MIGInstance
}

func newDesk(t *testing.T, model gpus.Config) *desk {
	t.Helper()
	d := &desk{T: t, at: time.Unix(1000, 0)}
	d.cards, d.Driver = open(t, model)
	d.Now = func() time.Time { return d.at }
	d.cards.now, d.cards.busy.now = d.Now, d.Now
	m, err := d.cards.SetMIG(uuid(t, d.cards, 0), true)
	if err != nil {
		t.Fatal(err)
	}
	smallest := m.Profiles[0]
	for _, at := range smallest.Placements[:2] {
		d.made = append(d.made, d.slice(smallest.ID, at))
	}
	return d
}

func (d *desk) slice(profile int, at api.MIGPlacement) *api.MIGInstance {
	d.Helper()
	made, err := d.cards.Create(uuid(d.T, d.cards, 0), profile, at)
	if err != nil {
		d.Fatal(err)
	}
	return made
}

func (d *desk) work(slice int, load float64) {
	d.Helper()
	if err := d.Work(0, uint32(d.made[slice].ID), load); err != nil {
		d.Fatal(err)
	}
}

// busy is what is told of both slices after a while.
func (d *desk) busy(after time.Duration) (percent []int) {
	d.Helper()
	d.at = d.at.Add(after)
	samples, err := d.cards.Sample()
	if err != nil {
		d.Fatal(err)
	}
	for _, made := range d.made {
		i := slices.IndexFunc(samples, func(s gpud.Sample) bool { return s.Slice == made.UUID })
		if i < 0 {
			d.Fatalf("no sample of %s in %+v", made.UUID, samples)
		}
		percent = append(percent, samples[i].Percent)
	}
	return percent
}

// TestBusySlices: each slice tells how busy it was since the last look, whatever it does at
// the moment of looking; two looks at once say the same.
func TestBusySlices(t *testing.T) {
	d := newDesk(t, gpus.H100_SXM5_80GB)
	d.work(0, 0.9)
	for _, c := range []struct {
		after time.Duration
		want  []int
		what  string
	}{
		{time.Second, []int{-1, -1}, "nothing to hold the first look against"},
		{10 * time.Second, []int{90, 0}, "one works, and one is idle: that is known"},
		{50 * time.Millisecond, []int{90, 0}, "sooner than the card refreshes its counters"},
		{10 * time.Second, []int{90, 0}, "as before"},
	} {
		if got := d.busy(c.after); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
	d.at = d.at.Add(5 * time.Second)
	d.work(0, 0)
	d.work(1, 0.5)
	if got := d.busy(5 * time.Second); !slices.Equal(got, []int{45, 25}) {
		t.Errorf("half of the time each: %v", got)
	}
	if d.Counters != 2 {
		t.Errorf("%d buffers are kept for two slices", d.Counters)
	}
}

// TestBusyAnew: a slice that is made again by the same name has nothing of the one before.
func TestBusyAnew(t *testing.T) {
	d := newDesk(t, gpus.H100_SXM5_80GB)
	d.work(1, 1)
	d.busy(time.Second)
	if err := d.cards.Destroy(uuid(t, d.cards, 0), d.made[1].ID); err != nil {
		t.Fatal(err)
	}
	gone := d.made[1]
	d.made = d.made[:1]
	d.busy(time.Second)
	if d.Counters != 1 {
		t.Errorf("%d buffers are kept for one slice", d.Counters)
	}
	again := d.slice(gone.Profile, gone.Placement)
	if again.UUID != gone.UUID {
		t.Fatalf("%s, and was %s: this tests nothing", again.UUID, gone.UUID)
	}
	d.made = append(d.made, again)
	if got := d.busy(time.Second); !slices.Equal(got, []int{0, -1}) {
		t.Errorf("the first look at another slice: %v", got)
	}
	if got := d.busy(time.Second); !slices.Equal(got, []int{0, 0}) {
		t.Errorf("the second: %v", got)
	}
}

// TestBusyUnknown: where it is not told it is unknown, never nought.
func TestBusyUnknown(t *testing.T) {
	answers := func(t *testing.T, d *desk) {
		t.Helper()
		for range 3 {
			if got := d.busy(time.Second); !slices.Equal(got, []int{-1, -1}) {
				t.Errorf("%v", got)
			}
		}
		if d.Counters != 0 && d.Counters != 2 {
			t.Errorf("%d buffers are kept", d.Counters)
		}
	}
	t.Run("a card before Hopper", func(t *testing.T) { answers(t, newDesk(t, gpus.A100_SXM4_40GB)) })
	t.Run("an old library", func(t *testing.T) {
		d := newDesk(t, gpus.H100_SXM5_80GB)
		d.LookupSymbolFunc = func(name string) error {
			if name == "nvmlGpmMigSampleGet" {
				return errors.New("undefined symbol")
			}
			return nil
		}
		d.cards.busy = newBusy(d.Driver, d.Now)
		answers(t, d)
	})
	t.Run("no right to the counters", func(t *testing.T) {
		d := newDesk(t, gpus.H100_SXM5_80GB)
		d.GpmMetricsGetFunc = func(*nvml.GpmMetricsGetType) nvml.Return { return nvml.ERROR_NO_PERMISSION }
		answers(t, d)
	})
	t.Run("no counters", func(t *testing.T) {
		d := newDesk(t, gpus.H100_SXM5_80GB)
		d.GpmSampleAllocFunc = func() (nvml.GpmSample, nvml.Return) { return nil, nvml.ERROR_MEMORY }
		answers(t, d)
	})
}
