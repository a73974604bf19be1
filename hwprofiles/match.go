package hwprofiles

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Rule is a look that a box may have: every condition that is given must hold. Texts
// are patterns in any case, with * for any run of characters; one of a list suffices.
type Rule struct {
	Vendor   []string `json:"vendor,omitempty"`   // DMI maker of the system, or of the board
	Product  []string `json:"product,omitempty"`  // DMI product name
	Board    []string `json:"board,omitempty"`    // DMI board name
	Family   []string `json:"family,omitempty"`   // DMI product family
	Firmware []string `json:"firmware,omitempty"` // maker of BIOS or UEFI
	Chassis  []string `json:"chassis,omitempty"`  // rack, embedded, desktop, all-in-one, laptop, hand-held
	// DeviceTree is any of the root node's compatible strings, or the model.
	DeviceTree []string `json:"deviceTree,omitempty"`
	// PCI is vendor:device in hexadecimal, or vendor:*; one of the list must be there.
	PCI []string `json:"pci,omitempty"`
	// WithoutPCI are devices of which none may be there, for want of a driver.
	WithoutPCI []string `json:"withoutPCI,omitempty"`
	CPU        []string `json:"cpu,omitempty"` // model name
	Hypervisor []string `json:"hypervisor,omitempty"`
	// Virtual is no (when left out), yes or any.
	Virtual string `json:"virtual,omitempty"`
	// Least and most, MiB of memory; least of the rest.
	MinMemory int64 `json:"minMemory,omitempty"`
	MaxMemory int64 `json:"maxMemory,omitempty"`
	MinCPUs   int64 `json:"minCPUs,omitempty"`
	MinPorts  int64 `json:"minPorts,omitempty"`
	MinGPUs   int64 `json:"minGPUs,omitempty"`
}

// Rank says how exactly a rule names a box; a higher one wins.
type Rank int

// The ranks, from "some box of this architecture" to "this very board".
const (
	ByArch   Rank = iota // the fallback
	ByShape              // memory, processors, ports, chassis, being a guest
	ByMaker              // vendor, family, firmware
	ByCPU                // the processor's model
	ByDevice             // a PCI device
	ByName               // product, board or device tree
)

func (r Rank) String() string {
	return [...]string{"architecture alone", "its shape", "its maker", "its processor", "a device in it", "its name"}[r]
}

// MarshalText writes the rank as its words.
func (r Rank) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// condition is one line of a rule, held against a probe.
type condition struct {
	rank    Rank
	met     bool
	literal int    // characters of the pattern that are not *
	text    string // what was asked and what is there
}

// Result is what Match found. Profile is empty only where no profile of the box's
// architecture exists; Why says so then.
type Result struct {
	Profile string `json:"profile"`
	Title   string `json:"title,omitempty"`
	Rank    Rank   `json:"rank"`
	// Why is one sentence; Met are the conditions that held.
	Why string   `json:"why"`
	Met []string `json:"met,omitempty"`
	// Others are all other profiles, best first, each with the reason.
	Others []Other `json:"others,omitempty"`
}

// Other is a profile that was not chosen.
type Other struct {
	Profile string `json:"profile"`
	Fits    bool   `json:"fits"`
	Why     string `json:"why"`
}

// verdict is one profile held against a probe: its best rule.
type verdict struct {
	profile  *Profile
	fits     bool
	rank     Rank
	literal  [ByName + 1]int
	count    int
	met      []string
	unmet    []string
	fallback bool
	foreign  bool // of another architecture
}

// Match chooses the profile that names the box most exactly. It never fails: a box that
// no rule fits gets the generic profile of its architecture. The order of profiles does
// not matter, and neither do profiles of other architectures.
func Match(p Probe, profiles []Profile) Result {
	p.bound()
	verdicts := make([]verdict, 0, len(profiles))
	for i := range profiles {
		verdicts = append(verdicts, judge(p, &profiles[i]))
	}
	slices.SortFunc(verdicts, compare)
	if len(verdicts) == 0 || !verdicts[0].fits {
		why := "there is no profile for the architecture " + p.Arch
		if p.Arch == "" {
			why = "its architecture is not known"
		}
		return Result{Why: why, Others: others(verdicts, nil)}
	}
	best := verdicts[0]
	r := Result{Profile: best.profile.Name, Title: best.profile.Title, Rank: best.rank, Met: best.met, Others: others(verdicts[1:], &best)}
	if best.fallback {
		r.Why = "no rule fits this box, and this is the profile for any " + p.Arch + " machine"
	} else {
		r.Why = "it names the box most exactly, by " + best.rank.String() + ": " + strings.Join(best.met, ", ")
	}
	return r
}

