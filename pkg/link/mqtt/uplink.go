package mqtt

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
)

// DefaultPort is MQTT over TLS.
const DefaultPort = "8883"

// UplinkConfig is what Uplink needs. Zero values mean the defaults.
type UplinkConfig struct {
	// Identity is the device's own. nil means no TLS at all, under the id ID: for
	// measurements on one machine.
	Identity *identity.Live
	ID       api.DeviceID
	Parents  []api.ParentRef
	// KeepAlive is MQTT's, in whole seconds.
	KeepAlive time.Duration
	Backoff   Backoff
	// MaxQueue bounds the bytes that wait to be sent. Default 16 MiB.
	MaxQueue int
	Traffic  *Traffic
	Log      *slog.Logger
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	Random   func() float64 // in [0, 1)
	// Steady is how long a better parent must have answered before the device leaves a
	// lesser one for it. Default DefaultSteady.
	Steady time.Duration
	// Leads, when given, is asked before the device leaves a lesser parent for p: whether
	// the way through p leads to the core. One that is back may be cut off itself.
	Leads func(ctx context.Context, p api.ParentRef) error
	// Refused, when given, is told each time a parent turns the device's certificate away.
	Refused func()
}

const defaultQueue = 16 << 20

// Uplink is a device's way to its parent; it implements link.Uplink.
type Uplink struct {
	cfg UplinkConfig
	id  api.DeviceID

	mu      sync.Mutex
	ladder  ladder
	at      api.ParentRef // of the session in force
	climb   climb
	session *session
	changed chan struct{} // parents were replaced
	watches sync.WaitGroup
}

var _ link.Uplink = (*Uplink)(nil)

// NewUplink makes an uplink; Run does the work.
func NewUplink(cfg UplinkConfig) *Uplink {
	if cfg.KeepAlive <= 0 {
		cfg.KeepAlive = DefaultKeepAlive
	}
	if cfg.MaxQueue <= 0 {
		cfg.MaxQueue = defaultQueue
	}
	if cfg.Traffic == nil {
		cfg.Traffic = &Traffic{}
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{KeepAlive: -1}).DialContext
	}
	if cfg.Random == nil {
		cfg.Random = random
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Steady <= 0 {
		cfg.Steady = DefaultSteady
	}
	cfg.Backoff = cfg.Backoff.withDefaults()
	u := &Uplink{cfg: cfg, id: cfg.ID, changed: make(chan struct{}, 1)}
	if cfg.Identity != nil {
		u.id = cfg.Identity.Get().ID()
	}
	u.climb.steady = cfg.Steady
	u.ladder.set(cfg.Parents)
	return u
}

// Traffic is what crossed the way to the parent.
func (u *Uplink) Traffic() *Traffic { return u.cfg.Traffic }

// SetSteady changes Steady. It may be called at any time, from any goroutine.
func (u *Uplink) SetSteady(d time.Duration) {
	if d <= 0 {
		d = DefaultSteady
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.climb.steady = d
}

// attached is a session that was accepted, and with whom.
type attached struct {
	session *session
	parent  api.ParentRef
	who     api.DeviceID
}

// Run implements link.Uplink.
func (u *Uplink) Run(ctx context.Context, h link.UplinkHandler) error {
	defer u.watches.Wait()
	var better *attached // accepted by a better parent, while the session before was in force
	for ctx.Err() == nil {
		parent, ok := u.next()
		if !ok {
			select {
			case <-ctx.Done():
			case <-u.changed:
			}
			continue
		}
		began, climbed := time.Now(), better != nil
		var err error
		if better, err = u.serve(ctx, h, parent, better); better != nil {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		if u.cfg.Refused != nil && identity.TurnedAway(err) {
			u.cfg.Refused()
		}
		wait := u.after(parent, climbed, time.Since(began))
		u.cfg.Log.Info("no session with the parent", "parent", parent.Device, "address", parent.Address, "err", err, "retry", wait.Round(time.Millisecond))
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-u.changed: // perhaps a better address: try at once
		case <-t.C:
		}
		t.Stop()
	}
	if better != nil {
		better.session.finish(ctx.Err())
	}
	return ctx.Err()
}

func (u *Uplink) next() (api.ParentRef, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ladder.current()
}

// after notes how an attempt went by how long it lasted, and gives the pause before the
// next: a session that ends at once counts as a failure, or a parent that accepts and
// drops would be asked without a pause.
func (u *Uplink) after(parent api.ParentRef, climbed bool, lasted time.Duration) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if lasted > u.cfg.Backoff.Max/2 {
		u.ladder.held()
	}
	u.ladder.failed()
	u.climb.ended(parent, climbed, lasted)
	return u.cfg.Backoff.pause(u.ladder.failures(), u.cfg.Random())
}

