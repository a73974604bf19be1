package mqtt

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
)

// ExternalConfig is what External needs. Zero values mean the defaults.
type ExternalConfig struct {
	Address string // host or host:port
	// TLS reaches the broker; identity.Live.ClientTLS("core") when the broker serves the
	// core's own certificate. nil is no TLS.
	TLS *tls.Config
	// Username is the core's client in the dynamic-security plugin: the common name of
	// its certificate where the broker takes names from certificates. Default "core".
	Username, Password string
	// Introduce reaches the broker as somebody who may let the core in (identity.CoreName), for
	// a Username that the broker does not know yet: that of one of several cores. nil: it does.
	Introduce *tls.Config
	// Out tells of a device that the broker lets in, and that nobody admitted, whether it is to be
	// put out: another core may have admitted it just now. nil: it is.
	Out       func(api.DeviceID) bool
	KeepAlive time.Duration
	Backoff   Backoff
	MaxQueue  int // bytes that wait for the broker; default 64 MiB
	Traffic   *Traffic
	Log       *slog.Logger
	Random    func() float64
}

// External is the core's way to its children over a Mosquitto 2 that stands beside it,
// set up as MosquittoConfig and DynsecList say.
//
// The core creates roles and clients itself (Admit), and whenever it finds a broker it
// brings the broker's list to its own: who is missing is let in, and who was put out
// meanwhile is put out. A child's session begins with its first frame and ends with its
// last will; children that stayed connected while the core was away are greeted, and say
// hello. Manifests that are retained are published again whenever the broker comes back,
// since it need not keep them.
type External struct {
	cfg ExternalConfig

	mu       sync.Mutex
	session  *session
	expires  time.Time // of the broker's certificate, zero without a session so far
	admitted map[api.DeviceID]bool
	retained map[api.DeviceID][]byte
	waiting  map[string]chan answer // by the mark of a message of commands
	marks    uint64
	own      func(api.DeviceID) bool // nil: all children are this core's

	// up is used by Run's goroutine alone.
	up map[api.DeviceID]bool
}

var _ link.Downlink = (*External)(nil)

// NewExternal makes the carrier; Run does the work.
func NewExternal(cfg ExternalConfig) *External {
	if cfg.KeepAlive <= 0 {
		cfg.KeepAlive = DefaultKeepAlive
	}
	if cfg.MaxQueue <= 0 {
		cfg.MaxQueue = 4 * defaultQueue
	}
	if cfg.Traffic == nil {
		cfg.Traffic = &Traffic{}
	}
	if cfg.Username == "" {
		cfg.Username = identity.CoreName
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Random == nil {
		cfg.Random = random
	}
	cfg.Backoff = cfg.Backoff.withDefaults()
	return &External{cfg: cfg, admitted: map[api.DeviceID]bool{}, retained: map[api.DeviceID][]byte{}, waiting: map[string]chan answer{}}
}

// Traffic is what crossed between the core and its broker.
func (e *External) Traffic() *Traffic { return e.cfg.Traffic }

// Only has the carrier pass on from those children alone that own says yes to, and keep
// manifests for no others: they are another core's. It is for the time before Run.
func (e *External) Only(own func(api.DeviceID) bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.own = own
	clear(e.retained)
}

// mine tells whether a child is this core's. e.mu is held.
func (e *External) mine(id api.DeviceID) bool { return e.own == nil || e.own(id) }

// Run implements link.Downlink. All of h is called from Run's goroutine.
func (e *External) Run(ctx context.Context, h link.DownlinkHandler) error {
	failures := 0
	for ctx.Err() == nil {
		began := time.Now()
		err := e.serve(ctx, h)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > e.cfg.Backoff.Max/2 {
			failures = 0
		}
		failures++
		wait := e.cfg.Backoff.pause(failures, e.cfg.Random())
		e.cfg.Log.Warn("no session with the broker", "address", e.cfg.Address, "err", err, "retry", wait.Round(time.Millisecond))
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
	return ctx.Err()
}

func (e *External) serve(ctx context.Context, h link.DownlinkHandler) error {
	s, err := open(ctx, sessionConfig{
		addr: withPort(e.cfg.Address), tls: e.cfg.TLS, clientID: e.cfg.Username, username: e.cfg.Username, password: e.cfg.Password,
		subscribe: []string{dynsecResponse}, keepAlive: e.cfg.KeepAlive, maxQueue: e.cfg.MaxQueue,
		traffic: e.cfg.Traffic, log: e.cfg.Log, dial: (&net.Dialer{KeepAlive: -1}).DialContext,
	})
	if err != nil {
		if e.cfg.Introduce != nil && ctx.Err() == nil {
			err = errors.Join(err, e.introduce(ctx))
		}
		return err
	}
	e.up = map[api.DeviceID]bool{}
	answers, listed := make(chan answer, 1), []string(nil)
	e.mu.Lock()
	if certs := s.state.PeerCertificates; len(certs) > 0 {
		e.expires = certs[0].NotAfter
	}
	err = e.command(s, baseCommands(e.cfg.Username), answers)
	e.mu.Unlock()
	if err != nil {
		return s.finish(err)
	}
	for {
		select {
		case a := <-answers: // until the last the broker may drop what the core publishes
			listed = append(listed, a.clients...)
			if err := e.proceed(s, a, answers, listed); err != nil {
				s.end(err)
			}
			continue
		case m := <-s.events:
			e.receive(h, m)
			continue
		case <-ctx.Done():
			s.end(ctx.Err())
		case <-s.done:
		}
		err := s.finish(nil)
		e.stop()
		for id := range e.up {
			h.ChildDown(id)
		}
		return err
	}
}

// introduceLimit bounds how long the broker takes to let a core in.
const introduceLimit = 10 * time.Second

// introduce has the broker let this core in.
func (e *External) introduce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, introduceLimit)
	defer cancel()
	s, err := open(ctx, sessionConfig{
		addr: withPort(e.cfg.Address), tls: e.cfg.Introduce, clientID: identity.CoreName, username: identity.CoreName,
		subscribe: []string{dynsecResponse}, keepAlive: e.cfg.KeepAlive, maxQueue: e.cfg.MaxQueue,
		traffic: e.cfg.Traffic, log: e.cfg.Log, dial: (&net.Dialer{KeepAlive: -1}).DialContext,
	})
	if err != nil {
		return err
	}
	answered := make(chan answer, 1)
	e.mu.Lock()
	err = e.command(s, introduceCommands(e.cfg.Username), answered)
	e.mu.Unlock()
	for err == nil {
		select {
		case m := <-s.events:
			if m.topic == dynsecResponse {
				e.answer(m.payload)
			}
			continue
		case a := <-answered:
			err = a.failed
		case <-s.done:
			err = link.ErrDown
		case <-ctx.Done():
			err = ctx.Err()
		}
		break
	}
	s.end(err)
	e.stop()
	return s.finish(err)
}

