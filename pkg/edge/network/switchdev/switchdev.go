// Package switchdev answers: how is the switch inside a network card set up: its mode, its ports,
// what leaves by them, and the functions that are cut from the card without PCI's help? And is the
// card well?
//
// want.go says what a policy and what was found ask for; Plan compares that with what devlink
// shows and says what to do, in order; Devlink looks and does; a Keeper runs the loop. Nothing
// here decides about packets: that is the flow policies' (pkg/edge/network/flow), which find the
// ports by their names (pf0vf1).
package switchdev

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Modes of a card's switch.
const (
	Legacy    = api.SwitchLegacy
	Switchdev = api.Switchdev
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
	// Unreloaded says that its driver began anew and failed.
	Unreloaded bool
}

// Port is one port of a card's switch.
type Port struct {
	Index   uint32
	Flavour string
	// Interface is the representor, or the uplink of a physical port.
	Interface string
	// Function numbers the virtual or scalable function behind it, of the physical function PF;
	// External says that this is another controller's: the host's, as its DPU sees it.
	PF, Function, Controller int
	External                 bool
	// MAC, Active and Can are the function's; Attached says that its driver has it.
	MAC              string
	Active, Attached bool
	Can              map[string]bool
}

// Name is the port's as the kernel makes it (net/devlink/port.c: __devlink_port_phys_port_name_get).
// A physical port has none here.
func (p *Port) Name() string {
	of := ""
	if p.External {
		of = fmt.Sprintf("c%d", p.Controller)
	}
	switch p.Flavour {
	case VF:
		return fmt.Sprintf("%spf%dvf%d", of, p.PF, p.Function)
	case SF:
		return fmt.Sprintf("%spf%dsf%d", of, p.PF, p.Function)
	case PF:
		return fmt.Sprintf("%spf%d", of, p.PF)
	}
	return ""
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
	Device    Device
	Ports     []Port
	Rates     []Rate
	Reporters []Reporter
}

// Function is the function behind a port as it is wanted.
type Function struct {
	Port string // its name
	MAC  string // empty: as it is
	// Active is a scalable function's; nil: as it is.
	Active *bool
	// Can holds what it can do and shall, or shall not; what is not in it stays.
	Can map[string]bool
	// Rate bounds what it sends; nil: as it is.
	Rate *FunctionRate
	// Found says that nobody wants it any more: it is put back, and not made.
	Found bool
}

// FunctionRate is what a function may send, in bytes a second. Group is the kernel's name of it.
type FunctionRate struct {
	Min   uint64 `json:"min,omitempty"`
	Max   uint64 `json:"max,omitempty"`
	Group string `json:"group,omitempty"`
}

// Wanted is a card as it shall be. What it leaves out stays.
type Wanted struct {
	Mode, Inline, Encap string
	Functions           []Function
	// Made are scalable functions that we made: those that are not wanted go.
	Made []string
	// Groups are those of rates; Port and Parent of each are not looked at.
	Groups []Rate
	// InUse lists who uses functions, by port: what they use is not changed, nor the mode under them.
	InUse map[string][]string
	// Skip tells of steps that were refused before: a function is not halted for them again.
	Skip func(Step) bool
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
	SetCan      Verb = "ability"
	Activate    Verb = "activate"
	Deactivate  Verb = "deactivate"
	AddGroup    Verb = "add group"
	SetRate     Verb = "rate"
	RemoveGroup Verb = "remove group"
)

// Step is one change of a card.
type Step struct {
	Do    Verb
	Value string // mode, inline, encap, MAC, an ability; moved
	On    bool   // of an ability
	Port  uint32
	Name  string // the port's
	Rate  Rate
}

