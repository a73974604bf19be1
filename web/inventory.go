package web

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// box is the page of what one device is made of.
type box struct {
	Who, Version, Name string
	Facts              [][2]string
	Tables             []sheet
	Roots              []*function
}

// sheet is a table; a row's first cell is its name.
type sheet struct {
	Title string
	Head  []string
	Rows  [][]string
}

// function is one of the PCI tree.
type function struct {
	Address, What, Detail, Class string
	Children                     []*function
}

func (c *Console) device(w http.ResponseWriter, r *http.Request) {
	ctx, who, err := c.cfg.Who(r)
	if err != nil {
		http.Redirect(w, r, "/console/login", http.StatusSeeOther)
		return
	}
	if c.cfg.Inventory == nil {
		http.NotFound(w, r)
		return
	}
	tenant, name := r.PathValue("tenant"), r.PathValue("name")
	i, err := c.cfg.Inventory(ctx, tenant, name)
	switch {
	case api.CodeOf(err) == api.NotFound && err != nil:
		http.NotFound(w, r)
		return
	case err != nil:
		c.cfg.Log.Error("the console cannot read what a device is made of", "err", err)
		http.Error(w, "the core cannot be read just now; try again", http.StatusServiceUnavailable)
		return
	}
	b := boxOf(i)
	b.Who, b.Version, b.Name = who, c.cfg.Version, name
	c.render(w, http.StatusOK, "device", b)
}

// boxOf draws an inventory; nil is one that was never told.
func boxOf(i *api.Inventory) box {
	var b box
	if i == nil {
		return b
	}
	if c := i.CPU; c != nil {
		b.Facts = append(b.Facts, [2]string{"Processors", fmt.Sprintf("%s, %d cores, %d threads", cmp.Or(c.Model, "unknown"), c.Cores, c.Threads)})
		if c.Isolated != "" {
			b.Facts = append(b.Facts, [2]string{"Isolated", c.Isolated})
		}
	}
	for _, n := range i.Nodes {
		text := fmt.Sprintf("CPUs %s, %.1f GiB", n.CPUs, float64(n.MemoryMiB)/1024)
		for _, p := range n.HugePages {
			text += fmt.Sprintf(", %d huge pages of %d MiB", p.Count, p.SizeKiB>>10)
		}
		b.Facts = append(b.Facts, [2]string{fmt.Sprintf("Node %d", n.ID), text})
	}
	for _, t := range i.TPMs {
		b.Facts = append(b.Facts, [2]string{"TPM", t.Version})
	}
	for _, d := range i.Watchdogs {
		b.Facts = append(b.Facts, [2]string{"Watchdog", fmt.Sprintf("%s, %d s", d.Identity, d.Timeout)})
	}
	for _, c := range i.Sensors {
		for _, s := range c.Sensors {
			if s.State != "" {
				b.Facts = append(b.Facts, [2]string{"Sensor", fmt.Sprintf("%s of %s (%s) is %s", s.Kind, s.Label, c.ID, s.State)})
			}
		}
	}
	cards, disks := sheet{Title: "Network cards", Head: []string{"", "Link", "Driver", "PCI", "Switch", "Clock"}}, sheet{Title: "Disks", Head: []string{"", "Size", "Model", "Wear", "Health"}}
	for _, d := range i.NetDevices {
		link := d.Link.State
		if d.Link.Speed > 0 {
			link = fmt.Sprintf("%s, %d Mbit/s", link, d.Link.Speed)
		}
		cards.Rows = append(cards.Rows, []string{d.Name, link, d.Driver, d.PCI, d.Eswitch, d.PTP})
	}
	for _, d := range i.Disks {
		wear := ""
		if d.Wear != nil {
			wear = fmt.Sprintf("%d %%", *d.Wear)
		}
		disks.Rows = append(disks.Rows, []string{d.Name, fmt.Sprintf("%.1f GB", float64(d.Bytes)/1e9), d.Model, wear, cmp.Or(strings.Join(d.Faults, ", "), "well")})
	}
	gpus := sheet{Title: "Accelerators", Head: []string{"", "Model", "Driver", "PCI", "Memory", "Sharing"}}
	for _, g := range i.Accelerators {
		gpus.Rows = append(gpus.Rows, []string{g.ID, g.Model, cmp.Or(g.Driver, "none"), g.PCI, fmt.Sprintf("%d MiB", g.MemoryMiB), string(g.Sharing.Mode)})
	}
	for _, s := range []sheet{claimSheet(i.Claims), cards, watchSheet(i.Cards), gpus, partSheet(i), disks} {
		if len(s.Rows) > 0 {
			b.Tables = append(b.Tables, s)
		}
	}
	b.Roots = busTree(i)
	return b
}

