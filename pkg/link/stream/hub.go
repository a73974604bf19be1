package stream

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// HubConfig is what the core's end of streams needs.
type HubConfig struct {
	// Identity (identity.Live or identity.Identity) is the core's; devices check it
	// inside the stream.
	Identity interface{ ServerTLS() *tls.Config }
	// Signer signs commands; its certificate is in the devices' Trust.
	Signer crypto.Signer
	// Send passes a signed command on to a device (link.CoreEndpoint.Command).
	Send func(dev api.DeviceID, raw []byte) error
	// Wait is how long a device may take to dial in. Default 10 s, at most MaxLife less
	// Skew.
	Wait time.Duration
	// Max bounds the sessions that wait or run, PerDevice those of one device. Defaults
	// 1,024 and PerDevice.
	Max, PerDevice int
	// Mark tells this core from others on the same database; 0 when there are none. Sessions begin
	// with it, and a device that dials in at another core is passed on to who waits, by Peer; it
	// is nil for a mark that is nobody's now.
	Mark uint32
	Peer func(mark uint32) Parent
	Now  func() time.Time // default time.Now
	Log  *slog.Logger
}

// Hub is the core's http.Handler for PathPrefix; Open waits for a device there.
type Hub struct {
	conf HubConfig
	mu   sync.Mutex
	wait map[SessionID]*waiting
	open int
	busy map[api.DeviceID]int // open, by device
}

// PerDevice is how many streams the core opens to one device at once.
const PerDevice = 64

type waiting struct {
	device api.DeviceID
	conn   chan net.Conn // takes one
	tries  int
}

// maxTries bounds how often anybody may knock at one waiting session.
const maxTries = 8

// NewHub makes the hub.
func NewHub(conf HubConfig) *Hub {
	if conf.Wait == 0 {
		conf.Wait = 10 * time.Second // three hops by satellite, each with TCP and TLS, take about 5 s
	}
	if conf.Max == 0 {
		conf.Max = 1024
	}
	if conf.PerDevice == 0 {
		conf.PerDevice = PerDevice
	}
	if conf.Now == nil {
		conf.Now = time.Now
	}
	return &Hub{conf: conf, wait: map[SessionID]*waiting{}, busy: map[api.DeviceID]int{}}
}

// Open sends c to dev and returns the stream that the device opens in answer. It
// fills in Version, Device, Session, Issued and Expires. It fails with Unavailable
// when the device does not answer in time, and when ctx is done. Safe from many
// goroutines; not to be retried blindly (each call is a command of its own). The
// caller closes the Conn.
func (h *Hub) Open(ctx context.Context, dev api.DeviceID, c Command) (*Conn, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	c.Version, c.Device = 1, dev
	if _, err := rand.Read(c.Session[:]); err != nil {
		return nil, err
	}
	c.Issued = h.conf.Now().Unix()
	if h.conf.Mark != 0 { // the other 96 bits nobody guesses
		binary.BigEndian.PutUint32(c.Session[:], h.conf.Mark)
	}
	// The session ends with Wait, whatever the command says; the rest is for a device
	// whose clock is ahead.
	c.Expires = c.Issued + int64((h.conf.Wait+Skew+time.Second-1)/time.Second)
	raw, err := c.Sign(h.conf.Signer)
	if err != nil {
		return nil, err
	}
	w, err := h.expect(c.Session, dev)
	if err != nil {
		return nil, err
	}
	if err := h.conf.Send(dev, raw); err != nil {
		h.forget(c.Session, w)
		if known := (*api.Error)(nil); errors.As(err, &known) {
			return nil, err
		}
		return nil, &api.Error{Code: api.Unavailable, Message: "the command could not be sent", Err: err, Remedy: "is the device online? see `edgectl get devices`"}
	}
	timer := time.NewTimer(h.conf.Wait)
	defer timer.Stop()
	select {
	case conn := <-w.conn:
		return NewConn(&hubConn{Conn: conn, done: sync.OnceFunc(func() { h.release(dev) })}, Idle), nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = &api.Error{Code: api.Unavailable, Message: "the device did not answer within " + h.conf.Wait.String(), Remedy: "is it online? see `edgectl get devices`"}
	}
	h.forget(c.Session, w)
	return nil, err
}

// hubConn gives the session's place back when it is closed.
type hubConn struct {
	net.Conn
	done func()
}

func (c *hubConn) Close() error { defer c.done(); return c.Conn.Close() }

func (h *Hub) release(dev api.DeviceID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open--
	less(h.busy, dev)
}

func (h *Hub) expect(s SessionID, dev api.DeviceID) (*waiting, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open >= h.conf.Max {
		return nil, &api.Error{Code: api.Unavailable, Message: "too many streams are open", Remedy: "close some, or wait"}
	}
	if h.busy[dev] >= h.conf.PerDevice {
		return nil, &api.Error{Code: api.Unavailable, Message: fmt.Sprintf("too many streams to this device are open (%d)", h.conf.PerDevice), Remedy: "close some, or wait"}
	}
	h.open++
	h.busy[dev]++
	w := &waiting{device: dev, conn: make(chan net.Conn, 1)}
	h.wait[s] = w
	return w, nil
}

