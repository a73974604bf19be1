package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
)

// tableOf chooses a kind's columns.
func (a *app) tableOf(kind string, o getOptions) *table {
	wide := o.output == "wide"
	t := &table{}
	switch kind {
	case api.KindDevice:
		a.deviceColumns(t, wide)
	case api.KindFleet:
		t.header = []string{"NAME", "SELECTOR", "APPS", "DEVICES", "CURRENT", "RUNNING", "REJECTED", "AGE"}
		t.row = a.fleetRow
	case api.KindApp:
		t.header = []string{"NAME", "SERVICES", "BUNDLE", "AGE", "MISSING"}
		t.row = a.appRow
	case api.KindConfig:
		t.header = []string{"NAME", "FILES", "ENV", "AGE"}
		t.row = func(obj *api.Object) []string {
			var s api.ConfigSpec
			_ = readSpec(obj, &s)
			return []string{obj.Metadata.Name, strconv.Itoa(len(s.Files)), strconv.Itoa(len(s.Env)), a.age(obj.Metadata.Created)}
		}
	case api.KindSecret:
		t.header = []string{"NAME", "KEYS", "AGE"}
		t.row = func(obj *api.Object) []string {
			var s struct {
				Keys []string `json:"keys"`
			}
			_ = readStatus(obj, &s)
			return []string{obj.Metadata.Name, orDash(strings.Join(s.Keys, ",")), a.age(obj.Metadata.Created)}
		}
	case api.KindJoinToken:
		t.header = []string{"NAME", "USED", "EXPIRES", "APPROVES", "SITE", "LABELS", "AGE"}
		t.row = a.tokenRow
	case api.KindExpectedDevice:
		t.header = []string{"NAME", "SERIAL", "BY", "CAME AS", "PROGRESS", "AGE"}
		t.row = a.expectedRow
	case api.KindRelease:
		t.header = []string{"NAME", "VERSION", "FOR", "COUNTER", "AGE"}
		t.row = a.releaseRow
	case api.KindRollout:
		t.header = []string{"NAME", "CHANGE", "PHASE", "WAVE", "DEVICES", "HEALTHY", "FAILED", "AWAY", "AGE"}
		t.row = a.rolloutRow
	case api.KindFlowPolicy:
		t.header = []string{"NAME", "AT", "DIRECTION", "PRIORITY", "RULES", "OFFLOAD", "AGE"}
		t.row = a.flowRow
	case api.KindPricePlan, api.KindBillingProfile, api.KindBudget:
		a.billingColumns(t, kind)
	case api.KindQuota:
		t.header = []string{"NAME", "DEVICES", "APPS", "TRAININGS", "RANKS", "AGE"}
		t.row = a.quotaRow
	case api.KindTrainingJob:
		t.header = []string{"NAME", "PHASE", "STEP", "LOSS", "ENDS", "RESTARTS", "MODEL", "AGE"}
		t.row = a.trainingRow
	case api.KindIncident:
		t.header = []string{"NAME", "STATE", "CAUSE", "DEVICES", "SITES", "FINDINGS", "AGE", "WHAT"}
		t.row = a.incidentRow
	case api.KindServiceAccount:
		t.header = []string{"NAME", "DISPLAY NAME", "STATE", "AGE"}
		t.row = func(obj *api.Object) []string {
			var s api.ServiceAccountSpec
			_ = readSpec(obj, &s)
			state := "-"
			if s.Disabled {
				state = "disabled"
			}
			return []string{obj.Metadata.Name, orDash(s.DisplayName), state, a.age(obj.Metadata.Created)}
		}
	case api.KindRoleBinding:
		t.header = []string{"NAME", "ROLE", "IN", "SUBJECTS", "AGE"}
		t.row = a.bindingRow
	case api.KindSite:
		t.header = []string{"NAME", "DISPLAY NAME", "ADDRESS", "AGE"}
		t.row = func(obj *api.Object) []string {
			var s api.SiteSpec
			_ = readSpec(obj, &s)
			return []string{obj.Metadata.Name, orDash(s.DisplayName), orDash(s.Address), a.age(obj.Metadata.Created)}
		}
	default:
		t.header = []string{"NAME", "PARENT", "DISPLAY NAME", "AGE"}
		t.row = func(obj *api.Object) []string {
			var s api.TenantSpec
			_ = readSpec(obj, &s)
			return []string{obj.Metadata.Name, s.ParentOf(), orDash(s.DisplayName), a.age(obj.Metadata.Created)}
		}
	}
	if wide && kind != api.KindDevice {
		row := t.row
		t.header = append(t.header, "GENERATION", "REVISION", "LABELS")
		t.row = func(obj *api.Object) []string {
			m := obj.Metadata
			return append(row(obj), strconv.FormatInt(m.Generation, 10), strconv.FormatInt(m.Revision, 10), labelText(m.Labels))
		}
	}
	if o.tenants {
		row := t.row
		t.header = append([]string{"TENANT"}, t.header...)
		t.row = func(obj *api.Object) []string { return append([]string{obj.Metadata.Tenant}, row(obj)...) }
	}
	return t
}

