package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network"
)

// isUnavailable tells an error of the daemon from one of the container.
func isUnavailable(err error) bool {
	return errdefs.IsUnavailable(err) || errdefs.IsUnavailable(errgrpc.ToNative(err)) || errors.Is(err, context.DeadlineExceeded)
}

// app returns the app as set, or nil.
func (m *Manager) app(name string) *App {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.apps {
		if m.apps[i].Bundle.App == name {
			return &m.apps[i]
		}
	}
	return nil
}

func newID(key serviceKey) string {
	name := key.App + "-" + key.Service
	// containerd allows 76 characters.
	return strings.TrimRight(name[:min(len(name), 60)], "-_.") + "-" + randomName()
}

// launch makes a container of a wanted service and starts it. What does not depend
// on each other (network, writable layer, container record) is made at once.
func (m *Manager) launch(ctx context.Context, key serviceKey, want *wantService, hold bool) (err error) {
	app := m.app(key.App)
	m.mu.Lock()
	info := m.images[want.Image]
	m.mu.Unlock()
	if app == nil || info == nil || !info.Ready {
		return nil // the world moved on; plan sees it
	}
	id := newID(key)
	svc := want.Service
	held, err := m.take(ctx, key, &svc)
	if err != nil {
		return err
	}
	made, err := m.prepare(ctx, app, id, &svc, info)
	if err != nil {
		return errors.Join(err, m.cleanUp(ctx, id, key, &svc))
	}
	made.blueprint.Held, made.blueprint.Rest = held, m.rest()
	devices := madeWith(held, made.blueprint.Rest)
	spec, err := buildSpec(ctx, made.blueprint)
	if err != nil {
		return errors.Join(err, m.cleanUp(ctx, id, key, &svc))
	}
	var addrs []netip.Addr
	var rootfs []mount.Mount
	g, gctx := errgroup.WithContext(ctx)
	if hasNamespace(&svc) {
		// Addresses and rules outlive a crash of edged; the record by which they are
		// found again comes first.
		if err := m.record(ctx, id, key, want, hold, devices, spec); err != nil {
			return errors.Join(err, m.cleanUp(ctx, id, key, &svc))
		}
	} else {
		g.Go(func() error { return m.record(gctx, id, key, want, hold, devices, spec) })
	}
	g.Go(func() (err error) { addrs, err = m.attach(gctx, id, key.App, &svc, held, hold); return err })
	g.Go(func() (err error) { rootfs, err = m.prepareSnapshot(gctx, id, info); return err })
	if err := g.Wait(); err != nil {
		if errdefs.IsNotFound(err) {
			// The image went behind our back; look again.
			m.mu.Lock()
			delete(m.images, want.Image)
			m.mu.Unlock()
		}
		return errors.Join(err, m.cleanUp(ctx, id, key, &svc))
	}
	t := &tracked{image: want.Image, svc: svc, addrs: addrs, files: fileSum(app, &svc), devices: devices}
	t.in = instance{ID: id, Key: key, Hash: want.Hash, Order: want.Order, Created: m.cfg.Now(), Held: hold}
	if len(addrs) > 0 {
		t.in.Address = addrs[0].String()
	}
	m.mu.Lock()
	m.instances[id] = t
	m.mu.Unlock()
	m.writeHosts(t)
	if err := m.startTask(ctx, t, rootfs); err != nil {
		return errors.Join(err, m.remove(ctx, id))
	}
	m.event("app.started", key.String(), id)
	return nil
}

// prepared is what exists on the host for a container before it does.
type prepared struct{ blueprint blueprint }