// forget ends the wait; a connection that came too late is closed.
func (h *Hub) forget(s SessionID, w *waiting) {
	h.mu.Lock()
	delete(h.wait, s)
	h.open--
	less(h.busy, w.device)
	h.mu.Unlock()
	select {
	case conn := <-w.conn:
		conn.Close()
	default:
	}
}

// knock finds the session that a caller names.
func (h *Hub) knock(s SessionID) (*waiting, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.wait[s]
	if w == nil || w.tries >= maxTries {
		return nil, api.Errorf(api.NotFound, "nobody waits for this stream")
	}
	w.tries++
	return w, nil
}

// deliver hands the connection to the one who waits, once.
func (h *Hub) deliver(s SessionID, w *waiting, conn net.Conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.wait[s] != w {
		return false
	}
	delete(h.wait, s)
	w.conn <- conn
	return true
}

func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	session, _, err := h.request(r)
	var waits *waiting
	if err == nil {
		if peer := h.elsewhere(session, r); peer != nil {
			h.pass(w, r, session, peer)
			return
		}
		waits, err = h.knock(session)
	}
	if err != nil {
		WriteError(w, err)
		return
	}
	outer, err := Hijack(w, r)
	if err != nil {
		WriteError(w, err)
		return
	}
	conn, err := h.inner(r.Context(), outer, waits.device)
	if err != nil {
		outer.Close()
		h.conf.Log.Warn("stream refused", "device", waits.device, "err", err)
		return
	}
	if !h.deliver(session, waits, conn) {
		conn.Close()
	}
}

// headerPassed tells that a stream comes by way of another core.
const headerPassed = "Tributary-Passed"

// request checks a request. One that another core passes on shows no certificate of a device:
// who knows the session's number may bring what answers it, and the device proves itself inside.
func (h *Hub) request(r *http.Request) (SessionID, api.DeviceID, error) {
	if h.conf.Mark == 0 || r.Header.Get(headerPassed) == "" || r.TLS == nil {
		return streamRequest(r)
	}
	session, err := ParseSessionID(strings.TrimPrefix(r.URL.Path, PathPrefix))
	if err == nil {
		err = Requested(r)
	}
	return session, api.DeviceID{}, err
}

// elsewhere finds the other core that waits for a session; nil where that is this one, or none.
func (h *Hub) elsewhere(s SessionID, r *http.Request) Parent {
	mark := binary.BigEndian.Uint32(s[:])
	if h.conf.Mark == 0 || mark == h.conf.Mark || r.Header.Get(headerPassed) != "" {
		return nil
	}
	return h.conf.Peer(mark)
}

// pass carries a stream to the core that waits for it, as a relay would.
func (h *Hub) pass(w http.ResponseWriter, r *http.Request, s SessionID, to Parent) {
	header := r.Header.Clone()
	up, err := func() (net.Conn, error) {
		base, conf, err := to()
		if err != nil {
			return nil, err
		}
		u := *base
		u.Path = s.Path()
		return Upgrade(r.Context(), &u, conf, http.Header{headerPassed: {"1"}, headerDevice: header[headerDevice]}, nil)
	}()
	if err != nil {
		h.conf.Log.Info("stream not passed on to another core", "err", err)
		WriteError(w, err)
		return
	}
	defer up.Close()
	down, err := Hijack(w, r)
	if err != nil {
		WriteError(w, err)
		return
	}
	defer down.Close()
	if _, _, err = splice(down, up, 2*Idle); err != nil {
		h.conf.Log.Debug("a stream to another core ended", "err", err)
	}
}

// inner does TLS with the device itself, whoever carried the connection here.
func (h *Hub) inner(ctx context.Context, outer net.Conn, want api.DeviceID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	t := tls.Server(outer, h.conf.Identity.ServerTLS())
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	id, _, err := identity.PeerID(t.ConnectionState())
	if err != nil {
		return nil, err
	}
	if id != want {
		return nil, api.Errorf(api.Forbidden, "the stream of %s was answered by %s", want, id)
	}
	return t, nil
}

// Answer is the device's end: it dials the parent for the command's session and
// does TLS with the core inside. The caller ends the Conn with Finish. Where relays had
// no room for it (Full), Refuse tells the person.
func Answer(ctx context.Context, id interface{ ClientTLS(peer string) *tls.Config }, parent Parent, c *Command) (*Conn, error) {
	return answer(ctx, id, parent, c, false)
}

// Refuse answers a command with why it is not served. Relays let it pass beside their
// bounds. It is not to be repeated: a person who is not told hears of a timeout.
func Refuse(ctx context.Context, id interface{ ClientTLS(peer string) *tls.Config }, parent Parent, c *Command, why error) error {
	conn, err := answer(ctx, id, parent, c, true)
	if err != nil {
		return err
	}
	return conn.Finish(1, why, FinishGrace)
}

// Full tells whether err is the word of a relay or the core that it has no room.
func Full(err error) bool {
	var said *refused
	return errors.As(err, &said) && api.CodeOf(err) == api.Unavailable
}

func answer(ctx context.Context, id interface{ ClientTLS(peer string) *tls.Config }, parent Parent, c *Command, refusal bool) (*Conn, error) {
	outer, err := dialParent(ctx, parent, c.Session, route{c.Device, refusal})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	t := tls.Client(outer, id.ClientTLS(identity.CoreName))
	if err := t.HandshakeContext(ctx); err != nil {
		outer.Close()
		return nil, err
	}
	return NewConn(t, Idle), nil
}
