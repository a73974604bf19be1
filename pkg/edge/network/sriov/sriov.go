// Package sriov answers: into which virtual functions is each network card divided, how is
// each of them set, and who may have it?
//
// look.go reads what the kernel says. plan.go decides, as a plain function: what is there,
// what the policies say, what was found before anything was touched and who uses what go
// in; steps, and refusals with the users' names, come out. do.go takes the steps, keep.go
// runs the loop and writes down what was found, give.go offers the functions to services.
package sriov

import "tributary.dev/tributary/pkg/api"

// State is all cards and what is isolated with what.
type State struct {
	Cards []Card
	// Groups are those of the IOMMU that a virtual function is in.
	Groups map[int][]Member
	// RDMAConnections says that the box has the device file by which programs make connections by
	// addresses (rdma_ucm).
	RDMAConnections bool
}

// Card is one physical function of a network card that can have virtual ones.
type Card struct {
	PCI, Name, Driver string
	// ID is vendor:device in hexadecimal.
	ID   string
	Node int // of NUMA; -1 for none
	MAC  string
	MTU  int
	// Link is its interface's number, another one when that went and came; 0 is none.
	Link int
	// Up says that the interface is switched on, Carrier that its cable is connected, Used that the box itself needs it:
	// it has an address, or is part of a bridge or bond.
	Up, Carrier, Used bool
	Speed             int // Mbit/s; 0 is unknown
	// Most is how many virtual functions it can have.
	Most int
	// Probe says that the kernel gives new functions a driver by itself.
	Probe     bool
	Functions []Function
}

// Function is one virtual function.
type Function struct {
	Index int    `json:"index"`
	PCI   string `json:"pci"`
	// Driver serves it now; Override is the only one that may.
	Driver   string `json:"driver,omitempty"`
	Override string `json:"override,omitempty"`
	Group    int    `json:"group"` // of the IOMMU; -1 for none
	Node     int    `json:"node"`
	// Name is its interface's, MTU that one's; empty when it is in a container, or has none.
	Name string `json:"name,omitempty"`
	MTU  int    `json:"mtu,omitempty"`
	// RDMA are the device files by which it offers RDMA.
	RDMA []string `json:"rdma,omitempty"`
	Settings
}

// Settings are what the card's own driver keeps for a virtual function.
type Settings struct {
	MAC      string `json:"mac,omitempty"`
	VLAN     int    `json:"vlan,omitempty"`
	QoS      int    `json:"qos,omitempty"`
	Protocol string `json:"protocol,omitempty"` // 802.1Q unless it says another
	Trust    bool   `json:"trust,omitempty"`
	Spoof    bool   `json:"spoof,omitempty"`
	MinRate  int    `json:"minRate,omitempty"`
	MaxRate  int    `json:"maxRate,omitempty"`
	Link     string `json:"link,omitempty"` // auto, on, off
}

// Member is one function in a group of the IOMMU.
type Member struct {
	PCI, Driver string
	Bridge      bool
}

// Found is what a card was like before it was touched, so that it can be put back.
type Found struct {
	// Boot names the start of the box in which it was found; after another one the kernel
	// has forgotten all, and so is this.
	Boot  string `json:"boot"`
	Probe bool   `json:"probe"`
	// SetMTU and SetUp say that the interface's MTU was set here, in the place of MTU, and that it was switched on here.
	// Others may set them too: nothing else is undone.
	SetMTU bool `json:"setMTU,omitempty"`
	MTU    int  `json:"mtu,omitempty"`
	SetUp  bool `json:"setUp,omitempty"`
	// First are the functions that were there; Base those that are there now as they were
	// before they were set.
	First []Function `json:"first,omitempty"`
	Base  []Function `json:"base,omitempty"`
	// Addressed are the addresses that functions got here which had none. Another one is their driver's own.
	Addressed map[int][]string `json:"addressed,omitempty"`
	// Change is how the last policy wanted changes made.
	Change string `json:"change,omitempty"`
}

// Op is what a step does.
type Op string

// The steps.
const (
	Remember Op = "remember" // write down how the card is
	Forget   Op = "forget"   // it is as it was found
	Count    Op = "count"    // have Number functions, without drivers
	SetMTU   Op = "mtu"      // of the card, or of a function's interface
	SetUp    Op = "up"       // switch the card's interface on (Number 1) or off
	SetProbe Op = "probe"    // give new functions drivers (Number 1) or not
	Set      Op = "set"      // one function's settings
	Bind     Op = "bind"     // have Driver (kernel, vfio-pci, or empty for none) serve a function
)

// Step is one thing to do.
type Step struct {
	Op    Op
	Card  string // address
	PCI   string // of the virtual function
	Index int
	// Number is a count, an MTU, or a truth.
	Number   int
	Settings Settings // for Set: all of them, as they shall be
	Changed  []string // for Set: which of them are to be written
	Driver   string
	Found    *Found // for Remember
}

// Refusal is why a policy is not in force.
type Refusal struct {
	Card  string
	Words string
	// Users are the services in the way.
	Users []string
	// Remedy says what people can do.
	Remedy string
}

// Input is all that a decision depends on.
type Input struct {
	State    State
	Policies []api.FunctionPolicy
	Boot     string
	Found    map[string]Found // by card
	// Held names the services that hold a virtual function; Busy are those in containers
	// that run.
	Held map[string][]string
	Busy map[string]bool
	// Clear are cards that shall have no functions for now.
	Clear map[string]bool
	// Failed are steps that the kernel refused, which are not tried again now.
	Failed map[string]bool
}

// Output is what to do.
type Output struct {
	// Steps are taken in order; then all is looked at anew.
	Steps   []Step
	Refused []Refusal
	// Drain names the services that have to end first, by card.
	Drain map[string][]string
}
