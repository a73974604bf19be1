package rollout

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// fact is what a rollout heeds of a device.
type fact struct {
	key      api.Key
	labels   map[string]string
	site     string
	active   bool // it gets manifests
	relay    bool
	parent   string // a device id, or "core"
	online   bool
	desired  uint64
	applied  uint64
	release  string
	apps     []api.AppStatus
	warnings []api.Warning
}

func factOf(o *api.Object) (id api.DeviceID, f *fact, err error) {
	var spec api.DeviceSpec
	var status api.DeviceStatus
	if len(o.Spec) > 0 {
		if err := json.Unmarshal(o.Spec, &spec); err != nil {
			return id, nil, err
		}
	}
	if len(o.Status) > 0 {
		if err := json.Unmarshal(o.Status, &status); err != nil {
			return id, nil, err
		}
	}
	for i := range status.Apps {
		status.Apps[i].Services = nil
	}
	return status.ID, &fact{key: o.Key(), labels: o.Metadata.Labels, site: spec.Site, active: spec.Approved && !spec.Retired, relay: status.Relay, parent: status.Parent, online: status.Online,
		desired: status.Desired, applied: status.Applied, release: status.Release, apps: status.Apps, warnings: status.Health}, nil
}

// settled is how long after a gift a device's word that it has its newest manifest is not taken for
// one about the gift: the manifest may not be made yet.
const settled = 10 * time.Second

// healthOf tells what a device shows of revisions that it was given at a time.
func healthOf(f *fact, spec *api.RolloutSpec, wanted []*store.Revision, since, now time.Time, settle time.Duration) (Health, string) {
	for _, r := range wanted {
		if h, told := oneHealth(f, r, since, now, settle); h != Well {
			return h, told
		}
	}
	if told := alarmed(f, spec.Health, since); told != "" {
		return Unknown, told
	}
	return Well, ""
}

func oneHealth(f *fact, r *store.Revision, since, now time.Time, settle time.Duration) (Health, string) {
	taken := f.desired > 0 && f.applied >= f.desired && now.Sub(since) >= settle
	if r == nil {
		if taken {
			return Well, ""
		}
		return Unknown, "it has not taken its manifest yet"
	}
	switch r.Key.Kind {
	case api.KindApp:
		return appHealth(f, r, taken)
	case api.KindRelease:
		for _, w := range f.warnings {
			if w.Name == "update-refused" && w.Since >= since.Unix() {
				return Broken, w.Message
			}
		}
		if want := releaseFor(r, f.labels); want != "" && f.release != "" {
			if f.release == want {
				return Well, ""
			}
			return Unknown, "it runs another release yet"
		}
	}
	if !taken {
		return Unknown, "it has not taken its manifest yet"
	}
	return Well, ""
}

func appHealth(f *fact, r *store.Revision, taken bool) (Health, string) {
	var want api.AppObjectStatus
	if len(r.Status) > 0 {
		_ = json.Unmarshal(r.Status, &want) // one that cannot be read is of no bundle
	}
	at := slices.IndexFunc(f.apps, func(a api.AppStatus) bool { return a.Name == r.Key.Name })
	if at < 0 {
		if taken {
			return Well, "" // no fleet of it has the app
		}
		return Unknown, "it has not told of the app yet"
	}
	a := &f.apps[at]
	switch {
	case a.Rejected != "" && a.Rejected == want.Bundle:
		return Broken, "it rejected the app: " + a.Message
	case a.Bundle != want.Bundle:
		return Unknown, cmp.Or(a.Message, "it runs the version before")
	case a.State == api.Failed:
		return Broken, "the app failed: " + a.Message
	case a.State != api.Running && a.State != api.Exited:
		return Unknown, fmt.Sprintf("the app is %s: %s", a.State, a.Message)
	}
	return Well, ""
}

// releaseFor gives the digest of a release for a device.
func releaseFor(r *store.Revision, labels map[string]string) string {
	var spec api.ReleaseSpec
	if json.Unmarshal(r.Spec, &spec) != nil {
		return ""
	}
	return digestOf(spec.For(labels[api.Reserved+"profile"], labels[api.Reserved+"arch"]))
}

func digestOf(ref string) string {
	for i := range ref {
		if ref[i] == '@' {
			return ref[i+1:]
		}
	}
	return ""
}

// counterFor gives the security counter of a release for a device; 0 when nobody said.
func counterFor(r *store.Revision, labels map[string]string) uint64 {
	var spec api.ReleaseSpec
	if r == nil || json.Unmarshal(r.Spec, &spec) != nil {
		return 0
	}
	for _, s := range spec.Systems {
		if s.Profile == labels[api.Reserved+"profile"] && s.Arch == labels[api.Reserved+"arch"] {
			return s.Counter
		}
	}
	return 0
}

var grave = map[string]int{string(api.Info): 1, string(api.Degraded): 2, string(api.Critical): 3}

// alarmed names a warning that keeps a device from counting as healthy.
func alarmed(f *fact, h *api.RolloutHealth, since time.Time) string {
	gate, absent := string(api.Critical), []string(nil)
	if h != nil {
		gate, absent = cmp.Or(h.Warnings, gate), h.Absent
	}
	for _, w := range f.warnings {
		if slices.Contains(absent, w.Name) || gate != api.WarningsOff && w.Since >= since.Unix() && grave[string(w.Severity)] >= grave[gate] {
			return w.Name + ": " + w.Message
		}
	}
	return ""
}