// proceed goes on from the answer to baseCommands, then from those to listCommands.
// listed is whom the broker is known to let in so far.
func (e *External) proceed(s *session, a answer, answers chan answer, listed []string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case a.failed != nil:
		return a.failed
	case a.clients != nil && (len(a.clients) == 0 || len(listed) >= a.total):
		return e.prepare(s, listed)
	case a.clients == nil && !slices.Contains(a.roles, roleRef{coreRole}):
		return e.command(s, grantCommands(e.cfg.Username), nil) // the broker ends the session
	}
	return e.command(s, listCommands(len(listed)), answers)
}

// prepare brings a broker that may have forgotten much, or may remember too much, to where
// the core is. e.mu is held.
func (e *External) prepare(s *session, listed []string) (err error) {
	in := map[api.DeviceID]bool{}
	var out []api.DeviceID
	for _, name := range listed {
		id, err := api.ParseDeviceID(name)
		if err != nil {
			continue // the core, and whoever else the operator lets in
		}
		if in[id] = e.admitted[id]; !in[id] && (e.cfg.Out == nil || e.cfg.Out(id)) {
			out = append(out, id)
		}
	}
	missing := slices.DeleteFunc(slices.Collect(maps.Keys(e.admitted)), func(id api.DeviceID) bool { return in[id] })
	err = errors.Join(e.forAll(s, out, dismissCommands), e.forAll(s, missing, admitCommands), s.push(op{topic: upPrefix + "+", subscribe: true}))
	for id, raw := range e.retained {
		err = errors.Join(err, s.push(op{topic: retainedTopic(id), payload: raw, qos: 1, retain: true}))
	}
	for id := range in {
		if in[id] && e.mine(id) {
			err = errors.Join(err, s.push(op{topic: downTopic(id), payload: link.GreetFrame()}))
		}
	}
	e.session = s
	return err
}

// forAll queues commands for many devices. e.mu is held.
func (e *External) forAll(s *session, ids []api.DeviceID, commands func(api.DeviceID) []command) (err error) {
	for chunk := range slices.Chunk(ids, dynsecBatch) {
		var cmds []command
		for _, id := range chunk {
			cmds = append(cmds, commands(id)...)
		}
		err = errors.Join(err, e.command(s, cmds, nil))
	}
	return err
}

