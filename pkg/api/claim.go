package api

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/pattern"
)

// ClaimClass is a sort of hardware that a service can ask for: the capability of a
// device reservation (compose-spec, deploy.resources.reservations.devices).
type ClaimClass string

// The classes.
const (
	ClaimGPU       ClaimClass = "gpu"       // an accelerator, or a part of one
	ClaimVF        ClaimClass = "vf"        // a virtual function of a network card (SR-IOV)
	ClaimCPU       ClaimClass = "cpu"       // a processor for this service alone
	ClaimHugePages ClaimClass = "hugepages" // memory in large pages
)

// AllOfThem as a Count asks for every device that fits and is free.
const AllOfThem = -1

// Claim is hardware that one service asks for. All of its claims are met, or none.
type Claim struct {
	Class ClaimClass `json:"class"`
	// Driver narrows to what is served by it: nvidia, amdgpu, igbvf, vfio-pci.
	Driver string `json:"driver,omitempty"`
	// Count is how many devices, or pages; AllOfThem takes what is there (at least one).
	Count int `json:"count"`
	// IDs narrows to these devices, or to the parts of them, by the names that the inventory
	// shows.
	IDs []string `json:"ids,omitempty"`
	// Options are further words of the class (docs/claims.md).
	Options map[string]string `json:"options,omitempty"`
}

// Need is what a service lacks, as a room that can make devices is told it.
type Need struct {
	// Claims are those of the service that nothing there answers, each with the count that is
	// lacking; of every class.
	Claims []Claim
	// Held are devices that stay as they are, by their names.
	Held []string
	// Expected are claims of services that are wanted on this box and hold nothing yet, one
	// device each.
	Expected []Claim
}

// Claimable is one device of a box that a service may hold, as the room that manages it
// tells it.
type Claimable struct {
	Class ClaimClass `json:"class"`
	// ID is the same after a reboot: "GPU-…", "0000:03:10.0", "cpu3", "2M@0". It is also the
	// device's name in the specification of its class for CDI.
	ID     string `json:"id"`
	Driver string `json:"driver,omitempty"`
	// Parent is what it is a part of: the physical function's name, the card of a slice.
	Parent string `json:"parent,omitempty"`
	// NUMA is the node that it is near; -1 where there is none.
	NUMA int `json:"numa"`
	// Facts answer a claim's options, by the same words.
	Facts map[string]string `json:"facts,omitempty"`
	// Units is what it holds when it is counted by parts (huge pages); else 1.
	Units int `json:"units"`
	// Shares is how many services may hold it at once; 0 and 1 are one.
	Shares int `json:"shares,omitempty"`
	// Fault says why it cannot be given now; empty when it can.
	Fault string `json:"fault,omitempty"`
	// Cordoned says that Fault stays until the device was mended or a person says that it is
	// well: who cannot have another does not keep it. Boxes alone know it.
	Cordoned bool `json:"-"`
}

// compare is how an option of a claim is held against a fact of a device.
type compare int

const (
	same    compare = iota // the same text
	like                   // the fact matches the pattern (path.Match, case of letters aside)
	atLeast                // both are numbers, the fact not the smaller
	setting                // it says how the device is to be used and chooses none
)

// option is one word of a class.
type option struct {
	compare compare
	form    *pattern.Pattern
	example string
}

