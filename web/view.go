package web

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Bounds of the page.
const (
	maxRows   = 2000 // devices drawn; the rest is counted
	maxEvents = 30
)

// view is everything that the live part shows.
type view struct {
	Devices, Online, Apps, Running, Troubled int

	Roots    []*node // attached to the core
	Detached []*node // not attached to anything known
	Hidden   int     // devices beyond maxRows
	Fleets   []fleet
	Events   []event
}

// node is one device in the tree.
type node struct {
	ID, Name, Site, Hardware, Seen, Health string
	Relay                                  bool
	Tenant, Plain                          string // its object
	State                                  string // ok, warn, bad, off, wait
	Generation                             string
	Behind                                 bool
	Apps                                   []app
	Warnings                               []warning
	Children                               []*node
	Below, BelowOnline                     int

	parent string
}

// warning is one finding; Title is what the pointer brings up.
type warning struct {
	Name, Title string
	Severity    api.Severity
}

type app struct{ Name, State, Class, Message string }

type fleet struct {
	Name, Selector             string
	Devices, Current, Running  int
	CurrentShare, RunningShare int // percent
	Apps                       []string
	Missing                    []string // apps that do not exist
}

type event struct{ Time, Device, Name, Subject, Message, Class string }

func (c *Console) view(ctx context.Context) (*view, error) {
	devices, err := c.cfg.Source.List(ctx, api.KindDevice)
	if err != nil {
		return nil, err
	}
	fleets, err := c.cfg.Source.List(ctx, api.KindFleet)
	if err != nil {
		return nil, err
	}
	events, err := c.cfg.Source.Events(ctx, maxEvents)
	if err != nil {
		return nil, err
	}
	now := c.cfg.Now()
	v := draw(devices, now)
	for _, o := range fleets {
		v.Fleets = append(v.Fleets, fleetOf(o))
	}
	for _, e := range events {
		v.Events = append(v.Events, event{Time: ago(now, time.UnixMilli(e.Time)), Device: e.Device, Name: e.Name, Subject: e.Subject, Message: e.Message, Class: classOf(e.Name)})
	}
	return v, nil
}

