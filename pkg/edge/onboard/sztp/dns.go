package sztp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Network is where one uplink leads, with name servers of its own: they alone may know the names
// of a site there. A resolver of many servers asks them one after the other, and is content with
// the first that says a name is unknown.
type Network struct {
	Interface string // questions leave by it; empty: by whatever leads there
	Servers   []netip.AddrPort
	Search    []string // domains
}

// Networks are a box's; none stands for the machine's own resolver.
type Networks []Network

// dnsPatience bounds what one network's servers are asked for one list.
const dnsPatience = 5 * time.Second

func (n Network) resolver() *net.Resolver {
	var turn atomic.Uint32
	d := &net.Dialer{Timeout: dnsPatience, Control: func(_, _ string, c syscall.RawConn) (err error) {
		if n.Interface == "" {
			return nil
		}
		failed := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), n.Interface) })
		return errors.Join(err, failed)
	}}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		server := n.Servers[int(turn.Add(1)-1)%len(n.Servers)]
		return d.DialContext(ctx, network, server.String())
	}}
}

func (n Networks) resolvers() (out []*net.Resolver) {
	for _, one := range n {
		if len(one.Servers) > 0 {
			out = append(out, one.resolver())
		}
	}
	if out == nil {
		return []*net.Resolver{net.DefaultResolver}
	}
	return out
}

// ByDNS looks bootstrap servers up in domains, and in those of the networks themselves, by the
// name servers of each (RFC 6763 section 10; the name of the service is registered by RFC 8572
// section 10.7).
func (n Networks) ByDNS(ctx context.Context, domains []string) (out []string) {
	for _, one := range n {
		domains = append(domains[:len(domains):len(domains)], one.Search...)
	}
	slices.Sort(domains)
	domains = slices.Compact(domains)
	domains = domains[:min(len(domains), 8)]
	ctx, cancel := context.WithTimeout(ctx, dnsPatience)
	defer cancel()
	asked := n.resolvers()
	found := make([][]string, len(asked))
	var all sync.WaitGroup
	for i, r := range asked {
		all.Go(func() { found[i] = servers(ctx, r, domains) })
	}
	all.Wait()
	for _, root := range slices.Concat(found...) {
		if !slices.Contains(out, root) {
			out = append(out, root)
		}
	}
	return out
}

func servers(ctx context.Context, r *net.Resolver, domains []string) (out []string) {
	for _, d := range domains {
		_, list, err := r.LookupSRV(ctx, "sztp", "tcp", strings.TrimSuffix(d, ".")+".")
		if err != nil {
			continue // no such service there
		}
		for _, s := range list[:min(len(list), maxList)] {
			if root, ok := rootOf(fmt.Sprintf("https://%s:%d", strings.TrimSuffix(s.Target, "."), s.Port)); ok {
				out = append(out, root)
			}
		}
	}
	return out
}

// Dial connects by a name that any of the networks knows.
func (n Networks) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return d.DialContext(ctx, network, address)
	}
	var errs []error
	for _, r := range n.resolvers() {
		known, err := r.LookupNetIP(ctx, "ip", host)
		if err != nil {
			errs = append(errs, err)
		}
		for _, ip := range known {
			conn, err := d.DialContext(ctx, network, net.JoinHostPort(ip.Unmap().String(), port))
			if err == nil {
				return conn, nil
			}
			errs = append(errs, err)
		}
	}
	return nil, errors.Join(errs...)
}
