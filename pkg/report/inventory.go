package report

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// What a box is made of is told in parts that change apart:
//
//	hw/pci/<domain:bus>   the functions on one PCI bus, and the bridge that leads to it
//	hw/net/<interface>    one network interface, without its link
//	hw/link/<interface>   its link
//	hw/card/<card>        how one network card is by its own word
//	hw/gpu/<id>           one accelerator
//	hw/cpu, hw/nodes      all processors; all NUMA nodes
//	hw/disk/<name>        one disk
//	hw/chip/<id>          one chip of sensors: states and limits, no values
//	hw/flow/<policy>      how the rules of one flow policy stand
//	hw/misc               TPMs, watchdogs, and which lists were cut off
//
// A cable that is pulled is one entry of a few bytes; a card that is plugged in one for its
// bus and one for each thing on it.

// InventoryPrefix begins the keys that tell of it.
const InventoryPrefix = "hw/"

// bus is the value of hw/pci/<domain:bus>; Functions are by device and function: 8 to a device.
type bus struct {
	Bridge    string                     `cbor:"1,keyasint,omitempty"`
	Functions map[uint8]*api.PCIFunction `cbor:"2,keyasint"`
}

// misc is the value of hw/misc.
type misc struct {
	TPMs      []api.TPMDevice `cbor:"1,keyasint,omitempty"`
	Watchdogs []api.Watchdog  `cbor:"2,keyasint,omitempty"`
	Cut       []string        `cbor:"3,keyasint,omitempty"`
}

// maxText bounds the bytes of a key behind its prefix.
const maxText = 200

// SplitInventory gives the entries of an inventory. Parts whose names are too long for a
// key are left out.
func SplitInventory(i *api.Inventory) (map[string][]byte, error) {
	out := map[string][]byte{}
	var failed error
	put := func(key string, value any) {
		raw, err := encMode.Marshal(value)
		failed = cmp.Or(failed, err)
		if len(key) <= maxText && len(raw) <= maxValue {
			out[InventoryPrefix+key] = raw
		}
	}
	buses := map[string]*bus{}
	for n := range i.PCI {
		f := &i.PCI[n]
		on, at, ok := splitAddress(f.Address)
		if !ok {
			continue
		}
		b := buses[on]
		if b == nil {
			b = &bus{Bridge: f.Bridge, Functions: map[uint8]*api.PCIFunction{}}
			buses[on] = b
		}
		b.Functions[at] = f
	}
	for on, b := range buses {
		put("pci/"+on, b)
	}
	for n := range i.NetDevices {
		d := &i.NetDevices[n]
		put("net/"+d.Name, d)
		put("link/"+d.Name, &d.Link)
	}
	for n := range i.Cards {
		put("card/"+i.Cards[n].Card, &i.Cards[n])
	}
	for n := range i.Accelerators {
		put("gpu/"+i.Accelerators[n].ID, &i.Accelerators[n])
	}
	if i.CPU != nil {
		put("cpu", i.CPU)
	}
	if len(i.Nodes) > 0 {
		put("nodes", i.Nodes)
	}
	for n := range i.Disks {
		put("disk/"+i.Disks[n].Name, &i.Disks[n])
	}
	for n := range i.Sensors {
		put("chip/"+i.Sensors[n].ID, &i.Sensors[n])
	}
	policies := map[string][]api.FlowState{}
	for _, f := range i.Flows {
		policies[f.Policy] = append(policies[f.Policy], f)
	}
	for name, rules := range policies {
		put("flow/"+name, rules)
	}
	put("misc", misc{i.TPMs, i.Watchdogs, i.Cut})
	return out, failed
}

// splitAddress parts "0000:03:00.1" into its bus and its number there.
func splitAddress(address string) (on string, at uint8, ok bool) {
	i := strings.LastIndexByte(address, ':')
	if i < 0 || len(address) != i+5 || address[i+3] != '.' {
		return "", 0, false
	}
	device, err := strconv.ParseUint(address[i+1:i+3], 16, 5)
	function := address[i+4] - '0'
	return address[:i], uint8(device)<<3 | function, err == nil && function <= 7
}

