package sriov

import (
	"encoding/binary"
	"io/fs"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/pkg/api"
)

// Bounds of what is looked at.
const (
	maxCards = 128
	maxFile  = 4 << 10
)

// pciRoot is where the kernel shows the functions of PCI.
const pciRoot = "sys/bus/pci/devices"

// Look reads all cards. root is a file system rooted at "/"; links are the interfaces of
// the box's own namespace with what the kernel tells of their virtual functions. What
// cannot be read is left out.
func Look(root fs.FS, links func() []netlink.Link) State {
	l := looker{root}
	s := State{Groups: map[int][]Member{}}
	entries, err := fs.ReadDir(root, pciRoot)
	if err != nil {
		return s
	}
	var here []netlink.Link
	if links != nil {
		here = links()
	}
	for _, e := range entries {
		pci := e.Name()
		most := l.number(pci, "sriov_totalvfs", 0)
		if most <= 0 || !strings.HasPrefix(l.text(pci, "class"), "0x02") || len(s.Cards) == maxCards {
			continue
		}
		s.Cards = append(s.Cards, l.card(pci, most, here))
	}
	_, err = fs.Stat(root, rdmaConnections[1:])
	s.RDMAConnections = err == nil
	for i := range s.Cards {
		for _, f := range s.Cards[i].Functions {
			if _, known := s.Groups[f.Group]; f.Group >= 0 && !known {
				s.Groups[f.Group] = l.members(f.PCI)
			}
		}
	}
	return s
}

const rdmaConnections = "/dev/infiniband/rdma_cm"

type looker struct{ root fs.FS }

func (l looker) text(pci, name string) string {
	b, err := fs.ReadFile(l.root, path.Join(pciRoot, pci, name))
	if err != nil || len(b) > maxFile {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (l looker) number(pci, name string, otherwise int) int {
	n, err := strconv.Atoi(l.text(pci, name))
	if err != nil {
		return otherwise
	}
	return n
}

// target is the last part of where a link leads.
func (l looker) target(pci, name string) string {
	to, err := fs.ReadLink(l.root, path.Join(pciRoot, pci, name))
	if err != nil {
		return ""
	}
	return path.Base(to)
}

func (l looker) card(pci string, most int, links []netlink.Link) Card {
	c := Card{PCI: pci, Most: most, Driver: l.target(pci, "driver"), Node: l.number(pci, "numa_node", -1), Probe: l.number(pci, "sriov_drivers_autoprobe", 1) != 0,
		ID: strings.TrimPrefix(l.text(pci, "vendor"), "0x") + ":" + strings.TrimPrefix(l.text(pci, "device"), "0x")}
	var infos []netlink.VfInfo
	if link := linkOf(links, pci); link != nil {
		at := link.Attrs()
		c.Name, c.Link, c.MAC, c.MTU, c.Up, c.Carrier, infos = at.Name, at.Index, at.HardwareAddr.String(), at.MTU, at.Flags&net.FlagUp != 0, at.OperState == netlink.OperUp, at.Vfs
		c.Used = at.MasterIndex != 0
		if speed := l.number(pci, "net/"+at.Name+"/speed", 0); speed > 0 {
			c.Speed = speed
		}
	}
	for i := range min(l.number(pci, "sriov_numvfs", 0), most) {
		at := l.target(pci, "virtfn"+strconv.Itoa(i))
		if at == "" {
			continue // it comes or goes at this moment
		}
		f := l.function(at, i, links)
		for _, info := range infos {
			if info.ID == i {
				f.Settings = settingsOf(info)
			}
		}
		c.Functions = append(c.Functions, f)
	}
	return c
}

// linkOf is the first interface of a function: a card's switch may show others on it.
func linkOf(links []netlink.Link, pci string) netlink.Link {
	var found netlink.Link
	for _, l := range links {
		if at := l.Attrs(); at.ParentDev == pci && (found == nil || len(at.Vfs) > len(found.Attrs().Vfs)) {
			found = l
		}
	}
	return found
}

func (l looker) function(pci string, index int, links []netlink.Link) Function {
	f := Function{Index: index, PCI: pci, Driver: l.target(pci, "driver"), Group: -1, Node: l.number(pci, "numa_node", -1)}
	if o := l.text(pci, "driver_override"); o != "(null)" {
		f.Override = o
	}
	if g, err := strconv.Atoi(l.target(pci, "iommu_group")); err == nil {
		f.Group = g
	}
	if link := linkOf(links, pci); link != nil {
		f.Name, f.MTU = link.Attrs().Name, link.Attrs().MTU
	}
	verbs, _ := fs.ReadDir(l.root, path.Join(pciRoot, pci, "infiniband_verbs"))
	for _, v := range verbs {
		f.RDMA = append(f.RDMA, "/dev/infiniband/"+v.Name())
	}
	return f
}

func (l looker) members(pci string) (out []Member) {
	entries, _ := fs.ReadDir(l.root, path.Join(pciRoot, pci, "iommu_group/devices"))
	for _, e := range entries {
		out = append(out, Member{PCI: e.Name(), Driver: l.target(e.Name(), "driver"), Bridge: strings.HasPrefix(l.text(e.Name(), "class"), "0x06")})
	}
	return out
}

// noMAC is how the kernel writes that nobody gave a function an address; given, it takes one away.
const noMAC = "00:00:00:00:00:00"

// States of a function's link (linux/if_link.h: IFLA_VF_LINK_STATE_*), in their order.
var linkStates = []string{"auto", "on", "off"}

func settingsOf(v netlink.VfInfo) Settings {
	s := Settings{MAC: v.Mac.String(), VLAN: v.Vlan, QoS: v.Qos, Trust: v.Trust == 1, Spoof: v.Spoofchk, MinRate: int(v.MinTxRate), MaxRate: int(v.MaxTxRate), Link: "auto"}
	if int(v.LinkState) < len(linkStates) {
		s.Link = linkStates[v.LinkState]
	}
	// The kernel tells the protocol in network order.
	if p := uint16(v.VlanProto); s.VLAN != 0 && (p == protocolAD || binary.BigEndian.Uint16(binary.LittleEndian.AppendUint16(nil, p)) == protocolAD) {
		s.Protocol = "802.1ad"
	}
	if s.MAC == noMAC {
		s.MAC = ""
	}
	return s
}

// protocolAD and protocolQ are the numbers of IEEE 802.1ad and 802.1Q (linux/if_ether.h).
const (
	protocolAD = 0x88a8
	protocolQ  = 0x8100
)

// policyFor is the first that is about a card.
func policyFor(policies []api.FunctionPolicy, c *Card) *api.FunctionPolicy {
	i := slices.IndexFunc(policies, func(p api.FunctionPolicy) bool { return p.Match.Fits(c.PCI, c.Name, c.Driver, c.ID) })
	if i < 0 {
		return nil
	}
	return &policies[i]
}
