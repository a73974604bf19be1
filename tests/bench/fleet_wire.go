package main

import (
	"bytes"
	"context"
	"sync"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
)

// fleetWire is the way between a relay and its children, in memory: the relay's
// link.Downlink. Frames neither get lost nor overtake each other.
type fleetWire struct {
	relay api.DeviceID
	up    chan struct{} // closed once the relay listens

	mu       sync.Mutex
	handler  link.DownlinkHandler
	children map[api.DeviceID]*fleetLine
	retained map[api.DeviceID][]byte
}

func newFleetWire(relay api.DeviceID) *fleetWire {
	return &fleetWire{relay: relay, up: make(chan struct{}), children: map[api.DeviceID]*fleetLine{}, retained: map[api.DeviceID][]byte{}}
}

// Run implements link.Downlink.
func (w *fleetWire) Run(ctx context.Context, h link.DownlinkHandler) error {
	w.handler = h
	close(w.up)
	<-ctx.Done()
	return ctx.Err()
}

func (w *fleetWire) line(child api.DeviceID) *fleetLine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.children[child]
}

// Send implements link.Downlink.
func (w *fleetWire) Send(child api.DeviceID, frame []byte, _ bool) error {
	l := w.line(child)
	if l == nil {
		return link.ErrDown
	}
	frame = bytes.Clone(frame)
	return l.put(func(h link.UplinkHandler) { h.FromParent(frame) })
}

// Retain implements link.Downlink.
func (w *fleetWire) Retain(child api.DeviceID, raw []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.retained[child] = raw
	return nil
}

// Kick implements link.Downlink.
func (w *fleetWire) Kick(child api.DeviceID, reason string) {
	if l := w.line(child); l != nil {
		l.Reset(reason)
	}
}

// fleetLine is one device's end of a fleetWire: its link.Uplink.
type fleetLine struct {
	wire *fleetWire
	id   api.DeviceID
	cert []byte

	mu    sync.Mutex
	in    []func(link.UplinkHandler)
	wake  chan struct{}
	reset bool
	alive bool
}

func newFleetLine(w *fleetWire, id api.DeviceID, cert []byte) *fleetLine {
	l := &fleetLine{wire: w, id: id, cert: cert, wake: make(chan struct{}, 1)}
	w.children[id] = l
	return l
}

// Run implements link.Uplink.
func (l *fleetLine) Run(ctx context.Context, h link.UplinkHandler) error {
	select {
	case <-l.wire.up:
	case <-ctx.Done():
		return ctx.Err()
	}
	for ctx.Err() == nil {
		l.session(ctx, h)
	}
	return ctx.Err()
}

// session is one session; it ends by Reset or with ctx.
func (l *fleetLine) session(ctx context.Context, h link.UplinkHandler) {
	l.mu.Lock()
	l.in, l.reset, l.alive = nil, false, true
	l.mu.Unlock()
	l.wire.handler.ChildUp(l.id, l.cert)
	h.ParentUp(l.wire.relay)
	for {
		l.mu.Lock()
		todo, reset := l.in, l.reset
		l.in = nil
		l.mu.Unlock()
		if reset || ctx.Err() != nil {
			break
		}
		for _, do := range todo {
			do(h)
		}
		if len(todo) > 0 {
			continue
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
		}
	}
	l.mu.Lock()
	l.alive = false
	l.mu.Unlock()
	h.ParentDown(link.ErrDown)
	l.wire.handler.ChildDown(l.id)
}

// put queues something for the device.
func (l *fleetLine) put(do func(link.UplinkHandler)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.alive {
		return link.ErrDown
	}
	l.in = append(l.in, do)
	l.poke()
	return nil
}

func (l *fleetLine) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Send implements link.Uplink. The endpoint calls it from one goroutine.
func (l *fleetLine) Send(frame []byte, _ bool) error {
	l.mu.Lock()
	alive := l.alive
	l.mu.Unlock()
	if !alive {
		return link.ErrDown
	}
	l.wire.handler.FromChild(l.id, bytes.Clone(frame))
	return nil
}

// SetParents implements link.Uplink; there is but one.
func (l *fleetLine) SetParents([]api.ParentRef) {}

// FetchRetained implements link.Uplink.
func (l *fleetLine) FetchRetained() error {
	return l.put(func(h link.UplinkHandler) {
		l.wire.mu.Lock()
		raw := l.wire.retained[l.id]
		l.wire.mu.Unlock()
		if raw != nil {
			h.Retained(bytes.Clone(raw))
		}
	})
}

// Reset implements link.Uplink.
func (l *fleetLine) Reset(string) {
	l.mu.Lock()
	l.reset = true
	l.poke()
	l.mu.Unlock()
}
