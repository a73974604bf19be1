//go:build cgo

package card

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
)

// Cards answers what the agent asks (gpud.Handler) from NVIDIA's library. Its methods are
// called one at a time.
type Cards struct {
	lib  nvml.Interface
	now  func() time.Time
	busy *busy

	mu    sync.Mutex // events are told beside what is asked
	known map[int]known
}

// known is a card as it told who it is when it last did: one that fell off the bus does not.
type known struct {
	device    nvml.Device
	uuid, pci string
	model     string
}

var _ gpud.Handler = (*Cards)(nil)

// Open loads the library. Close lets go of it.
func Open(lib nvml.Interface, now func() time.Time) (*Cards, error) {
	if ret := lib.Init(); ret != nvml.SUCCESS && ret != nvml.ERROR_ALREADY_INITIALIZED {
		return nil, fault("loading NVIDIA's library", ret)
	}
	return &Cards{lib: lib, now: now, busy: newBusy(lib, now), known: map[int]known{}}, nil
}

// Close lets go of the library.
func (c *Cards) Close() { c.lib.Shutdown() }

// Hello says which driver is there.
func (c *Cards) Hello() gpud.Hello {
	h := gpud.Hello{Version: gpud.Version}
	h.Driver, _ = c.lib.SystemGetDriverVersion()
	h.Library, _ = c.lib.SystemGetNVMLVersion()
	h.CUDA, _ = c.lib.SystemGetCudaDriverVersion()
	return h
}

// devices opens the cards; the place of one that cannot be opened is nil, with the reason.
func (c *Cards) devices() (list []nvml.Device, why []nvml.Return, err error) {
	n, ret := c.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, nil, fault("counting the cards", ret)
	}
	for i := range n {
		d, ret := c.lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			d = nil
		}
		list, why = append(list, d), append(why, ret)
	}
	return list, why, nil
}

// who tells a card's UUID and address, as it told them before if it does not now.
func (c *Cards) who(index int, d nvml.Device) known {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.known[index]
	if d == nil {
		return k
	}
	now := known{device: d}
	uuid, ret := d.GetUUID()
	if ret != nvml.SUCCESS || uuid == "" {
		return k
	}
	now.uuid = uuid
	now.model, _ = d.GetName()
	if pci, ret := d.GetPciInfo(); ret == nvml.SUCCESS {
		now.pci = pciAddress(pci)
	} else if k.uuid == uuid {
		now.pci = k.pci
	}
	c.known[index] = now
	return now
}

