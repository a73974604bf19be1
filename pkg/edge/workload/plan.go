package workload

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/report"
)

// This file decides; it does nothing. plan takes the world as it stands and
// returns what to do next. It is called again after each action and each event,
// so it never plans more than one step of a service ahead.

// world is all that a decision may depend on.
type world struct {
	Now       time.Time
	Apps      []wantApp
	Instances []instance
	// Images tells of each image reference what is known of it.
	Images map[string]imageState
	// Rejected holds, by service, the hash of an update that did not become healthy.
	Rejected map[serviceKey]rejection
	// LaunchFailed holds, by service, failures to make a container of a hash.
	LaunchFailed map[serviceKey]launchFailure
	// Leftover lists apps that have folders or networks on this device.
	Leftover []string
	// Busy services have an action under way; nothing new is planned for them.
	Busy map[serviceKey]bool
}

type serviceKey struct{ App, Service string }

func (k serviceKey) String() string { return k.App + "/" + k.Service }

type wantApp struct {
	Name     string
	Digest   string
	InForce  string // digest that was last wholly in force
	Services []wantService
	// Refused is why the app cannot run here at all; empty when it can.
	Refused string
	// Hold is why what is wanted is not known; Services then are those that are here.
	Hold string
}

type wantService struct {
	api.Service
	Hash  string // of the effective spec: what makes a container another one
	Image string // full reference
	// StartFirst is true when old and new may run side by side: no host network, no
	// device, no writable folder that both would write to.
	StartFirst bool
	Order      int
}

type phase int

const (
	phaseNone    phase = iota // a container without a process: never started, or the device was restarted
	phaseRunning              // its process runs
	phaseStopped              // its process ended and is still known
)

type health int

const (
	healthNone health = iota // no check
	healthStarting
	healthGood
	healthBad
)

// instance is one container as observed.
type instance struct {
	ID      string
	Key     serviceKey
	Hash    string
	Order   int
	Created time.Time

	Phase   phase
	Started time.Time
	Ended   time.Time
	Exit    int
	// Finished is true when the last run is known to have ended by itself, also
	// after the device was restarted; Exit then holds its exit code.
	Finished bool
	// Stopped is true when this program ended it, so its exit says nothing.
	Stopped  bool
	Health   health
	Failures int // in a row, since it last ran well
	Restarts int
	Address  string
	// Held is true while another is in charge of the service and has its host ports:
	// this one is on trial beside it, or was replaced.
	Held bool
	// Found is true when this program did not start it: one before did, and may have been cut
	// short while it did. containerd ends what it starts for a caller who is gone, so an end
	// says nothing of what ran.
	Found bool
	// Mended is true when files of its image were lost, and came back while it ran.
	Mended bool
	// Moved is why it is to be started anew, where its service gets other devices.
	Moved string
}

type imageState struct {
	Ready   bool
	Pulling bool
	// Unproven is true when it is here, and files of it may not have reached the disk: the pull proves it.
	Unproven bool
	Error    string
	Retry    time.Time // not before
}

type rejection struct {
	Hash   string `json:"hash"`
	Reason string `json:"reason"`
}

type launchFailure struct {
	Hash  string
	Count int
	Last  time.Time
	Error string
	Lacks bool // the box lacks what the service claims
}

type verb string

const (
	doPull   verb = "pull"   // fetch and unpack Image
	doLaunch verb = "launch" // make a container of the wanted service and start it
	doExpose verb = "expose" // put a container in charge of its service: the host ports move to it from others
	doStart  verb = "start"  // start the process of an existing container
	doStop   verb = "stop"   // end its process, keep the container
	doRemove verb = "remove" // delete container, network and writable layer
	doReject verb = "reject" // remember that the update failed
	doDrop   verb = "drop"   // delete what is left of an app: volumes, folders, networks
)

type action struct {
	Verb   verb
	Key    serviceKey // Service is empty for drop
	ID     string     // of the instance, for expose, start, stop, remove
	Image  string     // for pull
	Want   *wantService
	Hash   string
	Hold   bool // for launch: another is in charge
	Reason string
}

func (a action) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %s", a.Verb, a.Key, a.ID, a.Reason))
}