// quotaRow says what is used of what there may be.
func (a *app) quotaRow(o *api.Object) []string {
	var s api.QuotaSpec
	var st api.QuotaStatus
	_, _ = readSpec(o, &s), readStatus(o, &st)
	bounds := s.Bounds()
	row := []string{o.Metadata.Name}
	for _, name := range []string{"devices", "apps", "trainingJobs", "trainingRanks"} {
		most := "-"
		if n, ok := bounds[name]; ok {
			most = strconv.FormatInt(n, 10)
		}
		row = append(row, strconv.FormatInt(st.Used[name], 10)+"/"+most)
	}
	return append(row, a.age(o.Metadata.Created))
}

// trainingRow says how far a training is.
func (a *app) trainingRow(o *api.Object) []string {
	var s api.TrainingJobStatus
	_ = readStatus(o, &s)
	step, loss, ends := "-", "-", "-"
	if s.Steps > 0 {
		step = fmt.Sprintf("%d/%d", s.Step, s.Steps)
	}
	if s.Loss != nil {
		loss = strconv.FormatFloat(*s.Loss, 'g', 4, 64)
	}
	switch {
	case s.Ended != nil:
		ends = a.age(s.Ended) + " ago"
	case s.Estimate != nil:
		ends = s.Estimate.Local().Format("15:04:05")
	}
	_, digest, _ := strings.Cut(s.Model, "@")
	return []string{o.Metadata.Name, orDash(s.Phase), step, loss, ends, strconv.Itoa(s.Restarts), orDash(digest[:min(19, len(digest))]), a.age(o.Metadata.Created)}
}

// bindingRow says who has which role, and where.
func (a *app) bindingRow(o *api.Object) []string {
	var s api.RoleBindingSpec
	_ = readSpec(o, &s)
	in := o.Metadata.Tenant
	switch {
	case s.Site != "":
		in += ", site " + s.Site
	case s.Fleet != "":
		in += ", fleet " + s.Fleet
	}
	var subjects []string
	for _, subject := range s.Subjects {
		switch of := subject.Account(o.Metadata.Tenant); {
		case subject.Person != "":
			subjects = append(subjects, "person "+subject.Person)
		case subject.Group != "":
			subjects = append(subjects, "group "+subject.Group)
		default:
			subjects = append(subjects, of.Tenant+"/"+of.Name)
		}
	}
	return []string{o.Metadata.Name, s.Role, in, orDash(clip(strings.Join(subjects, ","), 60)), a.age(o.Metadata.Created)}
}

// releaseRow says what a release is for each family; what is the same for all stands once.
func (a *app) releaseRow(o *api.Object) []string {
	var s api.ReleaseSpec
	_ = readSpec(o, &s)
	var versions, families, counters []string
	add := func(list *[]string, text string) {
		if text != "" && !slices.Contains(*list, text) {
			*list = append(*list, text)
		}
	}
	for _, x := range s.Systems {
		add(&versions, x.Version)
		add(&families, x.Family())
		if x.Counter > 0 {
			add(&counters, strconv.FormatUint(x.Counter, 10))
		}
	}
	if s.Artifact != "" {
		add(&families, "any other")
	}
	return []string{o.Metadata.Name, orDash(strings.Join(versions, ",")), orDash(strings.Join(families, ",")), orDash(strings.Join(counters, ",")), a.age(o.Metadata.Created)}
}

