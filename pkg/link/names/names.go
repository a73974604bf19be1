// Package names answers: which addresses has a name, on a box whose networks each have name servers of their own?
//
// A resolver of many servers asks them one after the other, and is content with the first that says that there is no such
// name. The first uplink's may be a carrier's, and the name one of the site behind the second.
package names

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// File is the list of uplinks below the folder in which process 1 tells of itself (pkg/edge/uplink writes it).
const File = "uplinks.json"

// Network is where one uplink leads, with name servers of its own.
type Network struct {
	Interface string // questions leave by it; empty: by whatever leads there
	Servers   []netip.AddrPort
	Search    []string // domains
}

// Networks are a box's; none stands for the machine's own resolver.
type Networks []Network

const (
	// Patience bounds what one network's servers are asked for one thing.
	Patience = 5 * time.Second
	maxFile  = 256 << 10
)

// Read reads the networks from such a list, the one that the way out goes by first. No list, or a torn one, is none.
func Read(file string) Networks {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil
	}
	return Decode(text)
}

// Decode is Read of the list's content.
func Decode(text []byte) (out Networks) {
	var list []struct {
		Name   string   `json:"name"`
		Best   bool     `json:"best"`
		DNS    []string `json:"dns"`
		Search []string `json:"search"`
	}
	if json.Unmarshal(text, &list) != nil {
		return nil
	}
	for _, u := range list {
		n := Network{Interface: u.Name, Search: u.Search}
		for _, text := range u.DNS {
			if a, err := netip.ParseAddr(text); err == nil {
				if a.IsLinkLocalUnicast() && a.Is6() && a.Zone() == "" {
					a = a.WithZone(u.Name)
				}
				n.Servers = append(n.Servers, netip.AddrPortFrom(a, 53))
			}
		}
		if u.Best {
			out = slices.Insert(out, 0, n)
		} else {
			out = append(out, n)
		}
	}
	return out
}

func (n Network) resolver() *net.Resolver {
	var turn atomic.Uint32
	d := &net.Dialer{Timeout: Patience, Control: func(_, _ string, c syscall.RawConn) (err error) {
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

// Resolvers ask each network's servers; the machine's own where no network has any.
func (n Networks) Resolvers() (out []*net.Resolver) {
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

// Dial connects, as net.Dialer's DialContext does.
type Dial = func(ctx context.Context, network, address string) (net.Conn, error)

// Dial connects by a name that any of the networks knows.
func (n Networks) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.dial(ctx, network, address, (&net.Dialer{}).DialContext)
}

func (n Networks) dial(ctx context.Context, network, address string, to Dial) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return to(ctx, network, address)
	}
	var errs []error
	for _, r := range n.Resolvers() {
		asking, cancel := context.WithTimeout(ctx, 2*Patience)
		known, err := r.LookupNetIP(asking, "ip", host)
		cancel()
		if err != nil {
			errs = append(errs, err)
		}
		for _, ip := range known {
			conn, err := to(ctx, network, net.JoinHostPort(ip.Unmap().String(), port))
			if err == nil {
				return conn, nil
			}
			errs = append(errs, err)
		}
	}
	return nil, errors.Join(errs...)
}

// Through dials, and where a name is not found asks each network of that moment for it.
func Through(networks func() Networks, dial Dial) Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		var unknown *net.DNSError
		if err == nil || !errors.As(err, &unknown) || ctx.Err() != nil {
			return conn, err
		}
		n := networks()
		if len(n) < 2 { // the one was asked
			return nil, err
		}
		conn, again := n.dial(ctx, network, address, dial)
		if again != nil {
			return nil, err // in the words that people know; the others' answers are no better
		}
		return conn, nil
	}
}
