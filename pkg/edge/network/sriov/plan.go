package sriov

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Plan decides what to do next: a plain function. It holds to these:
//
//   - A function that a running container has is neither taken, renumbered nor given
//     another driver or address. What stands in the way is named, or is to end first where
//     the policy says drain.
//   - How a card is, is written down before it is touched, and what no policy speaks of any
//     more is put back to that.
//   - vfio-pci gets a function alone when it gets all of its IOMMU group.
func Plan(in Input) Output {
	p := planner{in: in, out: Output{Drain: map[string][]string{}}}
	p.chooseVFIO()
	for i := range in.State.Cards {
		p.card(&in.State.Cards[i])
	}
	return p.out
}

type planner struct {
	in  Input
	out Output
	// vfio are the functions that vfio-pci shall serve, kernel those that the kernel shall.
	vfio, kernel map[string]bool
}

func (p *planner) step(s Step) {
	if !p.in.Failed[s.Key()] {
		p.out.Steps = append(p.out.Steps, s)
	}
}

// Key tells one step from another.
func (s Step) Key() string {
	return fmt.Sprint(s.Op, s.Card, s.PCI, s.Number, s.Driver, s.Changed, s.Settings)
}

func (p *planner) refuse(c *Card, users []string, remedy, format string, args ...any) {
	r := Refusal{Card: c.PCI, Words: label(c) + ": " + fmt.Sprintf(format, args...), Users: users, Remedy: remedy}
	p.out.Refused = append(p.out.Refused, r)
}

func label(c *Card) string {
	if c.Name == "" {
		return c.PCI
	}
	return c.Name + " (" + c.PCI + ")"
}

// found is what is written down of a card since this start of the box.
func (p *planner) found(c *Card) *Found {
	f, ok := p.in.Found[c.PCI]
	if !ok || f.Boot != p.in.Boot {
		return nil
	}
	return &f
}

func (p *planner) card(c *Card) {
	policy, found := policyFor(p.in.Policies, c), p.found(c)
	if policy == nil && found == nil && p.in.Clear[c.PCI] {
		policy = &api.FunctionPolicy{} // what it has comes again
	}
	switch {
	case policy == nil && found == nil:
		return
	case found == nil:
		p.step(Step{Op: Remember, Card: c.PCI, Found: &Found{Boot: p.in.Boot, Probe: c.Probe, First: c.Functions, Base: c.Functions, Change: policy.Change}})
		return // what is written down is a ground for the rest
	case policy != nil && found.Change != policy.Change:
		next := *found
		next.Change = policy.Change
		p.step(Step{Op: Remember, Card: c.PCI, Found: &next})
		return
	case !sameFunctions(found.Base, c.Functions) && len(c.Functions) > 0:
		// They were made since, and are not set yet.
		next := *found
		next.Base = c.Functions
		p.step(Step{Op: Remember, Card: c.PCI, Found: &next})
		return
	}
	if p.count(c, policy, found) {
		return // all is looked at anew
	}
	if c.Probe != found.Probe { // it was cut short
		p.step(Step{Op: SetProbe, Card: c.PCI, Number: truth(found.Probe)})
	}
	if !p.interfaceOf(c, policy, found) {
		return
	}
	if next, other := addressed(c, policy, found); other {
		p.step(Step{Op: Remember, Card: c.PCI, Found: &next})
		return
	}
	done := true
	for i := range c.Functions {
		done = p.function(c, &c.Functions[i], policy, found) && done
	}
	if policy == nil && !p.in.Clear[c.PCI] && done && len(c.Functions) == len(found.First) && !p.hasSteps(c) {
		p.step(Step{Op: Forget, Card: c.PCI})
	}
}

