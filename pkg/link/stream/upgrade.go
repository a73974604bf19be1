package stream

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/proxy"
)

// handshakeLimit bounds dialling, TLS and the upgrade together.
const handshakeLimit = 20 * time.Second

// Upgrade dials u (https, or http for a local socket's proxy), asks for Protocol
// and returns the raw connection. Failures that the server explains with an
// api.Error in JSON come back as that. dial nil is TCP, by
// the proxy that ctx names if any.
func Upgrade(ctx context.Context, u *url.URL, conf *tls.Config, header http.Header, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	if dial == nil {
		dial = proxy.From(ctx, (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext)
	}
	conn, err := dial(ctx, "tcp", hostPort(u))
	if err != nil {
		return nil, &api.Error{Code: api.Unavailable, Message: "cannot reach " + u.Host, Err: err}
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	up, err := upgrade(ctx, conn, u, conf, header)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return up, nil
}

func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	if u.Scheme == "http" {
		return net.JoinHostPort(u.Hostname(), "80")
	}
	return net.JoinHostPort(u.Hostname(), "443")
}

func upgrade(ctx context.Context, conn net.Conn, u *url.URL, conf *tls.Config, header http.Header) (net.Conn, error) {
	if u.Scheme != "http" {
		c := &tls.Config{}
		if conf != nil {
			c = conf.Clone()
		}
		c.NextProtos = []string{"http/1.1"} // HTTP/2 has no Upgrade
		if c.ServerName == "" {
			c.ServerName = u.Hostname()
		}
		t := tls.Client(conn, c)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = t
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", Protocol)
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(conn, 4096)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, &refused{refusal(resp)}
	}
	return buffered(conn, r), nil
}

// refused is an error that the far side told of in HTTP.
type refused struct{ err error }

func (r *refused) Error() string { return r.err.Error() }
func (r *refused) Unwrap() error { return r.err }

// refusal turns a reply that is no upgrade into the error it tells of.
func refusal(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	e := &api.Error{}
	if json.Unmarshal(body, e) == nil && e.Message != "" && e.Code != "" {
		return e
	}
	code := api.Unavailable
	switch resp.StatusCode {
	case http.StatusNotFound:
		code = api.NotFound
	case http.StatusUnauthorized:
		code = api.Unauthorized
	case http.StatusForbidden:
		code = api.Forbidden
	}
	return api.Errorf(code, "the stream was refused: %s %s", resp.Status, strings.TrimSpace(string(body[:min(len(body), 200)])))
}

// Hijack takes the connection of an upgrade request over, answering 101. The
// caller owns the connection; w must not be used after success. Before success it
// has not answered.
func Hijack(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	if err := Requested(r); err != nil {
		return nil, err
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, &api.Error{Code: api.Internal, Message: "this connection cannot be upgraded", Err: err}
	}
	err = conn.SetDeadline(time.Now().Add(handshakeLimit))
	if err == nil {
		_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Protocol)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return buffered(conn, rw.Reader), nil
}

// Requested reports nil when r asks for Protocol.
func Requested(r *http.Request) error {
	if r.ProtoMajor != 1 || !strings.EqualFold(r.Header.Get("Upgrade"), Protocol) || !hasToken(r.Header.Values("Connection"), "upgrade") {
		return &api.Error{Code: api.Invalid, Message: "this address serves streams alone", Remedy: "use edgectl logs, exec, port-forward or top"}
	}
	return nil
}

func hasToken(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// buffered gives back what the HTTP reader had read ahead.
func buffered(conn net.Conn, r *bufio.Reader) net.Conn {
	n := r.Buffered()
	if n == 0 {
		return conn
	}
	ahead, _ := r.Peek(n)
	return &aheadConn{Conn: conn, ahead: append([]byte(nil), ahead...)}
}

type aheadConn struct {
	net.Conn
	ahead []byte
}

func (c *aheadConn) Read(p []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite passes a half-close on where the connection knows it (TCP, TLS).
func (c *aheadConn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// WriteError answers a request that was refused before the upgrade.
func WriteError(w http.ResponseWriter, err error) {
	e := publicError(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Code.HTTPStatus())
	_ = json.NewEncoder(w).Encode(e) // the client has gone when this fails
}