// prepare makes folders, files and volumes. It may be repeated.
func (m *Manager) prepare(ctx context.Context, app *App, id string, s *api.Service, info *imageInfo) (prepared, error) {
	name := app.Bundle.App
	usr, err := m.resolveUser(ctx, s, info)
	if err != nil {
		return prepared{}, err
	}
	b := blueprint{ID: id, App: name, Service: s, Image: info, User: usr, Shim: m.root.shim(name)}
	if hasNamespace(s) {
		b.NetNS = m.net.Namespace(id)
	}
	if b.Mounts, err = m.root.writeNames(name, id, hostname(s), nil, m.resolvFor(s)); err != nil {
		return prepared{}, err
	}
	if s.Init {
		if _, err := os.Stat(m.cfg.InitHelper); err != nil {
			return prepared{}, &api.Error{Code: api.Invalid, Message: "init: true needs the program edged-init on the device, beside edged-log", Remedy: "install it, or remove init", Err: err}
		}
		b.Mounts = append(b.Mounts, hostMount{Source: m.cfg.InitHelper, Target: initTarget, ReadOnly: true})
	}
	for _, mt := range s.Mounts {
		var src string
		switch mt.Kind {
		case api.MountVolume:
			src = m.root.volume(name, mt.Source)
			err = m.fillVolume(ctx, src, mt.Target, info)
		case api.MountBind:
			src, err = m.root.bind(name, mt.Source)
		default:
			continue
		}
		if err != nil {
			return prepared{}, err
		}
		b.Mounts = append(b.Mounts, hostMount{Source: src, Target: mt.Target, ReadOnly: mt.ReadOnly})
	}
	files, err := m.root.writeFiles(app, id, s)
	b.Mounts = append(b.Mounts, files...)
	return prepared{b}, err
}

// attach joins a container to its networks; hold leaves its host ports to expose.
func (m *Manager) attach(ctx context.Context, id, app string, s *api.Service, held []api.HeldDevice, hold bool) ([]netip.Addr, error) {
	if !hasNamespace(s) {
		return nil, nil
	}
	r := attachment(id, app, s)
	r.Hold, r.Links = hold, linksOf(held)
	res, err := m.net.Attach(ctx, r)
	return res.Addresses, err
}

// expose puts a container in charge of its service and moves the host ports to it. The
// labels follow, so that what a crash cuts short is done again.
func (m *Manager) expose(ctx context.Context, id string) error {
	m.mu.Lock()
	t := m.instances[id]
	var others []*tracked
	for _, o := range m.instances {
		if t != nil && o != t && o.in.Key == t.in.Key {
			others = append(others, o)
		}
	}
	m.mu.Unlock()
	if t == nil {
		return nil
	}
	var from []network.Request
	for _, o := range others {
		from = append(from, attachment(o.in.ID, o.in.Key.App, &o.svc))
	}
	if err := m.net.Move(ctx, attachment(id, t.in.Key.App, &t.svc), from); err != nil {
		return err
	}
	for _, o := range append(others, t) {
		held := ""
		if o != t {
			held = "1"
		}
		if err := m.label(ctx, o.in.ID, map[string]string{labelHeld: held}); err != nil {
			return err
		}
		m.mu.Lock()
		o.in.Held = o != t
		m.mu.Unlock()
	}
	return nil
}

// prepareSnapshot makes the writable layer. The label keeps containerd's garbage
// collector off until the container's record names it, and after.
func (m *Manager) prepareSnapshot(ctx context.Context, id string, info *imageInfo) ([]mount.Mount, error) {
	labels := map[string]string{labelGCRoot: m.cfg.Now().UTC().Format(time.RFC3339), labelOurs: "container"}
	return m.client.SnapshotService(m.cfg.Snapshotter).Prepare(ctx, id, info.chain, snapshots.WithLabels(labels))
}

// record makes containerd's record of the container.
func (m *Manager) record(ctx context.Context, id string, key serviceKey, want *wantService, hold bool, devices string, spec any) error {
	any, err := typeurl.MarshalAny(spec)
	if err != nil {
		return err
	}
	svc, err := json.Marshal(want.Service)
	if err != nil {
		return err
	}
	// runc's own records lie with the device's other volatile things, not in the
	// host's common place.
	opts, err := typeurl.MarshalAny(&options.Options{Root: filepath.Join(m.cfg.Run, "runc")})
	if err != nil {
		return err
	}
	labels := map[string]string{
		labelApp: key.App, labelService: key.Service, labelHash: want.Hash, labelOrder: strconv.Itoa(want.Order), labelRun: "0",
	}
	if hold {
		labels[labelHeld] = "1"
	}
	if devices != "" {
		labels[labelDevices] = devices
	}
	_, err = m.client.ContainerService().Create(ctx, containers.Container{
		ID: id, Image: want.Image, Runtime: containers.RuntimeInfo{Name: m.cfg.Runtime, Options: opts},
		Spec: any, Snapshotter: m.cfg.Snapshotter, SnapshotKey: id,
		Extensions: map[string]typeurl.Any{extService: serviceExtension(svc)},
		Labels:     labels,
	})
	return err
}