// JoinInventory reads the inventory of a device's reported state; nil where it told of
// none. Keys of entries that cannot be read are in bad. Lists are in order.
func JoinInventory(entries map[string][]byte) (i *api.Inventory, bad []string) {
	links := map[string]api.Link{}
	for key, raw := range entries {
		name, ok := strings.CutPrefix(key, InventoryPrefix)
		if !ok {
			continue
		}
		if i == nil {
			i = &api.Inventory{}
		}
		what, id, _ := strings.Cut(name, "/")
		ok = len(name) <= maxText
		if what == "link" && ok {
			var l api.Link
			if ok = read(raw, &l); ok {
				links[id] = l
			}
		} else if ok {
			ok = take(i, what, id, raw)
		}
		if !ok {
			bad = append(bad, key)
		}
	}
	if i == nil {
		return nil, nil
	}
	for n := range i.NetDevices {
		i.NetDevices[n].Link = links[i.NetDevices[n].Name]
	}
	slices.SortFunc(i.PCI, func(a, b api.PCIFunction) int { return cmp.Compare(a.Address, b.Address) })
	slices.SortFunc(i.NetDevices, func(a, b api.NetDevice) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(i.Cards, func(a, b api.CardHealth) int { return cmp.Compare(a.Card, b.Card) })
	slices.SortFunc(i.Accelerators, func(a, b api.Accelerator) int { return cmp.Or(cmp.Compare(a.PCI, b.PCI), cmp.Compare(a.ID, b.ID)) })
	slices.SortFunc(i.Disks, func(a, b api.Disk) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(i.Sensors, func(a, b api.SensorChip) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortStableFunc(i.Flows, func(a, b api.FlowState) int { return cmp.Compare(a.Policy, b.Policy) })
	slices.Sort(bad)
	return i, bad
}

// take reads one part. What a later version tells besides is passed over.
func take(i *api.Inventory, what, id string, raw []byte) bool {
	switch what {
	case "pci":
		var b bus
		if !read(raw, &b) {
			return false
		}
		for at, f := range b.Functions {
			if f == nil {
				return false
			}
			f.Address, f.Bridge = fmt.Sprintf("%s:%02x.%d", id, at>>3, at&7), b.Bridge
			i.PCI = append(i.PCI, *f)
		}
		return true
	case "net":
		return one(raw, &i.NetDevices, func(d *api.NetDevice) { d.Name = id })
	case "card":
		return one(raw, &i.Cards, func(c *api.CardHealth) { c.Card = id })
	case "gpu":
		return one(raw, &i.Accelerators, func(a *api.Accelerator) { a.ID = id })
	case "disk":
		return one(raw, &i.Disks, func(d *api.Disk) { d.Name = id })
	case "chip":
		return one(raw, &i.Sensors, func(c *api.SensorChip) { c.ID = id })
	case "cpu":
		var c api.CPU
		ok := read(raw, &c)
		if ok {
			i.CPU = &c
		}
		return ok
	case "nodes":
		return read(raw, &i.Nodes)
	case "flow":
		var rules []api.FlowState
		ok := read(raw, &rules)
		for n := range rules {
			rules[n].Policy = id
		}
		i.Flows = append(i.Flows, rules...)
		return ok
	case "misc":
		var m misc
		ok := read(raw, &m)
		if ok {
			i.TPMs, i.Watchdogs, i.Cut = m.TPMs, m.Watchdogs, m.Cut
		}
		return ok
	}
	return true
}

func one[T any](raw []byte, into *[]T, name func(*T)) bool {
	var v T
	if !read(raw, &v) {
		return false
	}
	name(&v)
	*into = append(*into, v)
	return true
}
