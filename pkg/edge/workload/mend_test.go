package workload

import (
	"context"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// With init: true orphans are collected, and the program still hears how it is stopped.
// Beside it: what lies in a volume is mounted after it, and a Config's folders are there.
func TestInitAndWhatLiesInMounts(t *testing.T) {
	d := newDevice(t)
	d.begin()
	app := d.app("web", api.Service{
		Name: "front", Init: true, ReadOnly: true,
		Mounts: []api.Mount{
			{Kind: api.MountVolume, Source: "state", Target: "/data"},
			{Kind: api.MountConfig, Source: "nginx", Target: "/etc/nginx"},
		},
		Tmpfs: []api.Tmpfs{{Target: "/data/tmp"}},
	})
	app.Bundle.Volumes = []string{"state"}
	app.Configs = map[string]api.ConfigData{"nginx": {Files: map[string][]byte{"conf.d/site.conf": []byte("server")}}}
	d.m.Set([]App{app})
	d.running("web")
	if got := d.get("web", "front", "/file?p=/etc/nginx/conf.d/site.conf"); got != "server" {
		t.Errorf("a file in a folder of a Config: %q", got)
	}
	if got := d.get("web", "front", "/write?p=/data/tmp/x&v=x"); got != "" {
		t.Errorf("tmpfs below a volume: %s", got)
	}
	if got := d.get("web", "front", "/file?p=/proc/self/mountinfo"); strings.Index(got, " /data ") > strings.Index(got, " /data/tmp ") {
		t.Errorf("the tmpfs is hidden by the volume:\n%s", got)
	}
	if got := d.get("web", "front", "/file?p=/proc/1/comm"); got != "init\n" {
		t.Errorf("process 1 is %q", got)
	}
	orphan := d.get("web", "front", "/orphan")
	d.wait("the orphan "+orphan+" ended and was collected", func() bool {
		return strings.HasPrefix(d.get("web", "front", "/file?p=/proc/"+orphan+"/stat"), "ERROR")
	})
	if got := d.get("web", "front", "/zombies"); got != "" {
		t.Errorf("left behind: %s", got)
	}
	first := d.service("web", "front").Container
	app.Bundle.Services[0].Env = map[string]string{"VERSION": "2"}
	d.m.Set([]App{app})
	d.wait("the new version runs", func() bool {
		s := d.service("web", "front")
		return s.Container != first && s.State == api.Running
	})
	d.wait("the old one heard that it was stopped", func() bool {
		var logs strings.Builder
		_ = d.m.Logs(context.Background(), "web", "front", false, -1, &logs)
		return strings.Contains(logs.String(), "stopping")
	})
}
