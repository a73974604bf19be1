package workload

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/claim"
)

// loop decides and sets going, again and again. It reads: the apps as set, the
// containers as observed, images, the clock. It writes: containers, through the
// actions; status.
func (m *Manager) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.kick:
		case <-timer.C:
		}
		if wake := m.step(ctx); !wake.IsZero() {
			timer.Reset(max(time.Millisecond, wake.Sub(m.cfg.Now())))
		}
	}
}

// step decides once and starts what was decided.
func (m *Manager) step(ctx context.Context) time.Time {
	m.noteExits(ctx)
	m.releaseEnded()
	m.mu.Lock()
	if !m.isSet || !m.listed || !m.connected {
		m.mu.Unlock()
		return time.Time{}
	}
	m.findImages(ctx)
	d := plan(m.world())
	changed := !reflect.DeepEqual(d.Status, m.status)
	m.status, m.active = d.Status, d.Active
	for _, a := range d.Actions {
		m.begin(ctx, a)
	}
	m.superviseAll(ctx)
	save := m.noteInForce(d.InForce)
	idle := len(m.busy) == 0
	m.mu.Unlock()

	for app, mem := range save {
		if err := m.root.saveApp(app, mem); err != nil {
			m.cfg.Log.Warn("memory of an app cannot be kept", "app", app, "err", err)
		}
	}
	m.refreshFiles()
	if changed {
		m.notify()
	}
	if idle && len(d.Actions) == 0 {
		m.sweep(ctx)
	}
	return d.Wake
}

// findImages asks containerd once for each image that is wanted and not yet known,
// so that an app whose images are here starts without a pull. m.mu is held.
func (m *Manager) findImages(ctx context.Context) {
	for _, a := range m.want {
		for _, s := range a.Services {
			if m.images[s.Image] != nil {
				continue
			}
			m.mu.Unlock()
			info, err := m.lookup(ctx, s.Image)
			m.mu.Lock()
			if err != nil {
				info = &imageInfo{}
			}
			m.images[s.Image] = info
		}
	}
}

// begin starts one action in the background. m.mu is held.
func (m *Manager) begin(ctx context.Context, a action) {
	switch a.Verb {
	case doPull:
		was := m.images[a.Image]
		next := &imageInfo{imageState: imageState{Pulling: true}}
		if was != nil {
			next.attempts, next.Error, next.Unproven = was.attempts, was.Error, was.Unproven
		}
		m.images[a.Image] = next
	case doReject:
		m.reject(a)
		return
	default:
		if m.busy[a.Key] {
			return
		}
		m.busy[a.Key] = true
	}
	m.cfg.Log.Debug("begin", "action", a.String())
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		m.execute(ctx, a)
		if a.Verb != doPull {
			m.mu.Lock()
			delete(m.busy, a.Key)
			m.mu.Unlock()
		}
		m.poke()
	}()
}

