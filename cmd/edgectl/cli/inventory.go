package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
)

func (a *app) hardwareCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "hardware NAME", Short: "Show what a device is made of, and which app holds what of it", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeDevices,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			i, err := inventory(cmd.Context(), cl, strings.TrimPrefix(args[0], "device/"))
			switch {
			case err != nil:
				return err
			case output == "json" || output == "yaml":
				return a.printValue(i, output)
			case output != "table":
				return badOutput(output, "table, json or yaml")
			}
			a.showInventory(i)
			return nil
		},
	}
	outputFlag(c, &output, "table, json or yaml")
	return c
}

func (a *app) uncordonCommand() *cobra.Command {
	return &cobra.Command{
		Use: "uncordon NAME CARD|SLICE…", Short: "Say that a cordoned card or slice is well, so that apps are given it again", Args: cobra.MinimumNArgs(2), ValidArgsFunction: a.completeDevice,
		Long: `Say that a card or slice is well that a device gives to no one since it failed (state cordoned in edgectl device
hardware NAME). What was found of it so far is ended, also when the device is away now; what is found later cordons it
anew. A card is named with all of its slices. It is noted among the device's events.`,
		Example: "  edgectl device uncordon site-7 GPU-5d4e…\n  edgectl device uncordon site-7 GPU-5d4e…/4+2",
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(args[0], "device/")
			for _, id := range args[1:] {
				if err := cl.Uncordon(cmd.Context(), name, id); err != nil {
					return err
				}
				fmt.Fprintf(a.Out, "device/%s: %s uncordoned\n", name, id)
			}
			return nil
		},
	}
}

func inventory(ctx context.Context, cl *client.Client, device string) (*api.Inventory, error) {
	var i api.Inventory
	return &i, cl.Do(ctx, http.MethodGet, "/api/v1/devices/"+device+"/inventory", nil, nil, &i)
}

