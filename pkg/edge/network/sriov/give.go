package sriov

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Claimables lists the virtual functions of this box.
func (m *Manager) Claimables() []api.Claimable {
	state := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	return List(state, m.blocked)
}

// List is Claimables as a plain function; of blocked cards nobody gets a function now.
func List(s State, blocked map[string]bool) (out []api.Claimable) {
	for i := range s.Cards {
		c := &s.Cards[i]
		for _, f := range c.Functions {
			d := api.Claimable{Class: api.ClaimVF, ID: f.PCI, Driver: f.Driver, Parent: c.PCI, NUMA: f.Node, Units: 1, Facts: map[string]string{
				"physical": c.Name, "card": c.PCI, "trust": strconv.FormatBool(f.Trust), "rdma": strconv.FormatBool(len(f.RDMA) > 0), "link": "down",
			}}
			if c.Up && c.Carrier {
				d.Facts["link"] = "up"
			}
			if c.Speed > 0 {
				d.Facts["speed"] = strconv.Itoa(c.Speed)
			}
			switch {
			case blocked[c.PCI]: // check: being changed
				d.Fault = "its card's functions are being changed"
			case f.Driver == "":
				d.Fault = "no driver serves it"
			case f.Driver == api.DriverVFIO:
				d.Fault = s.groupFault(&f)
			}
			out = append(out, d)
		}
	}
	return out
}

// groupFault says why a function of vfio-pci cannot be given by itself: its group goes as a
// whole, by the first of its functions.
func (s *State) groupFault(f *Function) string {
	if f.Group < 0 {
		return "there is no IOMMU"
	}
	for _, other := range s.Groups[f.Group] {
		switch {
		case other.PCI == f.PCI || other.Bridge || other.Driver == "":
		case other.Driver != api.DriverVFIO:
			return fmt.Sprintf("the kernel serves %s of its IOMMU group", other.PCI)
		case other.PCI < f.PCI:
			return fmt.Sprintf("it goes with %s (IOMMU group %d)", other.PCI, f.Group)
		}
	}
	return ""
}

// find is a function with its card.
func (s *State) find(pci string) (*Card, *Function) {
	for i := range s.Cards {
		for j := range s.Cards[i].Functions {
			if f := &s.Cards[i].Functions[j]; f.PCI == pci {
				return &s.Cards[i], f
			}
		}
	}
	return nil, nil
}

// Prepare tells what a virtual function means to a container: an interface that moves into
// its network, or the device file of its IOMMU group.
func (m *Manager) Prepare(_ context.Context, id string, _ int, claim api.Claim) (api.DeviceEdits, error) {
	m.doing.Lock()
	defer m.doing.Unlock()
	state := m.now()
	c, f := state.find(id)
	if f == nil {
		return api.DeviceEdits{}, fmt.Errorf("%s is gone", id)
	}
	m.mu.Lock()
	m.prepared[id] = m.cfg.Now()
	policies := slices.Concat(m.policies, m.cfg.Profile)
	m.mu.Unlock()
	edits := api.DeviceEdits{NUMA: f.Node, Env: []string{variable(claim.Options["network"], id) + "=" + id}}
	if f.Driver == api.DriverVFIO {
		if why := state.groupFault(f); why != "" { // check: group as a whole
			return edits, fmt.Errorf("%s", why)
		}
		var all []string
		for _, o := range state.Groups[f.Group] {
			if !o.Bridge && o.Driver == api.DriverVFIO {
				all = append(all, o.PCI)
			}
		}
		edits.Env = []string{variable(claim.Options["network"], id) + "=" + strings.Join(all, ",")}
		edits.Nodes = []api.DeviceNode{{Path: "/dev/vfio/vfio", Permissions: "rw"}, {Path: "/dev/vfio/" + strconv.Itoa(f.Group), Permissions: "rw"}}
		return edits, nil
	}
	if f.Driver == "" {
		return edits, fmt.Errorf("no driver serves it")
	}
	if claim.Options["rdma"] == "true" {
		files := slices.Clone(f.RDMA)
		if state.RDMAConnections {
			files = append(files, rdmaConnections)
		}
		for _, path := range files {
			edits.Nodes = append(edits.Nodes, api.DeviceNode{Path: path, Permissions: "rw"})
		}
	}
	link := &api.DeviceLink{PCI: id, Inside: claim.Options["interface"], Routes: api.Routes(claim.Options["routes"])}
	if link.Inside == "" {
		link.Inside = "vf" + strconv.Itoa(f.Index)
	}
	if link.MTU, _ = strconv.Atoi(claim.Options["mtu"]); link.MTU == 0 {
		if p := policyFor(policies, c); p != nil {
			link.MTU = p.For(f.Index).MTU
		}
	}
	if text := claim.Options["address"]; text != "" {
		link.Addresses = strings.Split(text, ",")
	}
	if text := claim.Options["range"]; text != "" {
		addr, err := m.choose(id, text, link.Routes)
		if err != nil {
			return edits, err
		}
		link.Addresses = append(link.Addresses, addr)
	}
	edits.Link = link
	return edits, nil
}

