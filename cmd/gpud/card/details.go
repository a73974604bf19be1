//go:build cgo

package card

import (
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// details are the fields of `nvidia-smi -q -x`, in its words, so that both can be held
// against each other. What the card does not tell is "N/A", as there.
func details(d nvml.Device) map[string]string {
	out := map[string]string{}
	for path, read := range fields {
		value, ret := read(d)
		if ret != nvml.SUCCESS {
			value = "N/A"
		}
		out[path] = value
	}
	return out
}

type field func(nvml.Device) (string, nvml.Return)

// fields are by the path below <gpu>.
var fields = map[string]field{
	"product_name":          nvml.Device.GetName,
	"uuid":                  nvml.Device.GetUUID,
	"serial":                nvml.Device.GetSerial,
	"vbios_version":         nvml.Device.GetVbiosVersion,
	"board_part_number":     nvml.Device.GetBoardPartNumber,
	"minor_number":          number(nvml.Device.GetMinorNumber, "%d"),
	"persistence_mode":      enabled(nvml.Device.GetPersistenceMode),
	"mig_mode/current_mig":  migMode(false),
	"mig_mode/pending_mig":  migMode(true),
	"pci/pci_bus_id":        pci(func(p nvml.PciInfo) string { return text(p.BusId[:]) }),
	"pci/pci_device_id":     pci(func(p nvml.PciInfo) string { return fmt.Sprintf("%08X", p.PciDeviceId) }),
	"pci/pci_sub_system_id": pci(func(p nvml.PciInfo) string { return fmt.Sprintf("%08X", p.PciSubSystemId) }),
	"pci/pci_gpu_link_info/pcie_gen/max_link_gen":          number(nvml.Device.GetMaxPcieLinkGeneration, "%d"),
	"pci/pci_gpu_link_info/pcie_gen/current_link_gen":      number(nvml.Device.GetCurrPcieLinkGeneration, "%d"),
	"pci/pci_gpu_link_info/link_widths/max_link_width":     number(nvml.Device.GetMaxPcieLinkWidth, "%dx"),
	"pci/pci_gpu_link_info/link_widths/current_link_width": number(nvml.Device.GetCurrPcieLinkWidth, "%dx"),
	"performance_state":                       number(nvml.Device.GetPerformanceState, "P%d"),
	"fb_memory_usage/total":                   memory(func(m nvml.Memory_v2) uint64 { return m.Total }),
	"fb_memory_usage/reserved":                memory(func(m nvml.Memory_v2) uint64 { return m.Reserved }),
	"fb_memory_usage/used":                    memory(func(m nvml.Memory_v2) uint64 { return m.Used }),
	"fb_memory_usage/free":                    memory(func(m nvml.Memory_v2) uint64 { return m.Free }),
	"bar1_memory_usage/total":                 bar1(func(m nvml.BAR1Memory) uint64 { return m.Bar1Total }),
	"compute_mode":                            computeMode,
	"ecc_mode/current_ecc":                    eccMode(false),
	"ecc_mode/pending_ecc":                    eccMode(true),
	"ecc_errors/aggregate/dram_correctable":   eccCount(nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.AGGREGATE_ECC),
	"ecc_errors/aggregate/dram_uncorrectable": eccCount(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.AGGREGATE_ECC),
	"ecc_errors/volatile/dram_correctable":    eccCount(nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.VOLATILE_ECC),
	"ecc_errors/volatile/dram_uncorrectable":  eccCount(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC),
	"temperature/gpu_temp":                    temperature,
	"gpu_power_readings/power_draw":           number(nvml.Device.GetPowerUsage, "mW"),
	"gpu_power_readings/current_power_limit":  number(nvml.Device.GetEnforcedPowerLimit, "mW"),
	"clocks/graphics_clock":                   clock(nvml.CLOCK_GRAPHICS),
	"clocks/sm_clock":                         clock(nvml.CLOCK_SM),
	"clocks/mem_clock":                        clock(nvml.CLOCK_MEM),
	"max_clocks/graphics_clock":               maxClock(nvml.CLOCK_GRAPHICS),
	"max_clocks/mem_clock":                    maxClock(nvml.CLOCK_MEM),
	"utilization/gpu_util":                    use(func(u nvml.Utilization) uint32 { return u.Gpu }),
	"utilization/memory_util":                 use(func(u nvml.Utilization) uint32 { return u.Memory }),
}

type whole interface {
	~int | ~int32 | ~uint32 | ~uint64
}

// number writes what a card counts; "mW" writes thousandths of a watt as nvidia-smi does.
func number[T whole](read func(nvml.Device) (T, nvml.Return), format string) field {
	return func(d nvml.Device) (string, nvml.Return) {
		n, ret := read(d)
		if format == "mW" {
			return fmt.Sprintf("%.2f W", float64(n)/1000), ret
		}
		return fmt.Sprintf(format, n), ret
	}
}

func state(on bool) string {
	if on {
		return "Enabled"
	}
	return "Disabled"
}

func enabled(read func(nvml.Device) (nvml.EnableState, nvml.Return)) field {
	return func(d nvml.Device) (string, nvml.Return) {
		s, ret := read(d)
		return state(s == nvml.FEATURE_ENABLED), ret
	}
}

func migMode(pending bool) field {
	return func(d nvml.Device) (string, nvml.Return) {
		now, then, ret := d.GetMigMode()
		if pending {
			now = then
		}
		return state(now == nvml.DEVICE_MIG_ENABLE), ret
	}
}

func eccMode(pending bool) field {
	return func(d nvml.Device) (string, nvml.Return) {
		now, then, ret := d.GetEccMode()
		if pending {
			now = then
		}
		return state(now == nvml.FEATURE_ENABLED), ret
	}
}

func pci(read func(nvml.PciInfo) string) field {
	return func(d nvml.Device) (string, nvml.Return) {
		p, ret := d.GetPciInfo()
		return read(p), ret
	}
}

// text is a string of C.
func text(b []int8) string {
	var out strings.Builder
	for _, c := range b {
		if c == 0 {
			break
		}
		out.WriteByte(byte(c))
	}
	return out.String()
}

func mebibytes(n uint64) string { return fmt.Sprintf("%d MiB", n>>20) }

func memory(read func(nvml.Memory_v2) uint64) field {
	return func(d nvml.Device) (string, nvml.Return) {
		m, ret := d.GetMemoryInfo_v2()
		return mebibytes(read(m)), ret
	}
}

func bar1(read func(nvml.BAR1Memory) uint64) field {
	return func(d nvml.Device) (string, nvml.Return) {
		m, ret := d.GetBAR1MemoryInfo()
		return mebibytes(read(m)), ret
	}
}

func computeMode(d nvml.Device) (string, nvml.Return) {
	mode, ret := d.GetComputeMode()
	switch mode {
	case nvml.COMPUTEMODE_EXCLUSIVE_PROCESS:
		return "Exclusive_Process", ret
	case nvml.COMPUTEMODE_PROHIBITED:
		return "Prohibited", ret
	}
	return "Default", ret
}

func eccCount(kind nvml.MemoryErrorType, counter nvml.EccCounterType) field {
	return func(d nvml.Device) (string, nvml.Return) {
		n, ret := d.GetTotalEccErrors(kind, counter)
		return fmt.Sprint(n), ret
	}
}

func temperature(d nvml.Device) (string, nvml.Return) {
	t, ret := d.GetTemperature(nvml.TEMPERATURE_GPU)
	return fmt.Sprintf("%d C", t), ret
}

func clock(kind nvml.ClockType) field {
	return func(d nvml.Device) (string, nvml.Return) {
		mhz, ret := d.GetClockInfo(kind)
		return fmt.Sprintf("%d MHz", mhz), ret
	}
}

func maxClock(kind nvml.ClockType) field {
	return func(d nvml.Device) (string, nvml.Return) {
		mhz, ret := d.GetMaxClockInfo(kind)
		return fmt.Sprintf("%d MHz", mhz), ret
	}
}

func use(read func(nvml.Utilization) uint32) field {
	return func(d nvml.Device) (string, nvml.Return) {
		u, ret := d.GetUtilizationRates()
		return fmt.Sprintf("%d %%", read(u)), ret
	}
}