// knowParents learns the names of devices at hand and looks up those of parents that are not
// among them, once each. It is a comfort: without an answer they are told by id.
func (a *app) knowParents(ctx context.Context, cl *client.Client, objects []*api.Object) {
	parents := map[string]bool{}
	for _, o := range objects {
		if st, ok := a.knowDevice(o); ok {
			parents[st.Parent] = true
		}
	}
	maps.DeleteFunc(parents, func(id string, _ bool) bool {
		_, known := a.parents[id]
		_, err := api.ParseDeviceID(id)
		return known || err != nil
	})
	if len(parents) == 0 {
		return
	}
	kind, err := api.LookupKind(api.KindDevice)
	if err != nil {
		return
	}
	all, err := cl.List(ctx, kind, client.ListOptions{AllTenants: true})
	if err != nil {
		return
	}
	for id := range parents {
		a.parents[id] = id // of a device that is gone there is nothing else to tell
	}
	for _, o := range all {
		a.knowDevice(o)
	}
}

// knowDevice learns a device's name by its id.
func (a *app) knowDevice(o *api.Object) (st api.DeviceStatus, ok bool) {
	if o.Kind != api.KindDevice || readStatus(o, &st) != nil || st.ID.IsZero() {
		return st, false
	}
	if a.parents == nil {
		a.parents = map[string]string{}
	}
	a.parents[st.ID.String()] = o.Metadata.Name
	return st, true
}

// parentText names a parent as far as it is known.
func (a *app) parentText(id string) string {
	if name, ok := a.parents[id]; ok {
		return name
	}
	return id
}

// deviceColumns names parents, which are told by id, as far as they are known.
func (a *app) deviceColumns(t *table, wide bool) {
	t.header = []string{"NAME", "TIER", "PARENT", "HARDWARE", "HEALTH", "APPS", "GEN", "SEEN"}
	if wide {
		t.header = append(t.header, "ID", "SITE", "ADDRESSES", "VERSION", "CLAIMED", "LABELS")
	}
	t.under = updateText
	t.row = func(obj *api.Object) []string {
		var spec api.DeviceSpec
		var st api.DeviceStatus
		_ = readSpec(obj, &spec)
		_ = readStatus(obj, &st)
		tier := "-"
		if st.Tier > 0 {
			tier = strconv.Itoa(st.Tier)
		}
		row := []string{obj.Metadata.Name, tier, orDash(a.parentText(st.Parent)), hardwareText(st.Hardware), healthText(&spec, &st), appsText(st.Apps), generationText(&st), a.age(st.LastSeen)}
		if wide {
			id := "-"
			if !st.ID.IsZero() {
				id = st.ID.String()
			}
			row = append(row, id, orDash(spec.Site), orDash(strings.Join(st.Addresses, ",")), orDash(st.Version), orDash(capacityText(st.Capacity)), labelText(obj.Metadata.Labels))
		}
		return row
	}
}

// capacityText tells how much of each sort of hardware is claimed: "cpu 2/6".
func capacityText(list []api.Capacity) string {
	var out []string
	for _, c := range list {
		out = append(out, fmt.Sprintf("%s %d/%d", c.Name, c.Held, c.Total))
	}
	return strings.Join(out, ", ")
}

// updateText says in plain words why a device does not run the release that it should.
func updateText(obj *api.Object) string {
	var st api.DeviceStatus
	_ = readStatus(obj, &st)
	for _, w := range st.Health {
		if w.Name == "update-refused" || w.Name == "update-waits" {
			return w.Name + ": " + w.Message
		}
	}
	return ""
}

func hardwareText(h *api.Hardware) string {
	if h == nil {
		return "-"
	}
	parts := []string{h.Arch, fmt.Sprintf("%dcpu", h.CPUs), bytesText(uint64(max(h.MemoryBytes, 0)))}
	if h.Product != "" {
		parts = append(parts, clip(h.Product, 24))
	}
	return strings.Join(parts, " ")
}

