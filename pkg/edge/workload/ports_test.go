package workload

import (
	"net"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// What the box itself listens on is not taken from it: neither edged's own ports nor
// those of any other program. What an app has already it keeps.
func TestPortsOfTheBoxAreItsOwn(t *testing.T) {
	listen := func() (net.Listener, int) {
		l, err := net.Listen("tcp4", "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l, l.Addr().(*net.TCPAddr).Port
	}
	own, ownPort := listen()
	other, port := listen()
	m := &Manager{cfg: withDefaults(Config{Own: []net.Addr{own.Addr()}})}
	app := func(port int) []App {
		return []App{{Bundle: api.Bundle{App: "app", Services: []api.Service{{Name: "s", Image: "a@sha256:0", Ports: []api.Port{{Host: port, Container: 80, Protocol: "tcp"}}}}}}}
	}
	refused := func(apps []App) string {
		m.apps, m.want = apps, m.effective(apps)
		return m.world().Apps[0].Refused
	}
	if got := refused(app(ownPort)); !strings.Contains(got, "is edged's own") {
		t.Errorf("edged's own port: %q", got)
	}
	if got := refused(app(port)); !strings.Contains(got, "a program of the device listens on host port") {
		t.Errorf("another program's port: %q", got)
	}
	host := app(port)
	host[0].Bundle.Services[0].NetworkMode = "host"
	if got := refused(host); got != "" {
		t.Errorf("on the host's own network nothing is published: %q", got)
	}
	m.instances = map[string]*tracked{"id": {in: instance{ID: "id", Key: serviceKey{"app", "s"}}, svc: app(port)[0].Bundle.Services[0]}}
	if got := refused(app(port)); got != "" {
		t.Errorf("a port that the app has already: %q", got)
	}
	m.instances = nil
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if got := refused(app(port)); got != "" {
		t.Errorf("after the other program went: %q", got)
	}
}
