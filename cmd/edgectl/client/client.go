package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/stream"
)

// Bounds of what the core may answer.
const (
	maxReply   = 64 << 20
	replyLimit = 60 * time.Second
)

// Client speaks with one core. It is safe for concurrent use.
type Client struct {
	base   *url.URL
	token  string
	tenant string
	tls    *tls.Config
	http   *http.Client
	agent  string
}

// New checks a context and makes its client; it contacts nobody.
func New(c Context, version string) (*Client, error) {
	if c.Server == "" {
		return nil, &api.Error{Code: api.Invalid, Message: "no core is chosen", Remedy: "run `edgectl login https://HOST:8443 --token TOKEN`, or set EDGECTL_SERVER and EDGECTL_TOKEN"}
	}
	base, err := BaseURL(c.Server)
	if err != nil {
		return nil, err
	}
	c.Token = strings.TrimSpace(c.Token)
	if strings.ContainsFunc(c.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, &api.Error{Code: api.Invalid, Message: "the token holds a space, a line break or another character that no token has", Remedy: "give one token, whole, as `cored token create` printed it"}
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM([]byte(c.CA)) {
			return nil, &api.Error{Code: api.Invalid, Message: "the CA holds no certificate", Remedy: "give the core's root certificate in PEM (DATA/ca/root.crt on the core)"}
		}
	}
	transport := &http.Transport{
		TLSClientConfig: conf, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: replyLimit, MaxIdleConnsPerHost: 4,
	}
	return &Client{base: base, token: c.Token, tenant: c.Tenant, tls: conf, http: &http.Client{Transport: transport}, agent: "edgectl/" + version}, nil
}

// BaseURL reads a server's address. Plain HTTP would show the token to everybody on
// the way, so it is taken for this machine alone.
func BaseURL(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Path != "" && u.Path != "/" {
		return nil, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%q is not a core's address", s), Remedy: "write https://HOST:8443"}
	}
	u.Path = ""
	ip := net.ParseIP(u.Hostname())
	local := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && !(u.Scheme == "http" && local) {
		return nil, &api.Error{Code: api.Invalid, Message: "the token would travel in clear text", Remedy: "write https://" + u.Host}
	}
	return u, nil
}

// Base is the core's address.
func (c *Client) Base() *url.URL { return c.base }

// HTTP carries the trust in the core, but no token.
func (c *Client) HTTP() *http.Client { return c.http }

// Token is the person's token.
func (c *Client) Token() string { return c.token }

// Tenant is the tenant that requests concern.
func (c *Client) Tenant() string { return c.tenant }

// URL builds an address below the core, with the tenant in the query.
func (c *Client) URL(path string, q url.Values) *url.URL {
	u := *c.base
	u.Path = path
	if q == nil {
		q = url.Values{}
	}
	if c.tenant != "" && q.Get("tenant") == "" {
		q.Set("tenant", c.tenant)
	}
	u.RawQuery = q.Encode()
	return &u
}

func (c *Client) header() http.Header {
	h := http.Header{"User-Agent": {c.agent}}
	if c.token != "" {
		h.Set("Authorization", "Bearer "+c.token)
	}
	return h
}

// Open sends a request and returns the answer's body when the core agrees; its
// refusals come back as the *api.Error it sent. The caller closes the body.
func (c *Client) Open(ctx context.Context, method, path string, q url.Values, body []byte, contentType string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.URL(path, q).String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = c.header()
	req.Header.Set("Accept", "application/json")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp.Body, nil
}

// Do is Open for answers in JSON; out nil throws the answer away.
func (c *Client) Do(ctx context.Context, method, path string, q url.Values, in, out any) error {
	var body []byte
	contentType := ""
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
		contentType = "application/json"
	}
	reply, err := c.Open(ctx, method, path, q, body, contentType)
	if err != nil {
		return err
	}
	defer reply.Close()
	return Read(reply, out)
}

// Read decodes a bounded JSON answer.
func Read(r io.Reader, out any) error {
	b, err := io.ReadAll(io.LimitReader(r, maxReply+1))
	if err != nil {
		return &api.Error{Code: api.Unavailable, Message: "the answer was cut off", Remedy: "try again", Err: err}
	}
	if len(b) > maxReply {
		return &api.Error{Code: api.TooLarge, Message: "the answer is too large", Remedy: "ask for less, with -l or --limit"}
	}
	if out == nil || len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return &api.Error{Code: api.Internal, Message: "the answer cannot be read", Remedy: "compare `edgectl version` of both sides", Err: err}
	}
	return nil
}

func refusal(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	e := &api.Error{}
	if json.Unmarshal(b, e) == nil && e.Code != "" && e.Message != "" {
		if e.Code == api.Unauthorized {
			e.Remedy = "log in with `edgectl login`, or set EDGECTL_TOKEN; tokens are made by `cored token create`"
			if e.Field == "token" {
				e.Remedy = "ask an administrator for another token, or `cored admin-token` on the core's machine"
			}
		}
		if e.Code == api.NotFound && e.Remedy == "" {
			e.Remedy = "list what there is with `edgectl get KIND`, of another tenant with --tenant"
		}
		return e
	}
	codes := map[int]api.Code{401: api.Unauthorized, 403: api.Forbidden, 404: api.NotFound, 409: api.Conflict, 413: api.TooLarge, 502: api.Unavailable, 503: api.Unavailable, 504: api.Unavailable}
	code, ok := codes[resp.StatusCode]
	if !ok {
		code = api.Internal
	}
	return &api.Error{Code: code, Message: "the core answered " + resp.Status, Remedy: "check that " + resp.Request.URL.Host + " is a core"}
}

// unreachable says what a person can do about a failed connection.
func (c *Client) unreachable(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	e := &api.Error{Code: api.Unavailable, Message: "the core at " + c.base.Host + " cannot be reached", Remedy: "check the address and the network, then try again", Err: inner(err)}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		e.Code, e.Message = api.Unauthorized, "the certificate of "+c.base.Host+" is signed by nobody known"
		e.Remedy = "log in with --ca ROOT.crt, the core's root certificate, or --ca-pin FINGERPRINT, which `cored` prints"
	case errors.As(err, &host):
		e.Code, e.Message = api.Unauthorized, "the certificate of "+c.base.Host+" is for another name"
		e.Remedy = "use the name that cored was started with (--names)"
	case errors.As(err, &invalid):
		e.Code, e.Message = api.Unauthorized, "the certificate of "+c.base.Host+" is not valid"
		e.Remedy = "check the clock of this machine and of the core"
	}
	return e
}

func inner(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// Stream opens a stream to a device: verb is logs, exec, port-forward or top.
func (c *Client) Stream(ctx context.Context, device, verb string, q url.Values) (*stream.Conn, error) {
	conn, err := stream.Dial(ctx, c.URL("/api/v1/devices/"+url.PathEscape(device)+"/"+verb, q), c.tls, c.header())
	var e *api.Error
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err() // interrupted, and not the core's fault
	case err != nil && !errors.As(err, &e):
		return nil, c.unreachable(err)
	}
	return conn, err
}