// named is the UUID of a device that an event is about.
func (c *Cards) named(d nvml.Device) string {
	if d == nil {
		return ""
	}
	if uuid, ret := d.GetUUID(); ret == nvml.SUCCESS && uuid != "" {
		return uuid
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.known {
		if k.device == d {
			return k.uuid
		}
	}
	return ""
}

func (c *Cards) device(uuid string) (nvml.Device, error) {
	d, ret := c.lib.DeviceGetHandleByUUID(uuid)
	if ret != nvml.SUCCESS {
		return nil, &api.Error{Code: api.NotFound, Message: fmt.Sprintf("there is no card %q", uuid), Remedy: "`edgectl describe device` lists them"}
	}
	return d, nil
}

// Layout reads a card's slices.
func (c *Cards) Layout(uuid string) (*api.MIG, error) {
	d, err := c.device(uuid)
	if err != nil {
		return nil, err
	}
	m, err := mig(d)
	if err == nil && m == nil {
		err = &api.Error{Code: api.Invalid, Message: "this card cannot be cut into slices", Remedy: "share it by time-slicing or mps"}
	}
	return m, err
}

// Create makes a slice.
func (c *Cards) Create(uuid string, profile int, at api.MIGPlacement) (*api.MIGInstance, error) {
	d, err := c.device(uuid)
	if err != nil {
		return nil, err
	}
	return create(d, profile, at)
}

// Destroy removes a slice.
func (c *Cards) Destroy(uuid string, instance int) error {
	d, err := c.device(uuid)
	if err != nil {
		return err
	}
	return destroy(d, instance)
}

// SetMIG turns MIG on or off. Where the driver needs a reset of the card for it, the answer
// says Pending.
func (c *Cards) SetMIG(uuid string, on bool) (*api.MIG, error) {
	m, err := c.Layout(uuid)
	if err != nil || m.Enabled == on {
		return m, err
	}
	d, err := c.device(uuid)
	if err != nil {
		return nil, err
	}
	mode := nvml.DEVICE_MIG_DISABLE
	if on {
		mode = nvml.DEVICE_MIG_ENABLE
	}
	activation, ret := d.SetMigMode(mode)
	if ret != nvml.SUCCESS {
		return nil, fault("changing the MIG mode", ret)
	}
	if activation != nvml.SUCCESS && activation != nvml.ERROR_RESET_REQUIRED {
		return nil, fault("changing the MIG mode", activation)
	}
	return c.Layout(uuid)
}

// SetCompute says who may use a card at once, in nvidia-smi's words.
func (c *Cards) SetCompute(uuid, mode string) error {
	d, err := c.device(uuid)
	if err != nil {
		return err
	}
	modes := map[string]nvml.ComputeMode{"Default": nvml.COMPUTEMODE_DEFAULT, "Exclusive_Process": nvml.COMPUTEMODE_EXCLUSIVE_PROCESS, "Prohibited": nvml.COMPUTEMODE_PROHIBITED}
	m, ok := modes[mode]
	if !ok {
		return api.Errorf(api.Invalid, "%q is no compute mode", mode)
	}
	if ret := d.SetComputeMode(m); ret != nvml.SUCCESS {
		return fault("changing the compute mode", ret)
	}
	return nil
}

// Cards reads the inventory. A card that does not answer is told as a finding of that card,
// so that one lost card does not hide the others.
func (c *Cards) Cards() ([]gpud.Card, error) {
	devices, why, err := c.devices()
	if err != nil {
		return nil, err
	}
	driver, _ := c.lib.SystemGetDriverVersion()
	var list []gpud.Card
	for i, d := range devices {
		switch k := c.who(i, d); {
		case k.uuid == "": // who it is, only the bus knows
		case d == nil:
			list = append(list, lost(i, k, driver, why[i], c.now()))
		default:
			list = append(list, c.read(i, k, d, driver))
		}
	}
	return list, nil
}

// lost is a card that cannot be opened any more.
func lost(index int, k known, driver string, ret nvml.Return, now time.Time) gpud.Card {
	return gpud.Card{Accelerator: api.Accelerator{ID: k.uuid, PCI: k.pci, Model: k.model, Vendor: "nvidia", Driver: "nvidia", DriverVersion: driver, NUMA: -1, Sharing: api.Sharing{Mode: api.SharingExclusive},
		Findings: []api.AcceleratorFinding{silent(index, ret, now)}}}
}

func (c *Cards) read(index int, k known, d nvml.Device, driver string) gpud.Card {
	a := api.Accelerator{ID: k.uuid, PCI: k.pci, Vendor: "nvidia", Driver: "nvidia", DriverVersion: driver, NUMA: -1, Sharing: api.Sharing{Mode: api.SharingExclusive}}
	a.Model, _ = d.GetName()
	a.Serial, _ = d.GetSerial()
	a.VBIOS, _ = d.GetVbiosVersion()
	if node, ret := d.GetNumaNodeId(); ret == nvml.SUCCESS {
		a.NUMA = node
	}
	if minor, ret := d.GetMinorNumber(); ret == nvml.SUCCESS {
		a.Nodes = []string{fmt.Sprintf("/dev/nvidia%d", minor)}
	}
	if memory, ret := d.GetMemoryInfo(); ret == nvml.SUCCESS {
		a.MemoryMiB = int64(memory.Total >> 20)
	} else {
		a.Findings = append(a.Findings, silent(index, ret, c.now()))
	}
	if attributes, ret := d.GetAttributes(); ret == nvml.SUCCESS {
		a.Multiprocessors = int(attributes.MultiprocessorCount)
	}
	if limit, ret := d.GetEnforcedPowerLimit(); ret == nvml.SUCCESS {
		a.PowerLimitW = int(limit / 1000)
	}
	if t, ret := d.GetTemperature(nvml.TEMPERATURE_GPU); ret == nvml.SUCCESS {
		a.TemperatureC = int(t+2) / 5 * 5
	}
	a.ECC, a.NVLinks = ecc(d), links(d)
	m, err := mig(d)
	if err != nil {
		a.Findings = append(a.Findings, api.AcceleratorFinding{Warning: api.Warning{Name: "gpu-slices-unreadable", Severity: api.Degraded, Message: err.Error(), Since: c.now().Unix()}})
	}
	if a.MIG = m; m != nil && m.Enabled {
		a.Sharing.Mode = api.SharingMIG
	}
	return gpud.Card{Accelerator: a, Details: details(d)}
}

func silent(index int, ret nvml.Return, now time.Time) api.AcceleratorFinding {
	return api.AcceleratorFinding{Action: "move", Warning: api.Warning{Name: "gpu-lost", Severity: api.Critical, Since: now.Unix(),
		Message: fmt.Sprintf("card %d does not answer: %s", index, strings.TrimPrefix(ret.String(), "ERROR_")), Remedy: "restart the box; if it comes back so, change the card"}}
}

// pciAddress is as /sys writes it: NVML has a domain of eight digits.
func pciAddress(p nvml.PciInfo) string {
	return fmt.Sprintf("%04x:%02x:%02x.0", p.Domain, p.Bus, p.Device)
}

func ecc(d nvml.Device) *api.ECC {
	now, pending, ret := d.GetEccMode()
	if ret != nvml.SUCCESS {
		return nil
	}
	e := &api.ECC{Enabled: now == nvml.FEATURE_ENABLED, PendingToggle: now != pending}
	e.Corrected, _ = d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.AGGREGATE_ECC)
	e.Uncorrected, _ = d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.AGGREGATE_ECC)
	if corrected, uncorrected, waiting, failed, ret := d.GetRemappedRows(); ret == nvml.SUCCESS {
		e.RemappedRows, e.RemapPending, e.RemapFailed = corrected+uncorrected, waiting, failed
	}
	return e
}

