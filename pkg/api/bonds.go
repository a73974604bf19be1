package api

import (
	"fmt"

	"tributary.dev/tributary/pkg/pattern"
)

// Bond joins wired interfaces into one, by whose name uplinks match it.
type Bond struct {
	// Name is the interface's: "bond0".
	Name string `json:"name"`
	// Mode is active-backup (the default: one port carries all, and when it fails another) or
	// 802.3ad (all carry, as agreed with the other end by LACP).
	Mode string `json:"mode,omitempty"`
	// Ports are the interfaces that fit one of these.
	Ports []UplinkMatch `json:"ports"`
	// Of 802.3ad: Hash is layer2, layer2+3 or layer3+4, by which a packet is given to a port;
	// LACPRate is slow (the default) or fast: a word each 30 seconds, or each second; without
	// MinPorts of them the bond is down.
	Hash     string `json:"hash,omitempty"`
	LACPRate string `json:"lacpRate,omitempty"`
	MinPorts int64  `json:"minPorts,omitempty"`
}

// Modes of bonds.
const (
	BondBackup = "active-backup"
	BondLACP   = "802.3ad"
)

const maxBonds, maxBondPorts = 8, 16

var bondName = pattern.New(`^[a-z][a-z0-9_-]{0,14}$`) // IFNAMSIZ

// faults tells what is wrong with the bonds of settings.
func (n *NetworkSettings) faults(bad func(field, format string, args ...any)) {
	if len(n.Bonds) > maxBonds {
		bad("bonds", "%d of them, more than %d", len(n.Bonds), maxBonds)
		return
	}
	names := map[string]bool{}
	for i, b := range n.Bonds {
		item := fmt.Sprintf("bonds[%d].", i)
		if !bondName.MatchString(b.Name) || b.Name == "lo" || names[b.Name] { // check: bond name
			bad(item+"name", "%.80q is no name for a bond of its own, such as bond0", b.Name)
		}
		names[b.Name] = true
		if b.Mode != "" && b.Mode != BondBackup && b.Mode != BondLACP { // check: bond mode
			bad(item+"mode", "%.80q is neither active-backup nor 802.3ad", b.Mode)
		}
		if len(b.Ports) < 1 || len(b.Ports) > maxBondPorts {
			bad(item+"ports", "%d of them, not 1 to %d", len(b.Ports), maxBondPorts)
		}
		for j, p := range b.Ports {
			if p == (UplinkMatch{}) { // check: bond port
				bad(fmt.Sprintf("%sports[%d]", item, j), "it takes all of the box's interfaces: give name, mac or driver")
			}
		}
		if b.Mode != BondLACP && (b.Hash != "" || b.LACPRate != "" || b.MinPorts != 0) { // check: lacp
			bad(item+"mode", "hash, lacpRate and minPorts are those of 802.3ad")
		}
		if b.Hash != "" && b.Hash != "layer2" && b.Hash != "layer2+3" && b.Hash != "layer3+4" {
			bad(item+"hash", "%.80q is none of layer2, layer2+3 and layer3+4", b.Hash)
		}
		if b.LACPRate != "" && b.LACPRate != "slow" && b.LACPRate != "fast" {
			bad(item+"lacpRate", "%.80q is neither slow nor fast", b.LACPRate)
		}
		if b.MinPorts < 0 || b.MinPorts > maxBondPorts {
			bad(item+"minPorts", "%d is not between 0 and %d", b.MinPorts, maxBondPorts)
		}
	}
}
