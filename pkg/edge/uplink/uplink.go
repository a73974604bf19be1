// Package uplink answers: which addresses does this box have on its way up? It gives each
// uplink its fixed addresses or asks for some by DHCP (RFC 2131, RFC 8415), keeps the lease, sets the
// routes, and writes resolv.conf. IPv6 addresses without settings are the kernel's own work
// (router advertisements).
//
// What to do with which interface is decided in Plan, and what a DHCP client says next in
// client; both are plain functions of what they are told.
package uplink

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/uplink/wifi"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/netlist"
)

// Config says how the uplinks are to be.
type Config struct {
	// Settings are nil for DHCP on every wired interface. They have been validated.
	Settings *api.NetworkSettings
	// Run is a folder of /run: resolv.conf and uplinks.json are written there.
	Run string
	// Sys is /sys.
	Sys string
	// Say is called for what a person wants to see.
	Say func(format string, args ...any)
	// Online tells whether the parent is reached; with it, and several uplinks, the way out is
	// changed while it is not (Choice). It is asked each Choose, by default ten seconds.
	Online func(context.Context) bool
	Choose time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Rank gives an interface its turn where there are no settings; nil is 0 for all.
	Rank func(driver string) int
	// Only limits it to these interfaces, for tests on a machine that lives.
	Only []string
}

// ProxyFile is below Config.Run and holds the proxy of the settings in force; it is not there
// when they name none.
const ProxyFile = "proxy"

// Status is one uplink in uplinks.json.
type Status struct {
	Name    string   `json:"name"`
	Up      bool     `json:"up"`
	DHCP    bool     `json:"dhcp,omitempty"`
	Address string   `json:"address,omitempty"`
	Gateway string   `json:"gateway,omitempty"`
	DNS     []string `json:"dns,omitempty"`
	Search  []string `json:"search,omitempty"`
	NTP     []string `json:"ntp,omitempty"`
	Metric  int      `json:"metric,omitempty"`
	Cost    int64    `json:"cost,omitempty"`
	// Best: the way out goes by it.
	Best bool `json:"best,omitempty"`
	// WiFi is the wireless network, and how far the joining is.
	WiFi *WiFi `json:"wifi,omitempty"`
	// SZTP is DHCP option 143 as it came, SZTP6 is DHCPv6 option 136, for the onboarding.
	SZTP  []byte `json:"sztp,omitempty"`
	SZTP6 []byte `json:"sztp6,omitempty"`
}

// WiFi is a wireless network in uplinks.json.
type WiFi struct {
	SSID  string     `json:"ssid"`
	State wifi.State `json:"state"`
}

type runner struct {
	cfg  Config
	mu   sync.Mutex
	air  map[string]*WiFi
	dns  map[string]resolvers
	seen map[string]Status
	by6  map[string]said6
	best string

	bonds *bonds
}

// Run keeps the uplinks until ctx ends. Interfaces that appear later are taken in too.
func Run(ctx context.Context, cfg Config) error {
	r := &runner{cfg: cfg, air: map[string]*WiFi{}, dns: map[string]resolvers{}, seen: map[string]Status{}, by6: map[string]said6{}}
	if r.cfg.Now == nil {
		r.cfg.Now = time.Now
	}
	if r.cfg.Choose <= 0 {
		r.cfg.Choose = 10 * time.Second
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := tellProxy(filepath.Join(cfg.Run, ProxyFile), cfg.Settings); err != nil {
		return err
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("lo: %w", err)
		}
	}
	if err := r.write(); err != nil {
		return err
	}
	r.bonds = newBonds(&r.cfg)
	defer r.bonds.drop() // once no task cares for them
	r.bonds.join(r.links)
	news := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(news, ctx.Done(), netlink.LinkSubscribeOptions{ListExisting: true}); err != nil {
		return err
	}
	if r.cfg.Online != nil {
		chosen := make(chan struct{})
		go func() {
			defer close(chosen)
			r.choose(ctx)
		}()
		defer func() { cancel(); <-chosen }()
	}
	tasks := map[string]*task{}
	defer func() {
		for _, t := range tasks {
			t.stop()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-news:
			if !ok && ctx.Err() != nil {
				return nil // both channels are closed then
			}
			if !ok {
				return errors.New("the kernel's news of interfaces have ended")
			}
			r.follow(ctx, tasks, u)
		}
	}
}