func links(d nvml.Device) (list []api.NVLink) {
	for i := range nvml.NVLINK_MAX_LINKS {
		state, ret := d.GetNvLinkState(i)
		if ret != nvml.SUCCESS {
			continue
		}
		l := api.NVLink{Link: i, Active: state == nvml.FEATURE_ENABLED}
		if peer, ret := d.GetNvLinkRemotePciInfo(i); ret == nvml.SUCCESS && l.Active {
			l.Peer = pciAddress(peer)
		}
		list = append(list, l)
	}
	return list
}

// Sample reads what cards and slices use now, and how busy they were.
func (c *Cards) Sample() ([]gpud.Sample, error) {
	devices, _, err := c.devices()
	if err != nil {
		return nil, err
	}
	var list []gpud.Sample
	for _, d := range devices {
		if d == nil {
			continue // the inventory says so
		}
		uuid, ret := d.GetUUID()
		if ret != nvml.SUCCESS {
			continue
		}
		list = append(list, c.sample(uuid, "", d))
		if now, _, ret := d.GetMigMode(); ret == nvml.SUCCESS && now == nvml.DEVICE_MIG_ENABLE {
			list = append(list, c.slices(uuid, d)...)
		}
	}
	c.busy.forget()
	return list, nil
}

// slices are those of one card. How busy one is, is known of a GPU instance: where that is
// parted among several compute instances, it is known of none of them.
func (c *Cards) slices(card string, d nvml.Device) (list []gpud.Sample) {
	var instances []int // of each, -1 where it is not told
	on := map[int]int{}
	n, _ := d.GetMaxMigDeviceCount()
	for i := range n {
		s, ret := d.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue
		}
		slice, ret := s.GetUUID()
		if ret != nvml.SUCCESS {
			continue
		}
		instance, ret := s.GetGpuInstanceId()
		if ret != nvml.SUCCESS {
			instance = -1
		}
		on[instance]++
		list, instances = append(list, c.sample(card, slice, s)), append(instances, instance)
	}
	if len(list) == 0 || !c.busy.able(d) {
		return list
	}
	for i, instance := range instances {
		if instance >= 0 && on[instance] == 1 {
			list[i].Percent = c.busy.percent(d, list[i].Slice, instance)
		}
	}
	return list
}

