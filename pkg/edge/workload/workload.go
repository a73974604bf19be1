// Package workload answers: which containers run on this device, and how does it
// get from those to the ones that are wanted?
//
// It keeps the apps of the manifest running through containerd. plan.go decides,
// as a plain function; the other files observe and do. A container carries in its
// labels the hash of all that made it, so that after a crash of edged or of
// containerd it is recognised, adopted and left alone.
package workload

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/meter"
	"tributary.dev/tributary/pkg/edge/network"
)

// App is one app as this device should run it.
type App struct {
	Bundle api.Bundle
	// Digest names the bundle ("sha256:…").
	Digest string
	// Configs and Secrets hold, by name, the objects that the bundle mounts.
	Configs map[string]api.ConfigData
	Secrets map[string]api.ConfigData
	// Hold, when not empty, says why the bundle is not known (only Bundle.App is set
	// then). What is here of the app stays, is kept running as it was made, and the
	// reason is told in its status.
	Hold string
}

// Upstream is where images come from: the parent's registry at this moment
// (pkg/oci's interface of the same name). It may change from call to call.
type Upstream interface {
	Endpoint() (base *url.URL, client *http.Client, err error)
}

// Meter is told when a container has ended, before its counters go. All methods
// may be called twice for the same target.
type Meter interface {
	Final(t meter.Target) error
	Forget(id string)
	Retain(ids []string)
}

// Config is what a Manager is made of. Socket, Root, Run and LogHelper are required;
// CNIBin is needed for apps with networks of their own.
type Config struct {
	Socket    string // containerd's socket
	Namespace string // containerd's namespace; default "tributary"
	// Root keeps volumes, bind folders, logs and settings across reboots.
	Root string
	// Run keeps what a reboot should clear: secrets, hosts files, network namespaces.
	// Secrets get a tmpfs of their own below it when it is not on one.
	Run       string
	CNIBin    string // folder of bridge, host-local, portmap
	LogHelper string // the edged-log program
	// InitHelper is process 1 of services with init: true; default the program edged-init
	// beside LogHelper. Such a service cannot be made without it.
	InitHelper  string
	Snapshotter string // default "overlayfs"
	// Runtime is a name that containerd knows, or the path of a shim; default the
	// program edged-shim beside LogHelper, else "io.containerd.runc.v2".
	Runtime string
	Pool    string // addresses for app networks; default "10.213.0.0/16"
	// Resolv are files that name the device's resolvers, the first one is what its own
	// programs read; default /etc/resolv.conf and systemd-resolved's.
	Resolv []string
	// Own is where this process itself listens; no app may publish a port over it.
	Own      []net.Addr
	Upstream Upstream
	Meter    Meter  // optional
	Claims   Claims // optional; without it no service gets hardware of its own
	Log      *slog.Logger
	Event    func(api.Event)
	Now      func() time.Time
}

// Manager keeps apps running. Its methods may be called from any goroutine; Run
// must be running for anything to happen.
type Manager struct {
	cfg    Config
	client *containerd.Client
	net    *network.Manager
	root   folders

	kick    chan struct{} // decide again
	changed chan struct{}
	wg      sync.WaitGroup
	bounds  sync.Once // of rest

	mu        sync.Mutex
	apps      []App // as set
	isSet     bool
	want      []wantApp
	instances map[string]*tracked
	listed    bool // containerd was listed since the last connect
	connected bool
	images    map[string]*imageInfo
	rejected  map[serviceKey]rejection
	launchErr map[serviceKey]launchFailure
	inForce   map[string]string
	busy      map[serviceKey]bool
	status    []api.AppStatus
	active    map[serviceKey]string
	warnings  map[string]api.Warning
	users     map[string]userInfo
	exits     []exit
	swept     string // what was there when garbage was last collected
}

