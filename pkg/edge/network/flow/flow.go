// Package flow answers: which rules of the kernel's packet classifier say what the flow
// policies want, and how do they come there without a packet that follows neither the old
// ones nor the new?
//
// Compile turns policies into rules, Plan compares these with what the kernel has, Kernel does
// what the plan says (tc's clsact and flower), Keeper runs the three whenever something changes.
// Rules are known again by a digest of all that they say, which lies in the cookie of their first
// action: a restart of this program finds them as it left them, and touches nothing.
package flow

import (
	"net/netip"

	"tributary.dev/tributary/pkg/api"
)

// Link is an interface, as the kernel shows it.
type Link struct {
	Index int
	Name  string
	MAC   string
	// Kind is the kernel's: veth, vxlan, …; empty for hardware.
	Kind string
	// Switch and SwitchPort name a port of a card's switch.
	Switch, SwitchPort string
	// Ethernet is false where packets have no Ethernet header, as in gtpu.
	Ethernet bool
	// Offload says that the card is asked to take rules (hw-tc-offload).
	Offload bool
}

// Endpoint is where a service of an app is reached.
type Endpoint struct {
	// Link is the host's end of the container's interface.
	Link int
	// MAC is the container's, Gateway that of the bridge which it takes for its way out.
	MAC, Gateway [6]byte
	Address      netip.Addr
}

// World is what compiling depends on besides the policies.
type World struct {
	Links []Link
	// Endpoint finds a service; false while it does not run. Nil: there are no apps.
	Endpoint func(app, service string) (Endpoint, bool)
}

// Hook is a place where packets meet rules: an interface, and a direction.
type Hook struct {
	Link   int
	Egress bool
}

// Rule is one filter of the kernel. Its order among those of a hook is that of a list.
type Rule struct {
	Policy, Name string
	// Interface is the name that people know the hook's link by.
	Interface string
	// Answers marks the way back of a rule that steers to an app: no person wrote it.
	Answers bool
	Hook    Hook
	Offload string
	// Capable says that the link takes rules into hardware.
	Capable bool
	// Soft keeps the rule out of the card since an earlier one is not there, which Behind names.
	Soft    bool `json:",omitempty"`
	Behind  string
	Key     Key
	Actions []Action
}

// Key is what a rule matches; zero values match all.
type Key struct {
	// EthType is 0x0800, 0x86dd, or 0 for all; of what a VLAN's tag holds where VLAN is set.
	EthType              uint16
	SrcMAC, DstMAC       *[6]byte
	VLAN                 uint16
	VLANPriority         *uint8
	Proto                *uint8
	Src, Dst             netip.Prefix
	SrcPorts, DstPorts   [2]uint16 // from and to, equal for one port
	DSCP                 *uint8
	Tunnel               bool
	TunnelID             *uint32
	TunnelSrc, TunnelDst netip.Addr
}

// Verb is what an action does.
type Verb int

// The verbs, in the order in which a rule has them.
const (
	Unwrap     Verb = iota + 1 // forget the tunnel that the packet came in
	Police                     // drop what is above Rate (bytes a second, Burst) or Packets a second
	Mirror                     // a copy to Link
	Pop                        // take the VLAN tag away
	Header                     // put an Ethernet header before a packet without: MAC, SrcMAC
	Address                    // packets to get another destination: MAC, SrcMAC, To, Port
	Answer                     // packets get back the source From in place of To
	AnswerPort                 // and its Port
	Sum                        // checksums again
	Push                       // a VLAN tag: VLAN, Priority
	Wrap                       // what tunnel Link is to put around it: ID, From, To, Port
	Redirect                   // to Link, and no further
	Drop
	Pass
)

// Action is one step of what happens to a packet.
type Action struct {
	Do          Verb
	Link        int
	Rate, Burst uint64
	Packets     uint64
	VLAN        uint16
	Priority    uint8
	ID          uint32
	From, To    netip.Addr
	Port        uint16
	Proto       uint8
	MAC, SrcMAC [6]byte
	KeepMACs    bool // of Address: there are none
}

// Session is a subscriber's tunnel of GTP-U.
type Session struct {
	In, Out          uint32
	Subscriber, Peer netip.Addr
}

// Names of the tunnels' interfaces.
const (
	tunnelPrefix = "trt-"
	nameGRE      = tunnelPrefix + "gre"
	nameGTP      = tunnelPrefix + "gtp"
)

// Set is all that the policies want.
type Set struct {
	// Rules are in the order in which they are to be tried, answers first.
	Rules    []Rule
	Sessions []Session
	// States tell of rules that stand nowhere yet, and why.
	States []api.FlowState
}
