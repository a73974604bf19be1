// Package stream answers: how does a person reach into a device that only dials
// outward?
//
// The core signs a command to one device (command.go) and sends it over MQTT. The
// device checks it, dials its parent's HTTPS at /stream/v1/<session> and asks for
// an HTTP/1.1 Upgrade (RFC 9110 section 7.8). Relays splice that connection to
// their own parent (splice.go) until it reaches the core, which waits for the
// session (hub.go). Inside runs TLS between the device and the core, so a relay
// carries bytes that it can neither read nor change; inside that run frames
// (frame.go). The same frames run between edgectl and cored (people.go). Back
// pressure is TCP's own: nobody buffers more than a frame, and whoever does not
// read makes the other side wait.
package stream

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Protocol is the token of the Upgrade header.
const Protocol = "tributary-stream"

// Idle is how long a stream may be silent before it is taken for dead. Both ends
// ping at a third of it.
const Idle = 60 * time.Second

// Conn carries frames over one connection. Write and its relatives may be called
// from many goroutines, Read from one. Neither is retried: a stream that fails is
// opened anew.
type Conn struct {
	conn net.Conn
	r    *bufio.Reader
	buf  []byte
	idle time.Duration

	wmu  sync.Mutex
	wbuf []byte

	input   atomic.Pointer[Input]
	closing sync.Once
	closed  chan struct{}
}

// NewConn frames c. With idle > 0 it pings every third of it, and Read fails when
// the peer is silent for longer. Close ends it.
func NewConn(c net.Conn, idle time.Duration) *Conn {
	s := &Conn{conn: c, r: bufio.NewReaderSize(c, 4096), idle: idle, closed: make(chan struct{})}
	if idle > 0 {
		go s.ping(idle / 3)
	}
	return s
}

func (c *Conn) ping(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-c.closed:
			return
		case <-tick.C:
			if c.Write(Ping, nil) != nil {
				c.Close()
				return
			}
		}
	}
}

// Read returns the next frame but pings. The payload is valid until the next Read.
// It fails with io.EOF when the peer closed between frames.
func (c *Conn) Read() (Frame, error) {
	for {
		if c.idle > 0 {
			if err := c.conn.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
				return Frame{}, err
			}
		}
		f, err := readFrame(c.r, &c.buf)
		if err != nil || f.Type != Ping {
			return f, err
		}
	}
}

// Write sends p as frames of type t, as many as it needs; an empty p is one empty frame.
func (c *Conn) Write(t FrameType, p []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	for first := true; first || len(p) > 0; first = false {
		n := min(len(p), MaxPayload)
		c.wbuf = AppendFrame(c.wbuf[:0], Frame{t, p[:n]})
		if _, err := c.conn.Write(c.wbuf); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// Writer returns an io.Writer whose writes become frames of type t.
func (c *Conn) Writer(t FrameType) io.Writer { return frameWriter{c, t} }

type frameWriter struct {
	c *Conn
	t FrameType
}

func (w frameWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := w.c.Write(w.t, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Resize tells the size of the person's terminal.
func (c *Conn) Resize(s Size) error { return c.Write(Resize, s.encode()) }

// Finish ends a stream from the side that did the work: it sends Failure when err
// is not nil, else Exit with code, and then waits until the peer closed (at most
// grace), so that no relay between them drops the last frames. It closes c.
func (c *Conn) Finish(code int, err error, grace time.Duration) error {
	defer c.Close()
	if err != nil {
		err = c.Fail(err)
	} else {
		err = c.Write(Exit, encodeExit(code))
	}
	if err != nil {
		return err
	}
	timer := time.AfterFunc(grace, func() { c.Close() })
	defer timer.Stop()
	if in := c.input.Load(); in != nil {
		in.Stdin.(*io.PipeReader).Close() // what is still typed is read and dropped
		<-in.Gone
		return nil
	}
	for {
		if _, err := c.Read(); err != nil {
			return nil
		}
	}
}

// Fail says why the stream ends: the last frame.
func (c *Conn) Fail(err error) error {
	p, merr := json.Marshal(publicError(err))
	if merr != nil || len(p) > MaxPayload {
		p = []byte(`{"code":"internal","message":"the error's text is too long to send"}`)
	}
	return c.Write(Failure, p)
}

// Close ends the connection. It may be called twice and from any goroutine.
func (c *Conn) Close() error {
	var err error
	c.closing.Do(func() {
		close(c.closed)
		err = c.conn.Close()
	})
	return err
}

// Closed is closed with the connection.
func (c *Conn) Closed() <-chan struct{} { return c.closed }

// Join copies frames both ways until either side ends, then closes both. It returns
// the bytes of payload carried each way and the error that ended it (nil for a
// close between frames).
func Join(a, b *Conn) (aToB, bToA int64, err error) {
	type end struct {
		n   int64
		err error
	}
	back := make(chan end, 1)
	go func() {
		n, err := carry(a, b)
		a.Close()
		b.Close()
		back <- end{n, err}
	}()
	aToB, err = carry(b, a)
	a.Close()
	b.Close()
	other := <-back
	if errors.Is(err, net.ErrClosed) {
		err = other.err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return aToB, other.n, err
}

func carry(dst, src *Conn) (n int64, err error) {
	for {
		f, err := src.Read()
		if err != nil {
			return n, err
		}
		n += int64(len(f.Payload))
		if err := dst.Write(f.Type, f.Payload); err != nil {
			return n, err
		}
	}
}

// ending tells whether f is the last frame, and what it says.
func (f Frame) ending() (code int, err error, ended bool) {
	switch f.Type {
	case Exit:
		code, err = decodeExit(f.Payload)
		return code, err, true
	case Failure:
		e := &api.Error{}
		if jerr := json.Unmarshal(f.Payload, e); jerr != nil || e.Message == "" {
			return 1, fmt.Errorf("stream: the peer failed and did not say why"), true
		}
		return 1, e, true
	}
	return 0, nil, false
}
