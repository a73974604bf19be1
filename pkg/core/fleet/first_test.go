package fleet

import (
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// An expected device gets apps and configs of the fleets that pick it by the labels of
// people's, and neither secrets nor what only members heed.
func TestFirst(t *testing.T) {
	l := &Loop{worlds: newWorlds()}
	l.worlds.tenant("acme").World = World{
		Fleets: map[string]*api.FleetSpec{
			"a": {Selector: api.Selector{MatchLabels: map[string]string{"role": "field"}}, Apps: []string{"web"}, Configs: []string{"extra"}, Settings: &api.DeviceSettings{SpoolBytes: 1}, Release: "newest"},
			"b": {Selector: api.Selector{MatchLabels: map[string]string{"role": "relay"}}, Apps: []string{"other"}},
		},
		Apps:     map[string]*App{"web": {Refs: []manifest.Ref{ref(1), ref(2)}, Configs: []string{"conf"}, Secrets: []string{"pin"}}, "other": {Refs: []manifest.Ref{ref(3)}}},
		Configs:  map[string][]byte{"conf": {1}, "extra": {2}},
		Secrets:  map[string][]byte{"pin": {3}},
		Releases: map[string]Want{"newest": {Refs: []manifest.Ref{ref(4)}}},
	}
	got := l.First("acme", map[string]string{"role": "field"})
	if len(got) != 3 || len(got["app/web"].Refs) != 2 || string(got["config/conf"].Body) != "\x01" || string(got["config/extra"].Body) != "\x02" {
		t.Errorf("%+v", got)
	}
	if got := l.First("acme", nil); len(got) != 0 {
		t.Errorf("without labels: %+v", got)
	}
	if got := l.First("nobody", nil); got != nil {
		t.Errorf("of no tenant: %+v", got)
	}
}