var (
	anyWord   = pattern.New(`^[A-Za-z0-9][A-Za-z0-9 ._+*?\[\]:/-]{0,63}$`)
	number    = pattern.New(`^[0-9]{1,9}$`)
	counted   = pattern.New(`^[1-9][0-9]{0,8}$`)
	truth     = pattern.New(`^(true|false)$`)
	numaWord  = pattern.New(`^(any|same|[0-9]{1,3})$`)
	percent   = pattern.New(`^([1-9][0-9]?|100)$`)
	sharing   = pattern.New(`^(exclusive|mig|time-slicing|mps)$`)
	numaRule  = option{setting, numaWord, "same"}
	linkState = pattern.New(`^(up|down)$`)
	// A name that an interface can have (IFNAMSIZ is 16 with its end).
	interfaceName = pattern.New(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$`)
	// The forms alone; checkLink reads what they hold.
	addressList = pattern.New(`^[0-9A-Fa-f.:/,]{1,256}$`)
	oneRange    = pattern.New(`^[0-9A-Fa-f.:/]{1,64} of [0-9A-Fa-f.:/]{1,64}$`)
	routeList   = pattern.New(`^[0-9A-Fa-f.:/, via]{1,512}$`)
	pageSizes   = pattern.New(`^(64K|2M|32M|512M|1G|16G)$`)
)

// claimOptions are the words of each class, beside device_ids, driver and count.
var claimOptions = map[ClaimClass]map[string]option{
	ClaimGPU: {
		"numa": numaRule, "model": {like, anyModel, "*A100*"},
		"memory":       {atLeast, number, "20480 (MiB)"},
		"compute":      {atLeast, counted, "2 (slices of the card)"},
		"sharing":      {same, sharing, "exclusive, mig, time-slicing or mps"},
		"profile":      {same, migProfile, "1g.10gb, as the inventory shows it"},
		"threads":      {setting, percent, "50 (percent of the card's threads, under mps)"},
		"memory-limit": {setting, counted, "8192 (MiB, under mps)"},
		"render-node":  {same, truth, "true"},
	},
	ClaimVF: {
		"numa": numaRule, "physical": {like, anyWord, "enp3s0f0"}, "network": {setting, anyWord, "fronthaul"},
		"rdma": {same, truth, "true"}, "trust": {same, truth, "true"}, "speed": {atLeast, number, "10000 (Mbit/s)"},
		"card": {like, anyWord, "0000:3b:00.0"}, "link": {same, linkState, "up"},
		"interface": {setting, interfaceName, "fast0"}, "mtu": {setting, number, "9000"},
		"address": {setting, addressList, "192.0.2.10/24,2001:db8::10/64"}, "range": {setting, oneRange, "192.0.2.32/27 of 192.0.2.0/24"},
		"routes": {setting, routeList, "0.0.0.0/0 via 192.0.2.1"},
	},
	ClaimCPU:       {"numa": numaRule, "isolated": {same, truth, "true"}},
	ClaimHugePages: {"numa": numaRule, "size": {same, pageSizes, "2M"}},
}

// ClaimClasses lists the classes, in order.
func ClaimClasses() []ClaimClass { return slices.Sorted(maps.Keys(claimOptions)) }

// Bounds of claims: a box has fewer devices than this.
const (
	maxClaims     = 32
	maxClaimIDs   = 64
	maxClaimCount = 1 << 10
	maxPageCount  = 1 << 20 // pages are many
)

// CheckClaim says what is wrong with a claim, or nil. Field is the part of it: "", "count",
// "driver", "device_ids" or "options.NAME".
func CheckClaim(c *Claim) *Error {
	known, ok := claimOptions[c.Class]
	most := maxClaimCount
	if c.Class == ClaimHugePages {
		most = maxPageCount
	}
	switch {
	case !ok:
		return &Error{Code: Invalid, Field: "capabilities", Message: quote(string(c.Class)) + " is no class of hardware", Remedy: fmt.Sprintf("write one of %v", ClaimClasses())}
	case c.Count != AllOfThem && (c.Count < 1 || c.Count > most):
		return &Error{Code: Invalid, Field: "count", Message: fmt.Sprintf("%d devices cannot be asked for", c.Count), Remedy: fmt.Sprintf("give a count of 1 to %d, or all", most)}
	case c.Driver != "" && !anyWord.MatchString(c.Driver):
		return &Error{Code: Invalid, Field: "driver", Message: quote(c.Driver) + " is no driver's name", Remedy: "write the name that the inventory shows, such as nvidia or igbvf"}
	case len(c.IDs) > maxClaimIDs || slices.ContainsFunc(c.IDs, func(id string) bool { return !anyWord.MatchString(id) }):
		return &Error{Code: Invalid, Field: "device_ids", Message: "these are no names of devices", Remedy: "write names that `edgectl describe device` shows, 64 at most"}
	case len(c.IDs) > 0 && c.Count != len(c.IDs) && c.Count != AllOfThem:
		return &Error{Code: Invalid, Field: "count", Message: "count and device_ids exclude each other", Remedy: "give one of them"}
	}
	if ids := slices.Compact(slices.Sorted(slices.Values(c.IDs))); len(ids) != len(c.IDs) {
		return &Error{Code: Invalid, Field: "device_ids", Message: "a device is named twice", Remedy: "name each once: a service holds it once"}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Options)) {
		o, ok := known[name]
		if !ok {
			return &Error{Code: Invalid, Field: "options." + name, Message: string(c.Class) + " has no option " + quote(name), Remedy: "its options are " + strings.Join(slices.Sorted(maps.Keys(known)), ", ")}
		}
		if !o.form.MatchString(c.Options[name]) {
			return &Error{Code: Invalid, Field: "options." + name, Message: quote(c.Options[name]) + " is no value of it", Remedy: "write it like " + o.example}
		}
	}
	switch c.Class {
	case ClaimVF:
		return checkLink(c)
	case ClaimGPU:
		return checkParts(c)
	}
	return nil
}

// checkParts refuses a claim whose words are of another way of sharing than it asks for: it would wait
// for ever, or hold a card without the limits that it names.
func checkParts(c *Claim) *Error {
	for _, need := range []struct {
		mode  SharingMode
		words []string
	}{{SharingMIG, []string{"compute", "profile"}}, {SharingMPS, []string{"memory-limit", "threads"}}} {
		for _, word := range need.words {
			if c.Options[word] != "" && c.Sharing() != string(need.mode) { // check: parts
				return &Error{Code: Invalid, Field: "options." + word, Message: fmt.Sprintf("%s is of a claim by %s, and this one is %s", word, need.mode, c.Sharing()), Remedy: fmt.Sprintf("write sharing: %s, or leave %s out", need.mode, word)}
			}
		}
	}
	return nil
}

// CheckClaims checks the claims of one service; Field begins with the claim's index: "[0].count".
func CheckClaims(list []Claim) *Error {
	if len(list) > maxClaims {
		return &Error{Code: Invalid, Message: fmt.Sprintf("%d claims of one service", len(list)), Remedy: fmt.Sprintf("join them to at most %d", maxClaims)}
	}
	byMPS := 0
	for i := range list {
		c := &list[i]
		if e := CheckClaim(c); e != nil {
			e.Field = "[" + strconv.Itoa(i) + "]." + e.Field
			return e
		}
		if c.Class == ClaimGPU && c.Sharing() == string(SharingMPS) {
			byMPS++
			if c.Count != 1 || byMPS > 1 { // check: one card by mps
				return &Error{Code: Invalid, Message: "a service can hold one card by mps: it speaks to the daemon of one", Remedy: "claim one card by mps (count: 1), and others another way or by another service"}
			}
		}
	}
	return nil
}

// Fits tells whether a device answers a claim, without regard to who holds it. The words
// say what hinders; they are empty when it fits.
func (c *Claim) Fits(d *Claimable) string {
	switch {
	case c.Class != d.Class:
		return fmt.Sprintf("it is no %s", c.Class)
	case c.Driver != "" && c.Driver != d.Driver:
		return fmt.Sprintf("its driver is %s", orNone(d.Driver))
	case c.Class == ClaimVF && c.Driver == "" && d.Driver == DriverVFIO:
		return "its driver is " + DriverVFIO // which no network knows
	case len(c.IDs) > 0 && !slices.Contains(c.IDs, d.ID) && (d.Parent == "" || !slices.Contains(c.IDs, d.Parent)):
		return "it is not among the devices that are named"
	}
	for _, name := range slices.Sorted(maps.Keys(c.Options)) {
		want, is := c.Options[name], d.Facts[name]
		if !claimOptions[c.Class][name].compare.holds(want, is) {
			return fmt.Sprintf("its %s is %s, not %s", name, orNone(is), want)
		}
	}
	if want := c.Sharing(); c.Class == ClaimGPU && d.Facts["sharing"] != want {
		return fmt.Sprintf("it is shared %s, not %s", orNone(d.Facts["sharing"]), want)
	}
	if n, err := strconv.Atoi(c.Options["numa"]); err == nil && n != d.NUMA {
		return fmt.Sprintf("it is near NUMA node %d", d.NUMA)
	}
	return ""
}

func (how compare) holds(want, is string) bool {
	switch how {
	case setting:
		return true
	case like:
		ok, err := path.Match(strings.ToLower(want), strings.ToLower(is))
		return ok && err == nil
	case atLeast:
		w, werr := strconv.Atoi(want)
		i, ierr := strconv.Atoi(is)
		return werr == nil && ierr == nil && i >= w
	}
	return want == is
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// Sharing is how a claim of a GPU wants to hold it: as its option says; a slice where it
// names a profile or compute, which only slices have; else a whole card, alone.
func (c *Claim) Sharing() string {
	switch {
	case c.Options["sharing"] != "":
		return c.Options["sharing"]
	case c.Options["profile"] != "" || c.Options["compute"] != "":
		return "mig"
	}
	return "exclusive"
}

// String is how a claim is told to people: "2 × gpu (nvidia, memory 20480)".
func (c *Claim) String() string {
	count := strconv.Itoa(c.Count)
	if c.Count == AllOfThem {
		count = "every"
	}
	var words []string
	if c.Driver != "" {
		words = append(words, c.Driver)
	}
	words = append(words, c.IDs...)
	for _, name := range slices.Sorted(maps.Keys(c.Options)) {
		words = append(words, name+" "+c.Options[name])
	}
	if len(words) == 0 {
		return count + " × " + string(c.Class)
	}
	return count + " × " + string(c.Class) + " (" + strings.Join(words, ", ") + ")"
}

// DeviceEdits is what a device means to a container that holds it: the part of a
// specification of the Container Device Interface (CDI, containerEdits) that boxes
// use, and what CDI has no words for.
type DeviceEdits struct {
	Env    []string     `json:"env,omitempty"` // NAME=value
	Nodes  []DeviceNode `json:"deviceNodes,omitempty"`
	Mounts []DeviceBind `json:"mounts,omitempty"`
	// Link is a network interface of the box that moves into the container's network.
	Link *DeviceLink `json:"-"`
	// CPU is a processor for this container alone; NUMA is the node of its memory, or -1.
	CPU  *int `json:"-"`
	NUMA int  `json:"-"`
	// HugePages are bytes of pages of PageSize ("2M") that the container may use.
	HugePages int64  `json:"-"`
	PageSize  string `json:"-"`
}

// DeviceNode is a device file in the container; Path is also where it is on the box,
// unless HostPath says otherwise.
type DeviceNode struct {
	Path        string `json:"path"`
	HostPath    string `json:"hostPath,omitempty"`
	Permissions string `json:"permissions,omitempty"` // of r, w, m; all of them when empty
}

// DeviceBind is a file or folder of the box in the container.
type DeviceBind struct {
	HostPath      string   `json:"hostPath"`
	ContainerPath string   `json:"containerPath"`
	Options       []string `json:"options,omitempty"` // as of mount(8)
}

// DeviceLink moves an interface into a container's network.
type DeviceLink struct {
	// PCI is the function that it is on, since its name changes on the way. Inside is what
	// the container will call it; empty leaves it a name that is nobody else's.
	PCI, Inside string
	Addresses   []string // CIDR
	Routes      []string // "CIDR via ADDRESS"
	MTU         int
}

// HeldDevice is one device that a service holds, and what it means to its container.
type HeldDevice struct {
	Class ClaimClass
	ID    string
	Units int
	Edits DeviceEdits
}
