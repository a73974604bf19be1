// Package rescue answers: shall the core let this person into that box?
//
// The box's console shows a challenge (package identity/unlock). A person whose role allows
// it has the core answer it: each challenge once, so many an hour, and only after the answer
// has been noted among the device's events.
package rescue

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/unlock"
)

// How many answers the core gives.
const (
	PerDevice = 6
	PerPerson = 30
	Window    = time.Hour
)

// Config is what a Desk is given; all of it is needed.
type Config struct {
	// Keys are the owner's unlock keys: the present one, and earlier ones that boxes may still ask for.
	Keys func() ([]*ecdh.PrivateKey, error)
	// Answered tells whether the device's events name the challenge already; Note adds it.
	Answered func(ctx context.Context, device api.DeviceID, challenge string) (bool, error)
	Note     func(ctx context.Context, device api.DeviceID, name string, e api.Event) error
	// Event is the name of that event.
	Event string
	Now   func() time.Time
}

// Desk answers challenges. Its methods may be called from any goroutine.
type Desk struct {
	cfg Config

	mu    sync.Mutex // one answer after the other: noted before the next is looked at
	given map[string][]time.Time
}

// New makes a desk.
func New(cfg Config) *Desk { return &Desk{cfg: cfg, given: map[string][]time.Time{}} }

// Answer is what was answered.
type Answer struct {
	Text      string
	Challenge string // its name in records
	Proven    bool
}

// Answer answers a challenge of this device for a person. Errors have codes of pkg/api.
func (d *Desk) Answer(ctx context.Context, device api.DeviceID, name, challenge, actor string) (a Answer, err error) {
	c, err := unlock.ParseChallenge(challenge)
	if err != nil {
		return a, &api.Error{Code: api.Invalid, Field: "challenge", Message: "the challenge is " + err.Error(), Remedy: "copy it from the code beside it, or compare it group by group", Err: err}
	}
	if c.Device != device { // check: device
		return a, otherDevice(c, device, name)
	}
	keys, err := d.cfg.Keys()
	if err != nil {
		return a, err
	}
	text, err := "", unlock.ErrOtherOwner
	for _, key := range keys {
		if text, err = unlock.Answer(key, c); !errors.Is(err, unlock.ErrOtherOwner) {
			break
		}
	}
	if errors.Is(err, unlock.ErrOtherOwner) {
		return a, &api.Error{Code: api.Conflict, Field: "challenge", Message: "the box asks for the answer of another core, or of an unlock key that is given up", Remedy: "ask the core that it belonged to when it last had a parent; once the box has its newest manifest, it asks for this one's", Err: err}
	}
	if err != nil {
		return a, &api.Error{Code: api.Invalid, Field: "challenge", Message: "the challenge cannot be answered", Err: err}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	done, err := d.cfg.Answered(ctx, device, c.ID())
	if err != nil {
		return a, err
	}
	if done { // check: once
		return a, &api.Error{Code: api.Conflict, Field: "challenge", Message: "this challenge has been answered already", Remedy: "ask for a new one at the box"}
	}
	if err := d.allow(device, actor); err != nil {
		return a, err
	}
	message := "the answer to its console's challenge was read: it opens a shell"
	if !c.Proven {
		message += "; the box could not read its own state, so it may be another of this owner's"
	}
	if err := d.cfg.Note(ctx, device, name, api.Event{Time: d.cfg.Now().UnixMilli(), Name: d.cfg.Event, Subject: c.ID(), Message: message, Actor: actor}); err != nil {
		return a, err
	}
	return Answer{Text: text, Challenge: c.ID(), Proven: c.Proven}, nil
}

func otherDevice(c unlock.Challenge, device api.DeviceID, name string) error {
	if c.Device == (api.DeviceID{}) {
		return &api.Error{Code: api.Conflict, Field: "challenge", Message: "the box does not know who it is, so its challenge names no device", Remedy: "a box without a state and an owner's file has nothing to look at: reset it, or install it anew"}
	}
	return &api.Error{Code: api.Conflict, Field: "challenge", Message: fmt.Sprintf("this is a challenge of device %s, and %s is %s", c.Device, name, device), Remedy: "find the device's name with `edgectl get devices -o wide`"}
}

// allow counts an answer, or says that there were too many. The caller holds mu.
func (d *Desk) allow(device api.DeviceID, actor string) error {
	since := d.cfg.Now().Add(-Window)
	for key, times := range d.given {
		times = slices.DeleteFunc(times, func(t time.Time) bool { return !t.After(since) })
		if d.given[key] = times; len(times) == 0 {
			delete(d.given, key)
		}
	}
	box, person := "d"+device.String(), "p"+actor
	if len(d.given[box]) >= PerDevice || len(d.given[person]) >= PerPerson { // check: limit
		return &api.Error{Code: api.Unavailable, Message: fmt.Sprintf("too many answers: %d for one device, or %d by one person, within an hour", PerDevice, PerPerson), Remedy: "wait, and look at `edgectl events` for who asks"}
	}
	now := d.cfg.Now()
	d.given[box], d.given[person] = append(d.given[box], now), append(d.given[person], now)
	return nil
}