func (m *Manager) logURI(t *tracked) string {
	dir := filepath.Join(m.root.logs(t.in.Key.App, t.in.Key.Service), t.in.ID)
	u := url.URL{Scheme: "binary", Path: m.cfg.LogHelper, RawQuery: url.Values{"dir": {dir}}.Encode()}
	return u.String()
}

// startTask creates the container's process, with the logger in place, and starts it.
func (m *Manager) startTask(ctx context.Context, t *tracked, rootfs []mount.Mount) error {
	id := t.in.ID
	if err := os.MkdirAll(filepath.Join(m.root.logs(t.in.Key.App, t.in.Key.Service), id), 0o750); err != nil {
		return err
	}
	uri := m.logURI(t)
	req := &tasks.CreateTaskRequest{ContainerID: id, Stdout: uri, Stderr: uri}
	for _, mt := range rootfs {
		req.Rootfs = append(req.Rootfs, &types.Mount{Type: mt.Type, Source: mt.Source, Target: mt.Target, Options: mt.Options})
	}
	m.mu.Lock()
	t.released = false
	t.in.Phase, t.in.Started, t.in.Ended, t.in.Found = phaseNone, time.Time{}, time.Time{}, false
	t.in.Mended, t.in.Moved = false, ""
	m.mu.Unlock()
	_, err := m.client.TaskService().Create(ctx, req)
	if err = errgrpc.ToNative(err); errdefs.IsAlreadyExists(err) {
		// containerd was killed while it made one: it knows of a task that its shim does not. It refuses to clear away
		// what runs.
		if _, err := m.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id}); ignoreMissing(err) != nil {
			return errgrpc.ToNative(err)
		}
		_, err = m.client.TaskService().Create(ctx, req)
		err = errgrpc.ToNative(err)
	}
	if err != nil {
		return err
	}
	if _, err := m.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: id}); err != nil {
		_, derr := m.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
		return errors.Join(errgrpc.ToNative(err), ignoreMissing(derr))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.in.Phase == phaseNone { // else its exit was seen already
		t.in.Phase, t.in.Started = phaseRunning, m.cfg.Now()
		t.in.Stopped, t.in.Finished = false, false
	}
	return nil
}

