package usage

import (
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Quantity is how much of a meter was used.
type Quantity struct {
	Meter, Class, Unit string
	Quantity           int64
}

// Quantities takes the use of a service apart by meters, in an order that stays: entries are
// named by it. Bytes of network that no class of link is told of have the class "".
func Quantities(c *api.ContainerUse) []Quantity {
	a := &c.Accelerator
	out := make([]Quantity, 0, 16)
	add := func(meter, class string, n uint64) {
		out = append(out, Quantity{meter, class, api.MeterUnit(meter), int64(n)})
	}
	rx, tx := c.RxBytes, c.TxBytes
	for key, n := range c.More {
		switch meter, class, _ := strings.Cut(key, "/"); {
		case class == "":
		case meter == api.MeterNetworkRx:
			rx -= min(rx, n)
		case meter == api.MeterNetworkTx:
			tx -= min(tx, n)
		}
	}
	add(api.MeterRuntime, "", c.RunMillis)
	add(api.MeterCPU, "", c.CPUMicros)
	add(api.MeterMemory, "", c.MemoryByteSeconds)
	add(api.MeterNetworkRx, "", rx)
	add(api.MeterNetworkTx, "", tx)
	add(api.MeterGPUHeld, "", a.HeldMillis)
	add(api.MeterGPUSlice, "", a.SliceMillis)
	add(api.MeterGPUMemory, "", a.MemoryMiBSeconds)
	add(api.MeterGPUBusy, "", a.BusyMillis)
	add(api.MeterEnergy, "", a.EnergyMillijoules)
	for _, key := range sorted(c.More) {
		meter, class, _ := strings.Cut(key, "/")
		if api.MeterUnit(meter) != "" { // else a newer box counts what nobody here knows the unit of
			add(meter, class, c.More[key])
		}
	}
	return out
}