// claimSheet shows what services can have for themselves, and who has it.
func claimSheet(uses []api.DeviceUse) sheet {
	s := sheet{Title: "For apps", Head: []string{"", "Used", "Free", "By"}}
	for _, c := range api.CapacityOf(uses) {
		var by []string
		for i := range uses {
			if uses[i].Name() != c.Name {
				continue
			}
			for _, h := range uses[i].Holders {
				if who := h.App + "/" + h.Service; !slices.Contains(by, who) {
					by = append(by, who)
				}
			}
		}
		s.Rows = append(s.Rows, []string{c.Name, fmt.Sprintf("%d of %d", c.Held, c.Total), fmt.Sprint(c.Free), strings.Join(by, ", ")})
	}
	return s
}

// watchSheet shows what network cards watch of themselves.
func watchSheet(cards []api.CardHealth) sheet {
	s := sheet{Title: "Watched by network cards", Head: []string{"", "Watches", "State", "Errors", "Mended"}}
	for _, c := range cards {
		if c.ResetFailed {
			s.Rows = append(s.Rows, []string{c.Card, "its driver", "failed to begin anew", "", ""})
		}
		for _, r := range c.Reporters {
			s.Rows = append(s.Rows, []string{c.Card, r.What(), r.State(), fmt.Sprint(r.Errors), fmt.Sprint(r.Recoveries)})
		}
	}
	return s
}

// partSheet shows what services can hold of cards, slice by slice, who does, and what is
// given to no one.
func partSheet(i *api.Inventory) sheet {
	s := sheet{Title: "Cards and slices", Head: []string{"", "Profile", "Memory", "By", "State"}}
	for _, p := range i.Parts() {
		memory := ""
		if p.MemoryMiB > 0 {
			memory = fmt.Sprintf("%d MiB", p.MemoryMiB)
		}
		s.Rows = append(s.Rows, []string{p.ID, p.Profile, memory, strings.Join(p.By, ", "), p.State})
	}
	return s
}

// busTree hangs each function below its bridge, a virtual one below its physical one. What
// hangs on nothing known, or in a loop, is a root.
func busTree(i *api.Inventory) (roots []*function) {
	on := map[string][]string{}
	for _, d := range i.NetDevices {
		on[d.PCI] = append(on[d.PCI], d.Name)
	}
	for _, d := range i.Disks {
		on[d.PCI] = append(on[d.PCI], d.Name)
	}
	above, byAddress := map[string]string{}, map[string]*function{}
	for _, f := range i.PCI {
		n := &function{Address: f.Address, What: strings.Join(on[f.Address], " "), Detail: strings.TrimSpace(f.Driver + " " + f.ID), Class: "ok"}
		if f.Driver == "" {
			n.Class = "off"
		}
		if f.Node != nil && len(i.Nodes) > 1 {
			n.Detail += fmt.Sprintf(" · node %d", *f.Node)
		}
		if f.MaxVirtualFunctions > 0 {
			n.Detail += fmt.Sprintf(" · %d of %d virtual functions", f.VirtualFunctions, f.MaxVirtualFunctions)
		}
		byAddress[f.Address], above[f.Address] = n, cmp.Or(f.Physical, f.Bridge)
	}
	for _, f := range i.PCI {
		up := above[f.Address]
		if byAddress[up] == nil || loops(above, f.Address) {
			roots = append(roots, byAddress[f.Address])
			continue
		}
		byAddress[up].Children = append(byAddress[up].Children, byAddress[f.Address])
	}
	return slices.Compact(roots)
}

// loops tells whether the way up never ends, or is longer than any bus.
func loops(above map[string]string, at string) bool {
	for range 64 {
		if at = above[at]; at == "" {
			return false
		}
	}
	return true
}
