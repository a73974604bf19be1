package workload

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/meter"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
	"tributary.dev/tributary/tests/wait"
)

var tools workloadtest.Tools

func TestMain(m *testing.M) {
	os.Exit(workloadtest.Isolate(func() int {
		flag.Parse()
		if path := os.Getenv(childVariable); path != "" {
			return runChild(path)
		}
		if workloadtest.Missing() == "" && !testing.Short() {
			dir, err := os.MkdirTemp("", "workload-tools-")
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			defer os.RemoveAll(dir)
			if tools, err = workloadtest.Build(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		return m.Run()
	}))
}

// bench is one device: containerd, a registry above it, and managers that come and go.
type device struct {
	t      *testing.T
	dir    string
	daemon *workloadtest.Daemon
	up     *workloadtest.Registry
	image  string
	config Config

	m      *Manager
	cancel context.CancelFunc
	done   chan error

	mu     sync.Mutex
	events []api.Event
}

func newDevice(t *testing.T) *device {
	t.Helper()
	if why := workloadtest.Missing(); why != "" {
		t.Skip(why)
	}
	if testing.Short() {
		t.Skip("needs more time than -short leaves: real containers")
	}
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, dir: dir, up: workloadtest.NewRegistry()}
	if d.daemon, err = workloadtest.NewDaemon(filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait.Limit)
	defer cancel()
	if err := d.daemon.Start(ctx); err != nil {
		t.Fatal(err)
	}
	im, err := tools.AppImage("acme/app", v1.Config{Env: []string{"FROM_IMAGE=1"}})
	if err != nil {
		t.Fatal(err)
	}
	if d.image, err = d.up.Push(im); err != nil {
		t.Fatal(err)
	}
	level := slog.LevelWarn
	if os.Getenv("WORKLOAD_DEBUG") != "" {
		level = slog.LevelDebug
	}
	d.config = Config{
		Socket: d.daemon.Socket, Root: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run"),
		CNIBin: tools.CNIBin, LogHelper: tools.LogHelper, Upstream: d.up,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: level})),
		Event: func(e api.Event) {
			d.mu.Lock()
			d.events = append(d.events, e)
			d.mu.Unlock()
		},
	}
	t.Cleanup(d.tearDown)
	return d
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	fmt.Fprintf(os.Stderr, "    %s: %s", w.t.Name(), b)
	return len(b), nil
}

// begin starts a manager, as edged would at its start.
func (d *device) begin() {
	d.t.Helper()
	m, err := New(context.Background(), d.config)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.m, d.cancel, d.done = m, cancel, make(chan error, 1)
	go func() { d.done <- m.Run(ctx) }()
}

// end stops the manager; containers run on.
func (d *device) end() {
	if d.m == nil {
		return
	}
	d.cancel()
	<-d.done
	_ = d.m.Close()
	d.m = nil
}

func (d *device) tearDown() {
	if d.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(d.daemon.Dir, "daemon.log"))
		d.t.Logf("containerd's log:\n%s", log)
	}
	if d.m == nil {
		d.begin()
	}
	d.wait("containers are listed", func() bool {
		d.m.mu.Lock()
		defer d.m.mu.Unlock()
		return d.m.listed
	})
	cgroups := d.cgroups()
	d.m.Set(nil)
	d.wait("all containers are gone", func() bool {
		d.m.mu.Lock()
		defer d.m.mu.Unlock()
		return len(d.m.instances) == 0
	})
	d.wait("all bridges are gone", func() bool { return len(d.m.net.Apps()) == 0 }) // the next test's apps have the same names
	for _, dir := range cgroups {
		if _, err := os.Stat(dir); err == nil {
			d.t.Errorf("the cgroup %s stays behind", dir)
		}
	}
	d.end()
	d.daemon.Kill()
	d.up.Close()
	d.unmountAll()
	if err := os.RemoveAll(d.dir); err != nil {
		d.t.Errorf("the device's folder stays behind: %v", err)
	}
}

// cgroups lists those that the device's containers have now.
func (d *device) cgroups() (out []string) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	for id := range d.m.instances {
		for _, pattern := range []string{"/sys/fs/cgroup/*/tributary/", "/sys/fs/cgroup/tributary/"} {
			found, _ := filepath.Glob(pattern + id)
			out = append(out, found...)
		}
	}
	return out
}

// unmountAll takes away every mount below the device's folder, last one first.
func (d *device) unmountAll() {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	lines := strings.Split(string(mounts), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		f := strings.Fields(lines[i])
		if len(f) > 1 && strings.HasPrefix(f[1], d.dir+"/") {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
}

// wait polls until ok, and tells the whole status when it never is.
func (d *device) wait(what string, ok func() bool) {
	d.t.Helper()
	wait.Seen(d.t, what, func() (any, bool) {
		if ok() {
			return nil, true
		}
		if d.m == nil {
			return nil, false
		}
		return fmt.Sprintf("status: %+v\nwarnings: %+v", d.m.Status(), d.m.Warnings()), false
	})
}

func (d *device) app(name string, services ...api.Service) App {
	for i := range services {
		if services[i].Image == "" {
			services[i].Image = d.image
		}
	}
	return App{Digest: "sha256:" + name, Bundle: api.Bundle{Version: 1, App: name, Services: services}}
}

// service finds a service's status.
func (d *device) service(app, service string) api.ServiceStatus {
	for _, a := range d.m.Status() {
		if a.Name != app {
			continue
		}
		for _, s := range a.Services {
			if s.Name == service {
				return s
			}
		}
	}
	return api.ServiceStatus{}
}

func (d *device) state(app string) api.AppStatus {
	for _, a := range d.m.Status() {
		if a.Name == app {
			return a
		}
	}
	return api.AppStatus{}
}

func (d *device) running(app string) {
	d.t.Helper()
	d.wait(app+" is Running", func() bool { return d.state(app).State == api.Running })
}

// get asks a service's own web server, through Dial.
func (d *device) get(app, service, path string) string {
	d.t.Helper()
	var body string
	d.wait(app+"/"+service+" answers "+path, func() bool {
		conn, err := d.m.Dial(context.Background(), app, service, 8080)
		if err != nil {
			return false
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(wait.Limit))
		fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path)
		all, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(all), "HTTP/1.0 ") {
			return false
		}
		head, rest, _ := strings.Cut(string(all), "\r\n\r\n")
		body = rest
		if !strings.HasPrefix(head, "HTTP/1.0 200") {
			body = "ERROR " + rest
		}
		return true
	})
	return body
}

func (d *device) sawEvent(name string) bool { return d.countEvents(name) > 0 }

func (d *device) countEvents(name string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.events {
		if e.Name == name {
			n++
		}
	}
	return n
}

// memoryStore is a meter's store.
type memoryStore struct {
	mu sync.Mutex
	b  []byte
}

func (s *memoryStore) Load() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b, nil
}

func (s *memoryStore) Save(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b = b
	return nil
}

// withMeter gives the device a meter whose store outlives managers.
func (d *device) withMeter(store meter.Store) *meter.Meter {
	d.t.Helper()
	reader, err := meter.Host()
	if err != nil {
		d.t.Skip("needs a cgroup file system: " + err.Error())
	}
	mt, err := meter.New(meter.Config{Store: store, Reader: reader, Targets: func() []meter.Target { return d.m.Targets() }})
	if err != nil {
		d.t.Fatal(err)
	}
	d.config.Meter = mt
	return mt
}