// Expires is when the certificate ends that the broker showed last; zero when none did.
func (e *External) Expires() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.expires
}

// command queues a message of commands; answered hears how it went. e.mu is held.
func (e *External) command(s *session, cmds []command, answered chan answer) error {
	e.marks++
	mark := e.cfg.Username + "." + strconv.FormatUint(e.marks, 36) // other cores hear the answers, too
	b, err := encodeCommands(cmds, mark)
	if err != nil {
		return err
	}
	if answered != nil {
		e.waiting[mark] = answered
	}
	return s.push(op{topic: dynsecTopic, payload: b, qos: 1})
}

func (e *External) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session = nil
	for mark, ch := range e.waiting {
		ch <- answer{failed: link.ErrDown}
		delete(e.waiting, mark)
	}
}

func (e *External) receive(h link.DownlinkHandler, m message) {
	if m.topic == dynsecResponse {
		e.answer(m.payload)
		return
	}
	id, ok := childOf(m.topic)
	if !ok {
		return
	}
	e.mu.Lock()
	mine := e.mine(id)
	e.mu.Unlock()
	if !mine {
		return
	}
	if isFarewell(m.payload) {
		if e.up[id] {
			delete(e.up, id)
			h.ChildDown(id)
		}
		return
	}
	if len(m.payload) > link.MaxFrame {
		return
	}
	if !e.up[id] {
		e.up[id] = true
		h.ChildUp(id, nil)
	}
	h.FromChild(id, m.payload)
}

func (e *External) answer(b []byte) {
	a, err := decodeAnswer(b)
	if err != nil || a.failed != nil {
		e.cfg.Log.Error("the broker's dynamic-security plugin refuses", "err", errors.Join(err, a.failed))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if ch := e.waiting[a.mark]; ch != nil {
		ch <- a
		delete(e.waiting, a.mark)
	}
}

// Admit lets devices in. The core names all its enrolled devices at start and each new
// one. It waits for the broker's answer; without a session it fails with link.ErrDown, and
// is made good when the session is there. It may be repeated.
func (e *External) Admit(ctx context.Context, ids ...api.DeviceID) error {
	e.mu.Lock()
	for _, id := range ids {
		e.admitted[id] = true
	}
	e.mu.Unlock()
	for chunk := range slices.Chunk(ids, dynsecBatch) {
		var cmds []command
		for _, id := range chunk {
			cmds = append(cmds, admitCommands(id)...)
		}
		if err := e.order(ctx, cmds); err != nil {
			return err
		}
	}
	return nil
}

// Dismiss puts a device out for good and ends its session. It fails and is made good as
// Admit.
func (e *External) Dismiss(ctx context.Context, id api.DeviceID) error {
	e.mu.Lock()
	delete(e.admitted, id)
	e.mu.Unlock()
	return e.order(ctx, dismissCommands(id))
}

// order sends commands and waits for the answer.
func (e *External) order(ctx context.Context, cmds []command) error {
	answered := make(chan answer, 1)
	e.mu.Lock()
	s := e.session
	if s == nil {
		e.mu.Unlock()
		return link.ErrDown
	}
	err := e.command(s, cmds, answered)
	e.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case a := <-answered:
		if a.failed != nil {
			return fmt.Errorf("broker's access list: %w", a.failed)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Send implements link.Downlink. Whether the child is there the broker alone knows.
func (e *External) Send(id api.DeviceID, frame []byte, reliable bool) error {
	e.mu.Lock()
	s := e.session
	e.mu.Unlock()
	if s == nil {
		return link.ErrDown
	}
	return s.push(op{topic: downTopic(id), payload: bytes.Clone(frame), qos: qos(reliable)})
}

// Retain implements link.Downlink. Without a session it is done when one is there.
func (e *External) Retain(id api.DeviceID, raw []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.mine(id) {
		return nil
	}
	raw = bytes.Clone(raw)
	if len(raw) == 0 {
		delete(e.retained, id)
	} else {
		e.retained[id] = raw
	}
	if e.session == nil {
		return nil
	}
	return e.session.push(op{topic: retainedTopic(id), payload: raw, qos: 1, retain: true})
}

// Kick implements link.Downlink.
func (e *External) Kick(id api.DeviceID, reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cfg.Log.Warn("child dropped", "device", id, "err", reason)
	if e.session != nil {
		e.command(e.session, kickCommands(id), nil)
	}
}
