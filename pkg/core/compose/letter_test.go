package compose

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// A volume may have a name of one letter: there are no drives of Windows here.
func TestVolumeOfOneLetter(t *testing.T) {
	file := func(v string) string {
		return "services:\n  web:\n    image: web:1\n    volumes:\n      - " + v + "\nvolumes:\n  v: {}\n"
	}
	for _, r := range []struct {
		text string
		want api.Mount
	}{
		{"v:/data", api.Mount{Kind: api.MountVolume, Source: "v", Target: "/data"}},
		{"v:/data:ro", api.Mount{Kind: api.MountVolume, Source: "v", Target: "/data", ReadOnly: true}},
		{"v:/data:rw,nocopy", api.Mount{Kind: api.MountVolume, Source: "v", Target: "/data"}},
		{"v:/${MODE}", api.Mount{Kind: api.MountVolume, Source: "v", Target: "/blue"}},
		{"v:${DIR:-/d:e}", api.Mount{Kind: api.MountVolume, Source: "v", Target: "/d:e"}},
	} {
		b, _, err := Load(context.Background(), file(`"`+r.text+`"`), options())
		if err != nil {
			t.Errorf("%s: %v", r.text, err)
			continue
		}
		if got := b.Services[0].Mounts; !reflect.DeepEqual(got, []api.Mount{r.want}) || !reflect.DeepEqual(b.Volumes, []string{"v"}) {
			t.Errorf("%s: %+v, volumes %v", r.text, got, b.Volumes)
		}
	}
	if _, _, err := Load(context.Background(), file(`"w:/data"`), options()); err == nil || !strings.Contains(err.Error(), `there is no volume "w"`) {
		t.Errorf("not declared: %v", err)
	}
}
