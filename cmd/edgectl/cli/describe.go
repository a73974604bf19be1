package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
)

func (a *app) describeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "describe KIND NAME… | KIND/NAME…", Short: "Show everything about objects, for people",
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := parseRefs(args)
			if err != nil {
				return err
			}
			if refs[0].name == "" {
				return &api.Error{Code: api.Invalid, Message: "no " + refs[0].kind.Name + " is named", Remedy: "list them with `edgectl get " + refs[0].kind.Plural + "`"}
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			for i, r := range refs {
				if i > 0 {
					fmt.Fprintln(a.Out)
				}
				if err := a.describe(cmd.Context(), cl, r); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (a *app) describe(ctx context.Context, cl *client.Client, r ref) error {
	o, err := cl.Get(ctx, r.kind, r.name)
	if err != nil {
		return err
	}
	m := o.Metadata
	a.fact("Name", m.Name)
	a.fact("Kind", o.Kind)
	a.fact("Tenant", m.Tenant)
	a.fact("Labels", labelText(m.Labels))
	if len(m.Annotations) > 0 {
		a.fact("Annotations", labelText(m.Annotations))
	}
	a.fact("Created", timeText(m.Created))
	a.fact("Updated", timeText(m.Updated))
	a.fact("Revision", fmt.Sprintf("%d, generation %d", m.Revision, m.Generation))
	if len(o.Spec) > 0 && string(o.Spec) != "{}" {
		a.block("Spec", o.Spec)
	}
	if o.Kind == api.KindDevice {
		return a.describeDevice(ctx, cl, o)
	}
	if len(o.Status) > 0 && string(o.Status) != "{}" {
		a.block("Status", o.Status)
	}
	if o.Kind == api.KindApp {
		a.describeWhere(ctx, cl, o)
	}
	return nil
}

func (a *app) fact(name, value string) {
	if name != "" {
		name += ":"
	}
	fmt.Fprintf(a.Out, "%-13s%s\n", name, printable(value))
}

func (a *app) block(name string, raw json.RawMessage) {
	y, err := api.YAML(raw)
	if err != nil {
		y = raw
	}
	fmt.Fprintln(a.Out, name+":")
	for _, line := range strings.Split(strings.TrimRight(string(y), "\n"), "\n") {
		fmt.Fprintln(a.Out, "  "+printable(line))
	}
}

func timeText(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.RFC3339)
}

func (a *app) describeDevice(ctx context.Context, cl *client.Client, o *api.Object) error {
	var spec api.DeviceSpec
	var st api.DeviceStatus
	if err := readSpec(o, &spec); err != nil {
		return err
	}
	if err := readStatus(o, &st); err != nil {
		return err
	}
	a.fact("ID", st.ID.String())
	a.fact("Tier", fmt.Sprint(st.Tier))
	a.knowParents(ctx, cl, []*api.Object{o})
	a.fact("Parent", orDash(a.parentText(st.Parent)))
	a.fact("Relay", fmt.Sprint(st.Relay))
	a.fact("Addresses", orDash(strings.Join(st.Addresses, ", ")))
	a.fact("Version", orDash(st.Version))
	seen := "never"
	if st.LastSeen != nil {
		seen = a.age(st.LastSeen)
		if seen != "now" {
			seen += " ago"
		}
		seen += ", " + timeText(st.LastSeen)
	}
	a.fact("Seen", seen)
	a.fact("Manifest", fmt.Sprintf("epoch %d, generation %d applied, %d wanted", st.Epoch, st.Applied, st.Desired))
	if h := st.Hardware; h != nil {
		label := "Hardware"
		if made := strings.Join(strings.Fields(strings.Join([]string{h.Vendor, h.Product, h.Serial}, " ")), " "); made != "" {
			a.fact(label, made)
			label = ""
		}
		a.fact(label, fmt.Sprintf("%s, %d × %s, %s memory, %s disk", h.Arch, h.CPUs, orDash(h.CPUModel), bytesText(uint64(max(h.MemoryBytes, 0))), bytesText(uint64(max(h.DiskBytes, 0)))))
		a.fact("", fmt.Sprintf("%s, kernel %s, cgroup v%d", orDash(h.OS), orDash(h.Kernel), h.Cgroup))
		if h.Profile != "" {
			profile := "profile " + h.Profile
			if h.BetterProfile != "" {
				profile += "; " + h.BetterProfile + " names this box more exactly"
			}
			a.fact("", profile)
		}
		for _, n := range h.NICs {
			speed := ""
			if n.Speed > 0 {
				speed = fmt.Sprintf(" %d Mbit/s", n.Speed)
			}
			a.fact("", n.Name+" "+n.MAC+speed)
		}
	}
	for _, text := range attestedText(st.Attestation) {
		a.fact(text[0], text[1])
	}
	a.fact("Health", healthText(&spec, &st))
	for _, w := range st.Health {
		a.fact("", fmt.Sprintf("%s (%s, since %s): %s", w.Name, w.Severity, span(a.now().Sub(time.Unix(w.Since, 0))), w.Message))
		if w.Remedy != "" {
			a.fact("", "  "+w.Remedy)
		}
	}
	a.describeApps(st.Apps)
	if err := a.describeInventory(ctx, cl, o.Metadata.Name); err != nil {
		return err
	}
	return a.describeEvents(ctx, cl, o.Metadata.Name)
}

func (a *app) describeApps(apps []api.AppStatus) {
	if len(apps) == 0 {
		a.fact("Apps", "-")
		return
	}
	t := &table{header: []string{"APP/SERVICE", "STATE", "RESTARTS", "ADDRESS", "MESSAGE"}}
	for _, s := range apps {
		t.rows = append(t.rows, []string{s.Name, string(s.State), "", "", s.Message})
		for _, v := range s.Services {
			message := v.Message
			if v.ExitCode != nil {
				message = strings.TrimSpace(fmt.Sprintf("exit code %d. %s", *v.ExitCode, message))
			}
			t.rows = append(t.rows, []string{s.Name + "/" + v.Name, string(v.State), fmt.Sprint(v.Restarts), orDash(v.Address), message})
		}
	}
	fmt.Fprintln(a.Out)
	t.write(a.Out, true)
}

func (a *app) describeEvents(ctx context.Context, cl *client.Client, device string) error {
	events, err := listEvents(ctx, cl, url.Values{"device": {device}, "limit": {"10"}})
	if err != nil {
		if api.CodeOf(err) == api.NotFound {
			return nil
		}
		return err
	}
	if len(events) > 0 {
		fmt.Fprintln(a.Out)
		a.printEvents(events)
	}
	return nil
}

// eventEntry is one event as the core lists it.
type eventEntry struct {
	Device string    `json:"device"`
	Name   string    `json:"name,omitempty"`
	Seq    uint64    `json:"seq"`
	Audit  bool      `json:"audit,omitempty"`
	Core   bool      `json:"core,omitempty"` // noted by the core itself
	Event  api.Event `json:"event"`
}

func listEvents(ctx context.Context, cl *client.Client, q url.Values) ([]eventEntry, error) {
	var out struct {
		Items []eventEntry `json:"items"`
	}
	return out.Items, cl.Do(ctx, http.MethodGet, "/api/v1/events", q, nil, &out)
}

// printEventLine shows one event, of a list that has no end and so no widths.
func (a *app) printEventLine(e eventEntry) {
	device := e.Name
	if device == "" {
		device = e.Device
	}
	fmt.Fprintln(a.Out, printable(strings.Join([]string{time.UnixMilli(e.Event.Time).Local().Format("2006-01-02 15:04:05"), device, e.Event.Name,
		orDash(e.Event.Subject), orDash(e.Event.Actor), e.Event.Message}, "  ")))
}

// printEvents shows events with the newest at the bottom, as a log reads.
func (a *app) printEvents(events []eventEntry) {
	t := &table{header: []string{"TIME", "DEVICE", "EVENT", "SUBJECT", "BY", "MESSAGE"}}
	for i := len(events) - 1; i >= 0; i-- {
		e := events[i]
		device := e.Name
		if device == "" {
			device = e.Device
		}
		t.rows = append(t.rows, []string{time.UnixMilli(e.Event.Time).Local().Format("2006-01-02 15:04:05"), device, e.Event.Name, orDash(e.Event.Subject), orDash(e.Event.Actor), e.Event.Message})
	}
	t.write(a.Out, true)
}
