package sriov

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/mutation"
)

// model is what a kernel does, as far as it matters here: functions go and come together,
// begin with settings of the driver's own, and get a driver by themselves where the card
// says so.
type model struct {
	state State
	// groups is how many functions share a group of the IOMMU; 0 is none at all.
	groups int
	busy   map[string]bool
	// bare: functions are made without an address; own: their driver then gives them one.
	bare, own bool
}

func newModel(cards, groups int) *model {
	m := &model{groups: groups, busy: map[string]bool{}}
	for i := range cards {
		m.state.Cards = append(m.state.Cards, Card{PCI: fmt.Sprintf("0000:0%d:00.0", i+1), Name: fmt.Sprintf("eth%d", i), Driver: "igb", ID: "8086:10c9", Node: -1, MAC: fmt.Sprintf("02:00:00:00:00:0%d", i), MTU: 1500, Most: 7, Probe: true})
	}
	m.regroup()
	return m
}

// address is a driver's, for a function that has none.
func (m *model) address(f *Function) {
	if m.own && f.MAC == "" {
		f.MAC = fmt.Sprintf("0a:00:00:00:00:%02d", f.Index)
	}
}

func (m *model) card(pci string) *Card {
	i := slices.IndexFunc(m.state.Cards, func(c Card) bool { return c.PCI == pci })
	return &m.state.Cards[i]
}

func (m *model) regroup() {
	m.state.Groups = map[int][]Member{}
	if m.groups == 0 {
		return
	}
	for i := range m.state.Cards {
		for _, f := range m.state.Cards[i].Functions {
			m.state.Groups[f.Group] = append(m.state.Groups[f.Group], Member{PCI: f.PCI, Driver: f.Driver})
		}
	}
}

func (m *model) make(c *Card, n int) {
	c.Functions = nil
	for i := range n {
		f := Function{Index: i, PCI: strings.Replace(c.PCI, "00.0", fmt.Sprintf("10.%d", i), 1), Group: -1, Node: -1, Settings: Settings{MAC: fmt.Sprintf("06:00:00:00:00:%02d", i), Spoof: true, Link: "auto"}}
		if m.groups > 0 {
			f.Group = int(c.PCI[6]-'0')*100 + i/m.groups
		}
		if m.bare {
			f.MAC = ""
		}
		if c.Probe {
			f.Driver, f.Name, f.MTU = "igbvf", fmt.Sprintf("%sv%d", c.Name, i), 1500
			m.address(&f)
		}
		c.Functions = append(c.Functions, f)
	}
}

// do takes a step as a kernel does, and says what a planner must never do.
func (m *model) do(s Step) error {
	c := m.card(s.Card)
	var f *Function
	for i := range c.Functions {
		if c.Functions[i].PCI == s.PCI {
			f = &c.Functions[i]
		}
	}
	if s.PCI != "" && f == nil {
		return fmt.Errorf("%s: the function is not there", s)
	}
	switch s.Op {
	case Count:
		if s.Number > c.Most || s.Number > 0 && len(c.Functions) > 0 {
			return fmt.Errorf("%s: the kernel refuses it, there are %d", s, len(c.Functions))
		}
		for _, f := range c.Functions {
			if m.busy[f.PCI] {
				return fmt.Errorf("%s: %s is in a container", s, f.PCI)
			}
		}
		m.make(c, s.Number)
	case SetProbe:
		c.Probe = s.Number == 1
	case SetUp:
		c.Up = s.Number == 1
	case SetMTU:
		if f != nil {
			f.MTU = s.Number
		} else {
			c.MTU = s.Number
		}
	case Set:
		mac := f.MAC
		f.Settings = s.Settings
		if !slices.Contains(s.Changed, "mac") {
			f.MAC = mac
		} else if m.busy[f.PCI] || f.Driver == "igbvf" {
			return fmt.Errorf("%s: a driver would not hear of it", s)
		}
	case Bind:
		if m.busy[f.PCI] {
			return fmt.Errorf("%s: it is in a container", s)
		}
		if s.Driver == api.DriverKernel && !c.Probe {
			return fmt.Errorf("%s: the kernel gives it none while the card says so (drivers/pci/pci-driver.c: pci_device_can_probe)", s)
		}
		f.Driver, f.Name, f.MTU = map[string]string{"": "", api.DriverKernel: "igbvf", api.DriverVFIO: api.DriverVFIO}[s.Driver], "", 0
		if s.Driver == api.DriverKernel {
			f.Name, f.MTU = fmt.Sprintf("%sv%d", c.Name, f.Index), 1500
			m.address(f)
		}
	default:
		return fmt.Errorf("%s is no step", s.Op)
	}
	m.regroup()
	return nil
}

