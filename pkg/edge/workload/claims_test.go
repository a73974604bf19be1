package workload

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// pool gives one device, which may be lacking and may be another one later.
type pool struct {
	mu     sync.Mutex
	device api.HeldDevice
	lacks  string
	held   map[string]bool
}

func (p *pool) Take(_ context.Context, app, service string, _ []api.Claim) ([]api.HeldDevice, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lacks != "" {
		return nil, errors.New(p.lacks)
	}
	p.held[app+"/"+service] = true
	return []api.HeldDevice{p.device}, nil
}

func (p *pool) Retain(_ context.Context, keep func(app, service string) bool) error {
	p.mu.Lock()
	names := []string{}
	for name := range p.held {
		names = append(names, name)
	}
	p.mu.Unlock()
	for _, name := range names {
		if app, service, _ := strings.Cut(name, "/"); !keep(app, service) {
			p.mu.Lock()
			delete(p.held, name)
			p.mu.Unlock()
		}
	}
	return nil
}

func (p *pool) change(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn()
}

func (p *pool) holds(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[name]
}

// A service gets what it claims: waits for it in plain words, sees it in its container and
// is bound to its processor; another device makes another container; what nobody wants is
// given back.
func TestClaimsReachTheContainer(t *testing.T) {
	d := newDevice(t)
	note := filepath.Join(d.dir, "note")
	if err := os.WriteFile(note, []byte("of the card"), 0o644); err != nil {
		t.Fatal(err)
	}
	cpu := 1
	p := &pool{held: map[string]bool{}, lacks: "1 × gpu is wanted; 0 free, 1 held by others", device: api.HeldDevice{Class: api.ClaimGPU, ID: "one", Units: 1, Edits: api.DeviceEdits{
		Env: []string{"CARD=one"}, Nodes: []api.DeviceNode{{Path: "/dev/card", HostPath: "/dev/full"}},
		Mounts: []api.DeviceBind{{HostPath: note, ContainerPath: "/card.txt"}}, CPU: &cpu, NUMA: -1,
	}}}
	d.config.Claims = p
	d.begin()
	app := d.app("ran", api.Service{Name: "du", Claims: []api.Claim{{Class: api.ClaimGPU, Count: 1}}})
	d.m.Set([]App{app})
	d.wait("the lack is told", func() bool {
		s := d.service("ran", "du")
		return s.State == api.Backoff && strings.Contains(s.Message, "1 held by others")
	})
	p.change(func() { p.lacks = "" })
	d.running("ran")
	if env := d.get("ran", "du", "/env"); !strings.Contains(env, "CARD=one") {
		t.Errorf("the environment is %q", env)
	}
	if got := d.get("ran", "du", "/file?p=/card.txt"); got != "of the card" {
		t.Errorf("the file of the card is %q", got)
	}
	if got := d.get("ran", "du", "/write?p=/dev/card&v=x"); !strings.Contains(got, "no space left") {
		t.Errorf("the device answers %q", got)
	}
	if got := d.get("ran", "du", "/file?p=/proc/self/status"); !strings.Contains(got, "Cpus_allowed_list:\t1\n") {
		t.Errorf("it may run on\n%s", got)
	}

	// Another device in the place of the first: at its next start the container is another.
	first := d.service("ran", "du").Container
	p.change(func() { p.device.ID, p.device.Edits.Env = "two", []string{"CARD=two"} })
	if got := d.get("ran", "du", "/file?p=/card.txt"); got != "of the card" {
		t.Errorf("a running container was touched: %q", got)
	}
	if err := syscall.Kill(d.pids("ran", "du")[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.wait("it runs with the other device", func() bool {
		s := d.service("ran", "du")
		return s.State == api.Running && s.Container != "" && s.Container != first
	})
	if env := d.get("ran", "du", "/env"); !strings.Contains(env, "CARD=two") {
		t.Errorf("the environment is %q", env)
	}

	// A device that fails: the service is started anew, with the one that is given then.
	second := d.service("ran", "du").Container
	p.change(func() { p.device.ID, p.device.Edits.Env = "three", []string{"CARD=three"} })
	if got := d.m.Claiming(); len(got) != 1 || got[0].App != "ran" || got[0].Claims[0].Class != api.ClaimGPU {
		t.Errorf("claiming are %+v", got)
	}
	d.m.Move("ran", "du", "moved: the card failed")
	d.wait("it runs with the third device", func() bool {
		s := d.service("ran", "du")
		return s.State == api.Running && s.Container != "" && s.Container != second
	})
	if env := d.get("ran", "du", "/env"); !strings.Contains(env, "CARD=three") {
		t.Errorf("the environment is %q", env)
	}

	d.m.Set(nil)
	d.wait("the device is given back", func() bool { return !p.holds("ran/du") })
}

// Hardware that a device cannot give is refused by name.
func TestClaimsWithoutHardware(t *testing.T) {
	d := newDevice(t)
	d.begin()
	d.m.Set([]App{d.app("ran", api.Service{Name: "du", Claims: []api.Claim{{Class: api.ClaimVF, Count: 1}}})})
	d.wait("the lack is told", func() bool {
		return strings.Contains(d.service("ran", "du").Message, "this device gives none")
	})
}