func (p *planner) hasSteps(c *Card) bool {
	return slices.ContainsFunc(p.out.Steps, func(s Step) bool { return s.Card == c.PCI })
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sameFunctions tells whether two lists are of the same functions, however they are set.
func sameFunctions(a, b []Function) bool {
	return slices.EqualFunc(a, b, func(x, y Function) bool { return x.PCI == y.PCI && x.Index == y.Index })
}

// count plans the number of functions. true says that a step was planned.
func (p *planner) count(c *Card, policy *api.FunctionPolicy, found *Found) bool {
	want := len(found.First)
	if policy != nil && policy.VirtualFunctions != nil {
		want = *policy.VirtualFunctions
		if want > c.Most && policy.UpTo {
			want = c.Most
		}
		if want > c.Most { // check: number
			p.refuse(c, nil, fmt.Sprintf("give at most %d", c.Most), "it can have %d virtual functions, not %d", c.Most, want)
			return false
		}
	}
	if p.in.Clear[c.PCI] {
		want = 0
	}
	if want == len(c.Functions) {
		return false
	}
	// Most drivers want all functions to go before there can be another number, so that
	// those that stay go and come again.
	var users []string
	busy := false
	for _, f := range c.Functions {
		if p.in.Busy[f.PCI] { // check: in use
			busy = true
			users = append(users, p.in.Held[f.PCI]...)
		}
		if f.Index >= want && found.Change != api.ChangeDrain { // check: held
			users = append(users, p.in.Held[f.PCI]...)
		}
	}
	slices.Sort(users)
	users = slices.Compact(users)
	switch {
	case len(users) == 0 && !busy:
	case found.Change == api.ChangeDrain && len(users) > 0: // check: drain
		p.out.Drain[c.PCI] = users
		return false
	default:
		p.refuse(c, users, remedyEnd, "its %d virtual functions cannot become %d while %s has some of them", len(c.Functions), want, names(users))
		return false
	}
	probe := want > 0 && c.Probe
	if probe {
		// Functions are set before a driver sees them: it asks once for its address.
		p.step(Step{Op: SetProbe, Card: c.PCI})
	}
	if len(c.Functions) > 0 {
		p.step(Step{Op: Count, Card: c.PCI})
	}
	if want > 0 {
		p.step(Step{Op: Count, Card: c.PCI, Number: want})
	}
	if probe {
		p.step(Step{Op: SetProbe, Card: c.PCI, Number: 1}) // without it they get none when they are to, either
	}
	return p.hasSteps(c)
}

const remedyEnd = "end these apps, or write change: drain"

func names(users []string) string {
	if len(users) == 0 {
		return "a container that runs"
	}
	return strings.Join(users, ", ")
}

// interfaceOf plans what the card's own interface is like; false says that something is to be written down before. What
// was set here is undone, once, and nothing else: others set it too, and an interface that the box needs stays on.
func (p *planner) interfaceOf(c *Card, policy *api.FunctionPolicy, found *Found) bool {
	if c.Name == "" {
		return true
	}
	mtu := policy != nil && policy.MTU != 0
	up := policy != nil && len(c.Functions) > 0 // they carry traffic while it is on
	next := *found
	switch {
	case mtu && !found.SetMTU && c.MTU != policy.MTU:
		next.SetMTU, next.MTU = true, c.MTU
	case !mtu && found.SetMTU && c.MTU == found.MTU:
		next.SetMTU, next.MTU = false, 0
	}
	switch {
	case up && !c.Up:
		next.SetUp = true
	case !up && (!c.Up || c.Used):
		next.SetUp = false
	}
	if next.SetMTU != found.SetMTU || next.SetUp != found.SetUp {
		p.step(Step{Op: Remember, Card: c.PCI, Found: &next})
		return false
	}
	switch {
	case mtu && c.MTU != policy.MTU:
		p.step(Step{Op: SetMTU, Card: c.PCI, Number: policy.MTU})
	case !mtu && found.SetMTU:
		p.step(Step{Op: SetMTU, Card: c.PCI, Number: found.MTU})
	}
	if up != c.Up && (up || found.SetUp) {
		p.step(Step{Op: SetUp, Card: c.PCI, Number: truth(up)})
	}
	return true
}

// function plans one virtual function; false says that it is not as it shall be, and cannot
// be made so now.
func (p *planner) function(c *Card, f *Function, policy *api.FunctionPolicy, found *Found) bool {
	if p.in.Busy[f.PCI] && f.Driver == "" { // check: on its way
		return false // it comes back from a container, and its driver makes a new interface (package network)
	}
	base := baseOf(f, policy, found)
	want, driver, mtu := wanted(c, f, policy, found), driverFor(&base, policy, f.Index), base.MTU
	rdma := false
	if policy != nil {
		v := policy.For(f.Index)
		if v.MTU != 0 {
			mtu = v.MTU
		}
		rdma = v.RDMA
	}
	changed := differs(f.Settings, want)
	if want.MAC == "" && slices.Contains(found.Addressed[f.Index], f.MAC) {
		changed = append([]string{"mac"}, changed...)
	}
	binds, asked := driverOf(f) != driver, driver
	if driver == api.DriverVFIO && binds {
		if why := p.groupHinders(f); why != "" { // check: half a group
			p.refuse(c, nil, "have vfio-pci serve all of the group, or leave this function to the kernel", "function %d (%s) cannot go to vfio-pci: %s", f.Index, f.PCI, why)
			driver, binds = driverOf(f), false
			if driver == "" {
				driver, binds = api.DriverKernel, true
			}
		}
	}
	if driver == api.DriverKernel && binds {
		if other := p.groupTaken(f); other != "" { // check: the rest of a group
			p.refuse(c, nil, "have vfio-pci serve all of the group, or nothing of it", "function %d (%s) cannot go to the kernel: in its IOMMU group %d vfio-pci serves %s", f.Index, f.PCI, f.Group, other)
			return false
		}
	}
	if p.in.Busy[f.PCI] && (binds || slices.Contains(changed, "mac")) { // check: driver in use
		users := p.in.Held[f.PCI]
		if found.Change == api.ChangeDrain && len(users) > 0 {
			p.out.Drain[c.PCI] = slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(p.out.Drain[c.PCI]), users...))))
		} else {
			p.refuse(c, users, remedyEnd, "function %d (%s) cannot get another driver or address while %s has it", f.Index, f.PCI, names(users))
		}
		changed = slices.DeleteFunc(changed, func(s string) bool { return s == "mac" })
		if len(changed) > 0 {
			p.step(Step{Op: Set, Card: c.PCI, PCI: f.PCI, Index: f.Index, Settings: want, Changed: changed})
		}
		return false
	}
	// A driver asks for its address when it begins, so it begins after that is set.
	again := slices.Contains(changed, "mac") && driverOf(f) == api.DriverKernel && !p.in.Failed[(Step{Op: Set, Card: c.PCI, PCI: f.PCI, Settings: want, Changed: changed}).Key()]
	if again {
		p.step(Step{Op: Bind, Card: c.PCI, PCI: f.PCI, Index: f.Index})
	}
	if len(changed) > 0 {
		p.step(Step{Op: Set, Card: c.PCI, PCI: f.PCI, Index: f.Index, Settings: want, Changed: changed})
	}
	if binds || again {
		p.step(Step{Op: Bind, Card: c.PCI, PCI: f.PCI, Index: f.Index, Driver: driver})
	}
	if mtu != 0 && f.Name != "" && f.MTU != mtu && !binds && !again {
		p.step(Step{Op: SetMTU, Card: c.PCI, PCI: f.PCI, Index: f.Index, Number: mtu})
	}
	if rdma && driver == api.DriverKernel && f.Driver != "" && len(f.RDMA) == 0 { // check: rdma
		p.refuse(c, nil, "leave rdma out, or load the card's RDMA driver", "function %d (%s) offers no RDMA: its driver is %s", f.Index, f.PCI, f.Driver)
	}
	return driver == asked
}