// draw makes the tree of devices.
func draw(devices []*api.Object, now time.Time) *view {
	v := &view{}
	byID := map[string]*node{}
	var order []*node
	for _, o := range devices {
		n := nodeOf(o, now)
		v.Devices++
		if n.State != "off" && n.State != "wait" {
			v.Online++
		}
		if len(n.Warnings) > 0 {
			v.Troubled++
		}
		for _, a := range n.Apps {
			v.Apps++
			if a.Class == "ok" {
				v.Running++
			}
		}
		byID[n.ID] = n
		order = append(order, n)
	}
	slices.SortFunc(order, func(a, b *node) int {
		return cmp.Or(cmp.Compare(btoi(b.Relay), btoi(a.Relay)), strings.Compare(a.Name, b.Name))
	})
	if len(order) > maxRows {
		v.Hidden = len(order) - maxRows
		order = order[:maxRows]
	}
	for _, n := range order {
		switch up := byID[n.parent]; {
		case n.parent == "core":
			v.Roots = append(v.Roots, n)
		case up != nil && !under(byID, n.ID, up):
			up.Children = append(up.Children, n)
		default:
			v.Detached = append(v.Detached, n)
		}
	}
	for _, n := range slices.Concat(v.Roots, v.Detached) {
		n.count()
	}
	return v
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// maxDepth bounds a walk up the tree.
const maxDepth = 16

// under reports whether a node hangs below the device id, or deeper than anything does:
// two boxes that name each other make no tree.
func under(byID map[string]*node, id string, n *node) bool {
	for range maxDepth {
		if n == nil {
			return false
		}
		if n.ID == id {
			return true
		}
		n = byID[n.parent]
	}
	return true
}

// count sums up what is below.
func (n *node) count() {
	for _, c := range n.Children {
		c.count()
		n.Below += c.Below + 1
		n.BelowOnline += c.BelowOnline
		if c.State != "off" && c.State != "wait" {
			n.BelowOnline++
		}
	}
}

func nodeOf(o *api.Object, now time.Time) *node {
	var spec api.DeviceSpec
	var s api.DeviceStatus
	_ = json.Unmarshal(o.Spec, &spec) // a device whose object cannot be read is still drawn
	_ = json.Unmarshal(o.Status, &s)
	n := &node{ID: s.ID.String(), Name: o.Metadata.Name, Site: spec.Site, Relay: s.Relay, parent: s.Parent, Tenant: o.Metadata.Tenant, Plain: o.Metadata.Name}
	if o.Metadata.Tenant != api.DefaultTenant {
		n.Name = o.Metadata.Tenant + "/" + n.Name
	}
	n.Hardware = hardware(s.Hardware)
	n.State, n.Health = stateOf(&spec, &s)
	for _, w := range s.Health {
		title := w.Message
		if w.Since > 0 {
			title += ", since " + ago(now, time.Unix(w.Since, 0))
		}
		if w.Remedy != "" {
			title += ". " + w.Remedy
		}
		n.Warnings = append(n.Warnings, warning{w.Name, title, w.Severity})
	}
	if s.LastSeen != nil {
		n.Seen = ago(now, *s.LastSeen)
	}
	if s.Desired > 0 {
		n.Generation = fmt.Sprint(s.Applied)
		if n.Behind = s.Applied != s.Desired; n.Behind {
			n.Generation = fmt.Sprintf("%d → %d", s.Applied, s.Desired)
		}
	}
	for _, a := range s.Apps {
		n.Apps = append(n.Apps, app{Name: a.Name, State: string(a.State), Class: classOfApp(a.State), Message: a.Message})
	}
	return n
}

// stateOf sums a device up in one word for the colour, and one for people.
func stateOf(spec *api.DeviceSpec, s *api.DeviceStatus) (state, text string) {
	switch {
	case spec.Retired:
		return "off", "retired"
	case !spec.Approved:
		return "wait", "waits for approval"
	case !s.Online:
		return "off", "offline"
	}
	state, text = "ok", "healthy"
	for _, w := range s.Health {
		switch {
		case w.Severity == api.Critical:
			return "bad", "critical"
		case w.Severity == api.Degraded:
			state, text = "warn", "degraded"
		}
	}
	return state, text
}

func classOfApp(s api.AppState) string {
	switch s {
	case api.Running, api.Exited:
		return "ok"
	case api.Failed:
		return "bad"
	case api.Backoff:
		return "warn"
	}
	return "busy"
}

func classOf(event string) string {
	for _, bad := range []string{"fail", "refused", "lost", "crash", "unhealthy", "alarm", "offline"} {
		if strings.Contains(event, bad) {
			return "warn"
		}
	}
	return ""
}

func hardware(h *api.Hardware) string {
	if h == nil {
		return ""
	}
	var parts []string
	if h.Product != "" {
		parts = append(parts, h.Product)
	}
	if h.Arch != "" {
		parts = append(parts, h.Arch)
	}
	if h.CPUs > 0 {
		parts = append(parts, fmt.Sprintf("%d CPU", h.CPUs))
	}
	if h.MemoryBytes > 0 {
		parts = append(parts, fmt.Sprintf("%.1f GiB", float64(h.MemoryBytes)/(1<<30)))
	}
	return strings.Join(parts, " · ")
}

func fleetOf(o *api.Object) fleet {
	var spec api.FleetSpec
	var s api.FleetStatus
	_ = json.Unmarshal(o.Spec, &spec)
	_ = json.Unmarshal(o.Status, &s)
	f := fleet{Name: o.Metadata.Name, Selector: spec.Selector.String(), Devices: s.Devices, Current: s.Current, Running: s.Running, Apps: spec.Apps, Missing: s.Missing}
	if s.Devices > 0 {
		f.CurrentShare, f.RunningShare = 100*s.Current/s.Devices, 100*s.Running/s.Devices
	}
	return f
}

// ago tells a time in the past as people say it.
func ago(now, t time.Time) string {
	switch d := now.Sub(t); {
	case d < 10*time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds())/10*10)
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d d", int(d.Hours()/24))
	}
}