// attach opens a session with a parent.
func (u *Uplink) attach(ctx context.Context, parent api.ParentRef) (*attached, error) {
	cfg := sessionConfig{addr: withPort(parent.Address), clientID: u.id.String(), willTopic: upTopic(u.id),
		subscribe: []string{downTopic(u.id)}, keepAlive: u.cfg.KeepAlive, maxQueue: u.cfg.MaxQueue,
		traffic: u.cfg.Traffic, log: u.cfg.Log, dial: u.cfg.Dial}
	if u.cfg.Identity != nil {
		cfg.tls = u.cfg.Identity.ClientTLS(parent.Device)
	}
	s, err := open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	who, err := u.peer(s, parent)
	if err != nil {
		return nil, s.finish(err)
	}
	return &attached{s, parent, who}, nil
}

// serve is one session from its beginning to its end; a is given when it has begun
// already. It returns the session with a better parent that takes its place, if one does.
func (u *Uplink) serve(ctx context.Context, h link.UplinkHandler, parent api.ParentRef, a *attached) (better *attached, err error) {
	if a == nil {
		if a, err = u.attach(ctx, parent); err != nil {
			return nil, err
		}
	}
	s := a.session
	if !u.begin(s, a.parent) {
		return nil, s.finish(errors.New("the parent is no longer listed"))
	}
	defer u.stop()
	looking, cancel := context.WithCancel(ctx)
	defer cancel()
	w := u.newWatch(a)
	u.watches.Go(func() { u.watch(looking, w) })
	h.ParentUp(a.who)
	for heard := int64(0); ; {
		select {
		case m := <-s.events:
			u.receive(s, h, m)
			continue
		case better = <-w.outcomes:
			heard++
			if better = u.take(better); better == nil {
				continue
			}
			s.end(errors.New("a better parent is back"))
		case <-ctx.Done():
			s.end(ctx.Err())
		case <-s.done:
		}
		err = s.finish(nil)
		u.stop() // a Send from within ParentDown must fail
		h.ParentDown(err)
		// A session that is being opened may be why this one ended: two addresses of one
		// broker, which keeps one session of a device.
		if better == nil && w.tried.Load() > heard && ctx.Err() == nil {
			select {
			case b := <-w.outcomes:
				better = u.take(b)
			case <-ctx.Done():
			}
		}
		return better, err
	}
}

// take makes the parent of a session that was accepted the present one; nil when there is
// no such session, or that parent is no longer better.
func (u *Uplink) take(b *attached) *attached {
	if b == nil {
		return nil
	}
	u.mu.Lock()
	ok := u.ladder.climbed(b.parent)
	u.mu.Unlock()
	if !ok {
		b.session.finish(errors.New("the parent is no longer listed"))
		return nil
	}
	u.cfg.Log.Info("back to a better parent", "parent", b.parent.Device, "address", b.parent.Address)
	return b
}

// peer tells whom the session is with; zero is the core.
func (u *Uplink) peer(s *session, parent api.ParentRef) (api.DeviceID, error) {
	if u.cfg.Identity != nil {
		id, _, err := identity.CertID(s.state.PeerCertificates[0])
		return id, err
	}
	if parent.Device == "" || parent.Device == identity.CoreName {
		return api.DeviceID{}, nil
	}
	return api.ParseDeviceID(parent.Device)
}

func (u *Uplink) begin(s *session, parent api.ParentRef) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now, ok := u.ladder.current(); !ok || now != parent {
		return false
	}
	u.session, u.at = s, parent
	return true
}

func (u *Uplink) stop() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.session = nil
}

func (u *Uplink) receive(s *session, h link.UplinkHandler, m message) {
	switch m.topic {
	case downTopic(u.id):
		h.FromParent(m.payload)
	case retainedTopic(u.id):
		// Once is enough: what follows comes as deltas on d/.
		s.push(op{topic: m.topic, unsubscribe: true})
		if len(m.payload) > 0 {
			h.Retained(m.payload)
		}
	}
}

// Send implements link.Uplink.
func (u *Uplink) Send(frame []byte, reliable bool) error {
	u.mu.Lock()
	s := u.session
	u.mu.Unlock()
	if s == nil {
		return link.ErrDown
	}
	return s.push(op{topic: upTopic(u.id), payload: bytes.Clone(frame), qos: qos(reliable)})
}

// SetParents implements link.Uplink.
func (u *Uplink) SetParents(parents []api.ParentRef) {
	u.mu.Lock()
	u.ladder.set(append([]api.ParentRef(nil), parents...))
	now, ok := u.ladder.current()
	s := u.session
	gone := s != nil && (!ok || now != u.at)
	u.mu.Unlock()
	if gone {
		s.end(errors.New("the parent is no longer listed"))
	}
	select {
	case u.changed <- struct{}{}:
	default:
	}
}

// FetchRetained implements link.Uplink.
func (u *Uplink) FetchRetained() error {
	u.mu.Lock()
	s := u.session
	u.mu.Unlock()
	if s == nil {
		return link.ErrDown
	}
	return s.push(op{topic: retainedTopic(u.id), subscribe: true})
}

// Reset implements link.Uplink.
func (u *Uplink) Reset(reason string) {
	u.mu.Lock()
	s := u.session
	u.mu.Unlock()
	if s != nil {
		s.end(errors.New(reason))
	}
}

func withPort(addr string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(addr, DefaultPort)
}