// wanted are the settings of a function as they shall be.
func wanted(c *Card, f *Function, policy *api.FunctionPolicy, found *Found) Settings {
	s := baseOf(f, policy, found).Settings
	if policy == nil {
		return s
	}
	v := policy.For(f.Index)
	return overlay(s, &v, c, f.Index)
}

// addressed is what is written down with the addresses that functions have from here, or are to get, and had none before: those that
// can be taken away again. other says that there is something new.
func addressed(c *Card, policy *api.FunctionPolicy, found *Found) (next Found, other bool) {
	given := map[int][]string{}
	for i := range c.Functions {
		f := &c.Functions[i]
		want := wanted(c, f, policy, found).MAC
		keep := slices.DeleteFunc(slices.Clone(found.Addressed[f.Index]), func(mac string) bool { return mac != f.MAC && mac != want })
		if want != "" && want != f.MAC && !slices.Contains(keep, want) && (len(keep) > 0 || baseOf(f, nil, found).MAC == "" || baseOf(f, policy, found).MAC == "") {
			keep = append(keep, want)
		}
		if len(keep) > 0 {
			given[f.Index] = keep
		}
	}
	next = *found
	if len(given)+len(found.Addressed) == 0 || maps.EqualFunc(given, found.Addressed, slices.Equal) {
		return next, false
	}
	next.Addressed = given
	return next, true
}

// baseOf is how a function was before it was set: as it was found at first, when it is to
// be put back to that.
func baseOf(f *Function, policy *api.FunctionPolicy, found *Found) Function {
	list := found.Base
	if policy == nil {
		list = found.First
	}
	for _, b := range list {
		if b.Index == f.Index {
			return b
		}
	}
	return *f
}

// driverOf is who serves a function: vfio-pci, any driver of the kernel, or nobody.
func driverOf(f *Function) string {
	switch f.Driver {
	case "", api.DriverVFIO:
		return f.Driver
	}
	return api.DriverKernel
}

