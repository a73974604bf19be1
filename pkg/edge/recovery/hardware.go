package recovery

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// worn is from how much of a disk's life, in percent, its wear is worth a look.
const worn = 90

// hardwarePage says what the box is made of, what of it fails, and who holds what.
func hardwarePage(f Facts) Page {
	p := Page{Name: "hardware", Title: "Hardware"}
	i := f.Hardware
	if i == nil {
		p.Lines = []Line{{Text: "What this box is made of is not known.", Mark: Bad}}
		return p
	}
	if f.Agent == nil {
		p.Lines = append(p.Lines, Line{Text: "As the console sees it; who holds what is not known, since the agent does not answer.", Mark: Attention})
	}
	p.Lines = append(p.Lines, computeLines(i)...)
	for _, part := range []struct {
		title string
		lines []Line
	}{
		{"Network cards", cardLines(i)}, {"Accelerators", acceleratorLines(i)}, {"Disks", diskLines(i)}, {"Watching over it", watchLines(i)}, {"Held by apps", heldLines(i)},
	} {
		if len(part.lines) > 0 {
			p.Lines = append(append(p.Lines, heading(part.title)), part.lines...)
		}
	}
	return p
}

// words joins what is not empty.
func words(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
}

// when is a text that is only worth its words where there is something to tell.
func when(some bool, format string, args ...any) string {
	if !some {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

func computeLines(i *api.Inventory) (out []Line) {
	if c := i.CPU; c != nil {
		out = append(out, Line{Label: "CPUs", Text: words(fmt.Sprintf("%d threads on %d cores", c.Threads, c.Cores), when(c.MaxMHz > 0, "%d to %d MHz", c.MinMHz, c.MaxMHz),
			when(c.Isolated != "", "isolated %s", c.Isolated), when(c.Offline != "", "offline %s", c.Offline), when(c.RealTime, "real-time kernel"))})
	}
	for _, n := range i.Nodes {
		text := words("CPUs "+orNot(n.CPUs), size(n.MemoryMiB<<20))
		for _, h := range n.HugePages {
			text += fmt.Sprintf(", %d pages of %s", h.Count, size(h.SizeKiB<<10))
		}
		out = append(out, Line{Label: fmt.Sprintf("Node %d", n.ID), Text: text})
	}
	return out
}

func cardLines(i *api.Inventory) (out []Line) {
	made := map[string]api.PCIFunction{}
	for _, f := range i.PCI {
		made[f.Address] = f
	}
	for _, d := range i.NetDevices {
		mark := Good
		switch d.Link.State {
		case api.LinkDown:
			mark = Attention
		case api.LinkOff:
			mark = Plain
		}
		functions := made[d.PCI]
		out = append(out, Line{Label: d.Name, Mark: mark, Text: words(cmp.Or(d.Driver, "no driver"), d.Link.State, when(d.Link.Speed > 0, "%d Mb/s", d.Link.Speed), when(d.PTP != "", "clock %s", d.PTP),
			when(functions.MaxVirtualFunctions > 0, "%d of %d virtual functions", functions.VirtualFunctions, functions.MaxVirtualFunctions), when(d.Eswitch == "switchdev", "switchdev"))})
	}
	return out
}

func acceleratorLines(i *api.Inventory) (out []Line) {
	for _, a := range i.Accelerators {
		l := Line{Label: cmp.Or(a.PCI, a.ID), Mark: Good, Text: words(strings.TrimSpace(a.Vendor+" "+a.Model), when(a.MemoryMiB > 0, "%s", size(a.MemoryMiB<<20)), cmp.Or(a.Driver, "no driver"))}
		for _, f := range a.Findings {
			l.Text, l.Mark = l.Text+"; "+f.Warning.Message, Bad
		}
		out = append(out, l)
	}
	return out
}

func diskLines(i *api.Inventory) (out []Line) {
	for _, d := range i.Disks {
		l := Line{Label: d.Name, Mark: Good, Text: words(strings.TrimSpace(d.Bus+" "+d.Model), size(d.Bytes), when(d.Wear != nil, "%d %% worn", value0(d.Wear)), when(d.Spare != nil, "%d %% spare", value0(d.Spare)),
			when(d.MediaErrors > 0, "%d media errors", d.MediaErrors), when(d.ReadOnly, "read only"), strings.Join(d.Faults, ", "))}
		switch {
		case len(d.Faults) > 0:
			l.Mark = Bad
		case d.MediaErrors > 0 || value0(d.Wear) >= worn:
			l.Mark = Attention
		}
		out = append(out, l)
	}
	return out
}

// value0 is a number, or 0 where there is none.
func value0(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}

// watchLines are the TPM, watchdogs, and those sensors that are not well.
func watchLines(i *api.Inventory) (out []Line) {
	for _, t := range i.TPMs {
		out = append(out, Line{Label: "TPM", Text: strings.TrimSpace(t.Version + " " + t.Device)})
	}
	for _, w := range i.Watchdogs {
		l := Line{Label: "Watchdog", Text: words(w.Identity, fmt.Sprintf("%d s", w.Timeout), when(!w.Active, "not active"), when(w.Fired, "it started the box anew"))}
		if w.Fired {
			l.Mark = Attention
		}
		out = append(out, l)
	}
	well := 0
	for _, chip := range i.Sensors {
		for _, s := range chip.Sensors {
			if s.State == "" {
				well++
				continue
			}
			out = append(out, Line{Label: "Sensor", Text: fmt.Sprintf("%s of %s: %s is %s", s.Label, chip.ID, s.Kind, s.State), Mark: Bad})
		}
	}
	if well > 0 {
		out = append(out, Line{Label: "Sensors", Text: fmt.Sprintf("%d well", well)})
	}
	return out
}

// heldLines say for each kind of device how many are free, and who holds which.
func heldLines(i *api.Inventory) (out []Line) {
	for _, c := range api.CapacityOf(i.Claims) {
		l := Line{Label: c.Name, Text: fmt.Sprintf("%d of %d held, %d free", c.Held, c.Total, c.Free)}
		out = append(out, l)
		for _, u := range i.Claims {
			if u.Name() != c.Name {
				continue
			}
			var who []string
			for _, h := range u.Holders {
				who = append(who, h.App+"/"+h.Service+when(h.Units > 1, " (%d)", h.Units))
			}
			if len(who) > 0 || u.Fault != "" {
				one := Line{Label: "  " + u.ID, Text: words(strings.Join(who, ", "), u.Fault)}
				if u.Fault != "" {
					one.Mark = Bad
				}
				out = append(out, one)
			}
		}
	}
	return out
}
