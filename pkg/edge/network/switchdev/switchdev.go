// Package switchdev answers: how is the switch inside a network card set up: its mode, its ports,
// what leaves by them, and the functions that are cut from the card without PCI's help?
//
// Plan compares what devlink shows with what is wanted and says what to do, in order; Devlink
// looks and does. Nothing here decides about packets: that is the flow policies' (pkg/edge/network/flow),
// which find the ports by their names (pf0vf1).
package switchdev

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Modes of a card's switch.
const (
	Legacy    = "legacy"
	Switchdev = "switchdev"
)

// Flavours of ports, as devlink calls them.
const (
	Physical = "physical"
	PF       = "pcipf"
	VF       = "pcivf"
	SF       = "pcisf"
)

// Device is a card, as devlink names it: "pci/0000:03:00.0".
type Device struct {
	Name string
	// Mode, Inline and Encap are the switch's; empty where the card has none.
	Mode, Inline, Encap string
}

// Port is one port of a card's switch.
type Port struct {
	Index   uint32
	Flavour string
	// Interface is the representor, or the uplink of a physical port.
	Interface string
	// Function numbers the virtual or scalable function behind it, of the physical function PF.
	PF, Function int
	// MAC and Active are the function's; Attached says that its driver has it.
	MAC              string
	Active, Attached bool
}

// Rate is what one port, or a group of ports, may send: bytes a second, 0 for no bound.
type Rate struct {
	// Group is the name of a group; of a port it is empty.
	Group string
	Port  uint32
	Min   uint64
	Max   uint64
	// Parent is the group that it belongs to; empty for none.
	Parent string
}

// Observed is one card as it is.
type Observed struct {
	Device Device
	Ports  []Port
	Rates  []Rate
}

// Function is a virtual or scalable function as it is wanted.
type Function struct {
	Flavour string // VF or SF
	PF      int
	Number  int
	MAC     string // empty: as it is
	// Min, Max and Group bound what it sends; all zero: as it is.
	Min, Max uint64
	Group    string
}

// Wanted is a card as it shall be. What it leaves out stays.
type Wanted struct {
	Mode, Inline, Encap string
	Functions           []Function
	// Groups are those of rates; Port and Parent of each are not looked at.
	Groups []Rate
	// InUse lists the functions that are in use: the mode is not changed under them.
	InUse []string
}

// Verb is what a step does.
type Verb string

// The verbs.
const (
	SetMode     Verb = "mode"
	SetInline   Verb = "inline"
	SetEncap    Verb = "encap"
	AddPort     Verb = "add port"
	RemovePort  Verb = "remove port"
	SetMAC      Verb = "mac"
	Activate    Verb = "activate"
	Deactivate  Verb = "deactivate"
	AddGroup    Verb = "add group"
	SetRate     Verb = "rate"
	RemoveGroup Verb = "remove group"
)

// Step is one change of a card.
type Step struct {
	Do       Verb
	Value    string // mode, inline, encap, MAC; moved
	Port     uint32
	Function Function // of AddPort
	Rate     Rate
}

// Plan says what to do so that a card is as wanted, and what is missing or in the way. After a step
// that makes ports come (mode, add port) the card is looked at again: what concerns these is planned
// then. Groups of ours are told by their names: others' are left alone.
func Plan(have Observed, want Wanted) (steps []Step, waits []string) {
	if want.Mode != "" && want.Mode != have.Device.Mode {
		switch {
		case have.Device.Mode == "":
			return nil, []string{have.Device.Name + " has no switch"}
		case len(want.InUse) > 0:
			return nil, []string{fmt.Sprintf("the switch of %s stays %s: in use are %s", have.Device.Name, have.Device.Mode, strings.Join(want.InUse, ", "))}
		}
		steps = append(steps, unbind(have)...)
		// Inline and encap are the new mode's, and set before functions are taken by drivers.
		return append(steps, Step{Do: SetMode, Value: want.Mode}), nil
	}
	if want.Inline != "" && want.Inline != have.Device.Inline {
		steps = append(steps, Step{Do: SetInline, Value: want.Inline})
	}
	if want.Encap != "" && want.Encap != have.Device.Encap {
		steps = append(steps, Step{Do: SetEncap, Value: want.Encap})
	}
	more, added, waits := functions(have, want)
	steps = append(steps, more...)
	if added {
		return steps, waits
	}
	return append(steps, rates(have, want)...), waits
}

// unbind takes rates of ours away before the mode goes, which would take them without a word.
func unbind(have Observed) (steps []Step) {
	for _, r := range have.Rates {
		if r.Group != "" && strings.HasPrefix(r.Group, groupPrefix) {
			for _, m := range have.Rates {
				if m.Parent == r.Group {
					m.Parent = ""
					steps = append(steps, Step{Do: SetRate, Value: moved, Rate: m, Port: m.Port})
				}
			}
			steps = append(steps, Step{Do: RemoveGroup, Rate: r})
		}
	}
	return steps
}