// box is a model with what a manager keeps of it.
type box struct {
	*model
	found map[string]Found
	held  map[string][]string
	cut   int // steps until the power goes; -1 is never
}

func (b *box) input(policies []api.FunctionPolicy) Input {
	state := State{Cards: slices.Clone(b.state.Cards), Groups: b.state.Groups}
	for i := range state.Cards {
		state.Cards[i].Functions = slices.Clone(state.Cards[i].Functions)
	}
	return Input{State: state, Policies: policies, Boot: "one", Found: b.found, Held: b.held, Busy: b.busy}
}

// fatal is a test, of rapid or not.
type fatal interface{ Fatal(...any) }

// settle plans and does until nothing is left to do. It ends early when the power goes.
func (b *box) settle(t fatal, policies []api.FunctionPolicy) Output {
	for range 30 {
		out := Plan(b.input(policies))
		for _, s := range out.Steps {
			if b.cut == 0 {
				b.cut = -1
				return out
			}
			b.cut--
			switch s.Op {
			case Remember:
				b.found[s.Card] = *s.Found
			case Forget:
				delete(b.found, s.Card)
			default:
				if err := b.do(s); err != nil {
					t.Fatal(err)
				}
			}
		}
		if len(out.Steps) == 0 {
			return out
		}
	}
	t.Fatal("there is no end of steps")
	return Output{}
}

func drawPolicies(t *rapid.T) []api.FunctionPolicy {
	number := func(name string, low, high int) *int {
		if !rapid.Bool().Draw(t, "says "+name) {
			return nil
		}
		n := rapid.IntRange(low, high).Draw(t, name)
		return &n
	}
	virtual := func() (v api.VirtualPolicy) {
		v.MAC = rapid.SampledFrom([]string{"", "", api.MACStable, api.MACFound}).Draw(t, "mac")
		v.VLAN = number("vlan", 0, 3)
		if v.VLAN != nil && *v.VLAN > 0 {
			v.QoS, v.Protocol = rapid.IntRange(0, 2).Draw(t, "qos"), rapid.SampledFrom([]string{"", "802.1Q", "802.1ad"}).Draw(t, "protocol")
		}
		if n := number("trust", 0, 1); n != nil {
			yes := *n == 1
			v.Trust, v.SpoofCheck = &yes, &yes
		}
		v.MaxRate = number("rate", 0, 2)
		v.Link = rapid.SampledFrom([]string{"", "auto", "on", "off"}).Draw(t, "link")
		v.Driver = rapid.SampledFrom([]string{"", "", api.DriverKernel, api.DriverVFIO}).Draw(t, "driver")
		v.MTU = rapid.SampledFrom([]int{0, 1400}).Draw(t, "mtu of a function")
		return v
	}
	var out []api.FunctionPolicy
	for range rapid.IntRange(0, 2).Draw(t, "policies") {
		p := api.FunctionPolicy{Match: rapid.SampledFrom([]api.FunctionMatch{{Driver: "igb"}, {Name: "eth0"}, {PCI: "0000:02:00.0"}, {ID: "8086:10C9"}}).Draw(t, "match"),
			VirtualFunctions: number("functions", 0, 8), Change: rapid.SampledFrom([]string{"", api.ChangeDrain}).Draw(t, "change"), MTU: rapid.SampledFrom([]int{0, 9000}).Draw(t, "mtu"), Default: virtual()}
		if rapid.Bool().Draw(t, "one else") {
			p.Virtual = []api.NumberedFunction{{Index: rapid.IntRange(0, 3).Draw(t, "index"), Set: virtual()}}
		}
		out = append(out, p)
	}
	return out
}