// tellProxy writes the proxy of the settings down, for root alone: it may hold a password.
func tellProxy(path string, s *api.NetworkSettings) error {
	if s != nil && s.Proxy != "" {
		return atomicfile.Write(path, []byte(s.Proxy+"\n"), 0o600)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// task is the care of one assignment.
type task struct {
	Assignment
	carrier chan bool // latest only
	cancel  context.CancelFunc
	done    chan struct{}
}

func (t *task) stop() {
	t.cancel()
	<-t.done
}

// follow starts, stops and tells tasks by what the kernel reports.
func (r *runner) follow(ctx context.Context, tasks map[string]*task, u netlink.LinkUpdate) {
	name := u.Link.Attrs().Name
	if u.Header.Type == unix.RTM_DELLINK {
		if t := tasks[name]; t != nil {
			t.stop()
			delete(tasks, name)
			r.forget(name)
		}
		return
	}
	for _, a := range Plan(r.bonds.join(r.links), r.cfg.Settings) {
		if tasks[a.Name()] == nil {
			tasks[a.Name()] = r.start(ctx, a)
		}
	}
	if t := tasks[name]; t != nil {
		select {
		case <-t.carrier:
		default:
		}
		t.carrier <- u.IfInfomsg.Flags&unix.IFF_RUNNING != 0
	}
}

// forget takes an uplink whose card has gone out of what is told: its name servers answer nobody any more.
func (r *runner) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.seen, name)
	delete(r.dns, name)
	delete(r.by6, name)
	delete(r.air, name)
	if err := r.write(); err != nil {
		r.cfg.Say("%s: %v", name, err)
	}
}

func (r *runner) start(ctx context.Context, a Assignment) *task {
	ctx, cancel := context.WithCancel(ctx)
	t := &task{Assignment: a, carrier: make(chan bool, 1), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		for pause := time.Second; ctx.Err() == nil; pause = min(2*pause, time.Minute) {
			err := r.guarded(ctx, t)
			if ctx.Err() != nil {
				return
			}
			r.cfg.Say("%s: %v; again in %v", a.Name(), err, pause)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}()
	return t
}

func (r *runner) guarded(ctx context.Context, t *task) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return r.care(ctx, t)
}

// links lists the interfaces, with what sysfs tells about them.
func (r *runner) links() (out []Link) {
	list, err := netlist.Links()
	if err != nil {
		r.cfg.Say("interfaces: %v", err)
		return nil
	}
	names := map[int]string{}
	for _, l := range list {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range list {
		a := l.Attrs()
		if len(r.cfg.Only) > 0 && !contains(r.cfg.Only, a.Name) {
			continue
		}
		k := Link{Name: a.Name, MAC: a.HardwareAddr.String(), Master: names[a.MasterIndex], Physical: len(r.cfg.Only) > 0}
		dev := filepath.Join(r.cfg.Sys, "class/net", a.Name, "device")
		if _, err := os.Stat(dev); err == nil && len(a.HardwareAddr) == 6 {
			k.Physical = true
		}
		if _, err := os.Stat(filepath.Join(r.cfg.Sys, "class/net", a.Name, "phy80211")); err == nil {
			k.Wireless = true
		}
		if target, err := os.Readlink(dev + "/driver"); err == nil {
			k.Driver = filepath.Base(target)
		}
		if r.cfg.Rank != nil {
			k.Rank = r.cfg.Rank(k.Driver)
		}
		if _, err := os.Lstat(dev + "/physfn"); err == nil {
			k.Rank = Never // a virtual function is made for an app
		}
		out = append(out, k)
	}
	return out
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// care brings one uplink up and keeps it so; first, where it is a wireless one, it joins.
func (r *runner) care(ctx context.Context, t *task) error {
	if t.WiFi == nil {
		return r.address(ctx, t)
	}
	inner, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- wifi.Join(inner, wifi.Config{Link: t.Link, Dir: filepath.Join(r.cfg.Run, wifi.Dir)}, t.WiFi, func(s wifi.State) { r.joins(t, s) })
	}()
	err := r.address(inner, t)
	cancel()
	if joined := <-ended; ctx.Err() == nil && joined != nil {
		return joined // its end is why the addresses were given up
	}
	return err
}

// joins tells how far the joining of a wireless network is.
func (r *runner) joins(t *task, s wifi.State) {
	r.cfg.Say("%s: network %q: %s", t.Link, t.WiFi.SSID, s)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.air[t.Name()] = &WiFi{SSID: t.WiFi.SSID, State: s}
	r.begin(t)
}

// begin tells of an uplink that is looked after, before it has an address. r.mu is held.
func (r *runner) begin(t *task) {
	if _, ok := r.seen[t.Name()]; !ok {
		r.seen[t.Name()] = Status{Name: t.Name(), DHCP: t.DHCP, Metric: t.Metric, Cost: t.Cost}
	}
	if err := r.write(); err != nil {
		r.cfg.Say("%s: %v", t.Link, err)
	}
}

// address gives an uplink its addresses until ctx ends.
func (r *runner) address(ctx context.Context, t *task) error {
	parent, err := netlink.LinkByName(t.Link)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(parent); err != nil {
		return err
	}
	link := parent
	if t.VLAN > 0 {
		if link, err = vlan(parent, t.Assignment); err != nil {
			return err
		}
	}
	// 2: router advertisements count even where the box forwards, as it does for its apps.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+t.Name()+"/accept_ra", []byte("2\n"), 0) // a kernel without IPv6
	if t.VLAN > 0 {
		defer func() { _ = netlink.LinkDel(link) }() // with all that is on it; it may have gone with its card
	}
	if len(t.Addresses) > 0 {
		defer unfix(link, t.Assignment)
		if err := r.fixed(link, t.Assignment); err != nil {
			return err
		}
	}
	if !t.DHCP {
		<-ctx.Done()
		return nil
	}
	r.mu.Lock()
	r.begin(t)
	r.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	asking.Go(func() { r.six(ctx, t.Name(), link) })
	defer func() { cancel(); asking.Wait() }()
	return r.lease(ctx, t, link)
}

func vlan(parent netlink.Link, a Assignment) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = a.Name(), parent.Attrs().Index
	if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: a.VLAN}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("VLAN %d: %w", a.VLAN, err)
	}
	link, err := netlink.LinkByName(a.Name())
	if err != nil {
		return nil, err
	}
	return link, netlink.LinkSetUp(link)
}

