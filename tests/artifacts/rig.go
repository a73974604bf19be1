// Package artifacts answers: does an artifact reach a child through relays once,
// whole, and in spite of everything? It stands up the real core's registry and CA,
// real relays and their links on the loopback, for its tests and for the wan bench.
package artifacts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/ca"
	"tributary.dev/tributary/pkg/core/registry"
	"tributary.dev/tributary/pkg/edge/relay"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/oci"
)

// Token is the one person's token.
const Token = "person-of-default"

// Core is the core's part: CA and registry behind TLS on the loopback.
type Core struct {
	CA       *ca.CA
	Registry *registry.Registry
	Addr     string
	Live     *identity.Live
	srv      *http.Server
}

// NewCore starts a core in dir. extra adds routes; nil for none.
func NewCore(dir string, extra func(*http.ServeMux, *ca.CA)) (*Core, error) {
	authority, err := ca.Open(filepath.Join(dir, "ca"), ca.Options{})
	if err != nil {
		return nil, err
	}
	id, err := authority.Identity([]string{"127.0.0.1"})
	if err != nil {
		return nil, err
	}
	reg, err := registry.New(registry.Config{Dir: filepath.Join(dir, "registry"), Authorize: authorize})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Core{CA: authority, Registry: reg, Addr: l.Addr().String(), Live: identity.NewLive(id)}
	mux := http.NewServeMux()
	reg.Mount(mux)
	if extra != nil {
		extra(mux, authority)
	}
	c.srv = &http.Server{Handler: mux, TLSConfig: c.Live.ServerTLSOptional(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = c.srv.ServeTLS(l, "", "") }() // ends with Close
	return c, nil
}

// Close ends the core.
func (c *Core) Close() error { return errors.Join(c.srv.Close(), c.Registry.Close()) }

// authorize lets devices pull by digest and the one person do all in "default".
func authorize(r *http.Request, a registry.Access) error {
	if r.TLS != nil {
		if _, role, err := identity.PeerID(*r.TLS); err == nil && role == identity.RoleDevice {
			if a.Action == registry.Ping || a.Action == registry.Pull && a.ByDigest {
				return nil
			}
			return api.Errorf(api.Forbidden, "devices pull by digest")
		}
	}
	token, _ := registry.Token(r)
	switch {
	case token != Token:
		return api.Errorf(api.Unauthorized, "who are you?")
	case a.Action == registry.Ping || a.Tenant() == "default":
		return nil
	}
	return api.Errorf(api.Forbidden, "not your tenant")
}

// Device makes a device of this core's CA, with its keys and certificate in dir.
func (c *Core) Device(dir string) (*identity.Identity, error) {
	key, seal, err := identity.LoadOrCreateKeys(dir)
	if err != nil {
		return nil, err
	}
	chain, err := c.CA.IssueDevice(&key.PublicKey, &seal.PublicKey, "default")
	if err != nil {
		return nil, err
	}
	id := &identity.Identity{Key: key, Seal: seal, Cert: chain, Trust: c.CA.Trust()}
	return id, id.Save(dir)
}

// Push pushes an image as a person would, and returns the ref that manifests name.
func (c *Core) Push(ctx context.Context, repo string, img v1.Image) (oci.Ref, error) {
	ref, err := name.ParseReference(c.Addr + "/" + repo + ":latest")
	if err != nil {
		return oci.Ref{}, err
	}
	// A person's machine trusts the core's root; its name is checked by its address.
	transport := &http.Transport{TLSClientConfig: c.Live.Get().ClientTLS(identity.CoreName)}
	transport.TLSClientConfig.GetClientCertificate = nil
	defer transport.CloseIdleConnections()
	err = remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(transport), remote.WithAuth(&authn.Basic{Username: "me", Password: Token}))
	if err != nil {
		return oci.Ref{}, err
	}
	digest, err := img.Digest()
	return oci.Ref{Repo: repo, Digest: digest.String()}, err
}

// Parent is a device's way to its parent at a fixed address.
type Parent struct {
	base   *url.URL
	client *http.Client
	away   atomic.Bool
}

// NewParent dials addr as the identity; peer as in identity.ClientTLS.
func NewParent(id *identity.Identity, addr, peer string) *Parent {
	transport := &http.Transport{TLSClientConfig: id.ClientTLS(peer), MaxIdleConnsPerHost: 8, ResponseHeaderTimeout: 30 * time.Second}
	return &Parent{base: &url.URL{Scheme: "https", Host: addr}, client: &http.Client{Transport: transport}}
}

// Endpoint implements oci.Upstream.
func (p *Parent) Endpoint() (*url.URL, *http.Client, error) {
	if p.away.Load() {
		return nil, nil, errors.New("not attached")
	}
	return p.base, p.client, nil
}

// Close drops idle connections.
func (p *Parent) Close() { p.client.CloseIdleConnections() }

// RelayConfig is all that a relay needs to run, in this process or in its own.
type RelayConfig struct {
	Dir    string // identity below id/, cache below cache/
	Listen string
	Parent string // address
	Peer   string // who the parent is; "" for any
	Refs   []oci.Ref
}

// Encode and DecodeRelayConfig carry it to another process.
func (c RelayConfig) Encode() string {
	b, err := json.Marshal(c)
	if err != nil {
		return "" // cannot happen: strings only
	}
	return string(b)
}

// DecodeRelayConfig is the inverse of Encode.
func DecodeRelayConfig(s string) (c RelayConfig, err error) {
	return c, json.Unmarshal([]byte(s), &c)
}

// Relay is a relay in this process.
type Relay struct {
	Addr   string
	Cache  *oci.Cache
	Server *relay.Server
	Parent *Parent
	stop   context.CancelFunc
	done   chan error
}

// StartRelay runs a relay until Close.
func StartRelay(c RelayConfig, log *slog.Logger) (*Relay, error) {
	id, err := identity.Load(filepath.Join(c.Dir, "id"))
	if err != nil {
		return nil, err
	}
	parent := NewParent(id, c.Parent, c.Peer)
	cache, err := oci.Open(oci.Config{Dir: filepath.Join(c.Dir, "cache"), Upstream: parent, Log: log,
		MinBackoff: 50 * time.Millisecond, MaxBackoff: time.Second})
	if err != nil {
		return nil, err
	}
	server, err := relay.New(relay.Config{Live: identity.NewLive(id), Cache: cache, Parent: parent, Log: log, Retry: time.Second})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &Relay{Addr: l.Addr().String(), Cache: cache, Server: server, Parent: parent, stop: stop, done: make(chan error, 2)}
	if len(c.Refs) > 0 {
		server.Named(id.ID(), c.Refs)
	}
	go func() { r.done <- server.Serve(ctx, l) }()
	go func() { r.done <- server.Run(ctx) }()
	return r, nil
}

// Close ends the relay as a service manager would.
func (r *Relay) Close() error {
	r.stop()
	for range 2 {
		if err := <-r.done; err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("relay: %w", err)
		}
	}
	r.Parent.Close()
	return r.Cache.Close()
}

// Wait blocks until the relay ends.
func (r *Relay) Wait() error { return <-r.done }