func (b *box) drawUsers(t *rapid.T) {
	b.held, b.busy = map[string][]string{}, map[string]bool{}
	b.model.busy = b.busy
	for i := range b.state.Cards {
		for _, f := range b.state.Cards[i].Functions {
			switch rapid.IntRange(0, 5).Draw(t, "use of "+f.PCI) {
			case 0:
				b.held[f.PCI], b.busy[f.PCI] = []string{"ran/du"}, f.Driver != ""
			case 1:
				b.held[f.PCI] = []string{"ran/cu"}
			}
		}
	}
	b.model.busy = b.busy
}

// Over any life of policies, users and power cuts: what a container has is not touched (the
// model says so), it comes to an end, users in the way are named, vfio-pci has whole groups,
// and when all policies and users are gone all is as it was found.
func TestPlanOverALife(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := &box{model: newModel(rapid.IntRange(1, 2).Draw(t, "cards"), rapid.IntRange(0, 2).Draw(t, "functions of a group")), found: map[string]Found{}, cut: -1}
		b.bare, b.own = rapid.Bool().Draw(t, "without addresses"), rapid.Bool().Draw(t, "of which drivers give some")
		if rapid.Bool().Draw(t, "functions from the start") {
			b.make(&b.state.Cards[0], 3)
			b.regroup()
		}
		first := b.input(nil).State
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			policies := drawPolicies(t)
			b.drawUsers(t)
			b.cut = rapid.IntRange(-1, 6).Draw(t, "steps until the power goes")
			b.settle(t, policies)
			b.cut = -1
			out := b.settle(t, policies)
			b.checkSettled(t, policies, out)
		}
		b.held, b.busy = nil, nil
		b.model.busy = nil
		b.settle(t, nil)
		last := b.input(nil).State
		for i := range last.Cards { // a MAC of the driver's own choice is made anew with its function
			for j := range last.Cards[i].Functions {
				last.Cards[i].Functions[j].MTU = 0
			}
			for j := range first.Cards[i].Functions {
				first.Cards[i].Functions[j].MTU = 0
			}
		}
		if !reflect.DeepEqual(first, last) || len(b.found) != 0 {
			t.Fatalf("it was\n%+v\nand is\n%+v, written down %+v", first, last, b.found)
		}
	})
}

func (b *box) checkSettled(t *rapid.T, policies []api.FunctionPolicy, out Output) {
	for group, members := range b.state.Groups {
		vfio, kernel := "", ""
		for _, m := range members {
			switch m.Driver {
			case api.DriverVFIO:
				vfio = m.PCI
			case "igbvf":
				kernel = m.PCI
			}
		}
		if vfio != "" && kernel != "" {
			t.Fatalf("group %d is shared by %s (vfio-pci) and %s", group, vfio, kernel)
		}
	}
	for i := range b.state.Cards {
		c := &b.state.Cards[i]
		p := policyFor(policies, c)
		if p == nil || p.VirtualFunctions == nil || len(c.Functions) == *p.VirtualFunctions {
			continue
		}
		refused := slices.ContainsFunc(out.Refused, func(r Refusal) bool { return r.Card == c.PCI && r.Words != "" && r.Remedy != "" })
		if _, drains := out.Drain[c.PCI]; !refused && !drains {
			t.Fatalf("%s has %d functions, not %d, and nobody says why", c.PCI, len(c.Functions), *p.VirtualFunctions)
		}
	}
	for _, r := range out.Refused {
		if strings.Contains(r.Words, "while") && !slices.ContainsFunc(r.Users, func(u string) bool { return strings.Contains(r.Words, u) }) && !strings.Contains(r.Words, "a container that runs") {
			t.Fatalf("the words name no user: %+v", r)
		}
	}
}

