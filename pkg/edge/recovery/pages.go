package recovery

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Pages says what the console shows of these facts, and what can be done about them.
func Pages(f Facts) []Page {
	return []Page{boxPage(f), healthPage(f), networkPage(f), linkPage(f), slotsPage(f), appsPage(f), diskPage(f), hardwarePage(f), timePage(f), pairingPage(f), supportPage(f), shellPage(f), powerPage(f)}
}

// Banner is the line above all pages.
func Banner(f Facts) Line {
	name := f.Hostname
	if f.Agent != nil && f.Agent.Name != "" {
		name = f.Agent.Name
	}
	words, mark := verdict(f)
	return Line{Label: cmp.Or(name, "(no name)"), Text: words, Mark: mark}
}

// verdict is the health of the box in a few words.
func verdict(f Facts) (string, Mark) {
	critical, degraded := 0, 0
	for _, w := range warnings(f) {
		switch w.Severity {
		case api.Critical:
			critical++
		case api.Degraded:
			degraded++
		}
	}
	switch {
	case critical > 0:
		return fmt.Sprintf("CRITICAL (%d)", critical), Bad
	case degraded > 0:
		return fmt.Sprintf("degraded (%d)", degraded), Attention
	}
	return "healthy", Good
}

// warnings are all that is known to be wrong: what boot and the agent say, each name once,
// and what the console itself finds missing. The worst come first.
func warnings(f Facts) []api.Warning {
	list := slices.Clone(f.Warnings)
	seen := map[string]bool{}
	for _, w := range list {
		seen[w.Name] = true
	}
	if f.Agent != nil {
		for _, w := range f.Agent.Warnings {
			if !seen[w.Name] {
				list = append(list, w)
			}
		}
	}
	if f.Agent == nil && !seen["agent-not-started"] {
		list = append(list, api.Warning{Name: "agent-silent", Severity: api.Critical, Message: "edged does not answer: the box runs no new orders and reports nothing", Remedy: "look at the agent's log (page apps); start the box anew, or go back to the other slot"})
	}
	list = append(list, networkWarnings(f)...)
	rank := map[api.Severity]int{api.Critical: -2, api.Degraded: -1}
	slices.SortStableFunc(list, func(a, b api.Warning) int {
		return cmp.Or(cmp.Compare(rank[a.Severity], rank[b.Severity]), cmp.Compare(depth(a.Name), depth(b.Name)))
	})
	return list
}

// networkWarnings are what a person at the box can see and mend with his hands.
func networkWarnings(f Facts) (list []api.Warning) {
	cards, up := 0, 0
	for _, l := range f.Links {
		if l.Kind == "" {
			cards++
		}
		if l.State == "up" || l.State == "unknown" { // some modems' cards never tell
			up++
		}
	}
	addressed := slices.ContainsFunc(f.Uplinks, func(u Uplink) bool { return u.Up && u.Address != "" })
	unread := slices.ContainsFunc(f.Missing, func(m Missing) bool { return m.What == uplinksFile })
	switch {
	case len(f.Links) == 0:
	case cards > 0 && len(f.Uplinks) == 0 && !unread:
		// A card that nobody brought up never sees its cable.
		var names []string
		for _, l := range f.Links {
			names = append(names, l.Name)
		}
		list = append(list, api.Warning{Name: "network-unmatched", Severity: api.Critical, Message: "the network settings fit none of this box's cards, " + strings.Join(names, ", "),
			Remedy: "page Network, Change address, and name one of them; or mend CONFIG"})
	case up == 0:
		list = append(list, api.Warning{Name: "no-cable", Severity: api.Critical, Message: "no network card has a connection", Remedy: "plug a network cable in at both ends, and look for a light beside the socket"})
	case cards > 0 && len(f.Uplinks) > 0 && !addressed:
		list = append(list, api.Warning{Name: "no-address", Severity: api.Critical, Message: "the cable is in, but nobody on the network gives this box an address",
			Remedy: "ask whoever keeps the network for DHCP on this socket, or for a fixed address or VLAN; then page Network, Change address"})
	}
	for _, u := range f.Uplinks {
		if u.WiFi == nil {
			continue
		}
		switch u.WiFi.State {
		case refused:
			list = append(list, api.Warning{Name: "wifi-refused", Severity: api.Degraded, Message: fmt.Sprintf("the wireless network %q refuses this box", u.WiFi.SSID), Remedy: "type its passphrase once more: page Network, Join a wireless network"})
		case absent:
			list = append(list, api.Warning{Name: "wifi-absent", Severity: api.Degraded, Message: fmt.Sprintf("the wireless network %q is not heard here", u.WiFi.SSID), Remedy: "look at the antenna; page Network, Look for wireless networks, tells what is heard"})
		}
	}
	return list
}

