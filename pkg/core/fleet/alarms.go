package fleet

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Alarms are what the core's own end of the link finds wrong about one device. A device
// does not know of them, so they join its health here.

// quiet is how long an alarm stands after it was raised last: longer than the pauses
// between the reports of a device at rest, which would raise it again.
const quiet = 15 * time.Minute

// look is how often alarms that are over, and devices that stay away after a start, are
// looked for.
const look = time.Second

// remedies tell what to do about an alarm, by its name.
var remedies = map[string]string{
	"bad-mac":          "somebody between the device and the core alters what it reports: look at its parent, and move the device to another one",
	"bad-batch":        "records came that the device did not sign: look at its parent; the device keeps its own and sends them again",
	"bad-frame":        "the box sends what cannot be read: compare its version with the core's, then look at the box",
	"foreign-frame":    "the box speaks for devices that are not attached to it: look at it; if it was not you, retire it",
	"state-locked":     "if the change of its firmware was meant, approve it: edgectl device unlock-state NAME; if not, look at the box before anything else",
	"state-incomplete": "somebody between leaves out some of what the device reports: look at its parent, or move the device to another",
	"window-full":      "records from below the device wait and none is acknowledged: look at its uplink, and at the core's disk",
	"unproven-state":   "somebody between says without proof that the device has nothing to report: look at its parent",
	"record-fork":      "the device's records were put back to an older state, or its key was copied: if no disk was restored, retire it and enrol the box anew",
	"cloned-device":    "two boxes have this device's key: take one away, retire the device, and enrol the other anew",
}

// alarms keeps what stands, in memory: an alarm that is still true after a restart of the
// core is raised again, and the events tell of those before.
type alarms struct {
	mu    sync.Mutex
	quiet time.Duration
	byID  map[api.DeviceID]map[string]*alarm
}

type alarm struct {
	api.Warning
	last time.Time
}

// raise notes an alarm and reports whether it is new.
func (a *alarms) raise(id api.DeviceID, w api.Warning, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.byID[id][w.Name]; old != nil {
		old.last, old.Message = now, w.Message
		return false
	}
	if a.byID[id] == nil {
		a.byID[id] = map[string]*alarm{}
	}
	w.Since, w.Remedy = now.Unix(), remedies[w.Name]
	a.byID[id][w.Name] = &alarm{w, now}
	return true
}

// of lists what stands about a device, by name.
func (a *alarms) of(id api.DeviceID) (list []api.Warning) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, one := range a.byID[id] {
		list = append(list, one.Warning)
	}
	slices.SortFunc(list, func(x, y api.Warning) int { return cmp.Compare(x.Name, y.Name) })
	return list
}

// expire clears what was quiet for long enough, and lists whose alarms they were.
func (a *alarms) expire(now time.Time) (ids []api.DeviceID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, list := range a.byID {
		before := len(list)
		for name, one := range list {
			if now.Sub(one.last) >= a.quiet {
				delete(list, name)
			}
		}
		if len(list) < before {
			ids = append(ids, id)
		}
		if len(list) == 0 {
			delete(a.byID, id)
		}
	}
	return ids
}

// Alarm notes that something is wrong about a device: it stands in the device's health
// until it was quiet for a while, and each time that it begins is an event. It returns at
// once and may be called from any goroutine; of devices that are not known nobody hears.
func (l *Loop) Alarm(id api.DeviceID, w api.Warning) {
	if !l.alarms.raise(id, w, l.cfg.Now()) {
		return
	}
	l.note(store.DeviceEvent{Device: id, Event: api.Event{Time: l.cfg.Now().UnixMilli(), Name: store.EventAlarm, Subject: w.Name, Message: w.Message}})
	l.news.device(id)
}

// note keeps an event until the next sum writes it.
func (l *Loop) note(e store.DeviceEvent) {
	l.eventsMu.Lock()
	defer l.eventsMu.Unlock()
	l.events = append(l.events, e)
}

// takeEvents gives what is to be written, with the names of the devices; those that are
// not known have none.
func (l *Loop) takeEvents() (list []store.DeviceEvent) {
	l.eventsMu.Lock()
	events := l.events
	l.events = nil
	l.eventsMu.Unlock()
	for _, e := range events {
		key, known := l.keyOf(e.Device)
		if e.Label = key.Name; known {
			list = append(list, e)
		}
	}
	return list
}
