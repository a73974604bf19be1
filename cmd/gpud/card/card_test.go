//go:build cgo

package card

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxb200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"tributary.dev/tributary/cmd/gpud/mockdriver"
	"tributary.dev/tributary/pkg/api"
)

var update = flag.Bool("update", false, "write the recording of what the mocks tell")

const recording = "../../../pkg/edge/accel/testdata/told.json"

func open(t *testing.T, cards ...gpus.Config) (*Cards, *mockdriver.Driver) {
	t.Helper()
	d, err := mockdriver.New(filepath.Join(t.TempDir(), "cards"), cards...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(d, func() time.Time { return time.Unix(1000, 0) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, d
}

func uuid(t *testing.T, c *Cards, i int) string {
	t.Helper()
	cards, err := c.Cards()
	if err != nil {
		t.Fatal(err)
	}
	return cards[i].Accelerator.ID
}

// TestRecording: what the planner's proof (pkg/edge/accel, which has no C) starts from is
// what the mocks of go-nvml tell, read by the same code that reads a card.
func TestRecording(t *testing.T) {
	told := map[string]*api.MIG{}
	for name, s := range map[string]*server.Server{"a100": dgxa100.New(), "h100": dgxh100.New(), "b200": dgxb200.New()} {
		c, _ := open(t, s.Devices[0].(*server.Device).Config)
		m, err := c.SetMIG(uuid(t, c, 0), true)
		if err != nil {
			t.Fatal(err)
		}
		told[name] = m
	}
	want, err := json.MarshalIndent(told, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile(recording, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(recording)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s is not what the mocks tell; write it anew by -update", recording)
	}
}

func TestProfileNames(t *testing.T) {
	c, _ := open(t, gpus.A100_SXM4_40GB, gpus.H100_SXM5_80GB)
	for i, want := range [][]string{{"1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb", "1g.5gb+me", "1g.10gb"}, {"1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "1g.10gb+me", "1g.20gb"}} {
		m, err := c.Layout(uuid(t, c, i))
		if err != nil {
			t.Fatal(err)
		}
		if m.Told || m.Enabled {
			t.Error("with MIG off, the card told places")
		}
		var names []string
		for _, p := range m.Profiles {
			names = append(names, p.Name)
		}
		if !slices.Equal(names, want) {
			t.Errorf("profiles %v, want %v", names, want)
		}
	}
}

// TestMockIsWrapped: the mock alone lays one slice over another, in a place the card does
// not have, and removes one that has a compute instance; the wrapper refuses all of it.
func TestMockIsWrapped(t *testing.T) {
	bare := dgxa100.New().Devices[0]
	whole, _ := bare.GetGpuInstanceProfileInfo(nvml.GPU_INSTANCE_PROFILE_7_SLICE)
	for range 2 {
		if _, ret := bare.CreateGpuInstanceWithPlacement(&whole, &nvml.GpuInstancePlacement{Start: 3, Size: 5}); ret != nvml.SUCCESS {
			t.Fatalf("the mock refuses by itself now (%v): is the wrapper still needed?", ret)
		}
	}
	_, d := open(t, gpus.A100_SXM4_40GB)
	dev := d.Devices[0]
	profile := func(id int) *nvml.GpuInstanceProfileInfo {
		p, ret := dev.GetGpuInstanceProfileInfo(id)
		if ret != nvml.SUCCESS {
			t.Fatal(ret)
		}
		return &p
	}
	at := func(start, size uint32) *nvml.GpuInstancePlacement {
		return &nvml.GpuInstancePlacement{Start: start, Size: size}
	}
	create := func(id int, at *nvml.GpuInstancePlacement, want nvml.Return) nvml.GpuInstance {
		t.Helper()
		gi, ret := dev.CreateGpuInstanceWithPlacement(profile(id), at)
		if ret != want {
			t.Fatalf("profile %d at %v: %v, want %v", id, *at, ret, want)
		}
		return gi
	}
	create(nvml.GPU_INSTANCE_PROFILE_1_SLICE, at(0, 1), nvml.ERROR_NOT_SUPPORTED) // MIG is off
	if _, ret := dev.SetMigMode(nvml.DEVICE_MIG_ENABLE); ret != nvml.SUCCESS {
		t.Fatal(ret)
	}
	gi := create(nvml.GPU_INSTANCE_PROFILE_3_SLICE, at(4, 4), nvml.SUCCESS)
	create(nvml.GPU_INSTANCE_PROFILE_1_SLICE, at(6, 1), nvml.ERROR_INSUFFICIENT_RESOURCES) // over another
	create(nvml.GPU_INSTANCE_PROFILE_7_SLICE, at(0, 8), nvml.ERROR_INSUFFICIENT_RESOURCES) // around another
	create(nvml.GPU_INSTANCE_PROFILE_3_SLICE, at(1, 4), nvml.ERROR_INVALID_ARGUMENT)       // no such place
	if ret := mockdriver.Refuse(gpus.A100_SXM4_40GB, nil, 99, *at(0, 1)); ret != nvml.ERROR_INVALID_ARGUMENT {
		t.Errorf("a profile that the card does not have: %v", ret)
	}
	create(nvml.GPU_INSTANCE_PROFILE_1_SLICE_REV1, at(0, 1), nvml.SUCCESS) // one is the most
	create(nvml.GPU_INSTANCE_PROFILE_1_SLICE_REV1, at(1, 1), nvml.ERROR_INSUFFICIENT_RESOURCES)
	compute, ret := gi.GetComputeInstanceProfileInfo(nvml.COMPUTE_INSTANCE_PROFILE_3_SLICE, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
	if ret != nvml.SUCCESS {
		t.Fatal(ret)
	}
	if _, ret := gi.CreateComputeInstance(&compute); ret != nvml.SUCCESS {
		t.Fatal(ret)
	}
	if _, ret := gi.CreateComputeInstance(&compute); ret != nvml.ERROR_INSUFFICIENT_RESOURCES {
		t.Errorf("a second compute instance over the first: %v", ret)
	}
	if ret := gi.Destroy(); ret != nvml.ERROR_IN_USE {
		t.Errorf("removed with its compute instance: %v", ret)
	}
	if _, ret := dev.SetMigMode(nvml.DEVICE_MIG_DISABLE); ret != nvml.ERROR_IN_USE {
		t.Errorf("MIG turned off with slices there: %v", ret)
	}
}

func TestSlices(t *testing.T) {
	c, d := open(t, gpus.A100_SXM4_40GB)
	card := uuid(t, c, 0)
	m, err := c.SetMIG(card, true)
	if err != nil || !m.Enabled || !m.Told {
		t.Fatalf("%+v, %v", m, err)
	}
	i := slices.IndexFunc(m.Profiles, func(p api.MIGProfile) bool { return p.Name == "3g.20gb" })
	made, err := c.Create(card, m.Profiles[i].ID, api.MIGPlacement{Start: 4, Size: 4})
	if err != nil || made.UUID == "" || made.Compute != 0 || made.Name != "3g.20gb" || made.Busy {
		t.Fatalf("%+v, %v", made, err)
	}
	if _, err := c.Create(card, m.Profiles[i].ID, api.MIGPlacement{Start: 4, Size: 4}); api.CodeOf(err) != api.Conflict {
		t.Errorf("twice in one place: %v", err)
	}
	if err := d.Occupy(0, uint32(made.ID), true); err != nil {
		t.Fatal(err)
	}
	if err := c.Destroy(card, made.ID); api.CodeOf(err) != api.Conflict {
		t.Errorf("removed while a process runs on it: %v", err)
	}
	if m, err := c.Layout(card); err != nil || len(m.Instances) != 1 || !m.Instances[0].Busy {
		t.Errorf("%+v, %v", m, err)
	}
	samples, err := c.Sample()
	if err != nil || len(samples) != 2 || samples[0].EnergyMJ == 0 || samples[1].Slice != made.UUID || samples[1].MemoryMiB != 1024 || samples[1].Percent != -1 {
		t.Errorf("%+v, %v", samples, err)
	}
	if err := d.Occupy(0, uint32(made.ID), false); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is gone is no fault
		if err := c.Destroy(card, made.ID); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Layout("GPU-none"); api.CodeOf(err) != api.NotFound {
		t.Error(err)
	}
}

func TestInventory(t *testing.T) {
	c, _ := open(t, gpus.A100_SXM4_40GB, gpus.H100_SXM5_80GB)
	cards, err := c.Cards()
	if err != nil || len(cards) != 2 {
		t.Fatalf("%d cards, %v", len(cards), err)
	}
	a := cards[1].Accelerator
	if a.Model != "NVIDIA H100 80GB HBM3" || a.PCI != "0000:11:00.0" || a.NUMA != 0 || a.MemoryMiB != 81920 || a.PowerLimitW != 400 || a.TemperatureC != 35 ||
		a.ECC == nil || !a.ECC.Enabled || len(a.NVLinks) != 2 || a.NVLinks[0].Peer != "0000:c8:00.0" || a.MIG == nil || a.Nodes[0] != "/dev/nvidia1" || a.Sharing.Mode != api.SharingExclusive {
		t.Errorf("%+v", a)
	}
	for path, want := range map[string]string{"pci/pci_bus_id": "00000000:11:00.0", "fb_memory_usage/total": "81920 MiB", "board_part_number": "N/A", "gpu_power_readings/power_draw": "61.25 W",
		"mig_mode/current_mig": "Disabled", "utilization/gpu_util": "37 %", "performance_state": "P0", "ecc_mode/current_ecc": "Enabled", "pci/pci_gpu_link_info/link_widths/current_link_width": "16x"} {
		if got := cards[1].Details[path]; got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if len(cards[1].Details) != len(fields) {
		t.Errorf("%d details of %d", len(cards[1].Details), len(fields))
	}
}

// TestLost: a card that fell off the bus cannot even be opened. It is told of as lost, under
// the name that it had, events of it too, and hides no other.
func TestLost(t *testing.T) {
	c, d := open(t, gpus.A100_SXM4_40GB, gpus.A100_SXM4_40GB)
	before, err := c.Cards()
	if err != nil {
		t.Fatal(err)
	}
	byIndex := d.DeviceGetHandleByIndexFunc
	d.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i == 0 {
			return nil, nvml.ERROR_GPU_IS_LOST
		}
		return byIndex(i)
	}
	lost := d.Devices[0].(*server.Device)
	lost.GetUUIDFunc = func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }
	now, err := c.Cards()
	if err != nil || len(now) != 2 {
		t.Fatalf("%+v, %v", now, err)
	}
	for i, card := range now {
		a, was := card.Accelerator, before[i].Accelerator
		if a.ID != was.ID || a.PCI != was.PCI || a.Model != was.Model || (len(a.Findings) > 0) != (i == 0) {
			t.Errorf("card %d is %+v, and was %+v", i, a, was)
		}
	}
	if f := now[0].Accelerator.Findings[0]; f.Action != "move" || f.Warning.Name != "gpu-lost" {
		t.Errorf("%+v", f)
	}
	samples, err := c.Sample()
	if err != nil || len(samples) != 1 || samples[0].Card != before[1].Accelerator.ID {
		t.Errorf("%+v, %v", samples, err)
	}
	if e := c.event(nvml.EventData{Device: lost, EventType: nvml.EventTypeXidCriticalError, EventData: 79, GpuInstanceId: noInstance}); e.Card != before[0].Accelerator.ID || e.Xid != 79 {
		t.Errorf("%+v", e)
	}
	if err := fault("", nvml.ERROR_GPU_IS_LOST); err.Code == api.Unavailable {
		t.Error("one card that is lost reads as if no driver answered")
	}
}
