package compose

import (
	"context"
	"errors"
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

// An app takes images of its own tenant alone.
func TestImageOfAnotherTenant(t *testing.T) {
	o := options()
	o.Tenant = "acme"
	load := func(image string) error {
		_, _, err := Load(context.Background(), "services:\n  web:\n    image: "+image+"\n", o)
		return err
	}
	for _, own := range []string{"web:1", "acme/web:1", "acme/team/web:1"} {
		if err := load(own); err != nil {
			t.Errorf("%s: %v", own, err)
		}
	}
	for _, other := range []string{"default/web:latest", "acme2/web:1", "default/acme/web@" + someDigest} {
		var e *api.Error
		if err := load(other); !errors.As(err, &e) || e.Line != 3 || e.Field != "services.web.image" || !strings.Contains(e.Message, "belongs to the tenant") || !strings.Contains(e.Remedy, "acme/web") {
			t.Errorf("%s: %+v", other, err)
		}
	}
}
