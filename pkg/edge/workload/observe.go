package workload

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/meter"
	"tributary.dev/tributary/pkg/edge/network"
)

// Labels by which a container is known again.
const (
	labelOurs    = "tributary.dev/kind"
	labelApp     = "tributary.dev/app"
	labelService = "tributary.dev/service"
	labelHash    = "tributary.dev/hash"
	labelOrder   = "tributary.dev/order"
	// labelRun counts starts; with the container's id it names one incarnation.
	labelRun = "tributary.dev/run"
	// labelExit holds the exit code of a run that ended by itself.
	labelExit = "tributary.dev/exit"
	// labelStopped is set before this program ends a process.
	labelStopped = "tributary.dev/stopped"
	// labelHeld is set while another container is in charge of the service.
	labelHeld = "tributary.dev/held"
	// labelDevices is a digest of the hardware that the container was made with.
	labelDevices = "tributary.dev/devices"
	labelGCRoot  = "containerd.io/gc.root"
	// extService is the extension that keeps the service a container was made of.
	extService = "tributary.dev/service"
)

// tracked is a container as this process knows it.
type tracked struct {
	in      instance
	image   string
	svc     api.Service // what it was made of
	run     int
	addrs   []netip.Addr // by network of svc
	files   string       // sum of the config and secret files it shows
	devices string       // hardware that it was made with
	// released says that its interfaces of hardware were given back.
	released bool
	probe    *prober
	check    *api.HealthCheck // asked for last while this was the wanted version
}

// serviceExtension carries a Service in containerd's container record.
type serviceExtension []byte

func (serviceExtension) GetTypeUrl() string { return "tributary.dev/service.v1+json" }
func (e serviceExtension) GetValue() []byte { return e }

func (t *tracked) target() meter.Target {
	tgt := meter.Target{
		ID: incarnation(t.in.ID, t.run), App: t.in.Key.App, Service: t.in.Key.Service,
		Cgroup: cgroupPath(t.in.ID), Started: t.in.Started, Ended: t.in.Ended,
	}
	return tgt
}

func incarnation(id string, run int) string { return id + "#" + strconv.Itoa(run) }

// Targets lists what to meter: containers whose process runs, or has ended and is
// not cleared away yet.
func (m *Manager) Targets() []meter.Target {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []meter.Target
	for _, t := range m.instances {
		if t.in.Phase != phaseNone {
			out = append(out, m.targetOf(t))
		}
	}
	return out
}

func (m *Manager) targetOf(t *tracked) meter.Target {
	tgt := t.target()
	if hasNamespace(&t.svc) {
		tgt.NetNS = m.net.Namespace(t.in.ID)
	}
	return tgt
}

// networksOf names the app networks of a service, in order of its interfaces.
func networksOf(s *api.Service) []string {
	switch {
	case s.NetworkMode == "host" || s.NetworkMode == "none":
		return nil
	case len(s.Networks) == 0:
		return []string{"default"}
	}
	return s.Networks
}

// hasNamespace tells whether a container has a network of its own that is made here: for
// networks, or for interfaces of hardware.
func hasNamespace(s *api.Service) bool { return len(networksOf(s)) > 0 || hasLinks(s) }

func attachment(id, app string, s *api.Service) network.Request {
	r := network.Request{ID: id, App: app, Networks: networksOf(s)}
	for _, p := range s.Ports {
		r.Ports = append(r.Ports, network.Port{HostIP: p.HostIP, Host: p.Host, Container: p.Container, Protocol: p.Protocol})
	}
	return r
}

// track reads what a container's labels say.
func (m *Manager) track(c containers.Container) *tracked {
	t := &tracked{image: c.Image}
	t.in = instance{ID: c.ID, Key: serviceKey{c.Labels[labelApp], c.Labels[labelService]}, Hash: c.Labels[labelHash], Created: c.CreatedAt}
	t.in.Order, _ = strconv.Atoi(c.Labels[labelOrder])
	t.run, _ = strconv.Atoi(c.Labels[labelRun])
	t.devices = c.Labels[labelDevices]
	t.in.Restarts = t.run
	t.in.Stopped = c.Labels[labelStopped] != ""
	t.in.Held = c.Labels[labelHeld] != ""
	if code, err := strconv.Atoi(c.Labels[labelExit]); err == nil {
		t.in.Finished, t.in.Exit = true, code
	}
	if ext, ok := c.Extensions[extService]; ok && json.Unmarshal(ext.GetValue(), &t.svc) != nil {
		t.svc = api.Service{Name: t.in.Key.Service}
	}
	if len(networksOf(&t.svc)) > 0 {
		t.addrs = m.net.Addresses(attachment(c.ID, t.in.Key.App, &t.svc))
		if len(t.addrs) > 0 {
			t.in.Address = t.addrs[0].String()
		}
	}
	return t
}