// depth orders warnings that are equally bad: what others follow from comes first.
func depth(name string) int {
	order := []string{"state-locked", "no-data", "disk-full", "agent-not-started", "agent-silent", "config-unreadable", "config-invalid", "network-unmatched", "no-cable", "wifi-refused", "wifi-absent", "no-address", "network-reverted", "clock-skew", "no-owner", "not-enrolled"}
	if i := slices.Index(order, name); i >= 0 {
		return i
	}
	return len(order)
}

func heading(text string) Line { return Line{Text: text, Mark: Heading} }

// orNot shows what is known, and says so when nothing is.
func orNot(text string) string { return cmp.Or(text, "not known") }

func boxPage(f Facts) Page {
	p := Page{Name: "box", Title: "What this box is"}
	add := func(label, text string) { p.Lines = append(p.Lines, Line{Label: label, Text: orNot(text)}) }
	device, tenant, role := "", "", ""
	if f.Agent != nil {
		device, tenant, role = f.Agent.Device.String(), f.Agent.Tenant, "device"
		if f.Agent.Relay {
			role = "relay"
		}
		if f.Agent.Device == (api.DeviceID{}) {
			device = "not enrolled yet"
		}
	}
	banner := Banner(f)
	add("Name", banner.Label)
	health := Line{Label: "Health", Text: banner.Text, Mark: banner.Mark}
	if list := warnings(f); banner.Mark != Good {
		health.Text += ", first " + list[0].Name + ": page Health says what to do"
	}
	p.Lines = append(p.Lines, health)
	add("Device id", device)
	add("Role", role)
	if tenant != "" {
		add("Tenant", tenant)
	}
	add("Hardware", f.Machine)
	add("Serial", f.Serial)
	add("Profile", f.Profile)
	add("System", f.System)
	add("Slot", strings.ToUpper(f.Slot))
	add("Kernel", f.Kernel)
	add("CPUs", fmt.Sprintf("%d, load %s", f.CPUs, orNot(f.Load)))
	add("Memory", amount(f.Memory))
	add("Up for", f.Uptime.Round(time.Second).String())
	return p
}

func healthPage(f Facts) Page {
	p := Page{Name: "health", Title: "Health"}
	list := warnings(f)
	switch len(list) {
	case 0:
		p.Lines = append(p.Lines, Line{Text: "No warnings.", Mark: Good})
	case 1:
	default:
		p.Lines = append(p.Lines, Line{Text: "Begin with 1: what stands above is often the cause of what stands below.", Mark: Heading})
	}
	for i, w := range list {
		mark := Attention
		switch w.Severity {
		case api.Critical:
			mark = Bad
		case api.Info:
			mark = Plain
		}
		p.Lines = append(p.Lines, Line{Label: fmt.Sprintf("%d %s", i+1, w.Severity), Text: w.Name + ": " + w.Message, Mark: mark})
		todo := "  what to do"
		if i == 0 && len(list) > 1 {
			todo = "  do first"
		}
		if w.Remedy != "" {
			p.Lines = append(p.Lines, Line{Label: todo, Text: w.Remedy})
		}
	}
	if f.Boot != nil {
		for _, s := range f.Boot.Steps {
			if s.Error != "" {
				p.Lines = append(p.Lines, Line{Label: "boot step", Text: s.Name + " failed: " + s.Error, Mark: Attention})
			}
		}
		if !f.Boot.Done {
			p.Lines = append(p.Lines, Line{Label: "boot", Text: "is not through its list", Mark: Attention})
		}
	}
	for _, m := range f.Missing {
		p.Lines = append(p.Lines, Line{Label: "not known", Text: m.What + ": " + m.Why, Mark: Attention})
	}
	if len(f.Children) > 0 {
		p.Lines = append(p.Lines, heading("Programs"))
		for _, c := range f.Children {
			text, mark := fmt.Sprintf("runs, process %d, %d restarts", c.PID, c.Restarts), Plain
			if c.PID == 0 {
				text, mark = "does not run: "+orNot(c.LastEnd), Bad
			} else if c.LastEnd != "" {
				text += ", ended last by " + c.LastEnd
			}
			p.Lines = append(p.Lines, Line{Label: c.Name, Text: text, Mark: mark})
		}
	}
	return p
}

