//go:build cgo

package mockdriver

import (
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

func after(ms uint32) <-chan time.Time { return time.After(time.Duration(ms) * time.Millisecond) }

// wrapFacts answers what the mock has no answer for, with figures that a healthy card tells.
func (d *Driver) wrapFacts(dev *server.Device, k *kept) {
	dev.GetSerialFunc = func() (string, nvml.Return) { return "1320020000001", nvml.SUCCESS }
	dev.GetVbiosVersionFunc = func() (string, nvml.Return) { return "92.00.19.00.01", nvml.SUCCESS }
	dev.GetBoardPartNumberFunc = func() (string, nvml.Return) { return "", nvml.ERROR_NOT_SUPPORTED }
	dev.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) {
		p := nvml.PciInfo{Bus: uint32(0x10 + dev.Index), PciDeviceId: dev.Config.PciDeviceId}
		for i, c := range []byte("00000000:" + hex(byte(p.Bus)) + ":00.0") {
			p.BusId[i] = int8(c)
		}
		return p, nvml.SUCCESS
	}
	dev.GetNumaNodeIdFunc = func() (int, nvml.Return) { return dev.Index / 4, nvml.SUCCESS }
	dev.GetAttributesFunc = func() (nvml.DeviceAttributes, nvml.Return) {
		return nvml.DeviceAttributes{}, nvml.ERROR_NOT_SUPPORTED
	}
	dev.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 400_000, nvml.SUCCESS }
	dev.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 61_250, nvml.SUCCESS }
	dev.GetTotalEnergyConsumptionFunc = func() (uint64, nvml.Return) { // what it draws now, all the time
		return 1_234_567 + uint64(61.25*float64(time.Since(d.Since).Milliseconds())), nvml.SUCCESS
	}
	dev.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return k.Celsius, nvml.SUCCESS
	}
	dev.GetEccModeFunc = func() (nvml.EnableState, nvml.EnableState, nvml.Return) {
		return nvml.FEATURE_ENABLED, nvml.FEATURE_ENABLED, nvml.SUCCESS
	}
	dev.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 0, nvml.SUCCESS }
	dev.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 0, false, false, nvml.SUCCESS }
	dev.GetNvLinkStateFunc = func(link int) (nvml.EnableState, nvml.Return) {
		if link > 1 {
			return 0, nvml.ERROR_INVALID_ARGUMENT
		}
		return nvml.FEATURE_ENABLED, nvml.SUCCESS
	}
	dev.GetNvLinkRemotePciInfoFunc = func(int) (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{Bus: 0xc8}, nvml.SUCCESS }
	dev.GetPersistenceModeFunc = func() (nvml.EnableState, nvml.Return) { return nvml.FEATURE_ENABLED, nvml.SUCCESS }
	for _, f := range []*func() (int, nvml.Return){&dev.GetMaxPcieLinkGenerationFunc, &dev.GetCurrPcieLinkGenerationFunc} {
		*f = func() (int, nvml.Return) { return 4, nvml.SUCCESS }
	}
	for _, f := range []*func() (int, nvml.Return){&dev.GetMaxPcieLinkWidthFunc, &dev.GetCurrPcieLinkWidthFunc} {
		*f = func() (int, nvml.Return) { return 16, nvml.SUCCESS }
	}
	dev.GetPerformanceStateFunc = func() (nvml.Pstates, nvml.Return) { return nvml.PSTATE_0, nvml.SUCCESS }
	dev.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) {
		return nvml.Memory_v2{Total: dev.MemoryInfo.Total, Reserved: 512 << 20, Used: 1 << 30}, nvml.SUCCESS
	}
	dev.GetBAR1MemoryInfoFunc = func() (nvml.BAR1Memory, nvml.Return) {
		return nvml.BAR1Memory{Bar1Total: 64 << 30}, nvml.SUCCESS
	}
	dev.GetComputeModeFunc = func() (nvml.ComputeMode, nvml.Return) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return k.Compute, nvml.SUCCESS
	}
	dev.SetComputeModeFunc = func(mode nvml.ComputeMode) nvml.Return {
		d.mu.Lock()
		defer d.mu.Unlock()
		k.Compute = mode
		return d.saved()
	}
	dev.GetClockInfoFunc = func(nvml.ClockType) (uint32, nvml.Return) { return 1215, nvml.SUCCESS }
	dev.GetMaxClockInfoFunc = func(nvml.ClockType) (uint32, nvml.Return) { return 1410, nvml.SUCCESS }
	dev.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: 37}, nvml.SUCCESS }
	dev.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.SUCCESS }
	dev.RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return nvml.SUCCESS }
}

func hex(b byte) string {
	const digits = "0123456789ABCDEF"
	return string([]byte{digits[b>>4], digits[b&15]})
}