func count(n int) *int { return &n }

// What is refused is refused in these words.
func TestPlanRefuses(t *testing.T) {
	igb := api.FunctionMatch{Driver: "igb"}
	vfio := api.FunctionPolicy{VirtualFunctions: count(2), Default: api.VirtualPolicy{Driver: api.DriverVFIO}}
	for _, c := range []struct {
		name   string
		groups int
		policy api.FunctionPolicy
		busy   bool
		want   string
		users  []string
		drain  []string
	}{
		{"too many", 1, api.FunctionPolicy{VirtualFunctions: count(8)}, false, "can have 7 virtual functions, not 8", nil, nil},
		{"up to", 1, api.FunctionPolicy{VirtualFunctions: count(8), UpTo: true}, false, "", nil, nil},
		{"held", 1, api.FunctionPolicy{VirtualFunctions: count(0)}, false, "cannot become 0 while ran/du has", []string{"ran/du"}, nil},
		{"held and stays", 1, api.FunctionPolicy{VirtualFunctions: count(4)}, false, "", nil, nil},
		{"in use", 1, api.FunctionPolicy{VirtualFunctions: count(4)}, true, "cannot become 4 while ran/du has", []string{"ran/du"}, nil},
		{"drained", 1, api.FunctionPolicy{VirtualFunctions: count(4), Change: api.ChangeDrain}, true, "", nil, []string{"ran/du"}},
		{"another driver in use", 1, vfio, true, "cannot get another driver or address while ran/du has", []string{"ran/du"}, nil},
		{"half a group in use", 2, vfio, true, "cannot go to vfio-pci: in its IOMMU group 100 the kernel serves 0000:01:10.1", nil, nil},
		{"no IOMMU", 0, vfio, false, "there is no IOMMU", nil, nil},
		{"half a group", 2, api.FunctionPolicy{VirtualFunctions: count(2), Virtual: []api.NumberedFunction{{Index: 0, Set: api.VirtualPolicy{Driver: api.DriverVFIO}}}}, false, "IOMMU group 100 the kernel serves 0000:01:10.1", nil, nil},
		{"RDMA", 1, api.FunctionPolicy{VirtualFunctions: count(2), Default: api.VirtualPolicy{RDMA: true}}, false, "offers no RDMA", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &box{model: newModel(1, c.groups), found: map[string]Found{}, cut: -1}
			b.settle(t, []api.FunctionPolicy{{Match: igb, VirtualFunctions: count(2)}})
			b.held = map[string][]string{"0000:01:10.1": {"ran/du"}}
			if c.busy {
				b.model.busy["0000:01:10.1"] = true
			}
			c.policy.Match = igb
			out := b.settle(t, []api.FunctionPolicy{c.policy})
			if c.want == "" && len(out.Refused) > 0 || !slices.Equal(out.Users(), c.drain) {
				t.Fatalf("refused %+v, drains %v", out.Refused, out.Drain)
			}
			if c.want != "" && (len(out.Refused) == 0 || !strings.Contains(out.Refused[0].Words, c.want) || !slices.Equal(out.Refused[0].Users, c.users)) {
				t.Fatalf("refused %+v", out.Refused)
			}
		})
	}
}