func linkPage(f Facts) Page {
	p := Page{Name: "parent", Title: "Parents and link"}
	if f.Agent == nil {
		p.Lines = append(p.Lines, Line{Text: "The agent does not answer, so the link is not known.", Mark: Bad})
	} else {
		state, mark := "not connected", Bad
		if f.Agent.Online {
			state, mark = "connected to "+f.Agent.Parent, Good
		}
		p.Lines = append(p.Lines, Line{Label: "Link", Text: state, Mark: mark},
			Line{Label: "Manifest", Text: fmt.Sprintf("%d.%d wanted, %d in force", f.Agent.Epoch, f.Agent.Desired, f.Agent.Applied)})
	}
	p.Lines = append(p.Lines, Line{Label: "Told to join", Text: orNot(f.Parent)})
	return p
}

func slotsPage(f Facts) Page {
	p := Page{Name: "slots", Title: "Slots and history"}
	p.Lines = append(p.Lines, Line{Label: "Running", Text: "slot " + orNot(strings.ToUpper(f.Slot)) + ", " + orNot(f.System)})
	if f.Update == nil {
		p.Lines = append(p.Lines, Line{Text: "No update has been kept on this box.", Mark: Plain})
	} else {
		for _, slot := range []string{"a", "b"} {
			r, ok := f.Update.Slots[slot]
			text := "empty"
			if ok {
				text = cmp.Or(r.Version, "as flashed")
			}
			if slot == f.Update.Good {
				text += ", starts first"
			}
			p.Lines = append(p.Lines, Line{Label: "Slot " + strings.ToUpper(slot), Text: text})
		}
		phase := cmp.Or(f.Update.Phase, "idle")
		if f.Update.Target != nil {
			phase += " to " + f.Update.Target.Version
		}
		p.Lines = append(p.Lines, Line{Label: "Update", Text: phase})
		if f.Update.Verdict != nil {
			p.Lines = append(p.Lines, Line{Label: "Left because", Text: f.Update.Verdict.Reason, Mark: Attention})
		}
		for _, r := range f.Update.Refused {
			p.Lines = append(p.Lines, Line{Label: "Refused", Text: r.Version + ": " + r.Reason, Mark: Attention})
		}
		if n := len(f.Update.History); n > 0 {
			p.Lines = append(p.Lines, heading("History"))
			for _, h := range slices.Backward(f.Update.History) {
				p.Lines = append(p.Lines, Line{Label: clock(h.Time), Text: strings.TrimSpace(h.Version + " " + h.What)})
			}
		}
	}
	if len(f.Sticks) > 0 {
		p.Deeds = append(p.Deeds, Deed{ID: "usb-update", Title: "Install an update from USB", Confirm: "install",
			Fields:  []Field{{Name: "from", Question: "USB partition, or a folder below " + home, Default: f.Sticks[0].Node}, {Name: "file", Question: "file (*.tbu), or nothing for the only one"}},
			Warning: "The box tries the update as any other: only one that is signed is installed, and one that is no good is left again. Apps stop while it starts anew."})
	}
	if f.Rollback {
		p.Deeds = append(p.Deeds, Deed{ID: "rollback", Title: "Start the other slot", Confirm: "rollback", Warning: "The box starts anew from its other slot. Apps stop meanwhile."})
	}
	return p
}