// unfix takes away what fixed gave, so that other settings find a clean card; what is gone
// already is no loss.
func unfix(link netlink.Link, a Assignment) {
	if a.Gateway.IsValid() {
		_ = netlink.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: a.Gateway.AsSlice(), Priority: a.Metric, Flags: int(netlink.FLAG_ONLINK)})
	}
	for _, p := range a.Addresses {
		_ = netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)})
	}
}

func (r *runner) fixed(link netlink.Link, a Assignment) error {
	for _, p := range a.Addresses {
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	s := Status{Name: a.Name(), Up: true, Address: a.Addresses[0].String(), Metric: a.Metric, Cost: a.Cost}
	for _, d := range a.DNS {
		s.DNS = append(s.DNS, d.String())
	}
	if a.Gateway.IsValid() {
		s.Gateway = a.Gateway.String()
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if a.Gateway.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := route(link, Route{all, a.Gateway}, a.Metric); err != nil {
			return err
		}
	}
	r.cfg.Say("%s: %s", a.Name(), a.Addresses[0])
	return r.tell(s, resolvers{a.Metric, a.DNS, nil})
}

// lease lives through DHCP: a new client each time the cable comes in.
func (r *runner) lease(ctx context.Context, t *task, link netlink.Link) error {
	host, _ := os.Hostname() // none is fine
	c := newClient(link.Attrs().HardwareAddr, host, random)
	var in force
	in.link, in.metric = link, t.Metric
	defer in.drop()
	up := link.Attrs().OperState == netlink.OperUp || link.Attrs().Flags&net.FlagRunning != 0
	var w *wire
	defer func() {
		if w != nil {
			w.close()
		}
	}()
	e := effects{}
	if up {
		e = c.restart(time.Now())
	}
	for {
		if e.lost {
			in.drop()
			r.cfg.Say("%s: the lease is gone", t.Name())
			if err := r.tell(Status{Name: t.Name(), DHCP: true, Metric: t.Metric, Cost: t.Cost}, resolvers{metric: t.Metric}); err != nil {
				return err
			}
		}
		if e.got != nil {
			if err := in.put(*e.got); err != nil {
				return err
			}
			r.cfg.Say("%s: %s by DHCP from %s, for %v", t.Name(), e.got.Address, e.got.Server, e.got.End)
			if err := r.tell(status(t.Assignment, *e.got), resolvers{t.Metric, e.got.DNS, e.got.Search}); err != nil {
				return err
			}
		}
		if !e.listen && w != nil {
			w.close()
			w = nil
		}
		if e.listen && w == nil {
			var err error
			if w, err = openWire(link.Attrs().Index); err != nil {
				return err
			}
		}
		if e.send != nil && w != nil {
			if err := w.send(e.send, from(c), e.to); err != nil {
				r.cfg.Say("%s: %v", t.Name(), err)
			}
		}
		var err error
		if e, err = r.next(ctx, t, c, w, &up); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

func from(c *client) netip.Addr {
	if c.state == renewing || c.state == rebinding {
		return c.lease.Address.Addr()
	}
	return netip.Addr{}
}

// next waits for a packet, the client's time, or the cable.
func (r *runner) next(ctx context.Context, t *task, c *client, w *wire, up *bool) (effects, error) {
	cabled := func(now bool) (effects, bool) {
		was := *up
		*up = now
		// A cable that comes back may lead elsewhere; one that goes keeps the lease for now.
		if now && !was {
			return c.restart(time.Now()), true
		}
		return effects{}, false
	}
	for {
		if w == nil || !*up {
			var wake <-chan time.Time
			if *up {
				timer := time.NewTimer(time.Until(c.wake))
				defer timer.Stop()
				wake = timer.C
			}
			select {
			case <-ctx.Done():
				return effects{}, nil
			case now := <-t.carrier:
				if e, ok := cabled(now); ok {
					return e, nil
				}
			case <-wake:
				return c.tick(time.Now()), nil
			}
			continue
		}
		select {
		case <-ctx.Done():
			return effects{}, nil
		case now := <-t.carrier:
			if e, ok := cabled(now); ok {
				return e, nil
			}
			continue
		default:
		}
		until := time.Now().Add(250 * time.Millisecond) // then the cable and ctx are looked at
		if c.wake.Before(until) {
			until = c.wake
		}
		p, err := w.receive(until)
		switch {
		case err == nil:
			return c.receive(time.Now(), p), nil
		case !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, unix.ENETDOWN):
			return effects{}, err
		case !time.Now().Before(c.wake):
			return c.tick(time.Now()), nil
		}
	}
}

// force is what a lease has put on an interface, so that it can be taken away again.
type force struct {
	link   netlink.Link
	metric int
	addr   netip.Prefix
	routes []Route
}

func (f *force) put(l Lease) error {
	if f.addr.IsValid() && f.addr != l.Address {
		f.drop()
	}
	if l.MTU > 0 && l.MTU < f.link.Attrs().MTU {
		if err := netlink.LinkSetMTU(f.link, l.MTU); err != nil {
			return err
		}
	}
	// The kernel takes it away by itself when nobody renews it, whatever becomes of us.
	seconds := int(l.End / time.Second)
	if err := netlink.AddrReplace(f.link, &netlink.Addr{IPNet: ipNet(l.Address), ValidLft: seconds, PreferedLft: seconds}); err != nil {
		return fmt.Errorf("address %s: %w", l.Address, err)
	}
	f.addr = l.Address
	for _, rt := range l.Routes {
		if err := route(f.link, rt, f.metric); err != nil {
			return err
		}
	}
	f.routes = l.Routes
	return nil
}

// drop takes address and routes away; what is gone already is no loss.
func (f *force) drop() {
	if f.addr.IsValid() {
		_ = netlink.AddrDel(f.link, &netlink.Addr{IPNet: ipNet(f.addr)})
	}
	f.addr, f.routes = netip.Prefix{}, nil
}

func route(link netlink.Link, r Route, metric int) error {
	nr := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: r.Via.AsSlice(), Priority: metric, Flags: int(netlink.FLAG_ONLINK)}
	if r.To.Bits() > 0 {
		nr.Dst = ipNet(r.To)
	}
	if err := netlink.RouteReplace(nr); err != nil {
		return fmt.Errorf("route to %s by %s: %w", r.To, r.Via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func status(a Assignment, l Lease) Status {
	s := Status{Name: a.Name(), Up: true, DHCP: true, Address: l.Address.String(), SZTP: l.SZTP, Search: l.Search, Metric: a.Metric, Cost: a.Cost}
	for _, rt := range l.Routes {
		if rt.To.Bits() == 0 {
			s.Gateway = rt.Via.String()
		}
	}
	for _, a := range l.DNS {
		s.DNS = append(s.DNS, a.String())
	}
	for _, a := range l.NTP {
		s.NTP = append(s.NTP, a.String())
	}
	return s
}

// tell writes what others read.
func (r *runner) tell(s Status, dns resolvers) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[s.Name] = s
	r.dns[s.Name] = dns
	return r.write()
}

func (r *runner) write() error {
	var list []resolvers
	all := make([]Status, 0, len(r.seen))
	for name, s := range r.seen {
		d := r.dns[name]
		s.WiFi = r.air[name]
		if s.Best = name == r.best; s.Best {
			d.metric = 0
		}
		list = append(list, d)
		if six, ok := r.by6[name]; ok {
			s.SZTP6 = six.sztp
			for _, a := range six.dns {
				s.DNS = append(s.DNS[:len(s.DNS):len(s.DNS)], a.String())
			}
			list = append(list, resolvers{d.metric, six.dns, nil})
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return errors.Join(replace(filepath.Join(r.cfg.Run, "resolv.conf"), resolvConf(list)), replace(filepath.Join(r.cfg.Run, "uplinks.json"), string(text)+"\n"))
}

func replace(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func random() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return binary.NativeEndian.Uint32(b[:])
}