// overlay lays what a policy says over what is.
func overlay(s Settings, v *api.VirtualPolicy, c *Card, index int) Settings {
	switch v.MAC {
	case "", api.MACFound:
	case api.MACStable:
		s.MAC = StableMAC(c.MAC, index)
	default:
		if hw, err := net.ParseMAC(v.MAC); err == nil {
			s.MAC = hw.String()
		}
	}
	if v.VLAN != nil {
		s.VLAN, s.QoS, s.Protocol = *v.VLAN, v.QoS, strings.TrimPrefix(v.Protocol, "802.1Q")
		if s.VLAN == 0 {
			s.QoS, s.Protocol = 0, ""
		}
	}
	if v.Trust != nil {
		s.Trust = *v.Trust
	}
	if v.SpoofCheck != nil {
		s.Spoof = *v.SpoofCheck
	}
	if v.MinRate != nil {
		s.MinRate = *v.MinRate
	}
	if v.MaxRate != nil {
		s.MaxRate = *v.MaxRate
	}
	if v.Link != "" {
		s.Link = v.Link
	}
	return s
}

// StableMAC is an address for a virtual function, by its card's and its number: locally
// administered, of one station (IEEE 802).
func StableMAC(card string, index int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "tributary virtual function %s %d", card, index))
	hw := net.HardwareAddr(sum[:6])
	hw[0] = hw[0]&^1 | 2
	return hw.String()
}

// differs names what is not as it shall be. Of an address that nobody asks for it says nothing: it may be the driver's own.
func differs(is, want Settings) (out []string) {
	if want.MAC != "" && want.MAC != is.MAC {
		out = append(out, "mac")
	}
	if is.VLAN != want.VLAN || is.QoS != want.QoS || is.Protocol != want.Protocol {
		out = append(out, "vlan")
	}
	if is.Trust != want.Trust {
		out = append(out, "trust")
	}
	if is.Spoof != want.Spoof {
		out = append(out, "spoofCheck")
	}
	if is.MinRate != want.MinRate || is.MaxRate != want.MaxRate {
		out = append(out, "rate")
	}
	if is.Link != want.Link && want.Link != "" {
		out = append(out, "link")
	}
	return out
}

// chooseVFIO finds whom vfio-pci shall serve, over all cards, and whom the kernel.
func (p *planner) chooseVFIO() {
	p.vfio, p.kernel = map[string]bool{}, map[string]bool{}
	for i := range p.in.State.Cards {
		c := &p.in.State.Cards[i]
		policy, found := policyFor(p.in.Policies, c), p.found(c)
		if policy == nil && found == nil {
			continue
		}
		for j := range c.Functions {
			f := &c.Functions[j]
			base := *f
			if found != nil {
				base = baseOf(f, policy, found)
			}
			driver := driverFor(&base, policy, f.Index)
			if p.in.Busy[f.PCI] { // check: group in use
				driver = driverOf(f) // one in a container that runs keeps its own
			}
			p.vfio[f.PCI], p.kernel[f.PCI] = driver == api.DriverVFIO, driver == api.DriverKernel
		}
	}
}

// driverFor is who shall serve a function.
func driverFor(base *Function, policy *api.FunctionPolicy, index int) string {
	driver := driverOf(base)
	if policy == nil {
		return driver
	}
	if d := policy.For(index).Driver; d != "" {
		return d
	}
	if driver == "" {
		return api.DriverKernel // functions that we made have none yet
	}
	return driver
}

// groupHinders says why vfio-pci cannot have a function: what else is in its group stays
// with a driver of the kernel (Linux, Documentation/driver-api/vfio.rst: a group is the
// unit of ownership). Bridges do not count, nor what has no driver.
func (p *planner) groupHinders(f *Function) string {
	if f.Group < 0 { // check: no group
		return "there is no IOMMU (switch it on in the firmware, and by intel_iommu=on or amd_iommu=on)"
	}
	var others []string
	for _, m := range p.in.State.Groups[f.Group] {
		stays := m.Driver != "" && m.Driver != api.DriverVFIO && m.Driver != "pci-stub"
		if m.PCI == f.PCI || m.Bridge || p.vfio[m.PCI] || !stays && !p.kernel[m.PCI] {
			continue
		}
		others = append(others, m.PCI)
	}
	if len(others) == 0 {
		return ""
	}
	slices.Sort(others)
	return fmt.Sprintf("in its IOMMU group %d the kernel serves %s", f.Group, strings.Join(others, ", "))
}

// groupTaken names another function of the group that vfio-pci goes on serving.
func (p *planner) groupTaken(f *Function) string {
	if f.Group < 0 {
		return ""
	}
	for _, m := range p.in.State.Groups[f.Group] {
		if m.PCI != f.PCI && m.Driver == api.DriverVFIO && (p.vfio[m.PCI] || p.in.Busy[m.PCI]) {
			return m.PCI
		}
	}
	return ""
}

// Users lists all whom drains name, once.
func (o *Output) Users() []string {
	all := map[string]bool{}
	for _, users := range o.Drain {
		for _, u := range users {
			all[u] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}