type decision struct {
	Actions []action
	// Wake is when to decide again without an event; zero: no need.
	Wake   time.Time
	Status []api.AppStatus
	// Active names, by service, the instance that others should reach.
	Active map[serviceKey]string
	// InForce holds, by app, the digest that is wholly in force now.
	InForce map[string]string
}

// Timing of restarts and updates.
const (
	backoffFirst = 250 * time.Millisecond
	backoffMax   = 2 * time.Minute
	// ranWell is how long a process must run for its failures to be forgotten.
	ranWell = 30 * time.Second
	// settleTime is how long a new version without a health check must run before
	// the old one goes.
	settleTime = 3 * time.Second
)

// backoff is the pause after the n-th failure in a row (n from 1).
func backoff(n int) time.Duration {
	if n <= 0 {
		return 0
	}
	return min(backoffFirst<<min(n-1, 20), backoffMax)
}

// plan decides. It is a plain function: same world, same decision.
func plan(w world) decision {
	p := &planner{w: w, byKey: map[serviceKey][]*instance{}, wantKeys: map[serviceKey]bool{}, images: map[string]bool{}, acted: map[serviceKey]bool{}}
	p.out.Active = map[serviceKey]string{}
	p.out.InForce = map[string]string{}
	for i := range w.Instances {
		in := &w.Instances[i]
		p.byKey[in.Key] = append(p.byKey[in.Key], in)
	}
	for _, list := range p.byKey {
		slices.SortFunc(list, newestFirst)
	}
	wanted := map[string]bool{}
	for i := range w.Apps {
		wanted[w.Apps[i].Name] = true
		p.app(&w.Apps[i])
	}
	p.strays(wanted)
	return p.out
}

func newestFirst(a, b *instance) int {
	return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.ID, b.ID))
}

type planner struct {
	w        world
	byKey    map[serviceKey][]*instance
	wantKeys map[serviceKey]bool
	images   map[string]bool // pulls already planned
	acted    map[serviceKey]bool
	out      decision
	settled  bool // the app at hand is wholly in force
	pending  bool // something of the app at hand is to be fetched, made or judged
	waits    bool // a service of the app at hand waits for another
	rejected bool // an update of the app at hand was
}

func (p *planner) do(a action) {
	if a.Verb != doPull {
		// One step of a service at a time; the next decision sees its outcome.
		if p.w.Busy[a.Key] || p.acted[a.Key] {
			return
		}
		p.acted[a.Key] = true
	}
	p.out.Actions = append(p.out.Actions, a)
}

func (p *planner) wake(at time.Time) {
	if p.out.Wake.IsZero() || at.Before(p.out.Wake) {
		p.out.Wake = at
	}
}

// after is when a pause ends that began at since. One that began in times to come is over:
// the clock was set back, nobody knows how far.
func (p *planner) after(since time.Time, pause time.Duration) time.Time {
	if p.w.Now.Before(since) {
		return p.w.Now
	}
	return since.Add(pause)
}

func (p *planner) app(a *wantApp) {
	status := api.AppStatus{Name: a.Name, Bundle: a.InForce}
	p.settled = a.Hold == ""
	p.pending, p.waits, p.rejected = a.Hold != "", false, false
	for i := range a.Services {
		s := &a.Services[i]
		key := serviceKey{a.Name, s.Name}
		p.wantKeys[key] = true
		st := p.service(a, s, key)
		switch st.State {
		case api.Pulling, api.Starting, api.Stopping:
			p.pending = true
		case api.Pending:
			p.waits = true
		}
		status.Services = append(status.Services, st)
	}
	for key := range p.byKey {
		if key.App == a.Name && !p.wantKeys[key] {
			p.settled, p.pending = false, true
		}
	}
	if p.rejected {
		status.Rejected = a.Digest
	}
	if p.settled && a.Refused == "" {
		status.Bundle = a.Digest
		p.out.InForce[a.Name] = a.Digest
	}
	status.State, status.Message = report.Sum(status.Services)
	if a.Refused != "" {
		status.State, status.Message = api.Failed, a.Refused
	}
	if a.Hold != "" {
		if len(a.Services) == 0 {
			status.State = api.Pending
		}
		status.Message = join(a.Hold, status.Message)
	}
	// Who waits for a service that fails waits for as long as that fails.
	if failing := status.State == api.Backoff || status.State == api.Failed; !p.pending && (!p.waits || failing) {
		status.Taken = a.Digest
	}
	p.out.Status = append(p.out.Status, status)
}