// relist reads all containers and tasks anew. What this process alone knows of a
// container (failures in a row, health) is kept.
func (m *Manager) relist(ctx context.Context) error {
	super := ctx
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	list, err := m.client.ContainerService().List(ctx, `labels."`+labelApp+`"`)
	if err != nil {
		return err
	}
	resp, err := m.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return err
	}
	procs := map[string]*tasktypes.Process{}
	for _, p := range resp.Tasks {
		procs[firstOf(p.ContainerID, p.ID)] = p
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	fresh := map[string]*tracked{}
	for _, c := range list {
		if was := m.instances[c.ID]; was != nil && m.busy[was.in.Key] {
			fresh[c.ID] = was // its action knows better
			continue
		}
		t := m.track(c)
		if p := procs[c.ID]; p != nil {
			t.setProcess(p, moment{m.cfg.Now(), time.Now()})
		}
		t.in.Found = true
		if was := m.instances[c.ID]; was != nil {
			t.in.Found, t.in.Mended, t.in.Moved = was.in.Found, was.in.Mended, was.in.Moved
			t.in.Failures, t.files, t.probe = was.in.Failures, was.files, was.probe
			t.in.Health = was.in.Health
			if len(t.addrs) == 0 {
				t.addrs, t.in.Address = was.addrs, was.in.Address
			}
			if t.in.Phase != phaseNone && was.in.Phase != phaseNone && was.run == t.run {
				t.in.Started = was.in.Started
				if was.in.Phase == phaseStopped {
					t.in.Ended = was.in.Ended
				}
			}
			if was.in.Phase == phaseRunning && t.in.Phase == phaseStopped {
				m.countExit(t)
			}
		}
		fresh[c.ID] = t
	}
	for id, was := range m.instances {
		if fresh[id] == nil && m.busy[was.in.Key] {
			fresh[id] = was
		}
	}
	m.instances = fresh
	m.listed = true
	m.superviseAll(super)
	if m.cfg.Meter != nil {
		var ids []string
		for _, t := range fresh {
			ids = append(ids, incarnation(t.in.ID, t.run))
		}
		m.cfg.Meter.Retain(ids)
	}
	return nil
}

// moment is one moment by two clocks: the device's, by which all is judged here, and the
// machine's, which containerd writes down. The second may be years behind, and may be set
// at any time.
type moment struct{ device, machine time.Time }

// local is a past time of the machine's by the device's clock. A time to come is now: the
// machine's clock was set back.
func (now moment) local(at time.Time) time.Time {
	return now.device.Add(-max(0, now.machine.Sub(at)))
}

func (t *tracked) setProcess(p *tasktypes.Process, now moment) {
	switch p.Status {
	case tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, tasktypes.Status_PAUSING:
		t.in.Phase = phaseRunning
		t.in.Started = startOf(int(p.Pid), now.device, now.local(t.in.Created))
	case tasktypes.Status_STOPPED:
		t.in.Phase = phaseStopped
		t.in.Exit = int(p.ExitStatus)
		t.in.Ended = now.local(p.ExitedAt.AsTime())
		t.in.Started = now.local(t.in.Created)
		t.in.Finished = !t.in.Stopped
	default:
		// Created and never started: the next start clears it.
		t.in.Phase = phaseNone
	}
}