// New connects to containerd and prepares folders. It starts nothing. containerd
// may be down: Run then waits for it.
func New(ctx context.Context, cfg Config) (*Manager, error) {
	cfg = withDefaults(cfg)
	if cfg.Socket == "" || cfg.Root == "" || cfg.Run == "" || cfg.LogHelper == "" {
		return nil, api.Errorf(api.Invalid, "workload: Socket, Root, Run and LogHelper are required")
	}
	if cfg.InitHelper == "" {
		cfg.InitHelper = filepath.Join(filepath.Dir(cfg.LogHelper), "edged-init")
	}
	for _, p := range []*string{&cfg.Root, &cfg.Run, &cfg.LogHelper, &cfg.InitHelper} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, err
		}
		*p = abs
	}
	if _, err := os.Stat(cfg.LogHelper); err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: "the log helper is missing", Remedy: "pass --log-helper", Err: err}
	}
	if cfg.Runtime == "" {
		cfg.Runtime = runtimeBeside(cfg.LogHelper)
	}
	root, err := openFolders(cfg.Root, cfg.Run)
	if err != nil {
		return nil, err
	}
	nm, err := network.New(network.Config{Bin: cfg.CNIBin, State: filepath.Join(cfg.Root, "network"), Run: filepath.Join(cfg.Run, "net"), Pool: cfg.Pool, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	// The connection is lazy: a daemon that is down now is found by Run.
	client, err := connect(cfg.Socket, containerd.WithDefaultNamespace(cfg.Namespace), containerd.WithDefaultRuntime(cfg.Runtime), containerd.WithTimeout(2*time.Second))
	if err != nil {
		return nil, &api.Error{Code: api.Unavailable, Message: "containerd cannot be reached at " + cfg.Socket, Remedy: "start containerd, or pass --containerd", Err: err}
	}
	m := &Manager{
		cfg: cfg, client: client, net: nm, root: root,
		kick: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		instances: map[string]*tracked{}, images: map[string]*imageInfo{}, rejected: map[serviceKey]rejection{},
		launchErr: map[serviceKey]launchFailure{}, inForce: map[string]string{}, busy: map[serviceKey]bool{},
		active: map[serviceKey]string{}, warnings: map[string]api.Warning{}, users: map[string]userInfo{},
	}
	m.loadMemory()
	return m, nil
}

func withDefaults(cfg Config) Config {
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	def(&cfg.Namespace, "tributary")
	def(&cfg.Snapshotter, "overlayfs")
	def(&cfg.Pool, "10.213.0.0/16")
	if len(cfg.Resolv) == 0 {
		cfg.Resolv = defaultResolv
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Event == nil {
		cfg.Event = func(api.Event) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return cfg
}

// runtimeBeside is edged-shim where it is installed: it answers for a shim that is
// warm already, and leaves all else to the shim that containerd brings.
func runtimeBeside(helper string) string {
	path := filepath.Join(filepath.Dir(helper), "edged-shim")
	if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
		return path
	}
	return "io.containerd.runc.v2"
}

// Set names the apps that should run, all of them. It returns at once, may be
// called as often as one likes, and changes nothing when nothing changed.
func (m *Manager) Set(apps []App) {
	m.mu.Lock()
	m.apps = apps
	m.isSet = true
	m.want = m.effective(apps)
	m.mu.Unlock()
	m.poke()
}

func (m *Manager) poke() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Status tells the state of every app, in the order of Set.
func (m *Manager) Status() []api.AppStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]api.AppStatus(nil), m.status...)
}

// Changed receives after Status changed; several changes may fold into one.
func (m *Manager) Changed() <-chan struct{} { return m.changed }

// Warnings tells what is wrong with the runtime itself.
func (m *Manager) Warnings() []api.Warning {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []api.Warning
	for _, w := range m.warnings {
		out = append(out, w)
	}
	return out
}

func (m *Manager) warn(name string, severity api.Severity, msg string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if msg == "" {
		delete(m.warnings, name)
		return
	}
	if w, ok := m.warnings[name]; !ok || w.Message != msg {
		since := m.cfg.Now().Unix()
		if ok {
			since = w.Since
		}
		m.warnings[name] = api.Warning{Name: name, Severity: severity, Message: msg, Since: since}
	}
}

func (m *Manager) event(name, subject, msg string) {
	m.cfg.Log.Info(name, "subject", subject, "message", msg)
	m.cfg.Event(api.Event{Time: m.cfg.Now().UnixMilli(), Name: name, Subject: subject, Message: msg})
}

// Run keeps the apps running until ctx ends. Containers run on after it.
func (m *Manager) Run(ctx context.Context) error {
	ctx = namespaces.WithNamespace(ctx, m.cfg.Namespace)
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		m.watch(ctx)
	}()
	m.loop(ctx)
	m.wg.Wait()
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil
	}
	return ctx.Err()
}

// Close gives back the connection to containerd. Containers run on.
func (m *Manager) Close() error { return m.client.Close() }
