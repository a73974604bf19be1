package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/agent"
	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/edge/claims"
	"tributary.dev/tributary/pkg/edge/firmware"
	"tributary.dev/tributary/pkg/edge/hardware"
	"tributary.dev/tributary/pkg/edge/meter"
	"tributary.dev/tributary/pkg/edge/network/sriov"
	"tributary.dev/tributary/pkg/edge/network/switchdev"
	"tributary.dev/tributary/pkg/edge/onboard"
	"tributary.dev/tributary/pkg/edge/relay"
	"tributary.dev/tributary/pkg/edge/state"
	"tributary.dev/tributary/pkg/edge/update"
	"tributary.dev/tributary/pkg/edge/uplink/bonding"
	"tributary.dev/tributary/pkg/edge/uplink/trial"
	"tributary.dev/tributary/pkg/edge/vitals"
	"tributary.dev/tributary/pkg/edge/workload"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/mqtt"
	"tributary.dev/tributary/pkg/link/proxy"
	"tributary.dev/tributary/pkg/link/spool"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/pkg/oci"
	"tributary.dev/tributary/pkg/release"
)

// box is the process put together: rooms by name, in the order in which they are made.
type box struct {
	o    options
	log  *slog.Logger
	errs io.Writer      // where the log goes
	exit func(code int) // ends the process as it stands

	state    *state.Store
	clock    *state.Clock
	member   *onboard.Member
	spool    *spool.Spool
	parents  *agent.Parents
	uplink   *mqtt.Uplink
	https    agent.Counter
	link     *link.Endpoint
	cache    *oci.Cache    // relay alone
	serve    *relay.Server // relay alone
	splice   *stream.Splice
	meter    *meter.Meter
	work     *workload.Manager
	keeper   *hardware.Keeper
	claims   *claims.Book
	gpus     *gpus
	realtime realTime
	vitals   *vitals.Keeper

	functions *sriov.Manager    // of network cards
	switches  *switchdev.Keeper // in them
	running   atomic.Pointer[workload.Manager]
	flows     flows

	updater *update.Manager // appliance alone

	keysOfFirmware *firmware.Keeper // with the updater
	agent          atomic.Pointer[agent.Agent]
	waiting        atomic.Pointer[api.Warning]     // why the box has not enrolled yet
	first          atomic.Pointer[onboard.Release] // that it must run before it takes its apps

	family struct { // its hardware profiles
		once    sync.Once
		running string
		fitting atomic.Pointer[string]
	}
	settings chan api.DeviceSettings

	attesting sync.Mutex // the core's questions to the TPM
	again     bool       // within it: the core lacks the key of STATE
	listen    struct{ mqtt, https, greet net.Listener }
}

// run is edged run.
func run(ctx context.Context, args []string, errs io.Writer) error {
	o, err := parseOptions(args, errs)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	b := &box{o: o, errs: errs, exit: os.Exit, log: slog.New(slog.NewTextHandler(errs, &slog.HandlerOptions{Level: level})), settings: make(chan api.DeviceSettings, 1)}
	slog.SetDefault(b.log) // for libraries that log by themselves
	tuneMemory(o)
	return b.live(ctx)
}

// startPercent is the collector's while the box starts: it would run a dozen times for a few
// megabytes, which the limit bounds anyway. Once the box is settled, that of the years after is set.
const startPercent = 200

// tuneMemory trades processor time, of which a box at rest has plenty, for memory.
func tuneMemory(o options) {
	limit, percent, procs := 24, 30, 2
	if o.relay {
		limit, percent, procs = 128, 50, 4
	}
	if o.memoryLimitMB > 0 {
		limit = o.memoryLimitMB
	}
	debug.SetMemoryLimit(int64(limit) << 20)
	debug.SetGCPercent(startPercent)
	time.AfterFunc(settled, func() { debug.SetGCPercent(percent) })
	runtime.GOMAXPROCS(min(procs, runtime.NumCPU()))
}

