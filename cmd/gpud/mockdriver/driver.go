//go:build cgo

package mockdriver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// Driver is a machine's driver with its cards.
type Driver struct {
	*server.Server
	mu     sync.Mutex
	path   string
	events chan nvml.EventData
	// Now is the clock by which slices work; time.Now, unless a test says otherwise.
	Now func() time.Time
	// Counters is how many buffers for the counters of slices are there.
	Counters int
	state
}

// state is what a machine's cards keep.
type state struct {
	Cards []*kept `json:"cards"`
	// Done is how many orders were taken.
	Done int `json:"done,omitempty"`
	// Since is when the driver was loaded: what cards drew is counted from there.
	Since time.Time `json:"since"`
}

// kept is what a card keeps while programs come and go.
type kept struct {
	UUID   string  `json:"uuid"`
	MIG    bool    `json:"mig"`
	Slices []Slice `json:"slices"`
	// Compute is the compute mode.
	Compute nvml.ComputeMode `json:"compute,omitempty"`
	Celsius uint32           `json:"celsius"`
}

// Slice is one GPU instance with its compute instances, by the driver's numbers.
type Slice struct {
	ID       uint32                    `json:"id"`
	Profile  uint32                    `json:"profile"`
	At       nvml.GpuInstancePlacement `json:"at"`
	Compute  []uint32                  `json:"compute,omitempty"` // profiles
	Occupied bool                      `json:"occupied,omitempty"`
	// Load is the part of the time in which its programs run, since Since; Ran is how long they had before.
	Load  float64       `json:"load,omitempty"`
	Since time.Time     `json:"since"`
	Ran   time.Duration `json:"ran,omitempty"`
}

// New makes a driver with cards whose state is in a file, which is made when it is not there.
func New(path string, cards ...gpus.Config) (*Driver, error) {
	s, err := server.New(server.WithGPUs(cards...), server.WithDriverVersion("570.00.00"), server.WithNVMLVersion("12.570.00.00"), server.WithCUDADriverVersion(12080))
	if err != nil {
		return nil, err
	}
	d := &Driver{Server: s, path: path, events: make(chan nvml.EventData), Now: time.Now, state: state{Since: time.Now()}}
	raw, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(raw, &d.state); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	for i, dev := range s.Devices {
		dev := dev.(*server.Device)
		if i >= len(d.Cards) {
			d.Cards = append(d.Cards, &kept{UUID: fmt.Sprintf("GPU-00000000-0000-0000-0000-%012d", i), Celsius: 34})
		}
		dev.UUID = d.Cards[i].UUID
		d.wrap(dev, d.Cards[i])
	}
	d.wrapCounters()
	s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) { return d.eventSet(), nvml.SUCCESS }
	return d, d.save()
}

// Reboot is what a restart of the machine leaves: no slice, and MIG mode only where keepMode.
func (d *Driver) Reboot(keepMode bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.Cards {
		k.Slices, k.MIG, k.Compute = nil, k.MIG && keepMode, nvml.COMPUTEMODE_DEFAULT
	}
	return d.save()
}

// Occupy lets a process run on a slice, or end.
func (d *Driver) Occupy(card int, slice uint32, running bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.Cards[card].Slices {
		if s := &d.Cards[card].Slices[i]; s.ID == slice {
			s.Occupied = running
		}
	}
	return d.save()
}

// Slices tells what a card holds, for tests to look at.
func (d *Driver) Slices(card int) []Slice {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.Cards[card].Slices)
}

// Tell lets a card tell an event to who waits for one.
func (d *Driver) Tell(card int, kind, data uint64, slice uint32) {
	d.events <- nvml.EventData{Device: d.Devices[card], EventType: kind, EventData: data, GpuInstanceId: slice}
}

func (d *Driver) save() error {
	raw, err := json.Marshal(d.state)
	if err != nil {
		return err
	}
	temp := d.path + ".new"
	if err := os.WriteFile(temp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, d.path)
}

// lookEveryMS is how often orders are looked for.
const lookEveryMS = 50

func (d *Driver) eventSet() nvml.EventSet {
	return &mock.EventSet{
		FreeFunc: func() nvml.Return { return nvml.SUCCESS },
		WaitFunc: func(ms uint32) (nvml.EventData, nvml.Return) {
			end := after(ms)
			for {
				if e, ok := d.ordered(); ok {
					return e, nvml.SUCCESS
				}
				select {
				case e := <-d.events:
					return e, nvml.SUCCESS
				case <-end:
					return nvml.EventData{}, nvml.ERROR_TIMEOUT
				case <-after(lookEveryMS):
				}
			}
		},
	}
}

