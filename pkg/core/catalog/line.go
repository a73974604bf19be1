package catalog

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// lineOf sums an object up.
func lineOf(o *api.Object) *line {
	m := o.Metadata
	l := &line{key: o.Key(), object: &api.Object{APIVersion: o.APIVersion, Kind: o.Kind, Metadata: m}}
	l.object.Metadata.Annotations = nil
	if m.Created != nil {
		l.created = m.Created.UnixMilli()
	}
	words := []string{m.Name, m.Tenant}
	for k, v := range m.Labels {
		words = append(words, k+"="+v)
	}
	switch o.Kind {
	case api.KindDevice:
		words = append(words, l.device(o)...)
	case api.KindRoleBinding: // the policies ask for the role
		var spec api.RoleBindingSpec
		_ = json.Unmarshal(o.Spec, &spec)
		l.object.Spec, _ = json.Marshal(map[string]string{"role": spec.Role})
		words = append(words, spec.Role)
	case api.KindSite:
		var spec api.SiteSpec
		_ = json.Unmarshal(o.Spec, &spec)
		words = append(words, spec.DisplayName, spec.Address)
	case api.KindTenant:
		var spec api.TenantSpec
		_ = json.Unmarshal(o.Spec, &spec)
		words = append(words, spec.DisplayName)
	case api.KindExpectedDevice:
		var spec api.ExpectedDeviceSpec
		_ = json.Unmarshal(o.Spec, &spec)
		words = append(words, spec.Serial, spec.Name)
	}
	l.text = strings.ToLower(strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), "\n"))
	return l
}

// device reads what of a device is looked for. One whose object cannot be read is still found by its name.
func (l *line) device(o *api.Object) []string {
	var spec api.DeviceSpec
	var s api.DeviceStatus
	_ = json.Unmarshal(o.Spec, &spec)
	_ = json.Unmarshal(o.Status, &s)
	l.object.Spec, _ = json.Marshal(map[string]string{"site": spec.Site})
	l.site, l.parent, l.version, l.tier = spec.Site, s.Parent, s.Version, int64(s.Tier)
	l.state = StateOf(&spec, &s)
	if s.LastSeen != nil {
		l.seen = s.LastSeen.UnixMilli()
	}
	words := []string{spec.Site, s.Version, s.ID.String()}
	if h := s.Hardware; h != nil {
		words = append(words, h.Product, h.Vendor, h.Serial, h.Arch, h.Profile)
	}
	for _, a := range s.Apps {
		l.apps = append(l.apps, a.Name)
		words = append(words, a.Name)
	}
	for _, w := range s.Health {
		words = append(words, w.Name)
	}
	return append(words, s.Addresses...)
}

// StateOf sums a device up in one word.
func StateOf(spec *api.DeviceSpec, s *api.DeviceStatus) string {
	worst := "healthy"
	for _, w := range s.Health {
		switch w.Severity {
		case api.Critical:
			worst = "critical"
		case api.Degraded:
			worst = cmp.Or(map[string]string{"critical": "critical"}[worst], "degraded")
		}
	}
	switch {
	case spec.Retired:
		return "retired"
	case !spec.Approved:
		return "unapproved"
	case !s.Online:
		return "offline"
	}
	return worst
}