func (m *Manager) execute(ctx context.Context, a action) {
	var err error
	if a.Verb != doPull {
		// A daemon that hangs must not hold a service for ever.
		limit := actionLimit
		if a.Want != nil {
			limit += time.Duration(a.Want.StopGrace)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	switch a.Verb {
	case doPull:
		m.pull(ctx, a.Image)
	case doLaunch:
		err = m.launch(ctx, a.Key, a.Want, a.Hold)
		m.noteLaunch(a.Key, a.Hash, err)
	case doExpose:
		err = m.expose(ctx, a.ID)
	case doStart:
		err = m.restart(ctx, a.ID)
		m.noteLaunch(a.Key, m.hashOf(a.ID), err)
	case doStop:
		err = m.stop(ctx, a)
	case doRemove:
		err = m.remove(ctx, a.ID)
	case doDrop:
		err = m.drop(a.Key.App)
	}
	if err != nil && ctx.Err() == nil {
		m.cfg.Log.Warn("action failed", "action", a.String(), "err", err)
		if a.Verb == doStop || a.Verb == doRemove || a.Verb == doDrop || a.Verb == doExpose {
			// These are asked for again at once; a pause keeps a fault from spinning.
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// actionLimit bounds one action; a volume's first filling is the longest part of one.
const actionLimit = 5 * time.Minute

// noteLaunch remembers that a container could not be made or started. A daemon that
// went away in between says nothing about the app.
func (m *Manager) noteLaunch(key serviceKey, hash string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil || errors.Is(err, context.Canceled) {
		delete(m.launchErr, key)
		return
	}
	f := m.launchErr[key]
	if f.Hash != hash {
		f = launchFailure{Hash: hash}
	}
	if !isUnavailable(err) {
		f.Count++
	}
	var missing *claim.Missing
	f.Last, f.Error, f.Lacks = m.cfg.Now(), brief(errors.New(plainly(err))), errors.As(err, &missing)
	m.launchErr[key] = f
}

func (m *Manager) hashOf(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.instances[id]; t != nil {
		return t.in.Hash
	}
	return ""
}

// reject remembers, durably, that an update failed, so that it is not tried again
// until it changes. m.mu is held.
func (m *Manager) reject(a action) {
	m.rejected[a.Key] = rejection{Hash: a.Hash, Reason: a.Reason}
	if err := m.root.saveApp(a.Key.App, m.memoryOf(a.Key.App)); err != nil {
		m.cfg.Log.Warn("memory of an app cannot be kept", "app", a.Key.App, "err", err)
	}
	key, reason := a.Key, a.Reason
	go m.event("app.update-failed", key.String(), reason+"; the previous version runs on")
	m.poke()
}

// memoryOf gathers what is kept on disk of an app. m.mu is held.
func (m *Manager) memoryOf(app string) appMemory {
	mem := appMemory{InForce: m.inForce[app]}
	for key, r := range m.rejected {
		if key.App == app {
			if mem.Rejected == nil {
				mem.Rejected = map[string]rejection{}
			}
			mem.Rejected[key.Service] = r
		}
	}
	return mem
}

func (m *Manager) loadMemory() {
	apps, err := m.root.loadApps()
	if err != nil {
		m.cfg.Log.Warn("memory of apps cannot be read", "err", err)
	}
	for app, mem := range apps {
		m.inForce[app] = mem.InForce
		for service, r := range mem.Rejected {
			m.rejected[serviceKey{app, service}] = r
		}
	}
}

// noteInForce returns what must be saved because another version is wholly in
// force, or an app is new here. m.mu is held.
func (m *Manager) noteInForce(now map[string]string) map[string]appMemory {
	save := map[string]appMemory{}
	for i := range m.want {
		app := m.want[i].Name
		if !safeName.MatchString(app) {
			continue
		}
		was, known := m.inForce[app]
		digest, whole := now[app]
		if !whole {
			digest = was
		}
		if known && was == digest {
			continue
		}
		m.inForce[app] = digest
		if whole {
			for key := range m.rejected {
				if key.App == app {
					delete(m.rejected, key)
				}
			}
		}
		save[app] = m.memoryOf(app)
	}
	return save
}

// sweep runs when all is at rest: images that nothing names go. It runs once for
// each set of names.
func (m *Manager) sweep(ctx context.Context) {
	m.mu.Lock()
	var names []string
	for i := range m.want {
		for _, s := range m.want[i].Services {
			names = append(names, s.Image)
		}
	}
	for _, t := range m.instances {
		names = append(names, t.in.ID)
	}
	names = append(names, m.claimants()...)
	key := strconv.Itoa(len(m.instances)) + strings.Join(names, " ")
	same := key == m.swept
	m.swept = key
	m.mu.Unlock()
	if same {
		return
	}
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		if err := errors.Join(m.collectGarbage(ctx), m.sweepStrays(ctx)); err != nil && ctx.Err() == nil {
			m.cfg.Log.Warn("garbage could not be collected", "err", err)
		}
		if err := m.giveBack(ctx); err != nil && ctx.Err() == nil {
			m.cfg.Log.Warn("hardware could not be given back and is tried again", "err", err)
			m.mu.Lock()
			m.swept = ""
			m.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(backoffMax / 10):
			}
			m.poke()
		}
	}()
}

func (m *Manager) drop(app string) error {
	if err := errors.Join(m.net.Drop(app), m.root.dropApp(app)); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.inForce, app)
	for key := range m.rejected {
		if key.App == app {
			delete(m.rejected, key)
		}
	}
	for key := range m.launchErr {
		if key.App == app {
			delete(m.launchErr, key)
		}
	}
	m.mu.Unlock()
	m.event("app.removed", app, "containers and volumes are gone")
	return nil
}

func randomName() string {
	b := make([]byte, 5)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// startOf finds when a process started, by the clock that shows now; the kernel's word is
// in ticks since boot (proc(5), field 22).
func startOf(pid int, now, otherwise time.Time) time.Time {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return otherwise
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return otherwise
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return otherwise
	}
	const perSecond = 100 // USER_HZ, fixed for user space on all Linux platforms here
	return now.Add(-uptime() + time.Duration(ticks)*(time.Second/perSecond))
}

func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