// judge finds the best rule of a profile for a box; without one that fits, the one that
// came nearest.
func judge(p Probe, f *Profile) verdict {
	if p.Arch != f.Arch {
		return verdict{profile: f, foreign: p.Arch != f.Arch, unmet: []string{"it is for " + f.Arch + ", and this box is " + cmp.Or(p.Arch, "of an unknown architecture")}}
	}
	if len(f.Match) == 0 {
		if f.Name == "generic-"+f.Arch {
			return verdict{profile: f, fits: true, fallback: true}
		}
		return verdict{profile: f, unmet: []string{"it has no rules, so it is chosen only by name"}}
	}
	var best verdict
	for i, rule := range f.Match {
		v := verdict{profile: f, fits: true}
		for _, c := range rule.against(p) {
			if !c.met {
				v.fits = false
				v.unmet = append(v.unmet, c.text)
				continue
			}
			v.rank = max(v.rank, c.rank)
			v.literal[c.rank] += c.literal
			v.count++
			v.met = append(v.met, c.text)
		}
		if i == 0 || compare(v, best) < 0 {
			best = v
		}
	}
	return best
}

// compare puts the better verdict first: one that fits, by rank, then by how much of
// the box's name the patterns spell out, then by the number of conditions. Names decide
// last, so that the same box always gets the same profile.
func compare(a, b verdict) int {
	truth := func(t bool) int {
		if t {
			return 1
		}
		return 0
	}
	if n := cmp.Compare(truth(b.fits), truth(a.fits)); n != 0 {
		return n
	}
	if !a.fits { // the nearest miss: what fewest conditions speak against
		return cmp.Or(cmp.Compare(truth(a.foreign), truth(b.foreign)), cmp.Compare(len(a.unmet), len(b.unmet)), cmp.Compare(b.rank, a.rank), cmp.Compare(b.count, a.count), cmp.Compare(a.profile.Name, b.profile.Name))
	}
	if n := cmp.Or(cmp.Compare(truth(a.fallback), truth(b.fallback)), cmp.Compare(b.rank, a.rank)); n != 0 {
		return n
	}
	for r := ByName; r >= ByArch; r-- {
		if n := cmp.Compare(b.literal[r], a.literal[r]); n != 0 {
			return n
		}
	}
	return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(a.profile.Name, b.profile.Name))
}

func others(verdicts []verdict, best *verdict) (out []Other) {
	for _, v := range verdicts {
		o := Other{Profile: v.profile.Name, Fits: v.fits}
		switch {
		case !v.fits:
			o.Why = strings.Join(v.unmet, "; ")
		case v.fallback:
			o.Why = "it fits any " + v.profile.Arch + " machine, and another names this one"
		case v.rank < best.rank:
			o.Why = "it fits too, but only by " + v.rank.String()
		default:
			o.Why = "it fits too, but names the box less exactly"
		}
		out = append(out, o)
	}
	return out
}