func (c *Cards) sample(card, slice string, d nvml.Device) gpud.Sample {
	s := gpud.Sample{Card: card, Slice: slice, Time: c.now().UnixMilli(), Percent: unknown}
	if memory, ret := d.GetMemoryInfo(); ret == nvml.SUCCESS {
		s.MemoryMiB = int64(memory.Used >> 20)
	}
	if use, ret := d.GetUtilizationRates(); ret == nvml.SUCCESS { // not told of slices, nor of a card in slices
		s.Percent = int(min(use.Gpu, 100))
	}
	if running, ret := d.GetComputeRunningProcesses(); ret == nvml.SUCCESS {
		for _, p := range running {
			s.Processes = append(s.Processes, p.Pid)
		}
	}
	if slice != "" {
		return s
	}
	s.EnergyMJ, _ = d.GetTotalEnergyConsumption()
	s.PowerMW, _ = d.GetPowerUsage()
	if t, ret := d.GetTemperature(nvml.TEMPERATURE_GPU); ret == nvml.SUCCESS {
		s.Celsius = int(t)
	}
	return s
}

// kinds are the events that are asked for.
var kinds = map[uint64]gpud.EventKind{
	nvml.EventTypeXidCriticalError: gpud.EventXid, nvml.EventTypeSingleBitEccError: gpud.EventECCSingle,
	nvml.EventTypeDoubleBitEccError: gpud.EventECCDouble, nvml.EventTypeGpuUnavailableError: gpud.EventUnavailable,
}

// waitMS is how long the library waits before this program looks whether it is to end.
const waitMS = 1000

// Events tells what cards tell by themselves, until ctx ends. It may be called beside the
// other methods: the library is safe for that. When one card ends it for all, or another
// comes, it begins anew.
func (c *Cards) Events(ctx context.Context, tell func(gpud.Event)) error {
	for {
		err := c.listen(ctx, tell)
		pause := time.NewTimer(listenAgain)
		select {
		case <-ctx.Done():
			pause.Stop()
			return err
		case <-pause.C:
		}
	}
}

// listenAgain is how soon events are asked for again.
const listenAgain = time.Second

// listen tells events until one cannot be waited for, or there are other cards.
func (c *Cards) listen(ctx context.Context, tell func(gpud.Event)) error {
	devices, _, err := c.devices()
	if err != nil {
		return err
	}
	set, ret := c.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return fault("asking for events", ret)
	}
	defer set.Free()
	for i, d := range devices {
		if d == nil {
			continue
		}
		c.who(i, d)
		for kind := range kinds {
			d.RegisterEvents(kind, set) // a card without ECC refuses that one
		}
	}
	for ctx.Err() == nil {
		e, ret := set.Wait(waitMS)
		switch ret {
		case nvml.SUCCESS:
			tell(c.event(e))
		case nvml.ERROR_TIMEOUT:
			if n, ret := c.lib.DeviceGetCount(); ret == nvml.SUCCESS && n != len(devices) {
				return nil
			}
		default:
			return fault("waiting for events", ret)
		}
	}
	return nil
}

// noInstance is how the library says that an event is about no slice.
const noInstance = 0xFFFFFFFF

func (c *Cards) event(e nvml.EventData) gpud.Event {
	out := gpud.Event{Card: c.named(e.Device), Kind: kinds[e.EventType], Xid: e.EventData, Instance: -1, Time: c.now().UnixMilli()}
	if out.Kind != gpud.EventXid {
		out.Xid = 0
	}
	if e.GpuInstanceId != noInstance {
		out.Instance = int(e.GpuInstanceId)
	}
	return out
}