// Refuse is the driver's rule: a slice must lie where the card offers its profile a place,
// over no other, and not be one too many of its profile.
func Refuse(config gpus.Config, there []Slice, profile uint32, at nvml.GpuInstancePlacement) nvml.Return {
	info, ok := config.MIGProfiles.GpuInstanceProfiles[int(profile)]
	if !ok || !slices.Contains(config.MIGProfiles.GpuInstancePlacements[int(profile)], at) {
		return nvml.ERROR_INVALID_ARGUMENT
	}
	same := 0
	for _, s := range there {
		if at.Start < s.At.Start+s.At.Size && s.At.Start < at.Start+at.Size {
			return nvml.ERROR_INSUFFICIENT_RESOURCES
		}
		if s.Profile == profile {
			same++
		}
	}
	if same >= int(info.InstanceCount) {
		return nvml.ERROR_INSUFFICIENT_RESOURCES
	}
	return nvml.SUCCESS
}

// wrap puts the driver's rules before the mock's functions.
func (d *Driver) wrap(dev *server.Device, k *kept) {
	d.wrapFacts(dev, k)
	d.wrapWork(dev, k)
	dev.GetMigModeFunc = func() (int, int, nvml.Return) {
		d.mu.Lock()
		defer d.mu.Unlock()
		mode := map[bool]int{true: nvml.DEVICE_MIG_ENABLE, false: nvml.DEVICE_MIG_DISABLE}[k.MIG]
		return mode, mode, nvml.SUCCESS
	}
	dev.SetMigModeFunc = func(mode int) (nvml.Return, nvml.Return) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(k.Slices) > 0 {
			return nvml.SUCCESS, nvml.ERROR_IN_USE
		}
		k.MIG = mode == nvml.DEVICE_MIG_ENABLE
		return nvml.SUCCESS, d.saved()
	}
	places := dev.GetGpuInstancePossiblePlacementsFunc
	dev.GetGpuInstancePossiblePlacementsFunc = func(p *nvml.GpuInstanceProfileInfo) ([]nvml.GpuInstancePlacement, nvml.Return) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if !k.MIG {
			return nil, nvml.ERROR_NOT_SUPPORTED
		}
		return places(p)
	}
	dev.GetGpuInstancesFunc = func(p *nvml.GpuInstanceProfileInfo) (list []nvml.GpuInstance, ret nvml.Return) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if !k.MIG {
			return nil, nvml.ERROR_NOT_SUPPORTED
		}
		for _, s := range k.Slices {
			if s.Profile == p.Id {
				list = append(list, d.instance(dev, k, s))
			}
		}
		return list, nvml.SUCCESS
	}
	dev.CreateGpuInstanceFunc = nil // places are chosen by who asks
	dev.CreateGpuInstanceWithPlacementFunc = func(p *nvml.GpuInstanceProfileInfo, at *nvml.GpuInstancePlacement) (nvml.GpuInstance, nvml.Return) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if !k.MIG {
			return nil, nvml.ERROR_NOT_SUPPORTED
		}
		if ret := Refuse(dev.Config, k.Slices, p.Id, *at); ret != nvml.SUCCESS {
			return nil, ret
		}
		s := Slice{ID: freeNumber(k.Slices), Profile: p.Id, At: *at, Since: d.Now()}
		k.Slices = append(k.Slices, s)
		return d.instance(dev, k, s), d.saved()
	}
	dev.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	dev.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, s := range k.Slices {
			if len(s.Compute) == 0 {
				continue
			}
			if i--; i < 0 {
				return migDevice(k.UUID, s), nvml.SUCCESS
			}
		}
		return nil, nvml.ERROR_NOT_FOUND
	}
}

// freeNumber is the smallest from 1 that no slice has: the driver gives numbers out again.
func freeNumber(there []Slice) (n uint32) {
	n = 1
	for slices.ContainsFunc(there, func(s Slice) bool { return s.ID == n }) {
		n++
	}
	return n
}

func (d *Driver) saved() nvml.Return {
	if d.save() != nil {
		return nvml.ERROR_UNKNOWN
	}
	return nvml.SUCCESS
}

