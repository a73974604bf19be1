package fleet

import (
	"encoding/json"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// TestReleaseOfSeveralFamilies: one release name serves boxes of several profiles, each by its own artifact; a box that
// none is for stays as it is, or takes what is for all others; and only boxes whose artifact changes are rendered anew.
func TestReleaseOfSeveralFamilies(t *testing.T) {
	w := newWorlds()
	put := func(kind, name string, labels map[string]string, spec, status any) dirty {
		t.Helper()
		s, err1 := json.Marshal(spec)
		st, err2 := json.Marshal(status)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		d := dirty{}
		if err := w.set(&api.Object{Kind: kind, Metadata: api.Meta{Tenant: "default", Name: name, Labels: labels}, Spec: s, Status: st}, d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	family := func(profile, arch string) map[string]string {
		return map[string]string{"in": "it", api.Reserved + "profile": profile, api.Reserved + "arch": arch}
	}
	for i, labels := range []map[string]string{family("vm", "amd64"), family("vm", "arm64"), family("generic-amd64", "amd64"), family("odd", "amd64"), {"in": "it"}} {
		put(api.KindDevice, string(rune('a'+i)), labels, api.DeviceSpec{Approved: true}, api.DeviceStatus{ID: api.DeviceID{byte(i + 1)}})
	}
	put(api.KindFleet, "all", nil, api.FleetSpec{Release: "v1", Selector: api.Selector{MatchLabels: map[string]string{"in": "it"}}}, nil)
	artifact := func(n int) string { return "default/os@" + ref(n).Digest }
	got := func() (out string) {
		tenant := w.tenants["default"]
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			e, n := tenant.devices[name], "-"
			if item, ok := Desire(&e.Device, &tenant.World, tenant.Selected(e.Labels))[manifest.KeyRelease]; ok {
				for i := range 9 {
					if item.Refs[0].Digest == ref(i).Digest {
						n = string(rune('0' + i))
					}
				}
			}
			out += n
		}
		return out
	}
	pcr := strings.Repeat("08", 32)
	two := []api.ReleaseSystem{{Profile: "vm", Arch: "amd64", Artifact: artifact(1), PCR11: pcr}, {Profile: "generic-amd64", Arch: "amd64", Artifact: artifact(2)}}
	for _, c := range []struct {
		spec   api.ReleaseSpec
		want   string
		images int
	}{
		{api.ReleaseSpec{Artifact: artifact(7), PCR11: pcr}, "77777", 1},
		{api.ReleaseSpec{Systems: two}, "1-2--", 1},
		{api.ReleaseSpec{Systems: append(two, api.ReleaseSystem{Profile: "vm", Arch: "arm64", Artifact: artifact(3), PCR11: pcr})}, "132--", 2},
		{api.ReleaseSpec{Systems: two, Artifact: artifact(7), PCR11: pcr}, "17277", 2},
	} {
		if d := put(api.KindRelease, "v1", nil, c.spec, nil); len(d) == 0 {
			t.Error("nothing is rendered for another release")
		}
		if d := put(api.KindRelease, "v1", nil, c.spec, nil); len(d) != 0 {
			t.Errorf("%d devices are rendered for the same release", len(d))
		}
		if g := got(); g != c.want || len(w.tenants["default"].Images) != c.images {
			t.Errorf("%+v: devices get %s, want %s; %d images", c.spec, g, c.want, len(w.tenants["default"].Images))
		}
	}
	w.unset(api.Key{Tenant: "default", Kind: api.KindRelease, Name: "v1"}, dirty{})
	if g := got(); g != "-----" || len(w.tenants["default"].Images) != 0 {
		t.Errorf("of a release that is gone devices get %s", g)
	}
}
