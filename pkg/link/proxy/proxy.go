// Package proxy answers: how does a connection leave a site that lets out what goes through
// its HTTP proxy alone?
//
// By CONNECT (RFC 9110, section 9.3.6), for MQTT and HTTPS alike: both are TLS to the parent,
// so that the proxy sees whom the box talks to, and nothing else.
package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"
)

// Dial is how connections are made; net.Dialer's DialContext is one.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

type key struct{}

// With has what is dialled on behalf of ctx dialled so.
func With(ctx context.Context, dial Dial) context.Context {
	return context.WithValue(ctx, key{}, dial)
}

// From is how to dial on behalf of ctx: as With said, or by fallback.
func From(ctx context.Context, fallback Dial) Dial {
	if dial, ok := ctx.Value(key{}).(Dial); ok {
		return dial
	}
	return fallback
}

const (
	handshake  = 20 * time.Second
	maxURL     = 1 << 10
	maxHeaders = 16 << 10
)

// Through dials by the proxy that setting names at that moment; an empty one is none.
// Addresses on the box's own networks are reached without it. An error of setting is one of
// the dial: what shall go by a proxy does not go by another way.
func Through(setting func() (string, error), dial Dial, own func() ([]net.Addr, error)) Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		text, err := setting()
		if err != nil {
			return nil, fmt.Errorf("which proxy to take is not known: %w", err)
		}
		if text == "" || near(address, own) {
			return dial(ctx, network, address)
		}
		u, err := url.Parse(text)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, errors.New("the proxy that is set is no http://host:port")
		}
		return connect(ctx, u, dial, address)
	}
}

// FromFile is a setting that stands in a file; no file is no proxy.
func FromFile(path string) func() (string, error) {
	return func() (string, error) {
		if path == "" {
			return "", nil
		}
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxURL))
		return strings.TrimSpace(string(b)), err
	}
}

// near tells whether an address is the machine itself or on a network that it is on.
func near(address string, own func() ([]net.Addr, error)) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" || strings.HasSuffix(host, ".local") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return true
	}
	list, err := own()
	if err != nil {
		return false
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Contains(ip.Unmap()) {
			return true
		}
	}
	return false
}

func connect(ctx context.Context, u *url.URL, dial Dial, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshake)
	defer cancel()
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	raw, err := dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("the proxy %s: %w", u.Host, err)
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	c, err := tunnel(ctx, raw, u, address)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("the proxy %s: %w", u.Host, err)
	}
	return c, nil
}

func tunnel(ctx context.Context, c net.Conn, u *url.URL, address string) (net.Conn, error) {
	if u.Scheme == "https" {
		t := tls.Client(c, &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12})
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		c = t
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if u.User != nil {
		password, _ := u.User.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
	if err := req.Write(c); err != nil {
		return nil, err
	}
	// A byte at a time: what follows the answer belongs to whoever dials.
	in := bufio.NewReaderSize(io.LimitReader(oneByOne{c}, maxHeaders), 16)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it does not let through to %s: %.80q", address, resp.Status)
	}
	return c, nil
}

// oneByOne hands out one byte with each read, so that a buffer in front of it holds none too many.
type oneByOne struct{ io.Reader }

func (o oneByOne) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	return o.Reader.Read(b[:1])
}
