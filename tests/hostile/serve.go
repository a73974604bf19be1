package main

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/stream"
)

// lateBytes is how many bytes of a stream pass before it is tampered with: the TLS
// handshake between device and core is through by then.
const lateBytes = 8 << 10

// handler stands before what the real relay serves.
func (e *evil) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, stream.PathPrefix):
			w = &streamWriter{w, e}
		case strings.HasPrefix(r.URL.Path, identity.EnrolPrefix):
			e.overhear(r)
			w = &tamperer{ResponseWriter: w, e: e}
		case strings.HasPrefix(r.URL.Path, "/v2/"):
			t := &tamperer{ResponseWriter: w, e: e}
			if r.Method == http.MethodGet {
				t.wrong, t.short = e.does(wrongBlobs), e.does(shortBlobs)
			}
			w = t
		}
		next.ServeHTTP(w, r)
	})
}

// overhear remembers an enrolment.
func (e *evil) overhear(r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, identity.MaxEnrolBody+1))
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	_, _ = e.seen.Write(body)
	if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/device") {
		e.mu.Lock()
		e.enrols = append(e.enrols, body)
		e.mu.Unlock()
	}
}

// tamperer spoils bodies.
type tamperer struct {
	http.ResponseWriter
	e            *evil
	wrong, short bool
	sent         int64
}

func (t *tamperer) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (t *tamperer) Write(b []byte) (int, error) {
	_, _ = t.e.seen.Write(b)
	out := b
	if t.wrong {
		out = flip(b)
	}
	if whole, err := strconv.ParseInt(t.Header().Get("Content-Length"), 10, 64); t.short && err == nil && t.sent+int64(len(b)) > whole/2 {
		_, _ = t.ResponseWriter.Write(out[:min(int64(len(out)), max(whole/2-t.sent, 0))])
		panic(http.ErrAbortHandler)
	}
	t.sent += int64(len(b))
	_, err := t.ResponseWriter.Write(out)
	return len(b), err
}

// streamWriter gives the splice a connection that is listened to and tampered with.
type streamWriter struct {
	http.ResponseWriter
	e *evil
}

func (w *streamWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return &streamConn{Conn: c, e: w.e}, rw, nil // the child speaks after the upgrade, so nothing is buffered
}

type streamConn struct {
	net.Conn
	e    *evil
	read int
}

func (c *streamConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	_, _ = c.e.seen.Write(b[:n])
	if c.read += n; n > 0 && c.read > lateBytes && c.e.does(alterStream) {
		copy(b, flip(b[:n]))
	}
	return n, err
}

func (c *streamConn) Write(b []byte) (int, error) {
	_, _ = c.e.seen.Write(b)
	return c.Conn.Write(b)
}

// CloseWrite ends one direction, where the connection can.
func (c *streamConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
