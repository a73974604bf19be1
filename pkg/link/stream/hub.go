package stream

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
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
	Now            func() time.Time // default time.Now
	Log            *slog.Logger
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
	session, _, err := streamRequest(r)
	var waits *waiting
	if err == nil {
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
