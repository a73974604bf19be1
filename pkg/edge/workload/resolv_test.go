package workload

import (
	"os"
	"path/filepath"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// A container gets resolvers that it can reach, those of the moment.
func TestResolvers(t *testing.T) {
	dir := t.TempDir()
	etc, uplink := filepath.Join(dir, "etc"), filepath.Join(dir, "uplink")
	m := &Manager{cfg: withDefaults(Config{Resolv: []string{etc, uplink}}), root: folders{root: dir, run: dir}}
	c := &tracked{in: instance{ID: "id", Key: serviceKey{"app", "s"}, Phase: phaseRunning}}
	m.instances = map[string]*tracked{"id": c}
	const stub, real = "nameserver 127.0.0.53\noptions edns0\n", "nameserver 10.0.0.53\nsearch lan\n"
	for _, step := range []struct{ etc, uplink, mode, want string }{
		{"nameserver 192.168.1.1\n", "", "", "nameserver 192.168.1.1\n"},
		{stub, real, "", real},
		{stub, real, "host", stub},
		{stub, stub, "", "options edns0\n"},
		{stub, "", "", "options edns0\n"},
		{"nameserver ::1\nnameserver 10.1.1.1", real, "", "nameserver 10.1.1.1"},
		{"", real, "", real},
	} {
		for path, text := range map[string]string{etc: step.etc, uplink: step.uplink} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		c.svc = api.Service{Name: "s", NetworkMode: step.mode}
		if err := os.MkdirAll(m.root.files("app", "id"), 0o755); err != nil {
			t.Fatal(err)
		}
		m.refreshFiles() // as at each step
		if got, err := os.ReadFile(filepath.Join(m.root.files("app", "id"), "resolv.conf")); err != nil || string(got) != step.want {
			t.Errorf("%+v: got %q, %v", step, got, err)
		}
	}
}
