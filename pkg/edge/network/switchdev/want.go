package switchdev

import (
	"maps"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Found is what a card was like before it was touched, so that it can be put back.
type Found struct {
	Mode   string `json:"mode,omitempty"`
	Inline string `json:"inline,omitempty"`
	Encap  string `json:"encap,omitempty"`
	// There is how Inline and Encap were in the other mode, which has its own: nil until the card was seen in it.
	There *Modes `json:"there,omitempty"`
	// Ports are the functions that were set, by port.
	Ports map[string]FoundPort `json:"ports,omitempty"`
	// Made are the scalable functions that were made here.
	Made []string `json:"made,omitempty"`
	// Change is how the last policy wanted changes made.
	Change string `json:"change,omitempty"`
}

// Modes are a switch's, of a mode.
type Modes struct {
	Inline string `json:"inline,omitempty"`
	Encap  string `json:"encap,omitempty"`
}

// modes are those that were found in the mode in which a card is.
func (f *Found) modes(mode string) Modes {
	switch {
	case mode == f.Mode:
		return Modes{f.Inline, f.Encap}
	case f.There != nil:
		return *f.There
	}
	return Modes{} // as they are
}

// FoundPort is what a function was like.
type FoundPort struct {
	MAC    string          `json:"mac,omitempty"`
	Active *bool           `json:"active,omitempty"` // of a scalable function
	Can    map[string]bool `json:"can,omitempty"`
	Rate   FunctionRate    `json:"rate,omitzero"`
}

// Remember adds to what is known of a card what a policy is about to touch first; changed says
// that there is something new, to be written down before that.
func Remember(have Observed, policy *api.SwitchPolicy, change string, known *Found) (next Found, changed bool) {
	if known == nil {
		known, changed = &Found{Mode: have.Device.Mode, Inline: have.Device.Inline, Encap: have.Device.Encap, Change: change}, true
	}
	next = *known
	if policy == nil {
		return next, changed
	}
	next.Change, changed = change, changed || change != known.Change
	next.Ports, next.Made = maps.Clone(known.Ports), slices.Clone(known.Made)
	if next.Ports == nil {
		next.Ports = map[string]FoundPort{}
	}
	if have.Device.Mode != next.Mode && next.There == nil {
		next.There, changed = &Modes{have.Device.Inline, have.Device.Encap}, true
	}
	if have.Device.Mode == Legacy && policy.Mode == Switchdev {
		return next, changed // its ports come with the mode
	}
	if have.Device.Mode == Switchdev && policy.Mode == Legacy {
		return next, next.all(have) || changed // they go with it
	}
	for _, w := range policy.Ports {
		p := have.port(w.Port)
		switch _, was := next.Ports[w.Port]; {
		case was:
		case p != nil:
			next.Ports[w.Port], changed = foundPort(have, p), true
		case strings.Contains(w.Port, "sf") && !slices.Contains(next.Made, w.Port):
			next.Made, changed = append(next.Made, w.Port), true
		}
	}
	return next, changed
}

// all adds each virtual function: what it is like goes with the mode.
func (f *Found) all(have Observed) (changed bool) {
	for i := range have.Ports {
		p := &have.Ports[i]
		if _, was := f.Ports[p.Name()]; was || p.Flavour != VF {
			continue
		}
		f.Ports[p.Name()], changed = foundPort(have, p), true
	}
	return changed
}

func foundPort(have Observed, p *Port) FoundPort {
	out := FoundPort{MAC: p.MAC, Can: p.Can}
	if p.Flavour == SF {
		active := p.Active
		out.Active = &active
	}
	for _, r := range have.Rates {
		if r.Group == "" && r.Port == p.Index {
			out.Rate = FunctionRate{Min: r.Min, Max: r.Max, Group: r.Parent}
		}
	}
	return out
}

// perMbit is a Mbit/s in bytes a second, as devlink counts rates.
const perMbit = 1_000_000 / 8

// Want is what a policy asks for; without one, or where it says nothing, what was found. Its
// switch goes back to the mode that was found after all else.
func Want(have Observed, policy *api.SwitchPolicy, found Found, inUse map[string][]string, skip func(Step) bool) Wanted {
	modes := found.modes(have.Device.Mode)
	w := Wanted{Inline: modes.Inline, Encap: modes.Encap, Made: found.Made, InUse: inUse, Skip: skip}
	if policy == nil {
		policy = &api.SwitchPolicy{}
	}
	over := func(to *string, value string) {
		if value != "" {
			*to = value
		}
	}
	over(&w.Mode, policy.Mode)
	over(&w.Inline, policy.Inline)
	over(&w.Encap, policy.Encap)
	for _, g := range policy.Groups {
		w.Groups = append(w.Groups, Rate{Group: g.Name, Min: uint64(g.MinRate) * perMbit, Max: uint64(g.MaxRate) * perMbit})
	}
	listed := map[string]bool{}
	for i := range policy.Ports {
		p := &policy.Ports[i]
		listed[p.Port] = true
		w.Functions = append(w.Functions, wantFunction(p, found))
	}
	for _, name := range slices.Sorted(maps.Keys(found.Ports)) {
		if was := found.Ports[name]; !listed[name] && !slices.Contains(found.Made, name) {
			w.Functions = append(w.Functions, Function{Port: name, MAC: was.MAC, Active: was.Active, Can: was.Can, Rate: &was.Rate, Found: true})
		}
	}
	if w.Mode == "" && found.Mode != have.Device.Mode {
		if steps, waits := Plan(have, w); len(steps)+len(waits) == 0 {
			return Wanted{Mode: found.Mode, InUse: inUse}
		}
	}
	return w
}

func wantFunction(p *api.PortPolicy, found Found) Function {
	was := found.Ports[p.Port]
	f := Function{Port: p.Port, MAC: was.MAC, Can: maps.Clone(was.Can)}
	if p.MAC != "" {
		f.MAC = p.MAC
	}
	if strings.Contains(p.Port, "sf") {
		active := p.State != api.FunctionOff
		f.Active = &active
	}
	for name, on := range map[string]*bool{"roce": p.RoCE, "migratable": p.Migratable, "ipsecCrypto": p.IPsecCrypto, "ipsecPacket": p.IPsecPacket} {
		if on != nil {
			if f.Can == nil {
				f.Can = map[string]bool{}
			}
			f.Can[name] = *on
		}
	}
	rate := was.Rate
	if p.MinRate != nil {
		rate.Min = uint64(*p.MinRate) * perMbit
	}
	if p.MaxRate != nil {
		rate.Max = uint64(*p.MaxRate) * perMbit
	}
	if p.Group != "" {
		rate.Group = groupPrefix + p.Group
	}
	f.Rate = &rate
	return f
}