func appsPage(f Facts) Page {
	p := Page{Name: "apps", Title: "Apps and logs"}
	var names []string
	switch {
	case f.Agent == nil:
		p.Lines = append(p.Lines, Line{Text: "The agent does not answer, so apps are not known.", Mark: Bad})
	case len(f.Agent.Apps) == 0:
		p.Lines = append(p.Lines, Line{Text: "This box has no apps."})
	default:
		for _, app := range f.Agent.Apps {
			p.Lines = append(p.Lines, Line{Label: app.Name, Text: strings.TrimSpace(string(app.State) + " " + app.Message), Mark: stateMark(app.State)})
			for _, s := range app.Services {
				names = append(names, app.Name+"/"+s.Name)
				text := string(s.State)
				if s.Restarts > 0 {
					text += fmt.Sprintf(", %d restarts", s.Restarts)
				}
				p.Lines = append(p.Lines, Line{Label: "  " + s.Name, Text: strings.TrimSpace(text + " " + s.Message), Mark: stateMark(s.State)})
			}
		}
	}
	first := ""
	if len(names) > 0 {
		first = names[0]
		p.Deeds = append(p.Deeds, Deed{ID: "app-log", Title: "Read an app's log", Fields: []Field{{Name: "service", Question: "APP/SERVICE", Default: first}}})
	}
	p.Deeds = append(p.Deeds, Deed{ID: "box-log", Title: "Read a log of the box", Fields: []Field{{Name: "log", Question: "agent, containerd or kernel", Default: "agent", Choices: []string{"agent", "containerd", "kernel"}}}})
	return p
}

func stateMark(s api.AppState) Mark {
	switch s {
	case api.Running:
		return Good
	case api.Failed:
		return Bad
	}
	return Attention
}

func diskPage(f Facts) Page {
	p := Page{Name: "disk", Title: "Disk"}
	if f.Boot != nil && f.Boot.Disk != "" {
		p.Lines = append(p.Lines, Line{Label: "Disk", Text: f.Boot.Disk})
	}
	for _, v := range f.Volumes {
		mark := Plain
		if v.Total > 0 && v.Used*100/v.Total >= 90 && !v.ReadOnly {
			mark = Bad
		}
		text := amount(v.Amount)
		if v.ReadOnly {
			text += ", read only"
		}
		p.Lines = append(p.Lines, Line{Label: v.Name, Text: text, Mark: mark})
	}
	for _, s := range f.Sticks {
		p.Lines = append(p.Lines, Line{Label: "USB " + s.Node, Text: strings.TrimSpace(fmt.Sprintf("%s %s %s", size(s.Bytes), s.Label, s.Model))})
	}
	if len(p.Lines) == 0 {
		p.Lines = append(p.Lines, Line{Text: "No disk is known.", Mark: Bad})
	}
	return p
}

func timePage(f Facts) Page {
	p := Page{Name: "time", Title: "Time"}
	p.Lines = []Line{{Label: "This box", Text: f.Now.UTC().Format("2006-01-02 15:04:05") + " UTC"}, {Label: "Up for", Text: f.Uptime.Round(time.Second).String()}}
	p.Deeds = []Deed{{ID: "time-set", Title: "Set the clock", Fields: []Field{{Name: "time", Question: "UTC, as 2026-01-31 12:00", Default: f.Now.UTC().Format("2006-01-02 15:04")}}, Confirm: "set", Warning: "The clock never goes back before what the box has seen signed."}}
	return p
}

func pairingPage(f Facts) Page {
	p := Page{Name: "pairing", Title: "Pairing"}
	id := "not known: the agent does not answer"
	if f.Agent != nil {
		id = f.Agent.Device.String()
		if f.Agent.Device == (api.DeviceID{}) {
			id = "not enrolled yet"
		}
	}
	p.Lines = append(p.Lines, Line{Label: "Device id", Text: id}, Line{Label: "Serial", Text: orNot(f.Serial)})
	switch {
	case f.Pairing != "":
		p.Lines = append(p.Lines, Line{Label: "Pairing code", Text: f.Pairing, Mark: Good})
	case f.Agent == nil:
		p.Lines = append(p.Lines, Line{Text: "No pairing code is shown; whether the box has an owner is not known."})
	case f.Agent.Device == (api.DeviceID{}):
		p.Lines = append(p.Lines, Line{Text: "The box has no owner yet and looks for one. Where a person has to approve it, a code appears here."})
	default:
		p.Lines = append(p.Lines, Line{Text: "The box has its owner, so it shows no pairing code."})
	}
	return p
}

