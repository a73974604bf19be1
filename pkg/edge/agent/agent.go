// Package agent answers: how do the rooms of the edge wing become one appliance?
//
// It is the wing's hall: it runs loops and keeps nothing that a room could keep. Each
// loop's opening comment lists what it reads and what it writes; together:
//
//	loop       reads                                        writes
//	desired    link manifest, state bundles, parent's       workload set, parents, settings,
//	           artifacts, seal key                          state bundles
//	report     workload status, warnings of all rooms,      link entries, state's note of
//	           hardware, inventory, addresses, desired's    the manifest in force
//	           outcome
//	metering   meter                                        usage records, usage totals
//	events     queue of events                              event records
//	commands   signed commands                              streams, audit records
//
// What they decide, they decide in plain functions (decide.go, totals.go).
package agent

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/meter"
	"tributary.dev/tributary/pkg/edge/state"
	"tributary.dev/tributary/pkg/edge/workload"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/oci"
)

// Link is what the agent asks of link.Endpoint. All methods may be called from any
// goroutine.
type Link interface {
	// Report sets a reported key, durably; nil removes it. An equal value is no change.
	Report(key string, value []byte) error
	// Append returns when the record is durable.
	Append(kind api.RecordKind, payload []byte) (uint64, error)
	Manifest() *manifest.Signed
	Changed() <-chan struct{}
	OnCommand(func(raw []byte))
	Warnings() []api.Warning
}

// Workload is what the agent asks of workload.Manager.
type Workload interface {
	Set(apps []workload.App)
	Status() []api.AppStatus
	Changed() <-chan struct{}
	Warnings() []api.Warning
	Targets() []meter.Target
	Logs(ctx context.Context, app, service string, follow bool, tail int, w io.Writer) error
	Exec(ctx context.Context, r workload.ExecRequest) (exit int, err error)
	Dial(ctx context.Context, app, service string, port int) (net.Conn, error)
}

// Meter is what the agent asks of meter.Meter.
type Meter interface {
	Sample() error
	Collect() (api.Usage, error)
	Pending() (api.Usage, bool)
	Commit(to int64) error
	Read(t meter.Target) (meter.Reading, error)
}

// Records reads the device's own spool, for totals after a crash.
type Records interface {
	Range() (first, last, acked, safe uint64)
	Read(from uint64, maxBytes int) ([]record.Record, error)
}

// Config is what an Agent is made of. All fields are required unless they say so.
type Config struct {
	Identity *identity.Live
	Link     Link
	Workload Workload
	Meter    Meter
	Records  Records
	State    *state.Store
	Clock    *state.Clock
	// Artifacts is where bundles are pulled from: the parent, or a relay's own cache.
	Artifacts oci.Upstream
	Parents   *Parents
	// Settings is told of the device's settings, defaults filled in, when they change.
	Settings func(api.DeviceSettings)
	// Network is told, with every manifest, the policies of the box's network cards. It returns at once. May be nil.
	Network func([]api.FunctionPolicy)
	// Expected is told, with every manifest, the word for the boxes that are expected at this relay's site: another one
	// when they are others. It returns at once. May be nil.
	Expected func(word string)
	// Flows is told, with every manifest, what becomes of packets at the box's interfaces, by name of the policy. It
	// returns at once. May be nil.
	Flows func(map[string]api.FlowPolicySpec)
	// RenewTrust is asked for when a command names a signer that is not in the trust, or the manifest another sealing key.
	RenewTrust func()
	Hardware   func() api.Hardware
	// Inventory is what the box is made of now, nil while that is not known; NewInventory is
	// told of after a change. Both may be nil.
	Inventory    func() *api.Inventory
	NewInventory <-chan struct{}
	// Uses is what services can claim of it and who holds what, and NewUses is told of after
	// a change of the latter. Both may be nil.
	Uses      func() []api.DeviceUse
	NewUses   <-chan struct{}
	Labels    func(api.Hardware) map[string]string
	Addresses func() []string
	Relay     bool
	Version   string
	// Warnings are those of rooms that the agent does not know.
	Warnings []func() []api.Warning
	// Stream is where the parent serves streams.
	Stream stream.Parent
	// Console is the unix socket of the box's recovery console. May be empty.
	Console string
	// Lines is the folder of the consoles of cards: /dev if empty.
	Lines string
	// Release is the digest of the release that runs and is confirmed; empty for none. May be nil.
	Release func() string
	// Boot names this start of the box, where the core is to ask its TPM after each. May be empty.
	Boot string
	// Attest answers the core's question what this box runs, on its stream. May be nil.
	Attest func(ctx context.Context, nonce []byte, talk io.ReadWriter) error
	// Hold tells why no app is to be taken yet; empty for none. May be nil.
	Hold func() string
	// Retry bounds the pause after something could not be fetched. Default 2 s to 1 min.
	RetryMin, RetryMax time.Duration
	Log                *slog.Logger
}

