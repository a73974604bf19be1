package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// Bounds of what strangers and single devices may take up.
const (
	// maxHandshakes bounds connections that have not shown a certificate yet, some
	// kilobytes each; further ones wait in the kernel's queue.
	maxHandshakes = 1024
	// maxPerDevice bounds connections of one device: one in force, some that the network
	// has cut and that are not yet known to be dead.
	maxPerDevice = 4
	// connectTimeout is how long a device may take from the handshake to its CONNECT.
	connectTimeout = 10 * time.Second
)

// peerConn is a connection whose device is known. The broker sees no other.
type peerConn struct {
	net.Conn
	id   api.DeviceID // zero without TLS
	cert []byte       // leaf, DER
	// lasts is for how long the session may be had, by the certificate; 0 without TLS.
	lasts time.Duration
	// queued counts bytes on their way to the device: QoS 0 until written, QoS 1 until
	// acknowledged.
	queued atomic.Int64

	raw net.Conn
	// client is the MQTT client id, once it has its turn; gate.mu guards it.
	client string
	// gone is closed when the broker holds nothing of the connection any more.
	gone chan struct{}
}

// gate is the broker's listener: it completes TLS before the broker reads a byte, so that
// whoever has no certificate of this CA never reaches an MQTT parser.
type gate struct {
	ln       net.Listener
	identity *identity.Live
	traffic  *Traffic
	log      *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{}

	mu    sync.Mutex
	conns map[api.DeviceID]int
	open  map[net.Conn]bool
	// sessions has the connection of each client id that the broker knows of.
	sessions map[string]*peerConn
}

var _ listeners.Listener = (*gate)(nil)

func newGate(ln net.Listener, id *identity.Live, t *Traffic, log *slog.Logger) *gate {
	g := &gate{ln: ln, identity: id, traffic: t, log: log, slots: make(chan struct{}, maxHandshakes), conns: map[api.DeviceID]int{}, open: map[net.Conn]bool{}, sessions: map[string]*peerConn{}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.wg.Add(1) // Serve's, so that shut does not find zero before its first connection
	return g
}

func (g *gate) Init(*slog.Logger) error { return nil }
func (g *gate) ID() string              { return "children" }
func (g *gate) Address() string         { return g.ln.Addr().String() }
func (g *gate) Protocol() string        { return "mqtt" }

// Serve accepts until Close. An error of accept other than closing (no file descriptors
// left) is waited out.
func (g *gate) Serve(establish listeners.EstablishFn) {
	defer g.wg.Done()
	for g.ctx.Err() == nil {
		conn, err := g.ln.Accept()
		if errors.Is(err, net.ErrClosed) || g.ctx.Err() != nil {
			return
		}
		if err != nil {
			g.log.Warn("mqtt listener cannot accept", "err", err)
			select {
			case <-g.ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case g.slots <- struct{}{}:
		case <-g.ctx.Done():
			conn.Close()
			return
		}
		g.wg.Go(func() { g.admit(conn, establish) })
	}
}

// admit shakes hands and gives the connection to the broker, whose parsers may panic on
// what a hostile device sends: that costs the device its connection and nobody else.
func (g *gate) admit(raw net.Conn, establish listeners.EstablishFn) {
	defer raw.Close()
	c, err := g.handshake(raw)
	<-g.slots
	if err != nil {
		level := slog.LevelInfo
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			level = slog.LevelDebug // a child that asks whether we are back
		}
		g.log.Log(g.ctx, level, "connection refused", "remote", raw.RemoteAddr(), "err", err)
		return
	}
	if !g.enter(c.id, raw) {
		g.log.Warn("connection refused", "remote", raw.RemoteAddr(), "device", c.id, "err", "closing, or too many connections of one device")
		return
	}
	defer g.leave(c, raw)
	defer func() {
		if r := recover(); r != nil {
			g.log.Error("mqtt broker met input that it cannot read", "device", c.id, "remote", raw.RemoteAddr(), "panic", r)
		}
	}()
	if c.lasts > 0 {
		defer time.AfterFunc(c.lasts, func() { raw.Close() }).Stop()
	}
	c.SetDeadline(time.Now().Add(connectTimeout)) // until the broker sets its own by keep-alive
	if err := establish(g.ID(), c); err != nil {
		g.log.Debug("mqtt session ended", "device", c.id, "err", err)
	}
}

func (g *gate) handshake(raw net.Conn) (*peerConn, error) {
	tune(raw)
	counted := &countingConn{raw, g.traffic}
	if g.identity == nil {
		return &peerConn{Conn: counted, raw: raw, gone: make(chan struct{})}, nil
	}
	ctx, cancel := context.WithTimeout(g.ctx, handshakeTimeout)
	defer cancel()
	t := tls.Server(counted, g.identity.ServerTLS())
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	leaf := t.ConnectionState().PeerCertificates[0]
	id, role, err := identity.CertID(leaf)
	if err != nil {
		return nil, err
	}
	if role != identity.RoleDevice {
		return nil, errors.New("only devices attach to a broker")
	}
	return &peerConn{Conn: t, id: id, cert: leaf.Raw, lasts: g.identity.Lasts(leaf), raw: raw, gone: make(chan struct{})}, nil
}

func (g *gate) enter(id api.DeviceID, raw net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ctx.Err() != nil || g.identity != nil && g.conns[id] >= maxPerDevice {
		return false
	}
	g.conns[id]++
	g.open[raw] = true
	return true
}

func (g *gate) leave(c *peerConn, raw net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.open, raw)
	if g.conns[c.id]--; g.conns[c.id] == 0 {
		delete(g.conns, c.id)
	}
	if g.sessions[c.client] == c {
		delete(g.sessions, c.client)
	}
	close(c.gone)
}

// turn ends the session that another connection has under the client id and returns when
// the broker has forgotten it. mochi's own way to take a session over lets the two run
// side by side for a moment, in which the end of the old one removes the new one from
// its tables by their common id: that hears ever after and is never told anything.
func (g *gate) turn(client string, c *peerConn) {
	for {
		g.mu.Lock()
		old := g.sessions[client]
		if old == nil {
			c.client, g.sessions[client] = client, c
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		old.raw.Close()
		<-old.gone
	}
}

// shut stops accepting, ends handshakes and sessions, and waits for their goroutines. The
// broker is closed after it: its own way to do the same counts new connections while it
// waits for the count to fall, and misses some.
func (g *gate) shut() {
	g.cancel()
	g.ln.Close()
	g.mu.Lock()
	for c := range g.open {
		c.Close()
	}
	g.mu.Unlock()
	g.wg.Wait()
}

// Close implements listeners.Listener; shut has done the work.
func (g *gate) Close(listeners.CloseFn) {}