// Restore gives back what was chosen for a function. Its interface comes back with its
// container's end (package network).
func (m *Manager) Restore(_ context.Context, id string) error {
	m.mu.Lock()
	_, had := m.address[id]
	delete(m.prepared, id)
	m.mu.Unlock()
	if had {
		if err := m.cfg.Store.Put(bucket, prefixAddress+id, nil); err != nil {
			return err
		}
		m.mu.Lock()
		delete(m.address, id)
		m.mu.Unlock()
	}
	m.Poke() // a change may have waited for it
	return nil
}

// variable names the variable in which a program finds its functions' addresses, in the
// form that programs with DPDK know: PCIDEVICE_ and what they asked for.
func variable(network, id string) string {
	if network == "" {
		network = id
	}
	return "PCIDEVICE_" + strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToUpper(network))
}

// choose finds an address of a range for a function, the same as long as it is held.
func (m *Manager) choose(id, text string, routes []string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	taken := map[string]bool{}
	for other, addr := range m.address {
		if other != id {
			taken[addr] = true
		}
	}
	for _, r := range routes {
		if _, via, ok := strings.Cut(r, " via "); ok {
			taken[via] = true
		}
	}
	addr, err := Choose(text, m.address[id], taken)
	if err != nil {
		return "", err
	}
	p, _, _ := strings.Cut(addr, "/")
	if m.address[id] != p {
		if err := m.cfg.Store.Put(bucket, prefixAddress+id, []byte(p)); err != nil {
			return "", err
		}
		m.address[id] = p
	}
	return addr, nil
}

// maxTried bounds the addresses that are tried: a box has fewer functions.
const maxTried = 1 << 16

// Choose picks the first address of a range that nobody has, or the one that was had
// before, with the length of its network. It is a plain function.
func Choose(text, had string, taken map[string]bool) (string, error) {
	from, network, err := api.ParseRange(text)
	if err != nil {
		return "", err
	}
	with := func(a netip.Addr) string { return netip.PrefixFrom(a, network.Bits()).String() }
	if a, err := netip.ParseAddr(had); err == nil && from.Contains(a) && !taken[had] {
		return with(a), nil
	}
	a := from.Addr()
	for range maxTried {
		if !from.Contains(a) {
			break
		}
		if !ends(a, network) && !taken[a.String()] {
			return with(a), nil
		}
		a = a.Next()
	}
	return "", fmt.Errorf("no address of %s is left", text)
}

// ends tells the first address of a network, which is nobody's, and of IPv4 the last.
func ends(a netip.Addr, network netip.Prefix) bool {
	if network.Bits() >= a.BitLen()-1 { // two stations (RFC 3021), or one
		return false
	}
	return a == network.Addr() || a.Is4() && !network.Contains(a.Next())
}