func supportPage(f Facts) Page {
	p := Page{Name: "support", Title: "Support"}
	p.Lines = []Line{{Text: "A support bundle holds status, logs, boot report and network state. It holds no key, token or secret."}}
	if len(f.Sticks) == 0 {
		p.Lines = append(p.Lines, Line{Text: "No USB stick is seen; plug one in for a bundle that can be carried away.", Mark: Attention})
	}
	node := ""
	for _, s := range f.Sticks {
		p.Lines = append(p.Lines, Line{Label: s.Node, Text: strings.TrimSpace(fmt.Sprintf("%s %s %s", size(s.Bytes), s.Label, s.Model))})
		node = cmp.Or(node, s.Node)
	}
	p.Deeds = []Deed{{ID: "support-bundle", Title: "Write a support bundle", Fields: []Field{{Name: "to", Question: "USB partition, or a folder below " + home, Default: cmp.Or(node, home)}}}}
	return p
}

func shellPage(f Facts) Page {
	p := Page{Name: "shell", Title: "Shell"}
	ask := Deed{ID: "shell-challenge", Title: "Show a challenge"}
	switch s := f.Shell; {
	case s == nil:
		p.Lines = []Line{{Text: "This console opens no shell: it runs on no appliance, or knows no way in."}}
		return p
	case s.Challenge == "":
		p.Lines = []Line{
			{Text: "Locked. There is no password. A root shell opens for one answer to one challenge: the box shows it, and whoever may (role rescuer or admin) has the core answer it. Neither needs a network at the box."},
			{Text: "It is noted at the core, and told by the box when it is back. The shell ends after an hour, and then this is locked again."},
		}
		p.Deeds = []Deed{ask}
	default:
		name := Banner(f).Label
		p.Lines = []Line{{Code: s.Code, Text: "Have this answered:\n" + fourGroups(s.Challenge) + "\n\nedgectl device unlock " + name + " --challenge ...\n\nDevice " + orNot(s.Device) + "\nGood for " + minutes(s.Left) + ".\nChallenge " + s.ID}}
		ask.Title = "Show another challenge"
		p.Deeds = []Deed{{ID: "shell-answer", Title: "Type the answer", Fields: []Field{{Name: "answer", Question: "answer, 18 characters; dashes and case do not count"}}}, ask}
	}
	if f.Shell.Button {
		p.Deeds = append(p.Deeds, Deed{ID: "shell-button", Title: "Open by the power button"})
	}
	return p
}

// fourGroups breaks a challenge into lines of four groups.
func fourGroups(challenge string) string {
	groups := strings.Split(challenge, "-")
	var lines []string
	for part := range slices.Chunk(groups, 4) {
		lines = append(lines, strings.Join(part, " "))
	}
	return strings.Join(lines, "\n")
}

func minutes(d time.Duration) string {
	if d < time.Minute {
		return "less than a minute"
	}
	return fmt.Sprintf("%d minutes", int(d.Minutes()))
}

func powerPage(f Facts) Page {
	return Page{Name: "power", Title: "Start anew, switch off, reset",
		Lines: []Line{
			{Label: "Up for", Text: f.Uptime.Round(time.Second).String()},
			{Label: "Reset", Text: "destroys this box's keys first, then all that it keeps; it goes on after a power cut. It then wants to be enrolled anew.", Mark: Attention},
		},
		Deeds: []Deed{
			{ID: "reboot", Title: "Start the box anew", Confirm: "reboot"},
			{ID: "poweroff", Title: "Switch the box off", Confirm: "off", Warning: "Somebody has to come to switch it on again."},
			{ID: "factory-reset", Title: "Factory reset", Confirm: "erase " + Banner(f).Label, Warning: "ALL apps, volumes, records and keys of this box are destroyed. There is no way back."},
		}}
}

func amount(a Amount) string {
	if a.Total <= 0 {
		return ""
	}
	return fmt.Sprintf("%s of %s (%d %%)", size(a.Used), size(a.Total), a.Used*100/a.Total)
}

func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }
