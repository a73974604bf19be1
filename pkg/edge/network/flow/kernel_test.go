package flow

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/wait"
)

// space is a network namespace of a test.
type space struct {
	t  *testing.T
	fd int
	h  *netlink.Handle
}

// needFlower skips where this kernel has no flower: the tests then run in a guest (tests/machines).
func needFlower(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	s := newSpace(t)
	s.link(&netlink.Veth{LinkAttrs: attrs("f0"), PeerName: "f1"})
	at := s.index("f0")
	var err error
	s.do(func() { // which ends by itself: a test is skipped by its own goroutine alone
		var k *Kernel
		if k, err = Open(); err != nil {
			return
		}
		defer k.Close()
		if _, err = k.Hook(at); err == nil {
			err = k.filter(&Rule{Hook: Hook{Link: at}, Actions: []Action{{Do: Drop}}}, prefFirst, 0)
		}
	})
	if err != nil {
		t.Skipf("needs a kernel with clsact and flower, which this one does not have (%v): run make vmtest RUN=TestFlows", err)
	}
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{t: t, fd: -1}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends, and with it its namespace's last process
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.fd, err = unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var err error
	if s.h, err = netlink.NewHandleAt(netns.NsHandle(s.fd), unix.NETLINK_ROUTE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.h.Close()
		_ = unix.Close(s.fd)
	})
	s.up("lo")
	return s
}

// do runs f on a thread in the namespace.
func (s *space) do(f func()) {
	s.t.Helper()
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Setns(s.fd, unix.CLONE_NEWNET); err == nil {
			f()
		}
	}()
	<-done
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) link(l netlink.Link) { s.t.Helper(); s.must(s.h.LinkAdd(l)); s.up(l.Attrs().Name) }

func (s *space) get(name string) netlink.Link {
	s.t.Helper()
	l, err := s.h.LinkByName(name)
	s.must(err)
	return l
}

func (s *space) index(name string) int { return s.get(name).Attrs().Index }
func (s *space) mac(name string) (m [6]byte) {
	copy(m[:], s.get(name).Attrs().HardwareAddr)
	return m
}
func (s *space) up(name string) { s.t.Helper(); s.must(s.h.LinkSetUp(s.get(name))) }
func (s *space) addr(name, prefix string) {
	s.t.Helper()
	a, err := netlink.ParseAddr(prefix)
	s.must(err)
	s.must(s.h.AddrAdd(s.get(name), a))
}

// wire joins two namespaces by a cable.
func wire(a *space, nameA string, b *space, nameB string) {
	a.t.Helper()
	v := &netlink.Veth{LinkAttrs: attrs(nameA), PeerName: nameB, PeerNamespace: netlink.NsFd(b.fd)}
	a.link(v)
	b.up(nameB)
}

func (s *space) gateway(addr string) {
	s.t.Helper()
	s.must(s.h.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: net.ParseIP(addr)}))
}

func (s *space) sysctl(path, value string) {
	s.t.Helper()
	s.do(func() {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0o644); err != nil {
			s.t.Error(err)
		}
	})
}

// capture counts frames that arrive at an interface, by what is in them.
type capture struct {
	mu     sync.Mutex
	frames [][]byte
}

func (s *space) capture(name string) *capture {
	s.t.Helper()
	c := &capture{}
	var fd int
	var err error
	at := s.index(name)
	s.do(func() {
		all := int(binary.NativeEndian.Uint16(be16(unix.ETH_P_ALL)))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: at})
		}
	})
	s.must(err)
	s.must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	f := os.NewFile(uintptr(fd), "capture")
	done := make(chan struct{})
	raw, err := f.SyscallConn()
	s.must(err)
	go func() {
		defer close(done)
		b := make([]byte, 1<<17)
		for {
			var n int
			var from unix.Sockaddr
			var got error
			if raw.Read(func(fd uintptr) bool {
				n, from, got = unix.Recvfrom(int(fd), b, 0)
				return got != unix.EAGAIN
			}) != nil || got != nil {
				return
			}
			if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype != unix.PACKET_OUTGOING {
				c.mu.Lock()
				c.frames = append(c.frames, slices.Clone(b[:n]))
				c.mu.Unlock()
			}
		}
	}()
	s.t.Cleanup(func() {
		_ = f.Close()
		<-done
	})
	return c
}

// count tells how many frames hold a text.
func (c *capture) count(text string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.frames {
		if bytes.Contains(f, []byte(text)) {
			n++
		}
	}
	return n
}

func (c *capture) find(text string) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.frames {
		if bytes.Contains(f, []byte(text)) {
			return f
		}
	}
	return nil
}

// send sends n datagrams that hold a text.
func (s *space) send(to, text string, n int) {
	s.t.Helper()
	s.do(func() {
		c, err := net.Dial("udp", to)
		if err != nil {
			s.t.Error(err)
			return
		}
		defer c.Close()
		for range n {
			_, _ = c.Write([]byte(text)) // refused by nobody who listens
		}
	})
}

// lab is a box between users and a peer:
//
//	user u0 ──── b0 box b1 ──── p0 peer
//	                br0 ──── a0 app
type lab struct {
	t                    *testing.T
	user, box, peer, app *space
	notes                notes
	keeper               *Keeper
	stop                 func()
	endpoint             func(app, service string) (Endpoint, bool)
}

type notes struct {
	mu  sync.Mutex
	raw []byte
}

func (n *notes) Load() ([]byte, error) { n.mu.Lock(); defer n.mu.Unlock(); return n.raw, nil }
func (n *notes) Save(b []byte) error   { n.mu.Lock(); defer n.mu.Unlock(); n.raw = b; return nil }

func newLab(t *testing.T) *lab {
	needFlower(t)
	l := &lab{t: t, user: newSpace(t), box: newSpace(t), peer: newSpace(t), app: newSpace(t)}
	wire(l.user, "u0", l.box, "b0")
	wire(l.box, "b1", l.peer, "p0")
	l.user.addr("u0", "10.45.0.2/24")
	l.box.addr("b0", "10.45.0.1/24")
	l.user.gateway("10.45.0.1")
	l.box.addr("b1", "192.0.2.1/24")
	l.peer.addr("p0", "192.0.2.2/24")
	l.box.link(&netlink.Bridge{LinkAttrs: attrs("br0")})
	l.box.addr("br0", "10.213.0.1/24")
	wire(l.app, "a0", l.box, "av")
	l.box.must(l.box.h.LinkSetMaster(l.box.get("av"), l.box.get("br0")))
	l.app.addr("a0", "10.213.0.9/24")
	l.app.gateway("10.213.0.1")
	l.box.sysctl("ipv4/ip_forward", "1")
	e := Endpoint{Link: l.box.index("av"), MAC: l.app.mac("a0"), Gateway: l.box.mac("br0"), Address: netip.MustParseAddr("10.213.0.9")}
	l.endpoint = func(app, service string) (Endpoint, bool) { return e, app == "web" }
	l.start()
	t.Cleanup(func() { l.stop() })
	return l
}

// start runs a keeper in the box, as edged does.
func (l *lab) start() {
	l.keeper = NewKeeper(Config{Endpoint: l.endpoint, Notes: &l.notes, Now: time.Now, Look: 50 * time.Millisecond, Tell: time.Nanosecond, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(l.box.fd, unix.CLONE_NEWNET)
		if err == nil {
			err = l.keeper.Run(ctx)
		}
		done <- err
	}()
	l.stop = func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
		l.stop = func() {}
	}
}

// apply sets one policy at b0, and waits until its rules stand.
func (l *lab) apply(rules ...api.FlowRule) {
	l.t.Helper()
	for i := range rules {
		if rules[i].Name == "" {
			rules[i].Name = fmt.Sprint("r", i)
		}
	}
	l.keeper.Set(map[string]api.FlowPolicySpec{"p": {Interface: api.InterfaceSelector{Name: "b0"}, Rules: rules}})
	l.stand(len(rules))
}

// stand waits until n rules stand in software, and nothing is warned of.
func (l *lab) stand(n int) {
	l.t.Helper()
	wait.Seen(l.t, "rules that stand", func() (any, bool) {
		states := l.keeper.States()
		for _, s := range states {
			if s.State != api.FlowInSoftware {
				return fmt.Sprint(states, l.keeper.Warnings()), false
			}
		}
		return fmt.Sprint(states, l.keeper.Warnings()), len(states) == n && len(l.keeper.Warnings()) == 0
	})
}

// counted waits until a rule counted so many packets.
func (l *lab) counted(rule string, packets uint64) {
	l.t.Helper()
	wait.Seen(l.t, fmt.Sprintf("%d packets of %s", packets, rule), func() (any, bool) {
		states := l.keeper.States()
		i := slices.IndexFunc(states, func(s api.FlowState) bool { return s.Rule == rule })
		return fmt.Sprint(states), i >= 0 && states[i].Packets == packets
	})
}

func udp(port string) api.FlowMatch {
	return api.FlowMatch{Family: "ipv4", Protocol: "udp", DestinationPort: port}
}

var toPeer = &api.FlowTarget{Interface: "b1"}

// The traffic that a rule names goes where the rule says, all else is left alone; every packet
// is counted.
func TestSteer(t *testing.T) {
	l := newLab(t)
	at := l.peer.capture("p0")
	l.apply(api.FlowRule{Name: "steer", Match: udp("5000-5001"), To: toPeer}, api.FlowRule{Name: "drop", Match: udp("5002"), Drop: true})
	l.user.send("10.45.0.1:5000", "steered", 30)
	l.user.send("10.45.0.1:5002", "dropped", 20)
	l.user.send("10.45.0.1:5003", "others", 10)
	l.user.send("10.45.0.1:5001", "the last", 1)
	wait.Until(t, "the last datagram", func() bool { return at.count("the last") == 1 })
	if a, b, c := at.count("steered"), at.count("dropped"), at.count("others"); a != 30 || b != 0 || c != 0 {
		t.Errorf("steered %d, dropped %d, others %d", a, b, c)
	}
	l.counted("steer", 31)
	l.counted("drop", 20)
	// What is gone from the policies is gone from the kernel, the hook included.
	l.keeper.Set(nil)
	wait.Until(t, "no rules", func() bool { return len(l.keeper.States()) == 0 })
	wait.Until(t, "no clsact", func() bool {
		list, err := l.box.h.QdiscList(l.box.get("b0"))
		return err == nil && !slices.ContainsFunc(list, func(q netlink.Qdisc) bool { return q.Type() == "clsact" })
	})
}

func TestMirrorAndPolice(t *testing.T) {
	l := newLab(t)
	at := l.peer.capture("p0")
	in := l.box.capture("b0")
	l.apply(api.FlowRule{Name: "copy", Match: udp("5000"), Mirror: toPeer},
		api.FlowRule{Name: "slow", Match: udp("6000"), Police: &api.FlowPolice{KbitPerSecond: 80, BurstBytes: 20000}, To: toPeer},
		api.FlowRule{Name: "few", Match: udp("6001"), Police: &api.FlowPolice{PacketsPerSecond: 1}, To: toPeer})
	var got atomic.Int64
	l.box.do(func() {
		c, err := net.ListenPacket("udp", "10.45.0.1:5000")
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			b := make([]byte, 100)
			for {
				if _, _, err := c.ReadFrom(b); err != nil {
					return
				}
				got.Add(1)
			}
		}()
	})
	l.user.send("10.45.0.1:5000", "copied", 25)
	wait.Until(t, "copies, and what was copied", func() bool { return at.count("copied") == 25 && got.Load() == 25 })
	l.user.send("10.45.0.1:6000", strings.Repeat("x", 1000), 500)
	wait.Until(t, "all that was sent", func() bool { return in.count("xxxxxxxxxx") == 500 })
	l.counted("slow", 500)
	// What the kernel has counted is not yet what was read: a datagram that passes for certain comes after it.
	passed := func(words, after string) {
		t.Helper()
		l.user.send("10.45.0.1:5000", after, 1)
		wait.Until(t, "what comes after", func() bool { return at.count(after) == 1 && at.count(words) > 0 })
	}
	passed("xxxxxxxxxx", "the end of slow")
	// 20 kB at once and 10 kB a second.
	if n := at.count("xxxxxxxxxx"); n < 10 || n > 400 {
		t.Errorf("%d of 500 datagrams pass a rate of which 20 are the burst", n)
	}
	// Of packets the kernel lets none pass at first, then one for each second since (act_police's
	// tcfp_ptoks begins at nothing).
	tried := uint64(0)
	wait.Until(t, "one of few passes", func() bool {
		l.user.send("10.45.0.1:6001", "one of few", 1)
		tried++
		return at.count("one of few") > 0
	})
	l.user.send("10.45.0.1:6001", "some of many", 200)
	l.counted("few", tried+200)
	passed("one of few", "the end of few")
	if n := at.count("some of many"); n > 150 {
		t.Errorf("%d of 200 datagrams pass at one a second, 16 at once", n)
	}
}

func TestVLAN(t *testing.T) {
	l := newLab(t)
	l.peer.link(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "p0.200", ParentIndex: l.peer.index("p0"), TxQLen: -1}, VlanId: 200})
	l.user.link(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "u0.100", ParentIndex: l.user.index("u0"), TxQLen: -1}, VlanId: 100})
	l.user.addr("u0.100", "10.46.0.2/24")
	l.user.must(l.user.h.NeighAdd(&netlink.Neigh{LinkIndex: l.user.index("u0.100"), State: netlink.NUD_PERMANENT, IP: net.ParseIP("10.46.0.1"), HardwareAddr: l.box.get("b0").Attrs().HardwareAddr}))
	tagged, plain := l.peer.capture("p0.200"), l.peer.capture("p0")
	other := udp("7000")
	other.VLAN = 100
	untag := udp("7001")
	untag.VLAN = 100
	l.apply(api.FlowRule{Name: "push", Match: udp("5000"), PushVLAN: &api.FlowVLAN{ID: 200, Priority: 3}, To: toPeer},
		api.FlowRule{Name: "change", Match: other, PopVLAN: true, PushVLAN: &api.FlowVLAN{ID: 200}, To: toPeer},
		api.FlowRule{Name: "pop", Match: untag, PopVLAN: true, To: toPeer})
	l.user.send("10.45.0.1:5000", "gets a tag", 11)
	l.user.send("10.46.0.1:7000", "gets another tag", 12)
	l.user.send("10.46.0.1:7001", "loses its tag", 13)
	wait.Seen(t, "frames with and without tags", func() (any, bool) {
		got := []int{tagged.count("gets a tag"), tagged.count("gets another tag"), tagged.count("loses its tag"), plain.count("loses its tag")}
		return got, slices.Equal(got, []int{11, 12, 0, 13})
	})
	l.counted("change", 12)
}

func TestTunnels(t *testing.T) {
	l := newLab(t)
	l.peer.link(&netlink.Vxlan{LinkAttrs: attrs("vx"), VxlanId: 55, Port: 4789, Group: net.ParseIP("192.0.2.1"), SrcAddr: net.ParseIP("192.0.2.2")})
	l.peer.link(&netlink.Gretap{LinkAttrs: attrs("gr"), Local: net.IPv4(192, 0, 2, 2).To4(), Remote: net.IPv4(192, 0, 2, 1).To4(), IKey: 77, OKey: 77})
	vx, gr := l.peer.capture("vx"), l.peer.capture("gr")
	back := l.user.capture("u0")
	end := func(kind string, id int64) *api.FlowTunnel {
		return &api.FlowTunnel{Kind: kind, ID: id, Source: "192.0.2.1", Destination: "192.0.2.2"}
	}
	l.apply(api.FlowRule{Name: "vxlan", Match: udp("5000"), Encapsulate: end("vxlan", 55)},
		api.FlowRule{Name: "gre", Match: udp("5001"), Encapsulate: end("gre", 77)},
		api.FlowRule{Name: "vxlan-back", Match: api.FlowMatch{Tunnel: &api.FlowTunnel{Kind: "vxlan", ID: 55, Source: "192.0.2.2"}}, To: &api.FlowTarget{Interface: "b0"}},
		api.FlowRule{Name: "gre-back", Match: api.FlowMatch{Tunnel: &api.FlowTunnel{Kind: "gre", ID: 77}}, To: &api.FlowTarget{Interface: "b0"}})
	l.user.send("10.45.0.1:5000", "into vxlan", 21)
	l.user.send("10.45.0.1:5001", "into gre", 22)
	wait.Seen(t, "frames out of the tunnels", func() (any, bool) {
		got := []int{vx.count("into vxlan"), gr.count("into gre"), vx.count("into gre")}
		return got, slices.Equal(got, []int{21, 22, 0})
	})
	for name, text := range map[string]string{"vx": "out of vxlan", "gr": "out of gre"} {
		l.peer.addr(name, map[string]string{"vx": "10.50.0.2/24", "gr": "10.51.0.2/24"}[name])
		ip := map[string]string{"vx": "10.50.0.1", "gr": "10.51.0.1"}[name]
		l.peer.must(l.peer.h.NeighAdd(&netlink.Neigh{LinkIndex: l.peer.index(name), State: netlink.NUD_PERMANENT, IP: net.ParseIP(ip), HardwareAddr: l.user.get("u0").Attrs().HardwareAddr}))
		l.peer.send(ip+":9", text, 8)
	}
	wait.Seen(t, "frames from the tunnels", func() (any, bool) {
		got := []int{back.count("out of vxlan"), back.count("out of gre")}
		return got, slices.Equal(got, []int{8, 8})
	})
}

// Users call an address far away, and an app on the box answers by that address, in both
// directions with more than one packet holds.
func TestBreakout(t *testing.T) {
	l := newLab(t)
	l.apply(api.FlowRule{Name: "breakout", Match: api.FlowMatch{Source: "10.45.0.0/16", Destination: "203.0.113.10", Protocol: "tcp", DestinationPort: "443"}, To: &api.FlowTarget{App: "web", Service: "s", Port: 8443}})
	var ln net.Listener
	l.app.do(func() {
		var err error
		if ln, err = net.Listen("tcp", "10.213.0.9:8443"); err != nil {
			t.Error(err)
		}
	})
	if ln == nil {
		return
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // it echoes
			}()
		}
	}()
	content := bytes.Repeat([]byte("breakout "), 100_000)
	l.user.do(func() {
		c, err := net.DialTimeout("tcp", "203.0.113.10:443", time.Minute)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
		go func() { _, _ = c.Write(content) }()
		got := make([]byte, len(content))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, content) {
			t.Errorf("the echo: %v", err)
		}
	})
	// The app's other callers get their answers as ever.
	l.box.do(func() {
		c, err := net.DialTimeout("tcp", "10.213.0.9:8443", time.Minute)
		if err != nil {
			t.Error(err)
			return
		}
		_ = c.Close()
	})
	if states := l.keeper.States(); states[0].Packets == 0 {
		wait.Until(t, "packets counted", func() bool { return l.keeper.States()[0].Packets > 10 })
	}
}

// What a radio network sends in GTP-U comes to an app, and its answers go back by it.
func TestGTPU(t *testing.T) {
	l := newLab(t)
	session := &api.FlowTunnel{Kind: "gtpu", ID: 8193, In: 4097, Destination: "192.0.2.2"}
	l.apply(api.FlowRule{Name: "down", Match: api.FlowMatch{Destination: "10.60.0.2"}, Encapsulate: session},
		api.FlowRule{Name: "local", Match: api.FlowMatch{Tunnel: &api.FlowTunnel{Kind: "gtpu"}, Source: "10.60.0.2", Destination: "203.0.113.10", Protocol: "udp", DestinationPort: "53"}, To: &api.FlowTarget{App: "web", Service: "s", Port: 5353}})
	at := l.peer.capture("p0")
	l.app.do(func() {
		c, err := net.ListenPacket("udp", "10.213.0.9:5353")
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			b := make([]byte, 100)
			for {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(append([]byte("answer to "), b[:n]...), from)
			}
		}()
	})
	l.peer.do(func() {
		c, err := net.Dial("udp", "192.0.2.1:2152")
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if _, err := c.Write(gtpu(4097, datagram("10.60.0.2", "203.0.113.10", 1000, 53, "a question"))); err != nil {
			t.Error(err)
		}
	})
	wait.Until(t, "the answer in the tunnel", func() bool { return at.count("answer to a question") == 1 })
	f := at.find("answer to a question")
	// Ethernet 14, IPv4 20, UDP 8, GTP-U 8, then the subscriber's packet.
	if len(f) < 78 || binary.BigEndian.Uint32(f[46:]) != 8193 || !bytes.Equal(f[62:70], []byte{203, 0, 113, 10, 10, 60, 0, 2}) || binary.BigEndian.Uint16(f[70:]) != 53 {
		t.Errorf("the answer is % x", f)
	}
	l.user.send("10.60.0.2:9", "to the subscriber", 5)
	wait.Until(t, "datagrams in the tunnel", func() bool { return at.count("to the subscriber") == 5 })
}

func gtpu(teid uint32, inner []byte) []byte {
	b := append([]byte{0x30, 0xff}, be16(uint16(len(inner)))...)
	return append(append(b, be32(teid)...), inner...)
}

func datagram(from, to string, sport, dport uint16, text string) []byte {
	b := append([]byte{0x45, 0}, be16(uint16(28+len(text)))...)
	b = append(b, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	b = append(append(b, net.ParseIP(from).To4()...), net.ParseIP(to).To4()...)
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	b = append(append(append(b, be16(sport)...), be16(dport)...), be16(uint16(8+len(text)))...)
	return append(append(b, 0, 0), text...)
}

// While a keeper ends and another begins, and while policies change, no datagram of a stream is
// lost, and a restart changes nothing.
func TestNoGap(t *testing.T) {
	l := newLab(t)
	at := l.peer.capture("p0")
	steer := api.FlowRule{Name: "steer", Match: udp("5000"), To: toPeer}
	wall := api.FlowRule{Name: "wall", Match: udp("5000-6000"), Drop: true}
	l.apply(steer, wall)
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		sent := 0
		l.user.do(func() {
			c, err := net.Dial("udp", "10.45.0.1:5000")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			pace := time.NewTicker(time.Millisecond)
			defer pace.Stop()
			for {
				select {
				case <-stop:
					return
				case <-pace.C:
				}
				if _, err := fmt.Fprintf(c, "stream %08d", sent); err == nil {
					sent++
				}
			}
		})
		done <- sent
	}()
	handles := func() (out []string) {
		l.box.do(func() {
			k, err := Open()
			if err != nil {
				t.Error(err)
				return
			}
			defer k.Close()
			filters, _, err := k.Filters([]Link{{Index: l.box.index("b0"), Name: "b0"}})
			if err != nil {
				t.Error(err)
			}
			for _, f := range filters {
				out = append(out, fmt.Sprintf("%d %x", f.Pref, f.ID))
			}
		})
		return out
	}
	was := handles()
	for range 5 {
		l.stop()
		l.start()
		l.apply(steer, wall)
	}
	if now := handles(); !slices.Equal(was, now) || len(now) != 2 {
		t.Errorf("a restart changed %q to %q", was, now)
	}
	copied := steer
	copied.Mirror = &api.FlowTarget{Interface: "br0"}
	for i := range 20 { // all that concerns the stream is replaced
		if i%2 == 0 {
			l.apply(api.FlowRule{Name: "new", Match: udp("5500"), Drop: true}, copied, wall)
		} else {
			l.apply(steer, wall)
		}
	}
	close(stop)
	sent := <-done
	wait.Seen(t, "every datagram of the stream", func() (any, bool) {
		n := at.count("stream ")
		return fmt.Sprintf("%d of %d", n, sent), n == sent
	})
	if sent < 20 {
		t.Errorf("a stream of %d datagrams shows nothing", sent)
	}
}

// Where no policy is, nothing is done and nothing is warned of, on any kernel; interfaces are
// seen as they are.
func TestNoPolicies(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	l := &lab{t: t, box: newSpace(t)}
	l.box.link(&netlink.Veth{LinkAttrs: attrs("b0"), PeerName: "b1"})
	l.start()
	t.Cleanup(func() { l.stop() })
	l.keeper.Set(map[string]api.FlowPolicySpec{"p": {Interface: api.InterfaceSelector{Name: "eth9"}, Rules: []api.FlowRule{{Name: "r", Drop: true}}}})
	wait.Seen(t, "a rule that waits for its interface, and no other fault", func() (any, bool) {
		w := l.keeper.Warnings()
		return w, len(w) == 1 && w[0].Name == "flow-waiting"
	})
	l.keeper.Set(nil)
	wait.Seen(t, "no warnings", func() (any, bool) {
		return l.keeper.Warnings(), len(l.keeper.Warnings()) == 0 && len(l.keeper.States()) == 0
	})
	l.box.do(func() {
		k, err := Open()
		if err != nil {
			t.Error(err)
			return
		}
		defer k.Close()
		links, err := k.Links()
		i := slices.IndexFunc(links, func(l Link) bool { return l.Name == "b0" })
		if err != nil || i < 0 || links[i].Kind != "veth" || !links[i].Ethernet || links[i].Offload || links[i].MAC == "" {
			t.Errorf("%+v %v", links, err)
		}
	})
}
