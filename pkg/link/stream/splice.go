package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// Parent tells where the HTTPS of the present parent is and how to authenticate to
// it. It changes when the device attaches elsewhere; it fails while there is none.
type Parent func() (base *url.URL, conf *tls.Config, err error)

// Headers between a device, its relays and the core. Relays pass them on; who leaves them
// out is counted as the child that dials.
const (
	headerDevice  = "Tributary-Device"  // the id of the device whose stream it is
	headerRefusal = "Tributary-Refusal" // "1": it will only carry why there is none
)

// route is what a relay knows of a stream beside its session.
type route struct {
	device  api.DeviceID
	refusal bool
}

func (r route) header() http.Header {
	h := http.Header{headerDevice: {r.device.String()}}
	if r.refusal {
		h.Set(headerRefusal, "1")
	}
	return h
}

// routeOf reads a request's route; child is who dials.
func routeOf(h http.Header, child api.DeviceID) route {
	r := route{child, h.Get(headerRefusal) != ""}
	if id, err := api.ParseDeviceID(h.Get(headerDevice)); err == nil {
		r.device = id
	}
	return r
}

// dialParent opens the raw connection of one session at the parent.
func dialParent(ctx context.Context, parent Parent, s SessionID, r route) (net.Conn, error) {
	base, conf, err := parent()
	if err != nil {
		return nil, err
	}
	u := *base
	u.Path = s.Path()
	return Upgrade(ctx, &u, conf, r.header(), nil)
}

// SpliceConfig bounds a relay's splicing.
type SpliceConfig struct {
	Parent Parent
	// Max bounds the streams at once, PerChild those of one child with all below it,
	// PerDevice those of the device that the child names. Defaults 1,024, 512, and half as
	// many again as the core opens to one device: a relay hears later that one has ended.
	Max, PerChild, PerDevice int
	// Idle ends a stream that carried nothing either way for so long. Default 2 × Idle.
	Idle time.Duration
	Log  *slog.Logger
}

// Splice is a relay's http.Handler for PathPrefix: it connects a child's stream to
// the relay's own parent and carries bytes that it cannot read.
type Splice struct {
	conf  SpliceConfig
	mu    sync.Mutex
	total int
	child map[api.DeviceID]int
	// by child, as a child must not fill another's bounds in the name of its devices
	device  map[[2]api.DeviceID]int
	refusal map[api.DeviceID]int
}

// maxRefusals bounds the refusals of one child under way. They are beside the other
// bounds, and end with refusalLife.
const (
	maxRefusals = 32
	refusalLife = 2 * handshakeLimit
)

// NewSplice makes the handler.
func NewSplice(conf SpliceConfig) *Splice {
	if conf.Max == 0 {
		conf.Max = 1024
	}
	if conf.PerChild == 0 {
		conf.PerChild = 512
	}
	if conf.PerDevice == 0 {
		conf.PerDevice = PerDevice * 3 / 2
	}
	if conf.Idle == 0 {
		conf.Idle = 2 * Idle
	}
	return &Splice{conf: conf, child: map[api.DeviceID]int{}, device: map[[2]api.DeviceID]int{}, refusal: map[api.DeviceID]int{}}
}

// Active is the number of streams that are open.
func (s *Splice) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

func (s *Splice) enter(child api.DeviceID, r route) error {
	full := func(of string, bound int) error {
		return &api.Error{Code: api.Unavailable, Message: fmt.Sprintf("too many streams are open through a relay (%s: %d)", of, bound), Remedy: "close some, or wait"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.refusal && s.refusal[child] >= maxRefusals:
		return full("refusals", maxRefusals)
	case r.refusal:
		s.refusal[child]++
		return nil
	case s.device[[2]api.DeviceID{child, r.device}] >= s.conf.PerDevice:
		return full("of this device", s.conf.PerDevice)
	case s.child[child] >= s.conf.PerChild:
		return full("of all devices behind "+child.String(), s.conf.PerChild)
	case s.total >= s.conf.Max:
		return full("in all", s.conf.Max)
	}
	s.total++
	s.child[child]++
	s.device[[2]api.DeviceID{child, r.device}]++
	return nil
}

func (s *Splice) leave(child api.DeviceID, r route) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.refusal {
		less(s.refusal, child)
		return
	}
	s.total--
	less(s.child, child)
	less(s.device, [2]api.DeviceID{child, r.device})
}

func less[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] == 0 {
		delete(m, k)
	}
}

func (s *Splice) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	session, id, err := streamRequest(r)
	to := routeOf(r.Header, id)
	if err == nil {
		err = s.enter(id, to)
	}
	if err != nil {
		s.conf.Log.Info("stream refused", "child", id, "err", err)
		WriteError(w, err)
		return
	}
	defer s.leave(id, to)
	up, err := dialParent(r.Context(), s.conf.Parent, session, to)
	if err != nil {
		s.conf.Log.Info("stream not spliced", "child", id, "err", err)
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
	if to.refusal {
		timer := time.AfterFunc(refusalLife, func() { up.Close(); down.Close() })
		defer timer.Stop()
	}
	fromChild, toChild, err := splice(down, up, s.conf.Idle)
	s.conf.Log.Debug("stream ended", "child", id, "up", fromChild, "down", toChild, "err", err)
}

// streamRequest checks path, upgrade and the caller's certificate.
func streamRequest(r *http.Request) (SessionID, api.DeviceID, error) {
	text, ok := strings.CutPrefix(r.URL.Path, PathPrefix)
	if !ok || r.TLS == nil {
		return SessionID{}, api.DeviceID{}, api.Errorf(api.NotFound, "no such stream")
	}
	session, err := ParseSessionID(text)
	if err != nil {
		return session, api.DeviceID{}, err
	}
	id, _, err := identity.PeerID(*r.TLS)
	if err != nil {
		return session, id, &api.Error{Code: api.Unauthorized, Message: "streams need a device certificate", Err: err}
	}
	return session, id, Requested(r)
}

// splice copies both ways until both directions ended or nothing moved for idle.
func splice(a, b net.Conn, idle time.Duration) (aToB, bToA int64, err error) {
	watch := &activity{idle: idle, conns: [2]net.Conn{a, b}}
	watch.touch()
	type end struct {
		n   int64
		err error
	}
	back := make(chan end, 1)
	go func() {
		n, err := copyHalf(a, b, watch)
		back <- end{n, err}
	}()
	aToB, err = copyHalf(b, a, watch)
	other := <-back
	return aToB, other.n, errors.Join(err, other.err)
}

func copyHalf(dst, src net.Conn, watch *activity) (int64, error) {
	n, err := io.CopyBuffer(onlyWriter{dst}, &touchReader{src, watch}, make([]byte, 16<<10))
	if err != nil {
		dst.Close() // the other direction has no use alone
		src.Close()
		return n, err
	}
	return n, closeWrite(dst)
}

// onlyWriter hides ReadFrom, which would bypass the idle watch.
type onlyWriter struct{ io.Writer }

// activity moves the read deadlines of both connections when either carries bytes,
// at most once a sixteenth of idle.
type activity struct {
	idle  time.Duration
	conns [2]net.Conn
	mu    sync.Mutex
	last  time.Time
}

func (a *activity) touch() {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Sub(a.last) < a.idle/16 {
		return
	}
	a.last = now
	for _, c := range a.conns {
		_ = c.SetDeadline(now.Add(a.idle))
	}
}

type touchReader struct {
	net.Conn
	watch *activity
}

func (t *touchReader) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if n > 0 {
		t.watch.touch()
	}
	return n, err
}