// restart starts the process of an existing container again: after it ended, or
// after the device was restarted and nothing but its record and layer are left.
func (m *Manager) restart(ctx context.Context, id string) error {
	m.mu.Lock()
	t := m.instances[id]
	m.mu.Unlock()
	if t == nil {
		return nil
	}
	app := m.app(t.in.Key.App)
	if app == nil {
		return nil
	}
	if err := m.finish(ctx, t); err != nil {
		return err
	}
	m.mu.Lock()
	info := m.images[t.image]
	m.mu.Unlock()
	if info == nil || !info.Ready {
		var err error
		if info, err = m.lookup(ctx, t.image); err != nil {
			return err
		}
	}
	held, err := m.take(ctx, t.in.Key, &t.svc)
	if err != nil {
		return err
	}
	if madeWith(held, m.rest()) != t.devices {
		// Its devices are made into it, and one of them is another now; plan makes another container.
		return m.remove(ctx, id)
	}
	if _, err := m.prepare(ctx, app, id, &t.svc, info); err != nil {
		return err
	}
	addrs, err := m.attach(ctx, id, t.in.Key.App, &t.svc, held, t.in.Held)
	if err != nil {
		return err
	}
	rootfs, err := m.client.SnapshotService(m.cfg.Snapshotter).Mounts(ctx, id)
	if errdefs.IsNotFound(err) {
		// Its making was cut short before the layer existed; plan makes another.
		return m.remove(ctx, id)
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	t.addrs = addrs
	if len(addrs) > 0 {
		t.in.Address = addrs[0].String()
	}
	run := t.run + 1
	m.mu.Unlock()
	// The number of the run is durable before the process exists: no two runs share one.
	if err := m.label(ctx, id, map[string]string{labelRun: strconv.Itoa(run), labelExit: "", labelStopped: ""}); err != nil {
		return err
	}
	m.mu.Lock()
	t.run, t.in.Restarts = run, run
	t.in.Stopped, t.in.Finished, t.in.Health = false, false, healthNone
	m.mu.Unlock()
	m.writeHosts(t)
	if err := m.startTask(ctx, t, rootfs); err != nil {
		return err
	}
	m.event("app.restarted", t.in.Key.String(), id)
	return nil
}

// label changes labels of a container; an empty value removes one.
func (m *Manager) label(ctx context.Context, id string, labels map[string]string) error {
	c := containers.Container{ID: id, Labels: labels}
	var paths []string
	for k := range labels {
		paths = append(paths, "labels."+k)
	}
	_, err := m.client.ContainerService().Update(ctx, c, paths...)
	return err
}

// finish reads the last counters of an ended process and clears it away. It is safe
// to repeat, and does nothing when there is no process.
func (m *Manager) finish(ctx context.Context, t *tracked) error {
	id := t.in.ID
	got, err := m.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		m.mu.Lock()
		t.in.Phase = phaseNone
		m.mu.Unlock()
		return nil
	}
	if err != nil {
		return err
	}
	if got.Process.Status == tasktypes.Status_RUNNING {
		m.mu.Lock()
		t.setProcess(got.Process, moment{m.cfg.Now(), time.Now()}) // it was started, and the answer was lost with containerd
		if t.released {
			t.in.Moved = "its interfaces were taken for those of an ended container"
		}
		m.mu.Unlock()
		return fmt.Errorf("workload: %s still runs", id)
	}
	m.mu.Lock()
	if got.Process.Status == tasktypes.Status_STOPPED && t.in.Phase != phaseStopped {
		t.in.Phase, t.in.Ended, t.in.Exit = phaseStopped, m.cfg.Now(), int(got.Process.ExitStatus)
	}
	tgt, phase := m.targetOf(t), t.in.Phase
	m.mu.Unlock()
	if m.cfg.Meter != nil && phase == phaseStopped {
		if err := m.cfg.Meter.Final(tgt); err != nil {
			return fmt.Errorf("workload: last counters of %s: %w", id, err)
		}
	}
	_, err = m.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	if err := ignoreMissing(err); err != nil {
		return err
	}
	m.mu.Lock()
	t.in.Phase = phaseNone
	m.mu.Unlock()
	if m.cfg.Meter != nil {
		m.cfg.Meter.Forget(tgt.ID)
	}
	return nil
}

func ignoreMissing(err error) error {
	if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// stop ends a process: first by its signal, after the grace by SIGKILL.
func (m *Manager) stop(ctx context.Context, a action) error {
	m.mu.Lock()
	t := m.instances[a.ID]
	if t == nil {
		m.mu.Unlock()
		return nil
	}
	t.endProbe()
	svc := t.svc
	if a.Want != nil {
		svc.StopSignal, svc.StopGrace = a.Want.StopSignal, a.Want.StopGrace
	}
	imageSignal := ""
	if im := m.images[t.image]; im != nil {
		imageSignal = im.config.StopSignal
	}
	m.mu.Unlock()
	m.event("app.stopping", t.in.Key.String(), a.Reason)
	if err := m.label(ctx, a.ID, map[string]string{labelStopped: "1"}); err != nil {
		return err
	}
	m.mu.Lock()
	t.in.Stopped = true
	if a.Reason == "unhealthy" {
		t.in.Failures++
	}
	m.mu.Unlock()
	grace := time.Duration(svc.StopGrace)
	if grace == 0 {
		grace = 10 * time.Second
	}
	if err := m.end(ctx, a.ID, signalOf(firstOf(svc.StopSignal, imageSignal)), grace); err != nil {
		return err
	}
	got, err := m.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: a.ID})
	m.mu.Lock()
	defer m.mu.Unlock()
	t.in.Phase, t.in.Finished = phaseNone, false
	if err == nil && got.Process.Status == tasktypes.Status_STOPPED {
		t.in.Phase, t.in.Exit, t.in.Ended = phaseStopped, int(got.Process.ExitStatus), m.cfg.Now()
	}
	return ignoreMissing(err)
}