// healthText is one word, or the names of the warnings, worst first.
func healthText(spec *api.DeviceSpec, st *api.DeviceStatus) string {
	switch {
	case spec.Retired:
		return "retired"
	case !spec.Approved:
		return "unapproved"
	}
	rank := map[api.Severity]int{api.Critical: 0, api.Degraded: 1, api.Info: 2}
	warnings := slices.Clone(st.Health)
	sort.SliceStable(warnings, func(i, j int) bool { return rank[warnings[i].Severity] < rank[warnings[j].Severity] })
	var names []string
	if !st.Online {
		names = append(names, "offline")
	}
	for i, w := range warnings {
		if i == 2 && len(warnings) > 3 {
			names = append(names, fmt.Sprintf("+%d", len(warnings)-i))
			break
		}
		names = append(names, w.Name)
	}
	if slices.ContainsFunc(st.Apps, func(s api.AppStatus) bool { return s.State == api.Failed }) {
		names = append(names, "app-failed")
	}
	if slices.ContainsFunc(st.Apps, func(s api.AppStatus) bool { return s.Rejected != "" }) {
		names = append(names, "update-rejected")
	}
	if len(names) == 0 {
		return "ok"
	}
	return strings.Join(names, ",")
}

func appsText(apps []api.AppStatus) string {
	running := 0
	for _, s := range apps {
		if s.State == api.Running || s.State == api.Exited {
			running++
		}
	}
	return fmt.Sprintf("%d/%d", running, len(apps))
}

func generationText(st *api.DeviceStatus) string {
	if st.Applied == st.Desired {
		return strconv.FormatUint(st.Applied, 10)
	}
	return fmt.Sprintf("%d→%d", st.Applied, st.Desired)
}

func (a *app) fleetRow(obj *api.Object) []string {
	var s api.FleetSpec
	var st api.FleetStatus
	_ = readSpec(obj, &s)
	_ = readStatus(obj, &st)
	apps := slices.Clone(s.Apps)
	for i, app := range apps {
		if slices.Contains(st.Missing, app) {
			apps[i] += "(missing)"
		}
	}
	for _, p := range s.Placed {
		text := fmt.Sprintf("%s(%d)", p.App, p.Replicas)
		for _, now := range st.Placed {
			if now.App == p.App {
				text = fmt.Sprintf("%s(%d/%d)", p.App, now.Placed, p.Replicas)
			}
		}
		apps = append(apps, text)
	}
	running := "-" // there is nothing to run
	if len(apps) > 0 {
		running = strconv.Itoa(st.Running)
	}
	return []string{obj.Metadata.Name, orDash(clip(s.Selector.String(), 40)), orDash(strings.Join(apps, ",")), strconv.Itoa(st.Devices), strconv.Itoa(st.Current), running, strconv.Itoa(st.Rejected), a.age(obj.Metadata.Created)}
}

func (a *app) appRow(obj *api.Object) []string {
	var st api.AppObjectStatus
	_ = readStatus(obj, &st)
	bundle := st.Bundle
	if len(bundle) > 19 {
		bundle = bundle[:19] // "sha256:" and 12 digits
	}
	return []string{obj.Metadata.Name, orDash(strings.Join(st.Services, ",")), orDash(bundle), a.age(obj.Metadata.Created), orDash(clip(strings.Join(a.missingOf(obj.Metadata.Tenant, obj.Metadata.Name), "; "), 100))}
}

func (a *app) tokenRow(obj *api.Object) []string {
	var s api.JoinTokenSpec
	var st api.JoinTokenStatus
	_ = readSpec(obj, &s)
	_ = readStatus(obj, &st)
	used := strconv.Itoa(st.Used)
	if s.Uses > 0 {
		used += "/" + strconv.Itoa(s.Uses)
	}
	expires := "never"
	if s.Expires != nil {
		if left := s.Expires.Sub(a.now()); left > 0 {
			expires = "in " + span(left)
		} else {
			expires = "expired"
		}
	}
	return []string{obj.Metadata.Name, used, expires, strconv.FormatBool(s.AutoApprove), orDash(s.Site), labelText(s.Labels), a.age(obj.Metadata.Created)}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func labelText(labels map[string]string) string {
	list := make([]string, 0, len(labels))
	for k, v := range labels {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return orDash(strings.Join(list, ","))
}

func (a *app) age(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return span(a.now().Sub(*t))
}

// span writes a time span in one unit, as a person would say it.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return "now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// bytesText writes bytes with a binary unit: 512M, 3.8G.
func bytesText(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return strconv.FormatUint(n, 10) + "B"
	}
	v := float64(n)
	i := -1
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if v < 9.95 {
		return fmt.Sprintf("%.1f%c", v, units[i])
	}
	return fmt.Sprintf("%.0f%c", v, units[i])
}