// instance is a handle of a slice. Its functions take the lock themselves.
func (d *Driver) instance(dev *server.Device, k *kept, s Slice) nvml.GpuInstance {
	gi := server.NewGpuInstanceFromInfo(nvml.GpuInstanceInfo{Device: dev, Id: s.ID, ProfileId: s.Profile, Placement: s.At}, dev.Config.MIGProfiles)
	// change finds the slice again: it may be gone since.
	change := func(what func(i int) nvml.Return) nvml.Return {
		d.mu.Lock()
		defer d.mu.Unlock()
		i := slices.IndexFunc(k.Slices, func(other Slice) bool { return other.ID == s.ID })
		if i < 0 {
			return nvml.ERROR_NOT_FOUND
		}
		if ret := what(i); ret != nvml.SUCCESS {
			return ret
		}
		return d.saved()
	}
	gi.DestroyFunc = func() nvml.Return {
		return change(func(i int) nvml.Return {
			if len(k.Slices[i].Compute) > 0 {
				return nvml.ERROR_IN_USE
			}
			k.Slices = slices.Delete(k.Slices, i, i+1)
			return nvml.SUCCESS
		})
	}
	gi.CreateComputeInstanceFunc = func(p *nvml.ComputeInstanceProfileInfo) (nvml.ComputeInstance, nvml.Return) {
		return nil, change(func(i int) nvml.Return {
			var taken uint32
			for _, c := range k.Slices[i].Compute {
				taken += dev.Config.MIGProfiles.ComputeInstanceProfiles[int(s.Profile)][int(c)].SliceCount
			}
			if taken+p.SliceCount > dev.Config.MIGProfiles.GpuInstanceProfiles[int(s.Profile)].SliceCount {
				return nvml.ERROR_INSUFFICIENT_RESOURCES
			}
			k.Slices[i].Compute = append(k.Slices[i].Compute, p.Id)
			return nvml.SUCCESS
		})
	}
	gi.GetComputeInstancesFunc = func(p *nvml.ComputeInstanceProfileInfo) (list []nvml.ComputeInstance, _ nvml.Return) {
		ret := change(func(i int) nvml.Return {
			for n, c := range k.Slices[i].Compute {
				if c == p.Id {
					list = append(list, d.compute(gi, uint32(n), c, change, k))
				}
			}
			return nvml.SUCCESS
		})
		return list, ret
	}
	return gi
}

func (d *Driver) compute(gi *server.GpuInstance, n, profile uint32, change func(func(int) nvml.Return) nvml.Return, k *kept) nvml.ComputeInstance {
	ci := server.NewComputeInstanceFromInfo(nvml.ComputeInstanceInfo{GpuInstance: gi, Id: n, ProfileId: profile})
	ci.DestroyFunc = func() nvml.Return {
		return change(func(i int) nvml.Return {
			s := &k.Slices[i]
			if s.Occupied {
				return nvml.ERROR_IN_USE
			}
			at := slices.Index(s.Compute, profile)
			if at < 0 {
				return nvml.ERROR_NOT_FOUND
			}
			s.Compute = slices.Delete(s.Compute, at, at+1)
			return nvml.SUCCESS
		})
	}
	return ci
}

// migDevice is what CUDA sees of a slice.
func migDevice(card string, s Slice) nvml.Device {
	return &mock.Device{
		GetUUIDFunc: func() (string, nvml.Return) {
			return fmt.Sprintf("MIG-%s/%d/0", card[len("GPU-"):], s.ID), nvml.SUCCESS
		},
		GetGpuInstanceIdFunc:     func() (int, nvml.Return) { return int(s.ID), nvml.SUCCESS },
		GetComputeInstanceIdFunc: func() (int, nvml.Return) { return 0, nvml.SUCCESS },
		GetComputeRunningProcessesFunc: func() ([]nvml.ProcessInfo, nvml.Return) {
			if s.Occupied {
				return []nvml.ProcessInfo{{Pid: 4711, UsedGpuMemory: 1 << 30}}, nvml.SUCCESS
			}
			return nil, nvml.SUCCESS
		},
		GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) {
			return nvml.Memory{Total: 4 << 30, Used: map[bool]uint64{true: 1 << 30}[s.Occupied]}, nvml.SUCCESS
		},
		GetUtilizationRatesFunc: func() (nvml.Utilization, nvml.Return) {
			return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED
		},
	}
}