func (m *Manager) end(ctx context.Context, id string, sig syscall.Signal, grace time.Duration) error {
	svc := m.client.TaskService()
	if _, err := svc.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(sig)}); ignoreMissing(err) != nil {
		return errgrpc.ToNative(err)
	}
	wait, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	_, err := svc.Wait(wait, &tasks.WaitRequest{ContainerID: id})
	if err == nil || errdefs.IsNotFound(errgrpc.ToNative(err)) {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, err := svc.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL), All: true}); ignoreMissing(err) != nil {
		return errgrpc.ToNative(err)
	}
	wait, cancel = context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, err = svc.Wait(wait, &tasks.WaitRequest{ContainerID: id})
	return ignoreMissing(err)
}

func signalOf(name string) syscall.Signal {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n)
	}
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if s := unix.SignalNum(name); s != 0 {
		return s
	}
	return unix.SIGTERM
}

// remove deletes a container whose process does not run.
func (m *Manager) remove(ctx context.Context, id string) error {
	m.mu.Lock()
	t := m.instances[id]
	m.mu.Unlock()
	if t == nil {
		return nil
	}
	if err := m.finish(ctx, t); err != nil {
		return err
	}
	if err := m.cleanUp(ctx, id, t.in.Key, &t.svc); err != nil {
		return err
	}
	m.mu.Lock()
	t.endProbe()
	delete(m.instances, id)
	m.mu.Unlock()
	return nil
}

// cleanUp deletes all that may exist of a container without a process. The record
// goes last: as long as it is there, a crash in between is made up for.
func (m *Manager) cleanUp(ctx context.Context, id string, key serviceKey, s *api.Service) error {
	ctx = context.WithoutCancel(ctx)
	if hasNamespace(s) {
		if err := m.net.Detach(ctx, attachment(id, key.App, s)); err != nil {
			return err
		}
	}
	if err := m.client.SnapshotService(m.cfg.Snapshotter).Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	err := errors.Join(os.RemoveAll(m.root.files(key.App, id)), os.RemoveAll(m.root.secrets(key.App, id)))
	if err != nil {
		return err
	}
	if err := removeCgroups(id); err != nil {
		m.cfg.Log.Warn("cgroups of a container stay behind", "container", id, "err", err)
	}
	if err := m.client.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return m.pruneLogs(key)
}

// pruneLogs keeps the logs of the newest two containers of a service, and of those
// that exist.
func (m *Manager) pruneLogs(key serviceKey) error {
	dirs, err := logDirs(m.root.logs(key.App, key.Service))
	if err != nil || len(dirs) <= 2 {
		return err
	}
	m.mu.Lock()
	dirs = slices.DeleteFunc(dirs[:len(dirs)-2], func(dir string) bool { return m.instances[filepath.Base(dir)] != nil })
	m.mu.Unlock()
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// sweepGrace spares what is being made at this moment, by the machine's clock, which wrote
// down when it was made.
const sweepGrace = time.Hour

// sweepStrays removes writable layers, views and folders that a crash left without a
// container.
func (m *Manager) sweepStrays(ctx context.Context) error {
	known := func(id string) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.instances[id] != nil
	}
	sn := m.client.SnapshotService(m.cfg.Snapshotter)
	var stray []string
	err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Labels[labelOurs] != "" && time.Since(info.Created) > sweepGrace && !known(info.Name) {
			stray = append(stray, info.Name)
		}
		return nil
	}, `labels."`+labelOurs+`"`)
	for _, name := range stray {
		err = errors.Join(err, sn.Remove(ctx, name))
	}
	for _, parent := range []string{"apps", "secrets"} {
		dirs, _ := filepath.Glob(filepath.Join(m.cfg.Run, parent, "*", "*"))
		for _, dir := range dirs {
			if st, serr := os.Stat(dir); serr == nil && time.Since(st.ModTime()) > sweepGrace && !known(filepath.Base(dir)) {
				err = errors.Join(err, removeCgroups(filepath.Base(dir)), os.RemoveAll(dir))
			}
		}
	}
	return err
}