func (a *app) describeInventory(ctx context.Context, cl *client.Client, device string) error {
	i, err := inventory(ctx, cl, device)
	if api.CodeOf(err) == api.NotFound {
		return nil // it has not told, or the core is of an older version
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(a.Out)
	a.showInventory(i)
	return nil
}

// showInventory shows what a device is made of: what it computes with, its network cards,
// accelerators and disks, and the tree of its PCI buses, by NUMA node.
func (a *app) showInventory(i *api.Inventory) {
	for _, line := range computing(i) {
		a.fact(line[0], line[1])
	}
	for _, t := range []*table{cards(i), watchers(i), accelerators(i), parts(i), disks(i), claimable(i), flows(i)} {
		if len(t.rows) > 0 {
			fmt.Fprintln(a.Out)
			t.write(a.Out, true)
		}
	}
	if len(i.PCI) > 0 {
		fmt.Fprintln(a.Out)
		for _, line := range drawPCI(i) {
			fmt.Fprintln(a.Out, printable(line))
		}
	}
}

// computing tells of processors, memory, and what watches over the box.
func computing(i *api.Inventory) (out [][2]string) {
	add := func(name, text string) { out = append(out, [2]string{name, text}) }
	if c := i.CPU; c != nil {
		text := fmt.Sprintf("%d threads on %d cores, %d sockets", c.Threads, c.Cores, c.Sockets)
		if c.MaxMHz > 0 {
			text += fmt.Sprintf(", %d to %d MHz, %s", c.MinMHz, c.MaxMHz, orDash(c.Governor))
		}
		for _, part := range [][2]string{{", isolated ", c.Isolated}, {", no tick ", c.NoHZ}, {", offline ", c.Offline}} {
			if part[1] != "" {
				text += part[0] + part[1]
			}
		}
		if c.RealTime {
			text += ", real-time kernel"
		}
		add("CPU", text)
	}
	for _, n := range i.Nodes {
		text := fmt.Sprintf("CPUs %s, %s", orDash(n.CPUs), bytesText(uint64(max(n.MemoryMiB, 0))<<20))
		for _, p := range n.HugePages {
			text += fmt.Sprintf(", %d pages of %s", p.Count, bytesText(uint64(max(p.SizeKiB, 0))<<10))
		}
		add(fmt.Sprintf("Node %d", n.ID), text)
	}
	for _, t := range i.TPMs {
		add("TPM", strings.TrimSpace(t.Name+" "+t.Version+" "+t.Device))
	}
	for _, w := range i.Watchdogs {
		text := fmt.Sprintf("%s %s, %d s", w.Name, w.Identity, w.Timeout)
		if w.Active {
			text += ", active"
		}
		if w.Fired {
			text += ", it started the box anew"
		}
		add("Watchdog", text)
	}
	well := 0
	for _, c := range i.Sensors {
		for _, s := range c.Sensors {
			if s.State == "" {
				well++
				continue
			}
			add("Sensor", fmt.Sprintf("%s: %s of %s is %s", c.ID, s.Kind, s.Label, s.State))
		}
	}
	if well > 0 {
		add("Sensors", fmt.Sprintf("%d are well", well))
	}
	if len(i.Cut) > 0 {
		add("Cut off", strings.Join(i.Cut, ", ")+": more than is told")
	}
	return out
}

func nodeText(node *int) string {
	if node == nil {
		return "-"
	}
	return fmt.Sprint(*node)
}

func cards(i *api.Inventory) *table {
	t := &table{header: []string{"NIC", "LINK", "DRIVER", "PCI", "NODE", "FUNCTIONS", "ESWITCH", "PTP", "OFFLOADS"}}
	for _, d := range i.NetDevices {
		link := d.Link.State
		if d.Link.Speed > 0 {
			link = speedText(d.Link.Speed)
		}
		if d.Link.Half {
			link += " half"
		}
		functions := "-"
		if n := slices.IndexFunc(i.PCI, func(f api.PCIFunction) bool { return f.Address == d.PCI }); n >= 0 && i.PCI[n].MaxVirtualFunctions > 0 {
			functions = fmt.Sprintf("%d/%d", i.PCI[n].VirtualFunctions, i.PCI[n].MaxVirtualFunctions)
		}
		switch {
		case d.Physical != "":
			functions = "of " + d.Physical
		case d.SwitchPort != "" && strings.Contains(d.SwitchPort, "vf"):
			functions = "stands for " + d.SwitchPort
		}
		t.rows = append(t.rows, []string{d.Name, orDash(link), orDash(d.Driver), orDash(d.PCI), nodeText(d.Node), functions, orDash(d.Eswitch), orDash(d.PTP), fewOf(d.Offloads)})
	}
	return t
}

// watchers are what network cards watch of themselves.
func watchers(i *api.Inventory) *table {
	t := &table{header: []string{"CARD", "WATCHES", "STATE", "ERRORS", "MENDED"}}
	for _, c := range i.Cards {
		if c.ResetFailed {
			t.rows = append(t.rows, []string{c.Card, "its driver", "failed to begin anew", "-", "-"})
		}
		for _, r := range c.Reporters {
			t.rows = append(t.rows, []string{c.Card, r.What(), r.State(), fmt.Sprint(r.Errors), fmt.Sprint(r.Recoveries)})
		}
	}
	return t
}

func speedText(mbit int) string {
	if mbit >= 1000 && mbit%100 == 0 {
		return fmt.Sprintf("%g Gbit/s", float64(mbit)/1000)
	}
	return fmt.Sprintf("%d Mbit/s", mbit)
}

// fewOf names those that people ask for first, and counts the rest.
func fewOf(offloads []string) string {
	short := map[string]string{"hw-tc-offload": "tc", "tls-hw-tx-offload": "tls", "esp-hw-offload": "ipsec", "macsec-hw-offload": "macsec", "rx-gro-hw": "gro",
		"tx-udp_tnl-segmentation": "tunnels", "tx-tcp-segmentation": "tso", "rx-ntuple-filter": "filters", "rx-hashing": "rss"}
	var named []string
	for _, o := range offloads {
		if s := short[o]; s != "" {
			named = append(named, s)
		}
	}
	slices.Sort(named)
	if rest := len(offloads) - len(named); rest > 0 {
		named = append(named, fmt.Sprintf("+%d", rest))
	}
	return orDash(strings.Join(named, " "))
}

func accelerators(i *api.Inventory) *table {
	t := &table{header: []string{"ACCELERATOR", "MODEL", "DRIVER", "PCI", "NODE", "MEMORY", "SHARING", "POWER", "WARMTH", "ECC", "HEALTH"}}
	for _, g := range i.Accelerators {
		memory, node, health := "-", "-", "well"
		power, warmth, ecc := "-", "-", "-"
		if g.PowerLimitW > 0 {
			power = fmt.Sprintf("%d W at most", g.PowerLimitW)
		}
		if g.TemperatureC > 0 {
			warmth = fmt.Sprintf("%d °C", g.TemperatureC)
		}
		if e := g.ECC; e != nil && e.Enabled {
			ecc = fmt.Sprintf("%d mended, %d not", e.Corrected, e.Uncorrected)
		}
		if g.MemoryMiB > 0 {
			memory = bytesText(uint64(g.MemoryMiB) << 20)
		}
		if g.NUMA >= 0 {
			node = fmt.Sprint(g.NUMA)
		}
		if len(g.Findings) > 0 {
			health = g.Findings[0].Warning.Name
		}
		if g.Driver == "" {
			health = "no driver"
		}
		t.rows = append(t.rows, []string{g.ID, strings.TrimSpace(g.Vendor + " " + g.Model), orDash(g.Driver), g.PCI, node, memory, string(g.Sharing.Mode), power, warmth, ecc, health})
	}
	return t
}

// parts tells what services can hold of cards: who has which card or slice, what a card has
// room for, and what is given to no one.
func parts(i *api.Inventory) *table {
	t := &table{header: []string{"CARD OR SLICE", "PROFILE", "MEMORY", "COMPUTE", "BY", "STATE"}}
	for _, p := range i.Parts() {
		memory, compute := "-", "-"
		if p.MemoryMiB > 0 {
			memory = bytesText(uint64(p.MemoryMiB) << 20)
		}
		if p.Compute > 0 {
			compute = fmt.Sprint(p.Compute)
		}
		t.rows = append(t.rows, []string{p.ID, orDash(p.Profile), memory, compute, orDash(strings.Join(p.By, " ")), p.State})
	}
	return t
}

// flows tells how rules for packets stand, and what they counted.
func flows(i *api.Inventory) *table {
	t := &table{header: []string{"FLOW POLICY", "RULE", "AT", "STATE", "PACKETS", "BYTES", "WHY"}}
	for _, f := range i.Flows {
		t.rows = append(t.rows, []string{f.Policy, f.Rule, orDash(f.Interface), f.State, fmt.Sprint(f.Packets), bytesText(f.Bytes), orDash(f.Why)})
	}
	return t
}

func disks(i *api.Inventory) *table {
	t := &table{header: []string{"DISK", "BUS", "SIZE", "MODEL", "NODE", "WEAR", "HEALTH"}}
	for _, d := range i.Disks {
		wear, health := "-", cmp.Or(strings.Join(d.Faults, ", "), "well")
		if d.Wear != nil {
			wear = fmt.Sprintf("%d %%", *d.Wear)
		}
		if d.MediaErrors > 0 {
			health += fmt.Sprintf(", %d media errors", d.MediaErrors)
		}
		t.rows = append(t.rows, []string{d.Name, orDash(d.Bus), bytesText(uint64(max(d.Bytes, 0))), orDash(strings.TrimSpace(d.Model + " " + d.Serial)), nodeText(d.Node), wear, health})
	}
	return t
}

// claimable tells what services can have for themselves and who has it: a line for what
// is free of a sort, one for each service and what it holds, one for what is at fault.
func claimable(i *api.Inventory) *table {
	t := &table{header: []string{"CLAIMABLE", "USED", "FREE", "BY", "DEVICES"}}
	for _, c := range api.CapacityOf(i.Claims) {
		var of []api.DeviceUse
		for _, u := range i.Claims {
			if u.Name() == c.Name {
				of = append(of, u)
			}
		}
		t.rows = append(t.rows, []string{c.Name, fmt.Sprintf("%d/%d", c.Held, c.Total), fmt.Sprint(c.Free), "", ""})
		for _, line := range usedBy(of) {
			t.rows = append(t.rows, []string{"", "", "", line[0], line[1]})
		}
	}
	return t
}

// usedBy lists services with the devices that each holds, and faults with those that have
// them.
func usedBy(uses []api.DeviceUse) (out [][2]string) {
	at := map[string]int{}
	add := func(who, device string) {
		n, ok := at[who]
		if !ok {
			n = len(out)
			at[who], out = n, append(out, [2]string{who, ""})
		}
		out[n][1] = strings.TrimSpace(out[n][1] + " " + device)
	}
	for _, u := range uses {
		for _, h := range u.Holders {
			device := u.ID
			if u.Units > 1 || h.Units > 1 {
				device = fmt.Sprintf("%d × %s", h.Units, u.ID)
			}
			add(h.App+"/"+h.Service, device)
		}
		if u.Fault != "" {
			add("("+u.Fault+")", u.ID)
		}
	}
	return out
}

// drawPCI draws the buses as a tree: bridges above what they lead to, a card's virtual
// functions in one line. Each function is drawn once, whatever it says is above it.
func drawPCI(i *api.Inventory) []string {
	var leaves []leaf
	known := map[string]bool{}
	for _, f := range i.PCI {
		known[f.Address] = true
	}
	on := thingsOn(i)
	virtual := map[string][]string{}
	for _, f := range i.PCI {
		if f.Physical != "" && known[f.Physical] {
			virtual[f.Physical] = append(virtual[f.Physical], f.Address)
		}
	}
	for _, f := range i.PCI {
		if f.Physical != "" && known[f.Physical] {
			continue
		}
		parent := f.Bridge
		if !known[parent] {
			parent = "PCI"
		}
		text := f.Address + " " + className(f.Class) + " " + f.ID
		for _, part := range []string{f.Driver, strings.Join(on[f.Address], " ")} {
			if part != "" {
				text += ", " + part
			}
		}
		if f.Node != nil && len(i.Nodes) > 1 {
			text += fmt.Sprintf(", node %d", *f.Node)
		}
		if f.Width > 0 && f.Width < f.MaxWidth {
			text += fmt.Sprintf(", %d of %d lanes", f.Width, f.MaxWidth)
		}
		if f.MaxVirtualFunctions > 0 {
			text += fmt.Sprintf(", %d of %d virtual functions", f.VirtualFunctions, f.MaxVirtualFunctions)
			if list := virtual[f.Address]; len(list) > 0 {
				text += " (" + list[0]
				if len(list) > 1 {
					text += " to " + list[len(list)-1]
				}
				text += ")"
			}
		}
		leaves = append(leaves, leaf{id: f.Address, parent: parent, name: f.Address, text: text})
	}
	return drawTree("PCI", leaves)
}

// thingsOn names interfaces, accelerators and disks by the function that they are on.
func thingsOn(i *api.Inventory) map[string][]string {
	on := map[string][]string{}
	for _, d := range i.NetDevices {
		on[d.PCI] = append(on[d.PCI], d.Name)
	}
	for _, g := range i.Accelerators {
		on[g.PCI] = append(on[g.PCI], strings.TrimSpace(g.Vendor+" "+g.Model))
	}
	for _, d := range i.Disks {
		on[d.PCI] = append(on[d.PCI], d.Name)
	}
	delete(on, "")
	return on
}

// className is the word for a class of devices (PCI Code and ID Assignment Specification).
func className(class string) string {
	names := map[string]string{"0101": "IDE", "0106": "SATA", "0107": "SAS", "0108": "NVMe", "01": "storage", "0200": "Ethernet", "0207": "InfiniBand", "02": "network",
		"0300": "display", "0302": "3D", "03": "display", "04": "multimedia", "05": "memory", "0600": "host bridge", "0601": "ISA bridge", "0604": "bridge", "06": "bridge",
		"07": "serial", "08": "system", "09": "input", "0c03": "USB", "0c05": "SMBus", "0c": "serial bus", "0d": "wireless", "10": "cryptography", "11": "signals", "12": "accelerator", "ff": "other"}
	for _, n := range []int{4, 2} {
		if len(class) >= n && names[class[:n]] != "" {
			return names[class[:n]]
		}
	}
	return "device"
}