// Agent runs the loops.
type Agent struct {
	cfg    Config
	events chan api.Event
	cmds   chan []byte
	replay stream.Replay
	nudge  chan struct{} // report again
	totals *totals

	mu         sync.Mutex
	settings   api.DeviceSettings
	settled    bool // settings are of a manifest
	newCadence chan struct{}
	outcome    outcome
	own        map[string]api.Warning // of the agent itself
	lost       int                    // events that found no room
}

// Defaults of api.DeviceSettings.
const (
	DefaultMeterInterval  = 15 * time.Minute
	DefaultHealthInterval = time.Minute
)

// New makes an agent; Run does the work.
func New(cfg Config) (*Agent, error) {
	if cfg.RetryMin == 0 {
		cfg.RetryMin = 2 * time.Second
	}
	if cfg.RetryMax == 0 {
		cfg.RetryMax = time.Minute
	}
	a := &Agent{cfg: cfg, events: make(chan api.Event, 256), cmds: make(chan []byte, 2*stream.PerDevice), nudge: make(chan struct{}, 1),
		newCadence: make(chan struct{}, 1), own: map[string]api.Warning{}, settings: withDefaults(api.DeviceSettings{})}
	var err error
	if a.outcome.applied, err = a.loadApplied(); err != nil {
		return nil, err
	}
	a.totals, err = loadTotals(cfg.State.Blob("usage-totals"), cfg.Records)
	return a, err
}

// Run runs all loops until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	a.cfg.Link.OnCommand(a.command)
	g, ctx := errgroup.WithContext(ctx)
	for _, loop := range []func(context.Context) error{a.desired, a.report, a.metering, a.recordEvents, a.commands} {
		g.Go(func() error { return loop(ctx) })
	}
	err := g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Event notes that something happened. It never blocks; when the queue is full the
// event is counted as lost.
func (a *Agent) Event(e api.Event) {
	if e.Time == 0 {
		e.Time = a.cfg.Clock.Now().UnixMilli()
	}
	select {
	case a.events <- e:
	default:
		a.mu.Lock()
		a.lost++
		a.mu.Unlock()
	}
}

// poke asks the report loop to look again.
func (a *Agent) poke() {
	select {
	case a.nudge <- struct{}{}:
	default:
	}
}

func (a *Agent) warn(name string, severity api.Severity, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w, known := a.own[name]
	if !known {
		w.Since = a.cfg.Clock.Now().Unix()
	}
	w.Name, w.Severity, w.Message = name, severity, message
	a.own[name] = w
	a.poke()
}

func (a *Agent) clear(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.own, name)
	a.poke()
}

// Warnings gathers what all rooms find wrong, by name.
func (a *Agent) Warnings() []api.Warning {
	sources := append([]func() []api.Warning{a.cfg.Link.Warnings, a.cfg.Workload.Warnings, a.cfg.State.Warnings, a.ownWarnings}, a.cfg.Warnings...)
	var all []api.Warning
	for _, s := range sources {
		all = append(all, s()...)
	}
	return mergeWarnings(all)
}

func (a *Agent) ownWarnings() (out []api.Warning) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.own {
		out = append(out, w)
	}
	return out
}

// Status is what the local socket shows.
type Status struct {
	Device   api.DeviceID    `json:"device"`
	Name     string          `json:"name,omitempty"`
	Tenant   string          `json:"tenant,omitempty"`
	Version  string          `json:"version"`
	Relay    bool            `json:"relay,omitempty"`
	Parent   string          `json:"parent,omitempty"`
	Online   bool            `json:"online"`
	Epoch    uint64          `json:"epoch"`
	Desired  uint64          `json:"desired"`
	Applied  uint64          `json:"applied"`
	Apps     []api.AppStatus `json:"apps"`
	Warnings []api.Warning   `json:"warnings"`
}

// Status tells how the device stands.
func (a *Agent) Status() Status {
	s := Status{Device: a.cfg.Identity.Get().ID(), Version: a.cfg.Version, Relay: a.cfg.Relay, Warnings: a.Warnings()}
	a.mu.Lock()
	o := a.outcome
	a.mu.Unlock()
	if m := a.cfg.Link.Manifest(); m != nil {
		s.Name, s.Tenant, s.Epoch, s.Desired = m.Manifest.Name, m.Manifest.Tenant, m.Manifest.Epoch, m.Manifest.Generation
	}
	s.Apps = o.statuses(a.cfg.Workload.Status())
	s.Applied = o.applied.gen
	return s
}

// Totals are the sums of all usage ever recorded, by app and service.
func (a *Agent) Totals() []api.ContainerUse { return a.totals.list() }

func withDefaults(s api.DeviceSettings) api.DeviceSettings {
	if s.MeterInterval <= 0 {
		s.MeterInterval = api.Duration(DefaultMeterInterval)
	}
	if s.HealthInterval <= 0 {
		s.HealthInterval = api.Duration(DefaultHealthInterval)
	}
	return s
}