// moved marks a rate whose group is another.
const moved = "moved"

// groupPrefix marks groups of rates that are ours.
const groupPrefix = "tributary-"

// functions plans scalable functions and the addresses of all. added says that ports come.
func functions(have Observed, want Wanted) (steps []Step, added bool, waits []string) {
	wanted := map[int]bool{}
	for _, f := range want.Functions {
		port, there := find(have, f)
		if f.Flavour == SF {
			wanted[f.Number] = true
		}
		switch {
		case !there && f.Flavour == SF:
			steps, added = append(steps, Step{Do: AddPort, Function: f}), true
			continue
		case !there:
			waits = append(waits, fmt.Sprintf("%s has no port for virtual function %d of %d", have.Device.Name, f.Number, f.PF))
			continue
		}
		if f.MAC != "" && !strings.EqualFold(f.MAC, port.MAC) {
			if port.Active && f.Flavour == SF { // a function that runs keeps its address
				steps = append(steps, Step{Do: Deactivate, Port: port.Index})
				port.Active = false
			}
			steps = append(steps, Step{Do: SetMAC, Port: port.Index, Value: f.MAC})
		}
		if f.Flavour == SF && !port.Active {
			steps = append(steps, Step{Do: Activate, Port: port.Index})
		}
	}
	for _, p := range have.Ports {
		if p.Flavour != SF || wanted[p.Function] || want.Functions == nil {
			continue
		}
		if slices.Contains(want.InUse, p.Interface) {
			waits = append(waits, p.Interface+" is in use")
			continue
		}
		if p.Active {
			steps = append(steps, Step{Do: Deactivate, Port: p.Index})
		}
		steps = append(steps, Step{Do: RemovePort, Port: p.Index})
	}
	return steps, added, waits
}

func find(have Observed, f Function) (Port, bool) {
	i := slices.IndexFunc(have.Ports, func(p Port) bool { return p.Flavour == f.Flavour && p.PF == f.PF && p.Function == f.Number })
	if i < 0 {
		return Port{}, false
	}
	return have.Ports[i], true
}

// rates plans groups before their members, and members before the removal of groups.
func rates(have Observed, want Wanted) (steps []Step) {
	groups := map[string]Rate{}
	for _, g := range want.Groups {
		g.Group = groupPrefix + g.Group
		groups[g.Group] = Rate{Group: g.Group, Min: g.Min, Max: g.Max}
	}
	now := map[string]Rate{}
	leaf := map[uint32]Rate{}
	for _, r := range have.Rates {
		if r.Group != "" {
			now[r.Group] = r
		} else {
			leaf[r.Port] = r
		}
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		g, is := groups[name], now[name]
		if is.Group == "" {
			steps = append(steps, Step{Do: AddGroup, Rate: g})
		} else if is.Min != g.Min || is.Max != g.Max {
			g.Parent = is.Parent
			steps = append(steps, Step{Do: SetRate, Rate: g})
		}
	}
	for _, f := range want.Functions {
		port, there := find(have, f)
		if !there || f.Min == 0 && f.Max == 0 && f.Group == "" && !strings.HasPrefix(leaf[port.Index].Parent, groupPrefix) {
			continue
		}
		r := Rate{Port: port.Index, Min: f.Min, Max: f.Max}
		if f.Group != "" {
			r.Parent = groupPrefix + f.Group
		}
		if is := leaf[port.Index]; is != r {
			step := Step{Do: SetRate, Rate: r, Port: port.Index}
			if is.Parent != r.Parent {
				step.Value = moved
			}
			steps = append(steps, step)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if _, wanted := groups[name]; strings.HasPrefix(name, groupPrefix) && !wanted {
			steps = append(steps, Step{Do: RemoveGroup, Rate: Rate{Group: name}})
		}
	}
	return steps
}

// Representors gives the interfaces that stand for functions, by the names of their ports, the
// uplinks included: "p0", "pf0vf1", "pf0sf88".
func (o Observed) Representors() map[string]string {
	out := map[string]string{}
	physical := 0
	for _, p := range slices.SortedFunc(slices.Values(o.Ports), func(a, b Port) int { return cmp.Compare(a.Index, b.Index) }) {
		switch p.Flavour {
		case Physical:
			out[fmt.Sprintf("p%d", physical)] = p.Interface
			physical++
		case VF:
			out[fmt.Sprintf("pf%dvf%d", p.PF, p.Function)] = p.Interface
		case SF:
			out[fmt.Sprintf("pf%dsf%d", p.PF, p.Function)] = p.Interface
		case PF:
			out[fmt.Sprintf("pf%d", p.PF)] = p.Interface
		}
	}
	return out
}
