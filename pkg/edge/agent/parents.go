package agent

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/proxy"
)

// DefaultHTTPS is the port of a parent's artifacts, enrolment and streams.
const DefaultHTTPS = 8443

// Parents is the list of possible parents and the one in use. It tells the MQTT uplink
// and the HTTPS clients, and is the oci.Upstream and stream.Parent of this box. Safe
// for use by many goroutines.
type Parents struct {
	live    *identity.Live
	first   []api.ParentRef // where the box enrolled: the last resort of any list
	attach  func([]api.ParentRef)
	current func() (id string, connected bool)
	count   func(net.Conn) net.Conn
	dial    proxy.Dial
	log     *slog.Logger
	changed chan struct{}

	mu     sync.Mutex
	list   []api.ParentRef
	in     api.ParentRef // whom client is for
	client *http.Client
	lastID string
}

// ParentsConfig is what Parents needs.
type ParentsConfig struct {
	Live *identity.Live
	// First is where the box was told to enrol.
	First []api.ParentRef
	// Attach hands the list to the uplink (link.Uplink.SetParents).
	Attach func([]api.ParentRef)
	// Current tells the parent of the present session, or of the last one.
	Current func() (id string, connected bool)
	// Count wraps each HTTPS connection; nil counts nothing.
	Count func(net.Conn) net.Conn
	// Dial is how parents are reached over HTTPS; nil is directly.
	Dial proxy.Dial
	Log  *slog.Logger
}

// NewParents starts with the place of enrolment.
func NewParents(cfg ParentsConfig) *Parents {
	p := &Parents{live: cfg.Live, first: cfg.First, attach: cfg.Attach, current: cfg.Current, count: cfg.Count, dial: cfg.Dial, log: cfg.Log,
		changed: make(chan struct{}, 1)}
	p.list = rank(nil, cfg.First)
	return p
}

// rank is the list to attach by: the manifest's, best first, then where the box
// enrolled, so that a wrong list cannot lose the box for good. A parent carries no
// power, so the last resort costs no safety. The list may name the same place with the
// id of a box that stands there no more: the last resort takes whoever does.
func rank(given, first []api.ParentRef) []api.ParentRef {
	out := slices.Clone(given)
	for _, f := range first {
		if !slices.ContainsFunc(out, func(p api.ParentRef) bool { return p.Device == f.Device && sameAddress(p.Address, f.Address) }) {
			out = append(out, f)
		}
	}
	return out
}

func sameAddress(a, b string) bool {
	full := func(s string) string {
		if _, _, err := net.SplitHostPort(s); err == nil {
			return s
		}
		return net.JoinHostPort(s, "8883")
	}
	return full(a) == full(b)
}

// Replace puts the manifest's list in force; nil means none is given.
func (p *Parents) Replace(given []api.ParentRef) {
	next := rank(given, p.first)
	p.mu.Lock()
	same := slices.Equal(next, p.list)
	p.list = next
	p.mu.Unlock()
	if !same {
		p.log.Info("parents", "list", next)
		p.attach(next)
	}
}

// List is the list in force.
func (p *Parents) List() []api.ParentRef {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.list)
}

// Moved tells that the uplink has another parent than before; what failed is worth
// another attempt.
func (p *Parents) Moved() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Changed receives after Moved.
func (p *Parents) Changed() <-chan struct{} { return p.changed }

// choose finds the entry of the parent with that id: by id, else one that names no id
// (the place of enrolment), else the best.
func choose(list []api.ParentRef, id string) (api.ParentRef, bool) {
	for _, want := range []string{id, ""} {
		for _, p := range list {
			if p.Device == want {
				return p, true
			}
		}
	}
	if len(list) == 0 {
		return api.ParentRef{}, false
	}
	return list[0], true
}

// httpsRoot is where a parent serves HTTPS.
func httpsRoot(p api.ParentRef) *url.URL {
	host := p.Address
	if h, _, err := net.SplitHostPort(p.Address); err == nil {
		host = h
	}
	port := p.HTTPSPort
	if port == 0 {
		port = DefaultHTTPS
	}
	return &url.URL{Scheme: "https", Host: net.JoinHostPort(host, strconv.Itoa(port))}
}

// Roots are the HTTPS roots of all parents, the one in use first: for enrolment and
// renewal.
func (p *Parents) Roots() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	if at, ok := p.at(); ok {
		out = append(out, httpsRoot(at).String())
	}
	for _, q := range p.list {
		if u := httpsRoot(q).String(); !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}

// Roots are the HTTPS roots of a list.
func Roots(list []api.ParentRef) (out []string) {
	for _, p := range list {
		out = append(out, httpsRoot(p).String())
	}
	return out
}

// at is the parent in use. Callers hold mu.
func (p *Parents) at() (api.ParentRef, bool) {
	if id, connected := p.current(); connected || p.lastID == "" {
		p.lastID = id
	}
	return choose(p.list, p.lastID)
}

// Endpoint implements oci.Upstream.
func (p *Parents) Endpoint() (*url.URL, *http.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.at()
	if !ok {
		return nil, nil, api.Errorf(api.Unavailable, "no parent is known")
	}
	if p.client == nil || p.in != at {
		if p.client != nil {
			p.client.CloseIdleConnections()
		}
		p.in, p.client = at, p.newClient(at)
	}
	return httpsRoot(at), p.client, nil
}

// Leads tells whether the way through q leads to the core, by asking for what only the
// core can answer: its trust, which relays pass on unread.
func (p *Parents) Leads(ctx context.Context, q api.ParentRef) error {
	client := p.newClient(q)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, httpsRoot(q).JoinPath(identity.PathTrust).String(), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return api.Errorf(api.Unavailable, "%s answers %s", req.URL.Host, resp.Status)
	}
	return nil
}

func (p *Parents) newClient(at api.ParentRef) *http.Client {
	dialer := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}
	t := &http.Transport{
		TLSClientConfig: p.live.ClientTLS(at.Device), TLSHandshakeTimeout: 20 * time.Second,
		MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second, ResponseHeaderTimeout: 60 * time.Second,
		ReadBufferSize: 16 << 10, WriteBufferSize: 4 << 10,
	}
	t.DialContext = dialer.DialContext
	if p.dial != nil {
		t.DialContext = p.dial
	}
	if p.count != nil {
		t.DialContext = counted(t.DialContext, p.count)
	}
	return &http.Client{Transport: t}
}

// Stream implements stream.Parent.
func (p *Parents) Stream() (*url.URL, *tls.Config, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.at()
	if !ok {
		return nil, nil, api.Errorf(api.Unavailable, "no parent is known")
	}
	return httpsRoot(at), p.live.ClientTLS(at.Device), nil
}
