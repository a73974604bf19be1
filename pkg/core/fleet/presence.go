package fleet

import (
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// homecoming is how long after the core's start a device may stay away before it counts
// as gone: all are away then, and most come back.
const homecoming = 2 * time.Minute

// presenceEvent decides whether a device's coming or going is an event. told is what the
// last event said; a device that was never told of is away. The link itself keeps a lost
// session quiet for a while, so that what is not online here was silent for that long.
func presenceEvent(told, online, settled bool) (name string, tell bool) {
	switch {
	case online && !told:
		return store.EventOnline, true
	case !online && told && settled:
		return store.EventOffline, true
	}
	return "", false
}

// present notes what a device's coming or going makes an event of. The caller holds mu.
func (l *Loop) present(e *entry, seen *time.Time) {
	now := l.cfg.Now()
	settled := now.Sub(l.started) >= l.cfg.Homecoming
	name, tell := presenceEvent(l.told[e.ID], e.online, settled)
	if !tell {
		if l.told[e.ID] && !e.online && !settled {
			l.awaited[e.ID] = true
		}
		return
	}
	l.told[e.ID] = e.online
	event := store.DeviceEvent{Device: e.ID, Event: api.Event{Time: now.UnixMilli(), Name: name}}
	switch {
	case e.online && e.parent != "":
		event.Message = "by way of " + l.nameOf(e.parent)
	case !e.online && seen != nil:
		event.Message = "last heard of at " + seen.UTC().Format(time.RFC3339)
	}
	l.note(event)
}

// nameOf gives the name of a parent; the caller holds mu.
func (l *Loop) nameOf(parent string) string {
	if id, err := api.ParseDeviceID(parent); err == nil && l.worlds.byID[id] != nil && l.worlds.byID[id].Name != "" {
		return l.worlds.byID[id].Name
	}
	return parent
}

// late lists the devices that did not come back in time after the start, once.
func (l *Loop) late(now time.Time) (ids []api.DeviceID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.started) < l.cfg.Homecoming {
		return nil
	}
	for id := range l.awaited {
		ids = append(ids, id)
	}
	clear(l.awaited)
	return ids
}