// service plans the next step of one service and tells its state.
func (p *planner) service(a *wantApp, s *wantService, key serviceKey) api.ServiceStatus {
	if p.w.Images[s.Image].Unproven {
		p.image(s, key) // beside what runs
	}
	fresh, old := p.pick(s, key)
	for _, in := range old[min(1, len(old)):] {
		p.discard(in, "replaced")
	}
	rejected, failed := p.w.Rejected[key], p.w.LaunchFailed[key]
	if rejected.Hash != s.Hash {
		rejected = rejection{}
	}
	p.rejected = p.rejected || rejected.Hash != ""
	if failed.Hash != s.Hash {
		failed = launchFailure{}
	}
	switch {
	case fresh == nil && len(old) == 0:
		p.settled = false
		return p.first(a, s, key, failed)
	case fresh == nil:
		p.settled = false
		return p.update(a, s, key, old[0], rejected, failed)
	case len(old) == 0:
		return p.tend(a, s, key, fresh)
	}
	p.settled, p.pending = false, true
	return p.compare(a, s, key, fresh, old[0], rejected)
}

// pick sorts a service's containers into the one of the wanted version and the old
// ones: those that run first, of them those that are proven, newest first. Of twins the
// running one stays.
func (p *planner) pick(s *wantService, key serviceKey) (fresh *instance, old []*instance) {
	for _, in := range p.byKey[key] {
		switch {
		case in.Hash != s.Hash:
			old = append(old, in)
		case fresh == nil:
			fresh = in
		case fresh.Phase != phaseRunning && in.Phase == phaseRunning:
			p.discard(fresh, "a twin runs")
			fresh = in
		default:
			p.discard(in, "a newer twin exists")
		}
	}
	slices.SortStableFunc(old, func(a, b *instance) int {
		return cmp.Or(cmp.Compare(boolInt(b.Phase == phaseRunning), boolInt(a.Phase == phaseRunning)), cmp.Compare(boolInt(a.Held), boolInt(b.Held)))
	})
	return fresh, old
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// first plans the first container of a service.
func (p *planner) first(a *wantApp, s *wantService, key serviceKey, failed launchFailure) api.ServiceStatus {
	st := api.ServiceStatus{Name: s.Name, State: api.Pending}
	if a.Refused != "" {
		st.State, st.Message = api.Failed, a.Refused
		return st
	}
	if ready, state, msg := p.image(s, key); !ready {
		p.pending = true
		st.State, st.Message = state, msg
		return st
	}
	if msg := p.waitsFor(a, s, false); msg != "" {
		st.Message = msg
		return st
	}
	if failed.Count > 0 {
		st.State, st.Message, st.Lacks = api.Backoff, failed.Error, failed.Lacks
		if at := p.after(failed.Last, backoff(failed.Count+2)); p.w.Now.Before(at) {
			p.wake(at)
			return st
		}
	}
	if failed.Count == 0 {
		st.State = api.Starting
	}
	p.do(action{Verb: doLaunch, Key: key, Want: s, Hash: s.Hash})
	return st
}

// update plans the step from an old version to one that has no container yet.
func (p *planner) update(a *wantApp, s *wantService, key serviceKey, old *instance, rejected rejection, failed launchFailure) api.ServiceStatus {
	if failed.Count > 0 && rejected.Hash == "" {
		p.pending = true
		p.do(action{Verb: doReject, Key: key, Hash: s.Hash, Reason: failed.Error})
		return p.kept(a, s, key, old, failed.Error)
	}
	if rejected.Hash != "" {
		return p.kept(a, s, key, old, rejected.Reason)
	}
	if a.Refused != "" {
		return p.kept(a, s, key, old, a.Refused)
	}
	if ready, _, msg := p.image(s, key); !ready {
		p.pending = true
		st := p.tend(a, s, key, old)
		st.Message = join("update waits: "+msg, st.Message)
		return st
	}
	if msg := p.waitsFor(a, s, false); msg != "" {
		p.waits = true
		st := p.tend(a, s, key, old)
		st.Message = join("update waits: "+msg, st.Message)
		return st
	}
	p.out.Active[key] = old.ID
	if s.StartFirst || old.Phase != phaseRunning {
		p.expose(old)
		p.do(action{Verb: doLaunch, Key: key, Want: s, Hash: s.Hash, Hold: old.Phase == phaseRunning})
		return p.describe(old, api.Starting, "updating")
	}
	p.do(action{Verb: doStop, Key: key, ID: old.ID, Want: s, Reason: "replaced by a new version"})
	return p.describe(old, api.Stopping, "updating")
}

// kept tends the old instance of an update that failed.
func (p *planner) kept(a *wantApp, s *wantService, key serviceKey, old *instance, reason string) api.ServiceStatus {
	st := p.tend(a, s, key, old)
	st.Message = join("update failed, the previous version runs on: "+reason, st.Message)
	return st
}

// compare decides between a new version and the old one that it replaces.
func (p *planner) compare(a *wantApp, s *wantService, key serviceKey, fresh, old *instance, rejected rejection) api.ServiceStatus {
	p.out.Active[key] = old.ID
	if rejected.Hash != "" {
		if fresh.Phase == phaseRunning || old.Phase == phaseRunning {
			p.expose(old)
			p.discard(fresh, "did not become healthy")
			if s.StartFirst && old.Phase == phaseRunning {
				return p.describe(old, api.Running, "update failed, the previous version runs on: "+rejected.Reason)
			}
			return p.describe(old, api.Stopping, "update failed, the previous version returns: "+rejected.Reason)
		}
		p.discard(fresh, "did not become healthy")
		return p.describe(old, api.Starting, "update failed, the previous version returns: "+rejected.Reason)
	}
	verdict, reason := p.judge(s, fresh)
	switch verdict {
	case good:
		p.out.Active[key] = fresh.ID
		p.expose(fresh)
		p.discard(old, "replaced by a new version")
		return p.describe(fresh, api.Running, "")
	case bad:
		p.do(action{Verb: doReject, Key: key, Hash: s.Hash, Reason: reason})
		return p.describe(old, api.Starting, "update failed: "+reason)
	}
	if fresh.Phase != phaseRunning { // not yet, or its start was cut short
		if !s.StartFirst && old.Phase == phaseRunning {
			p.do(action{Verb: doStop, Key: key, ID: old.ID, Want: s, Reason: "replaced by a new version"})
		} else if p.waitsFor(a, s, true) == "" {
			p.do(action{Verb: doStart, Key: key, ID: fresh.ID, Want: s})
		}
	}
	if old.Phase != phaseRunning {
		p.out.Active[key] = fresh.ID
		p.expose(fresh) // a new one that is not proven is better than nobody
	} else if fresh.Held {
		p.expose(old)
	}
	return p.describe(fresh, api.Starting, "updating")
}

// expose puts an instance that runs in charge: it gets its service's host ports. What
// else is to be done about the service waits for that.
func (p *planner) expose(in *instance) {
	if in.Held && in.Phase == phaseRunning {
		p.settled = false
		p.do(action{Verb: doExpose, Key: in.Key, ID: in.ID})
	}
}

type verdict int

const (
	open verdict = iota
	good
	bad
)

func (p *planner) judge(s *wantService, in *instance) (verdict, string) {
	switch in.Phase {
	case phaseNone:
		return open, ""
	case phaseStopped:
		if in.Stopped {
			return bad, "stopped before it became healthy"
		}
		if in.Exit == 0 && !restartsAlways(s.Restart.Policy) {
			return good, ""
		}
		if in.Found {
			return open, ""
		}
		return bad, fmt.Sprintf("exited with %d before it became healthy", in.Exit)
	}
	switch in.Health {
	case healthGood:
		return good, ""
	case healthBad:
		return bad, "its health check fails"
	case healthStarting:
		return open, ""
	}
	if at := p.after(in.Started, settleTime); p.w.Now.Before(at) {
		p.wake(at)
		return open, ""
	}
	return good, ""
}

// tend keeps one instance alive by its restart policy.
func (p *planner) tend(a *wantApp, s *wantService, key serviceKey, in *instance) api.ServiceStatus {
	p.out.Active[key] = in.ID
	switch in.Phase {
	case phaseRunning:
		return p.tendRunning(s, key, in)
	case phaseNone:
		if in.Finished && !mayRestart(s.Restart, in) {
			return p.ended(in)
		}
		if msg := p.waitsFor(a, s, true); msg != "" {
			return p.describe(in, api.Pending, msg)
		}
		if failed := p.w.LaunchFailed[key]; failed.Hash == in.Hash && failed.Count > 0 {
			if at := p.after(failed.Last, backoff(failed.Count+2)); p.w.Now.Before(at) {
				p.wake(at)
				return p.describe(in, api.Backoff, failed.Error)
			}
		}
		p.do(action{Verb: doStart, Key: key, ID: in.ID, Want: s})
		return p.describe(in, api.Starting, "")
	}
	if in.Stopped || mayRestart(s.Restart, in) {
		failures := in.Failures
		if failed := p.w.LaunchFailed[key]; failed.Hash == in.Hash {
			failures += failed.Count
		}
		at := p.after(in.Ended, backoff(failures))
		if p.w.Now.Before(at) {
			p.wake(at)
			return p.describe(in, api.Backoff, fmt.Sprintf("exited with %d; starts again in %s", in.Exit, at.Sub(p.w.Now).Round(100*time.Millisecond)))
		}
		p.do(action{Verb: doStart, Key: key, ID: in.ID, Want: s})
		return p.describe(in, api.Starting, "")
	}
	return p.ended(in)
}

func (p *planner) tendRunning(s *wantService, key serviceKey, in *instance) api.ServiceStatus {
	p.expose(in)
	if in.Mended {
		p.do(action{Verb: doStop, Key: key, ID: in.ID, Want: s, Reason: "files of its image had been lost and are back"})
		return p.describe(in, api.Stopping, "started again: files of its image had been lost and are back")
	}
	if in.Moved != "" {
		p.do(action{Verb: doStop, Key: key, ID: in.ID, Want: s, Reason: in.Moved})
		return p.describe(in, api.Stopping, in.Moved)
	}
	switch in.Health {
	case healthStarting:
		return p.describe(in, api.Starting, "waits for its health check")
	case healthBad:
		if s.Restart.Policy != "no" {
			p.do(action{Verb: doStop, Key: key, ID: in.ID, Want: s, Reason: "unhealthy"})
			return p.describe(in, api.Backoff, "its health check fails; it is restarted")
		}
		return p.describe(in, api.Failed, "its health check fails")
	}
	return p.describe(in, api.Running, "")
}

func (p *planner) ended(in *instance) api.ServiceStatus {
	if in.Exit == 0 {
		return p.describe(in, api.Exited, "")
	}
	return p.describe(in, api.Failed, fmt.Sprintf("exited with %d", in.Exit))
}

// restartsAlways tells whether success, too, is followed by a restart.
func restartsAlways(policy string) bool { return policy == "always" || policy == "unless-stopped" }

// mayRestart applies the restart policy to an instance that ended by itself. No
// policy means on-failure: an app given to a device is meant to run, and a task
// that succeeded is meant to be done.
func mayRestart(r api.Restart, in *instance) bool {
	switch r.Policy {
	case "no":
		return false
	case "", "on-failure":
		return in.Exit != 0 && (r.Max == 0 || in.Restarts < r.Max)
	}
	return true
}

// image reports whether the service's image is here, and plans the pull if not.
func (p *planner) image(s *wantService, key serviceKey) (ready bool, state api.AppState, msg string) {
	im := p.w.Images[s.Image]
	switch {
	case im.Ready:
		return true, "", ""
	case im.Pulling:
		return false, api.Pulling, "fetching " + s.Service.Image
	case im.Error != "" && p.w.Now.Before(im.Retry) && im.Retry.Sub(p.w.Now) <= backoffMax:
		p.wake(im.Retry)
		return false, api.Pending, "image " + s.Service.Image + ": " + im.Error
	}
	if !p.images[s.Image] {
		p.images[s.Image] = true
		p.do(action{Verb: doPull, Key: key, Image: s.Image})
	}
	if im.Error != "" {
		return false, api.Pending, "image " + s.Service.Image + ": " + im.Error
	}
	return false, api.Pulling, "fetching " + s.Service.Image
}

// waitsFor tells which dependency is not there yet; empty when none. made is true for
// an instance that exists already: what it was made beside is good enough for it, since
// a dependency's update may wait for its image as long as the uplink is down.
func (p *planner) waitsFor(a *wantApp, s *wantService, made bool) string {
	for _, d := range s.DependsOn {
		in, coming := p.serving(a, d.Service, made)
		if made && !coming {
			continue
		}
		ok := in != nil
		if ok {
			done := in.Phase != phaseRunning && in.Finished && !in.Stopped && in.Exit == 0
			switch d.Condition {
			case "service_completed_successfully":
				ok = done
			case "service_healthy":
				ok = in.Phase == phaseRunning && (in.Health == healthGood || in.Health == healthNone)
			default:
				ok = in.Phase == phaseRunning || done
			}
		}
		if !ok {
			return "waits for " + d.Service + " (" + cmp.Or(d.Condition, "service_started") + ")"
		}
	}
	return ""
}

// serving finds the instance of a service that others depend on: the wanted version
// when it exists, else the one that runs on in its place, or with made the one that is
// there. coming is false when there is none and none can be made now, for its image is
// not here.
func (p *planner) serving(a *wantApp, service string, made bool) (in *instance, coming bool) {
	list := p.byKey[serviceKey{a.Name, service}]
	coming = len(list) > 0
	for i := range a.Services {
		if a.Services[i].Name != service {
			continue
		}
		for _, in := range list {
			if in.Hash == a.Services[i].Hash {
				return in, true
			}
		}
		coming = coming || p.w.Images[a.Services[i].Image].Ready
		if r := p.w.Rejected[serviceKey{a.Name, service}]; !made && r.Hash != a.Services[i].Hash {
			return nil, true // its update comes first
		}
	}
	for _, in := range list {
		if in.Phase == phaseRunning {
			return in, true
		}
	}
	if len(list) > 0 {
		return list[0], true
	}
	return nil, coming
}

// discard ends and removes an instance that is not wanted any more.
func (p *planner) discard(in *instance, reason string) {
	if in.Phase == phaseRunning {
		p.do(action{Verb: doStop, Key: in.Key, ID: in.ID, Reason: reason})
		return
	}
	p.do(action{Verb: doRemove, Key: in.Key, ID: in.ID, Reason: reason})
}

// strays ends what no app asks for: dependents before what they depend on, then
// the app's own things.
func (p *planner) strays(wanted map[string]bool) {
	highest := map[string]int{}
	for key, list := range p.byKey {
		if p.wantKeys[key] {
			continue
		}
		for _, in := range list {
			highest[key.App] = max(highest[key.App], in.Order)
		}
	}
	keys := make([]serviceKey, 0, len(p.byKey))
	for key := range p.byKey {
		if !p.wantKeys[key] {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b serviceKey) int { return strings.Compare(a.String(), b.String()) })
	leaving := map[string]*api.AppStatus{}
	for _, key := range keys {
		for _, in := range p.byKey[key] {
			if wanted[key.App] || in.Order == highest[key.App] {
				p.discard(in, "not wanted any more")
			}
			if !wanted[key.App] {
				st := leaving[key.App]
				if st == nil {
					st = &api.AppStatus{Name: key.App, State: api.Stopping}
					leaving[key.App] = st
				}
				st.Services = append(st.Services, p.describe(in, api.Stopping, ""))
			}
		}
	}
	for _, key := range keys {
		if st := leaving[key.App]; st != nil {
			p.out.Status = append(p.out.Status, *st)
			delete(leaving, key.App)
		}
	}
	present := map[string]bool{}
	for key := range p.byKey {
		present[key.App] = true
	}
	for key, busy := range p.w.Busy {
		present[key.App] = present[key.App] || busy
	}
	for _, name := range p.w.Leftover {
		if !wanted[name] && !present[name] {
			p.do(action{Verb: doDrop, Key: serviceKey{App: name}})
		}
	}
}

func (p *planner) describe(in *instance, state api.AppState, msg string) api.ServiceStatus {
	st := api.ServiceStatus{Name: in.Key.Service, State: state, Container: in.ID, Restarts: in.Restarts, Address: in.Address, Message: msg}
	if in.Phase == phaseStopped || in.Finished && in.Phase == phaseNone {
		code := in.Exit
		st.ExitCode = &code
	}
	return st
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}