// live makes the rooms one after the other and runs them until ctx ends.
func (b *box) live(ctx context.Context) error {
	ctx = proxy.With(ctx, b.dial(30*time.Second))
	for _, step := range []struct {
		name string
		make func(context.Context) error
	}{
		{"folders", b.makeFolders},
		{"state", b.openState},
		{"local socket", b.serveLocal},
		{"listeners", b.openListeners},
		{"time", b.askTime},
		{"hardware", b.openHardware}, // before "owner", which may run the owner's first apps
		{"real time", b.openRealtime},
		{"owner", b.findOwner},
		{"membership", b.join},
		{"records", b.openSpool},
		{"link", b.makeLink},
		{"relay", b.makeRelay},
		{"apps", b.makeWorkload},
		{"update", b.openUpdate},
		{"flow policies", b.openFlows},
		{"agent", b.makeAgent},
	} {
		if err := step.make(ctx); err != nil {
			b.close()
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	b.log.Info("running", "version", version, "device", b.member.Live.Get().ID(), "relay", b.o.relay)
	err := b.runAll(ctx)
	b.close()
	if ctx.Err() != nil {
		b.log.Info("stopped; apps go on running")
		return nil
	}
	return err
}

func (b *box) runAll(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	loops := []struct {
		name string
		run  func(context.Context) error
	}{
		{"state", b.state.Run}, {"membership", b.member.Run}, {"doubt", b.doubt}, {"link", b.link.Run},
		{"apps", b.work.Run}, {"agent", b.agent.Load().Run}, {"settings", b.applySettings}, {"memory", b.trim}, {"watchdog", b.watch}, {"consoles", b.tellOfConsole},
		{"hardware", b.keeper.Run}, {"real time", b.keepRealtime}, {"vitals", b.vitals.Run}, {"network cards", b.functions.Run}, {"cards' switches", b.switches.Run}, {"accelerators", b.keepGPUs}, {"flow policies", b.keepFlows},
	}
	if b.serve != nil {
		loops = append(loops, []struct {
			name string
			run  func(context.Context) error
		}{{"relay", b.serve.Run}, {"relay https", func(ctx context.Context) error { return b.serve.Serve(ctx, b.listen.https) }}, {"relay greeter", b.greet}}...)
	}
	if b.updater != nil {
		loops = append(loops, []struct {
			name string
			run  func(context.Context) error
		}{{"update", b.updater.Run}, {"firmware's keys", b.settleFirmware}}...)
	}
	for _, l := range loops {
		g.Go(func() error {
			err := l.run(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				err = errors.New("ended by itself")
			}
			return fmt.Errorf("%s: %w", l.name, err)
		})
	}
	return g.Wait()
}

func (b *box) close() {
	var errs []error
	if b.work != nil {
		errs = append(errs, b.work.Close())
	}
	if b.cache != nil {
		errs = append(errs, b.cache.Close())
	}
	if b.spool != nil {
		errs = append(errs, b.spool.Close())
	}
	if b.state != nil {
		errs = append(errs, b.state.Close())
	}
	for _, l := range []net.Listener{b.listen.mqtt, b.listen.https, b.listen.greet} {
		if l != nil {
			_ = l.Close() // closed already by who served it
		}
	}
	if err := errors.Join(errs...); err != nil {
		b.log.Warn("not closed cleanly", "err", err)
	}
}

func (b *box) makeFolders(context.Context) error {
	return errors.Join(os.MkdirAll(b.o.data, 0o700), os.MkdirAll(b.o.run, 0o755))
}

func (b *box) openState(context.Context) (err error) {
	if b.state, err = state.Open(state.Config{Path: filepath.Join(b.o.data, "state.db"), Log: b.log}); err != nil {
		return err
	}
	if origin := b.state.Origin(); origin != state.Intact {
		b.log.Info("state", "origin", origin)
	}
	if b.clock, err = b.state.Clock(time.Now, nil); err != nil {
		return err
	}
	b.keepTime()
	return nil
}

// openListeners takes a relay's ports before it enrols, so that a port clash is told
// at once.
func (b *box) openListeners(context.Context) (err error) {
	if !b.o.relay {
		return nil
	}
	if b.listen.mqtt, err = net.Listen("tcp", b.o.listenMQTT); err != nil {
		return &api.Error{Code: api.Conflict, Message: "cannot serve MQTT", Remedy: "choose another address with --listen-mqtt", Err: err}
	}
	if b.listen.https, err = net.Listen("tcp", b.o.listenHTTPS); err != nil {
		return &api.Error{Code: api.Conflict, Message: "cannot serve HTTPS", Remedy: "choose another address with --listen-https", Err: err}
	}
	if b.o.listenGreet == "" {
		return nil
	}
	if b.listen.greet, err = net.Listen("tcp", b.o.listenGreet); err != nil {
		return &api.Error{Code: api.Conflict, Message: "cannot answer boxes that look for their owner", Remedy: "choose another address with --listen-bootstrap, or none", Err: err}
	}
	return nil
}

// listensOn tells where a relay takes its children.
func (b *box) listensOn() (out []net.Addr) {
	for _, l := range []net.Listener{b.listen.mqtt, b.listen.https, b.listen.greet} {
		if l != nil {
			out = append(out, l.Addr())
		}
	}
	return out
}

func (b *box) hardware() api.Hardware {
	h := hardware.Probe(hardware.Host(b.o.data))
	b.family.once.Do(b.findFamily)
	h.Profile = b.family.running
	if hasTPM() {
		h.TPM = "2.0"
	}
	if p := b.family.fitting.Load(); p != nil && *p != h.Profile {
		h.BetterProfile = *p
	}
	return h
}

// findFamily names the box's hardware profile once: neither the profiles nor the box
// change while this runs. Where an image says its own, the one that fits is looked for
// when the rush of the start is over.
func (b *box) findFamily() {
	box := hardware.Host(b.o.data)
	find := func() {
		name := hardware.Fitting(box)
		b.family.fitting.Store(&name)
	}
	if b.family.running = hardware.Running(box); b.family.running != "" {
		time.AfterFunc(2*time.Minute, find)
		return
	}
	find()
	b.family.running = *b.family.fitting.Load()
}

// labels are what the box says of itself: its hardware, and what it was told by --labels.
// Fleets can pick boxes by either, but nobody who writes a box's CONFIG gives it a label of
// people's.
func (b *box) labels(h api.Hardware) map[string]string {
	out := hardware.Labels(h)
	for k, v := range b.o.labels {
		out[api.Reserved+"config."+k] = v
	}
	return out
}

func (b *box) join(ctx context.Context) (err error) {
	b.member, err = onboard.Join(ctx, onboard.Config{
		Dir: filepath.Join(b.o.data, "identity"),
		Parents: func() []string {
			if b.parents != nil {
				return b.parents.Roots()
			}
			return agent.Roots(b.o.parents)
		},
		Token: b.o.joinToken,
		Waiting: func(err error) {
			b.waiting.Store(&api.Warning{Name: "not-enrolled", Severity: api.Critical, Since: b.clock.Now().Unix(), Message: err.Error()})
		},
		Describe: func() identity.EnrolConfig {
			h := b.hardware()
			return identity.EnrolConfig{Name: b.o.name, Hardware: h, Labels: b.labels(h), Relay: b.o.relay, Addresses: hardware.Addresses()}
		},
		Now: b.clock.Now, Raise: b.clock.Heard, Log: b.log,
	})
	b.waiting.Store(nil)
	return err
}

func (b *box) openSpool(context.Context) (err error) {
	b.spool, err = spool.Open(spool.Config{Dir: filepath.Join(b.o.data, "spool"), DB: b.state.DB(), MaxBytes: b.spoolBytes(), Now: b.clock.Now, Rand: randReader, Log: b.log})
	return err
}

func (b *box) makeRelay(context.Context) (err error) {
	if !b.o.relay {
		return nil
	}
	if b.cache, err = oci.Open(oci.Config{Dir: filepath.Join(b.o.data, "cache"), Upstream: oci.Preload(b.o.preload, b.parents), Most: b.o.cacheMB << 20, OnDemand: release.OnDemand, Log: b.log}); err != nil {
		return err
	}
	b.splice = stream.NewSplice(stream.SpliceConfig{Parent: b.parents.Stream, Log: b.log})
	b.serve, err = relay.New(relay.Config{Live: b.member.Live, Cache: b.cache, Parent: b.parents, Stream: b.splice, Now: b.clock.Now, Log: b.log})
	return err
}

// artifacts is where this box's own artifacts come from: a relay's through its own
// cache, so that each crosses the uplink once.
func (b *box) artifacts() oci.Upstream {
	if b.cache != nil {
		return b.cache.Upstream()
	}
	return oci.Preload(b.o.preload, b.parents)
}

func (b *box) makeWorkload(ctx context.Context) error { return b.makeWorkloadFrom(ctx, b.artifacts()) }

func (b *box) makeWorkloadFrom(ctx context.Context, from oci.Upstream) error {
	reader, err := meter.Host()
	if err != nil {
		return err
	}
	kept := b.state.Mirror("meter")
	conf := meter.Config{Store: kept, Reader: reader, Now: b.clock.Now, Log: b.log, Accelerators: b.gpus.Used, Targets: func() []meter.Target {
		if b.work == nil {
			return nil
		}
		return b.work.Targets()
	}}
	if b.meter, err = meter.New(conf); err != nil {
		// Apps go before figures: a box that does not start bills nothing either.
		b.log.Error("what the meter kept cannot be read; it begins anew", "err", err)
		if err := kept.Save(nil); err != nil {
			return err
		}
		if b.meter, err = meter.New(conf); err != nil {
			return err
		}
	}
	b.settleFunctions(ctx)
	b.work, err = workload.New(ctx, workload.Config{
		Socket: b.o.containerd, Root: filepath.Join(b.o.data, "apps"), Run: b.o.run, CNIBin: b.o.cniBin, LogHelper: b.o.logHelper,
		Snapshotter: b.o.snapshotter, Pool: b.o.pool, Upstream: from, Meter: b.meter, Log: b.log, Now: b.clock.Now, Own: b.listensOn(), Claims: patientClaims{b.claims, b.gpus},
		Event: func(e api.Event) {
			if a := b.agent.Load(); a != nil {
				a.Event(e)
			}
		},
	})
	if err == nil {
		b.running.Store(b.work)
	}
	return err
}

func (b *box) makeAgent(context.Context) error {
	warnings := []func() []api.Warning{b.member.Warnings, b.realtime.Warnings, b.spool.Warnings, b.functions.Warnings, b.switches.Warnings, b.flows.Warnings, func() []api.Warning { return boot.Warnings(boot.Dir) }, func() []api.Warning { return trial.Shown(boot.Dir) },
		(&bonding.Watch{Root: os.DirFS("/"), Now: b.clock.Now}).Warnings}
	warnings = append(warnings, b.gpus.Warnings)
	if b.updater != nil {
		warnings = append(warnings, b.updater.Warnings)
	}
	if b.cache != nil {
		warnings = append(warnings, b.cache.Warnings)
	}
	a, err := agent.New(agent.Config{
		Identity: b.member.Live, Link: b.link, Workload: b.work, Meter: b.meter, Records: b.spool, State: b.state, Clock: b.clock,
		Artifacts: b.artifacts(), Parents: b.parents, Settings: b.offerSettings, Network: b.setNetwork, Flows: b.flows.Set, RenewTrust: b.member.RenewSoon,
		Hardware: b.hardware, Inventory: b.inventory, NewInventory: b.flows.news, Uses: b.claims.Uses, NewUses: b.claims.Changed(), Labels: b.labels, Addresses: hardware.Addresses, Relay: b.o.relay, Version: version,
		Expected: b.expected(), Warnings: warnings, Stream: b.parents.Stream, Console: "/run/tributary/console.sock", Boot: bootName(), Release: b.confirmed, Attest: b.attest, Hold: b.holdApps, Log: b.log,
	})
	b.agent.Store(a)
	b.vitals = vitals.New(vitals.Config{Host: vitalsHost(b.o.data), Now: b.clock.Now, Event: a.Event})
	return err
}

// vitalsHost is this machine, with the disk that has a folder.
func vitalsHost(folder string) vitals.Host {
	return vitals.Host{Root: os.DirFS("/"), Disk: func() (total, free uint64, err error) {
		var s unix.Statfs_t
		err = unix.Statfs(folder, &s)
		return s.Blocks * uint64(s.Bsize), s.Bavail * uint64(s.Bsize), err
	}}
}

// offerSettings keeps the newest settings for applySettings.
func (b *box) offerSettings(s api.DeviceSettings) {
	select {
	case <-b.settings:
	default:
	}
	b.settings <- s
}

// applySettings puts settings in force that belong to rooms the agent does not know.
func (b *box) applySettings(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-b.settings:
			if b.cache != nil {
				b.cache.SetBudget(s.CacheBytes)
			}
			b.setSpoolBytes(s.SpoolBytes)
			b.linkSettings(s)
			b.vitals.SetEvery(time.Duration(s.VitalsInterval))
			if err := b.gpus.SetPolicies(s.Accelerators); err != nil {
				b.log.Warn("the accelerators' policies are not kept; the core tells them again", "err", err)
			}
			b.gpus.Uncordon(s.Uncordon)
		}
	}
}