// against holds each condition of the rule against the box.
func (r Rule) against(p Probe) (out []condition) {
	text := func(rank Rank, what string, patterns []string, values ...string) {
		if len(patterns) == 0 {
			return
		}
		c := condition{rank: rank}
		for _, v := range values {
			for _, pattern := range patterns {
				if n := len(pattern) - strings.Count(pattern, "*"); glob(pattern, v) && (!c.met || n > c.literal) {
					c.met, c.literal = true, n
					c.text = fmt.Sprintf("%s is %q", what, v)
					if strings.Contains(pattern, "*") {
						c.text += " (" + pattern + ")"
					}
				}
			}
		}
		if !c.met {
			values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return v == "" })
			c.text = what + " is not known"
			if len(values) > 0 {
				c.text = fmt.Sprintf("%s is %q, not %s", what, values[0], short(patterns))
			}
		}
		out = append(out, c)
	}
	r.virtual(p, &out)
	text(ByName, "the product", r.Product, p.DMI.Product)
	text(ByName, "the board", r.Board, p.DMI.Board)
	text(ByName, "the device tree", r.DeviceTree, append([]string{p.DeviceTree.Model}, p.DeviceTree.Compatible...)...)
	r.devices(p, &out)
	text(ByCPU, "the processor", r.CPU, p.CPU)
	text(ByMaker, "the vendor", r.Vendor, p.DMI.Vendor, p.DMI.BoardVendor)
	text(ByMaker, "the family", r.Family, p.DMI.Family)
	text(ByMaker, "the firmware", r.Firmware, p.DMI.Firmware)
	text(ByShape, "the chassis", r.Chassis, p.DMI.Chassis)
	if len(r.Hypervisor) > 0 && p.Hypervisor == "" {
		out = append(out, condition{ByShape, false, 0, "it is no virtual machine"})
	} else {
		text(ByShape, "the hypervisor", r.Hypervisor, p.Hypervisor)
	}
	least := func(what string, have, want int64, unit string) {
		if want > 0 {
			out = append(out, condition{ByShape, have >= want, 0, amount(what, have, want, "at least", unit)})
		}
	}
	least("memory", p.MemoryMiB, r.MinMemory, "MiB")
	if r.MaxMemory > 0 {
		out = append(out, condition{ByShape, p.MemoryMiB > 0 && p.MemoryMiB <= r.MaxMemory, 0, amount("memory", p.MemoryMiB, r.MaxMemory, "at most", "MiB")})
	}
	least("the number of CPUs", p.CPUs, r.MinCPUs, "")
	least("the number of network ports", p.Ports, r.MinPorts, "")
	least("the number of accelerators", p.accelerators(), r.MinGPUs, "")
	return out
}

// virtual holds what is asked of being a guest. A rule that names hypervisors has
// said it by that.
func (r Rule) virtual(p Probe, out *[]condition) {
	guest := p.Hypervisor != ""
	as := "it is a guest of " + p.Hypervisor
	if p.Hypervisor == "other" {
		as = "it is a guest of an unknown hypervisor"
	}
	switch {
	case r.Virtual == "any", len(r.Hypervisor) > 0:
	case r.Virtual == "yes":
		if !guest {
			as = "it is no virtual machine"
		}
		*out = append(*out, condition{ByShape, guest, 0, as})
	case guest:
		// Being real hardware is asked silently: it makes no rule more exact.
		*out = append(*out, condition{ByArch, false, 0, as + ", not real hardware"})
	}
}

func (r Rule) devices(p Probe, out *[]condition) {
	for _, pattern := range r.WithoutPCI {
		for _, d := range p.PCI {
			// Asked silently, as real hardware is: that nothing is in the way names no box.
			if id, _, _ := strings.Cut(d, " "); glob(pattern, id) {
				*out = append(*out, condition{ByArch, false, 0, "it has the PCI device " + id + ", for which there is no driver"})
			}
		}
	}
	if len(r.PCI) == 0 {
		return
	}
	c := condition{rank: ByDevice, text: "no PCI device is " + short(r.PCI)}
	if len(p.PCI) == 0 {
		c.text = "its PCI devices are not known"
	}
	for _, pattern := range r.PCI {
		for _, d := range p.PCI {
			id, _, _ := strings.Cut(d, " ")
			if n := len(pattern) - strings.Count(pattern, "*"); glob(pattern, id) && (!c.met || n > c.literal) {
				c.met, c.literal, c.text = true, n, "it has the PCI device "+id
			}
		}
	}
	*out = append(*out, c)
}

func amount(what string, have, want int64, bound, unit string) string {
	if have == 0 {
		return what + " is not known"
	}
	return strings.TrimSpace(fmt.Sprintf("%s is %d (%s %d)", what, have, bound, want) + " " + unit)
}

// short names the first patterns of a list.
func short(patterns []string) string {
	if n := len(patterns); n > 3 {
		return strings.Join(patterns[:3], ", ") + fmt.Sprintf(" or %d more", n-3)
	}
	return strings.Join(patterns, " or ")
}

// conditions counts what the rule asks for.
func (r Rule) conditions() (n int) {
	for _, list := range [][]string{r.Vendor, r.Product, r.Board, r.Family, r.Firmware, r.Chassis, r.DeviceTree, r.PCI, r.CPU, r.Hypervisor} {
		if len(list) > 0 {
			n++
		}
	}
	for _, v := range []int64{r.MinMemory, r.MaxMemory, r.MinCPUs, r.MinPorts, r.MinGPUs} {
		if v > 0 {
			n++
		}
	}
	if r.Virtual == "yes" {
		n++
	}
	return n
}