// watch follows containerd: lists, then listens; again after each break. A break of
// the daemon leaves containers alone, and what was known of them stands.
func (m *Manager) watch(ctx context.Context) {
	var o outage
	for ctx.Err() == nil {
		var since time.Time // of this connection; zero: there was none
		err := m.listen(ctx, func() {
			since = m.cfg.Now()
			if !o.since.IsZero() {
				m.cfg.Log.Info("containerd is back", "away", since.Sub(o.since).Round(time.Second).String())
			}
		})
		m.mu.Lock()
		m.connected = false
		m.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		pause, tell := o.failed(m.cfg.Now(), since)
		if tell {
			m.cfg.Log.Warn("containerd is out of reach; containers that run are left alone", "err", err, "since", o.since.UTC().Format(time.RFC3339))
		}
		m.warn("containerd-down", api.Critical, "containerd cannot be reached; containers that run are left alone")
		m.notify()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// Pace of an outage of containerd.
const (
	outagePause    = 200 * time.Millisecond // to the next attempt; it doubles
	outagePauseMax = 2 * time.Second
	outageTell     = time.Minute // from the first word to the second; it doubles
	outageTellMax  = time.Hour
	// outageOver is how long a connection must last to end an outage: a daemon that comes
	// and goes is told of once.
	outageOver = 10 * time.Second
)

// outage is a time without containerd: how soon it is tried again, and how often it is
// told of.
type outage struct {
	since       time.Time // zero: none yet
	pause, wait time.Duration
	next        time.Time // when it is told of again
}

// failed takes a failed attempt, or the end of a connection made at connected.
func (o *outage) failed(now, connected time.Time) (pause time.Duration, tell bool) {
	if o.since.IsZero() || !connected.IsZero() && now.Sub(connected) >= outageOver {
		*o = outage{since: now, pause: outagePause, wait: outageTell, next: now}
	}
	pause = o.pause
	o.pause = min(2*o.pause, outagePauseMax)
	if now.Before(o.next) {
		return pause, false
	}
	o.next = now.Add(o.wait)
	o.wait = min(2*o.wait, outageTellMax)
	return pause, true
}

// listen follows containerd until the connection breaks; up is called when it is made.
func (m *Manager) listen(ctx context.Context, up func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Listening begins before listing, so that no exit falls between.
	envelopes, errs := m.client.Subscribe(ctx, `topic=="/tasks/exit"`, `topic=="/tasks/oom"`)
	if err := m.relist(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	m.connected = true
	m.mu.Unlock()
	up()
	m.warn("containerd-down", api.Critical, "")
	m.notify()
	m.poke()
	// Events may be lost by a daemon under pressure; a slow look at all makes up for it.
	again := time.NewTicker(time.Minute)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-errs:
			if err == nil {
				err = errors.New("the event stream ended")
			}
			return err
		case e := <-envelopes:
			m.handle(e)
		case <-again.C:
			if err := m.relist(ctx); err != nil {
				return err
			}
			m.poke()
		}
	}
}

func (m *Manager) handle(e *events.Envelope) {
	if e == nil || e.Event == nil || e.Namespace != m.cfg.Namespace {
		return
	}
	ev, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return
	}
	switch ev := ev.(type) {
	case *apievents.TaskExit:
		if ev.ID != ev.ContainerID {
			return
		}
		m.mu.Lock()
		t := m.instances[ev.ContainerID]
		if t != nil && t.in.Phase != phaseStopped {
			t.in.Phase, t.in.Exit, t.in.Ended = phaseStopped, int(ev.ExitStatus), m.cfg.Now()
			t.in.Finished = !t.in.Stopped
			if t.in.Started.IsZero() {
				t.in.Started = t.in.Ended
			}
			m.countExit(t)
		}
		m.mu.Unlock()
		m.poke()
	case *apievents.TaskOOM:
		m.mu.Lock()
		t := m.instances[ev.ContainerID]
		m.mu.Unlock()
		if t != nil {
			m.event("app.out-of-memory", t.in.Key.String(), "a process was ended: the memory limit was reached")
		}
	}
}

// countExit notes the end of a run. m.mu is held.
func (m *Manager) countExit(t *tracked) {
	t.endProbe()
	if t.in.Ended.Sub(t.in.Started) >= ranWell {
		t.in.Failures = 0
	}
	if t.in.Finished {
		t.in.Failures++
		m.exits = append(m.exits, exit{t.in.Key, t.in.ID, t.in.Exit})
	}
}

// exit is a run that ended by itself and is not told of yet.
type exit struct {
	key  serviceKey
	id   string
	code int
}

// noteExits tells of runs that ended and keeps their exit codes with the container,
// so that a task that was done is known to be done after a restart of the device.
func (m *Manager) noteExits(ctx context.Context) {
	m.mu.Lock()
	list := m.exits
	m.exits = nil
	m.mu.Unlock()
	for _, e := range list {
		if err := m.label(ctx, e.id, map[string]string{labelExit: strconv.Itoa(e.code)}); err != nil && !errdefs.IsNotFound(err) {
			m.cfg.Log.Warn("exit code cannot be kept", "container", e.id, "err", err)
		}
		m.event("app.exited", e.key.String(), "exit code "+strconv.Itoa(e.code))
	}
}

func (m *Manager) notify() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// world builds the world that plan sees. m.mu is held.
func (m *Manager) world() world {
	w := world{Now: m.cfg.Now(), Apps: slices.Clone(m.want), Images: map[string]imageState{}, Rejected: m.rejected, LaunchFailed: m.launchErr, Busy: m.busy}
	for i := range w.Apps {
		w.Apps[i].InForce = m.inForce[w.Apps[i].Name]
		w.Apps[i].Refused = firstOf(w.Apps[i].Refused, m.hidesListener(&m.apps[i]))
		if w.Apps[i].Hold != "" {
			w.Apps[i].Services = m.held(w.Apps[i].Name)
		}
	}
	for _, t := range m.instances {
		w.Instances = append(w.Instances, t.in)
	}
	for ref, im := range m.images {
		w.Images[ref] = im.imageState
	}
	for app := range m.inForce {
		w.Leftover = append(w.Leftover, app)
	}
	slices.Sort(w.Leftover)
	return w
}
