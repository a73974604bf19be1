package hardware

import (
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// telling are the features of cards that apps, networks and people ask for, of some
// seventy that the kernel knows (net/ethtool/common.c, netdev_features_strings).
var telling = []string{"esp-hw-offload", "hw-tc-offload", "l2-fwd-offload", "macsec-hw-offload", "rx-all", "rx-gro-hw", "rx-hashing", "rx-checksum",
	"rx-ntuple-filter", "rx-udp_tunnel-port-offload", "rx-vlan-filter", "rx-vlan-hw-parse", "tls-hw-rx-offload", "tls-hw-tx-offload",
	"tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6", "tx-gre-segmentation", "tx-tcp-segmentation", "tx-udp-segmentation",
	"tx-udp_tnl-segmentation", "tx-vlan-hw-insert"}

// netDevices reads the interfaces of hardware. One whose address is not the one that
// netlink tells belongs to another network namespace: /sys may be the host's.
func (l *looker) netDevices() {
	const root = "sys/class/net"
	own := map[string]string{}
	if l.Links != nil {
		for _, link := range l.Links() {
			own[link.Name] = link.MAC
		}
	}
	var modes map[string]string
	for _, name := range l.names(root, maxLinks, "net") {
		dir := root + "/" + name + "/"
		at := l.follow(root + "/" + name)
		mac := l.word(dir + "address")
		if at == "" || l.base(dir+"device") == "" || l.Links != nil && !strings.EqualFold(own[name], mac) {
			continue
		}
		if len(l.out.NetDevices) == maxNetDevices {
			l.out.Cut = append(l.out.Cut, "net")
			return
		}
		d := api.NetDevice{Name: name, MAC: mac, Driver: l.base(dir + "device/driver"), PCI: pciOf(at), MTU: l.count(dir + "mtu"),
			Switch: l.word(dir + "phys_switch_id"), SwitchPort: l.word(dir + "phys_port_name"), Link: l.link(dir)}
		if i := slices.IndexFunc(l.out.PCI, func(f api.PCIFunction) bool { return f.Address == d.PCI }); i >= 0 {
			d.Node, d.Physical = l.out.PCI[i].Node, l.out.PCI[i].Physical
		}
		if clocks := l.names(dir+"device/ptp", 1, ""); len(clocks) > 0 {
			d.PTP = clocks[0]
		}
		if modes == nil && l.Asked.Eswitch != nil {
			if modes = l.Asked.Eswitch(); modes == nil {
				modes = map[string]string{}
			}
		}
		d.Eswitch = clip(modes[d.PCI])
		if l.Asked.Card != nil {
			card := l.Asked.Card(name)
			d.Firmware = clip(card.Firmware)
			for _, f := range telling {
				if slices.Contains(card.Features, f) {
					d.Offloads = append(d.Offloads, f)
				}
			}
			slices.Sort(d.Offloads)
		}
		l.out.NetDevices = append(l.out.NetDevices, d)
	}
}

// maxLinks bounds the interfaces looked through; containers have most of them.
const maxLinks = 8192

// link tells how an interface is connected.
func (l *looker) link(dir string) api.Link {
	flags, _ := l.number(dir + "flags")
	if flags&1 == 0 { // IFF_UP
		return api.Link{State: api.LinkOff}
	}
	if l.text(dir+"carrier") != "1" {
		return api.Link{State: api.LinkDown}
	}
	return api.Link{State: api.LinkUp, Speed: l.count(dir + "speed"), Half: l.text(dir+"duplex") == "half"}
}