// A function of a group whose other one goes on serving a container by vfio-pci does not go to the kernel, and the user is
// named.
func TestPlanKeepsGroupsWhole(t *testing.T) {
	b := &box{model: newModel(1, 2), found: map[string]Found{}, cut: -1}
	policy := api.FunctionPolicy{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: count(2), Default: api.VirtualPolicy{Driver: api.DriverVFIO}}
	b.settle(t, []api.FunctionPolicy{policy})
	b.held, b.model.busy["0000:01:10.1"] = map[string][]string{"0000:01:10.1": {"ran/du"}}, true
	b.busy = b.model.busy
	policy.Default.Driver = api.DriverKernel
	out := b.settle(t, []api.FunctionPolicy{policy})
	if len(out.Refused) != 2 || !strings.Contains(out.Refused[0].Words, "in its IOMMU group 100 vfio-pci serves 0000:01:10.1") || !slices.Equal(out.Refused[1].Users, []string{"ran/du"}) {
		t.Fatalf("refused %+v", out.Refused)
	}
}

// A function on its way home, whose driver just let go of it, is left alone, and nobody is ended for it.
func TestPlanLeavesWhatComesHome(t *testing.T) {
	b := &box{model: newModel(1, 1), found: map[string]Found{}, cut: -1}
	policy := []api.FunctionPolicy{{Match: api.FunctionMatch{Driver: "igb"}, VirtualFunctions: count(2), Change: api.ChangeDrain}}
	b.settle(t, policy)
	f := &b.state.Cards[0].Functions[1]
	f.Driver, f.Name = "", ""
	b.held, b.model.busy[f.PCI] = map[string][]string{f.PCI: {"ran/du"}}, true
	b.busy = b.model.busy
	if out := b.settle(t, policy); len(out.Refused)+len(out.Drain) > 0 {
		t.Errorf("refused %+v, drains %v", out.Refused, out.Drain)
	}
}

// In a build without one of the checks its test fails: a function in use is not touched, and what is refused names users.
func TestRefusalsCount(t *testing.T) {
	const refuses = "^TestPlanRefuses$"
	checks := slices.Concat(mutation.Marked(t, "^(TestPlanRefuses|TestPlanKeepsGroupsWhole|TestPlanLeavesWhatComesHome)$", "plan.go"), mutation.Marked(t, "^(TestDrain|TestInUse|TestGive)$", "keep.go", "give.go"))
	if len(checks) < 11 {
		t.Fatalf("%d checks are marked", len(checks))
	}
	mutation.Prove(t, append(checks,
		mutation.Check{Name: "users of a number", Test: refuses, File: "plan.go", From: "	slices.Sort(users)\n", To: "	if GONE {\n		users = nil\n	}\n	slices.Sort(users)\n", Says: "refused"},
		mutation.Check{Name: "users of a driver", Test: refuses, File: "plan.go", From: "		users := p.in.Held[f.PCI]\n", To: "		users := p.in.Held[f.PCI]\n		if GONE {\n			users = nil\n		}\n", Says: "refused"},
		mutation.Check{Name: "away", Test: "^TestInUse$", File: "keep.go", From: "for pci := range away {\n			busy[pci] = true", To: "for pci := range away {\n			busy[pci] = !GONE", Says: "with one in a container"},
		mutation.Check{Name: "runs", Test: "^TestDrain$", File: "keep.go", From: "busy[pci] || runs ||", To: "busy[pci] || runs && !GONE ||"},
		mutation.Check{Name: "not known", Test: "^TestUnknownUsersKeepTheirFunctions$", File: "keep.go", From: "!known && !m.fresh", To: "!known && !m.fresh && !GONE", Says: "while it is not known"},
	)...)
}

func TestStableMAC(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		i, j := rapid.IntRange(0, 4095).Draw(t, "i"), rapid.IntRange(0, 4095).Draw(t, "j")
		a, b := StableMAC("02:00:00:00:00:01", i), StableMAC("02:00:00:00:00:01", j)
		if (i == j) != (a == b) || a[1] != '2' && a[1] != '6' && a[1] != 'a' && a[1] != 'e' {
			t.Fatal(a, b)
		}
	})
}