// Plan says what to do so that a card is as wanted, and what is missing or in the way. After a step
// that makes ports come (mode, add port) the card is looked at again: what concerns these is planned
// then. Groups of ours are told by their names: others' are left alone.
func Plan(have Observed, want Wanted) (steps []Step, waits []string) {
	if want.Mode != "" && want.Mode != have.Device.Mode {
		if have.Device.Mode == "" {
			return nil, []string{have.Device.Name + " has no switch"}
		}
		if users := want.users(); len(users) > 0 { // check: users
			return nil, []string{fmt.Sprintf("the switch of %s stays %s: in use by %s", have.Device.Name, have.Device.Mode, strings.Join(users, ", "))}
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

func (w *Wanted) users() []string {
	var all []string
	for _, users := range w.InUse {
		all = append(all, users...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// blocked are the users that a card's change waits for.
func blocked(have Observed, want Wanted) (users []string) {
	free := want
	free.InUse = nil
	steps, _ := Plan(have, free)
	for _, s := range steps {
		switch s.Do {
		case SetMode:
			return want.users()
		case SetMAC, SetCan, Activate, Deactivate, RemovePort:
			users = append(users, want.InUse[s.Name]...)
		}
	}
	slices.Sort(users)
	return slices.Compact(users)
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

// functions plans scalable functions, and how all are. added says that ports come.
func functions(have Observed, want Wanted) (steps []Step, added bool, waits []string) {
	wanted := map[string]bool{}
	for _, f := range want.Functions {
		wanted[f.Port] = true
		port := have.port(f.Port)
		switch {
		case port == nil && f.Found: // it is gone
		case port == nil && strings.Contains(f.Port, "sf"):
			steps, added = append(steps, Step{Do: AddPort, Name: f.Port}), true
		case port == nil:
			waits = append(waits, fmt.Sprintf("%s has no port %s", have.Device.Name, f.Port))
		default:
			more := function(*port, f, want.Skip)
			if users := want.InUse[f.Port]; len(users) > 0 && len(more) > 0 { // check: user
				waits = append(waits, fmt.Sprintf("%s of %s stays as it is: in use by %s", f.Port, have.Device.Name, strings.Join(users, ", ")))
				continue
			}
			steps = append(steps, more...)
		}
	}
	for i := range have.Ports {
		p := &have.Ports[i]
		if p.Flavour != SF || wanted[p.Name()] || !slices.Contains(want.Made, p.Name()) {
			continue
		}
		if users := want.InUse[p.Name()]; len(users) > 0 {
			waits = append(waits, fmt.Sprintf("%s of %s stays: in use by %s", p.Name(), have.Device.Name, strings.Join(users, ", ")))
			continue
		}
		if p.Active {
			steps = append(steps, Step{Do: Deactivate, Port: p.Index, Name: p.Name()})
		}
		steps = append(steps, Step{Do: RemovePort, Port: p.Index, Name: p.Name()})
	}
	return steps, added, waits
}

// function plans what one function is like. One that runs keeps its address and abilities: it is
// halted for another.
func function(p Port, f Function, skip func(Step) bool) (steps []Step) {
	step := func(do Verb, value string, on bool) {
		if s := (Step{Do: do, Value: value, On: on, Port: p.Index, Name: f.Port}); skip == nil || !skip(s) {
			steps = append(steps, s)
		}
	}
	if f.MAC != "" && !strings.EqualFold(f.MAC, p.MAC) {
		step(SetMAC, f.MAC, false)
	}
	for _, can := range slices.Sorted(maps.Keys(f.Can)) {
		if p.Can[can] != f.Can[can] {
			step(SetCan, can, f.Can[can])
		}
	}
	active := p.Active
	if f.Active != nil {
		active = *f.Active
	}
	if len(steps) > 0 && p.Active {
		steps = append([]Step{{Do: Deactivate, Port: p.Index, Name: f.Port}}, steps...)
		p.Active = false
	}
	if active != p.Active {
		step(map[bool]Verb{true: Activate, false: Deactivate}[active], "", false)
	}
	return steps
}

func (o *Observed) port(name string) *Port {
	i := slices.IndexFunc(o.Ports, func(p Port) bool { return p.Name() == name })
	if i < 0 || name == "" {
		return nil
	}
	return &o.Ports[i]
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
		port := have.port(f.Port)
		if port == nil {
			continue
		}
		is := leaf[port.Index]
		is.Port = port.Index // of one that has no rate yet
		r := Rate{Port: port.Index, Min: is.Min, Max: is.Max, Parent: is.Parent}
		if f.Rate != nil {
			r.Min, r.Max, r.Parent = f.Rate.Min, f.Rate.Max, f.Rate.Group
			if f.Found && r.Parent != "" && now[r.Parent].Group == "" {
				r.Parent = "" // its group, of somebody else's, is gone
			}
		} else if strings.HasPrefix(is.Parent, groupPrefix) {
			r.Parent = "" // it was ours
		}
		if is != r {
			step := Step{Do: SetRate, Rate: r, Port: port.Index, Name: f.Port}
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
		if name := p.Name(); name != "" {
			out[name] = p.Interface
		} else if p.Flavour == Physical {
			out[fmt.Sprintf("p%d", physical)] = p.Interface
			physical++
		}
	}
	return out
}
