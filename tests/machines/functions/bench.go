//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/edge/network"
)

// plainSpace is a container's network as bridges make it.
const plainSpace = "/run/plain"

// echoPort answers in both networks: the first byte says whether what follows comes back
// (e) or is counted (s).
const echoPort = "7007"

// plain joins a namespace by veth to a bridge, and the bridge by a route to the card and the
// other guest's, as containers' networks are. Guests are known by numbers.
func plain(own, other string) error {
	c, err := card()
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(plainSpace, nil, 0o644), os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)); err != nil {
		return err
	}
	err = network.Enter("/proc/self/ns/net", func() error { // on a thread that ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), plainSpace, "none", unix.MS_BIND, "")
	})
	if err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host0"}, PeerName: "plain0"}
	if err := errors.Join(h.LinkAdd(bridge), h.LinkAdd(pair), h.LinkSetMaster(pair, bridge)); err != nil {
		return err
	}
	fd, err := unix.Open(plainSpace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	peer, err := h.LinkByName("plain0")
	if err == nil {
		err = h.LinkSetNsFd(peer, fd)
	}
	subnet := func(guest string) string { return "198.51.10" + guest + ".0/24" }
	if err := errors.Join(err, h.LinkSetUp(pair), joined(h, "br0", "198.51.10"+own+".1/24", "", ""), joined(h, c.Name, "203.0.113."+own+"/24", subnet(other), "203.0.113."+other)); err != nil {
		return err
	}
	return network.Enter(plainSpace, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return joined(h, "plain0", "198.51.10"+own+".2/24", subnet(other), "198.51.10"+own+".1")
	})
}

// joined gives an interface an address and a route.
func joined(h *netlink.Handle, name, address, to, via string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	if err := errors.Join(h.AddrAdd(l, addr), h.LinkSetUp(l)); err != nil || to == "" {
		return err
	}
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: net.ParseIP(via)})
}

// answer serves in both networks until the guest ends.
func answer() error {
	for _, space := range append(spaces(), plainSpace) {
		err := network.Enter(space, func() error {
			l, err := net.Listen("tcp4", ":"+echoPort)
			if err != nil {
				return err
			}
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go talk(conn)
				}
			}()
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func talk(conn net.Conn) {
	defer conn.Close()
	var mode [1]byte
	if _, err := io.ReadFull(conn, mode[:]); err != nil {
		return
	}
	if mode[0] == 'e' {
		_, _ = io.Copy(conn, conn)
		return
	}
	_, _ = io.Copy(io.Discard, conn)
	_, _ = conn.Write([]byte("k"))
}

const (
	pings  = 100
	bulk   = 4 << 20
	blocks = 5
)

// bench compares both ways to the other end, in turns: round trips of 64 bytes, and bulk.
func bench(function, plainAddress string) error {
	ways := []struct{ name, space, address string }{{"function", "", function}, {"bridge", plainSpace, plainAddress}}
	trips, rates := map[string][]float64{}, map[string][]float64{}
	for block := range blocks + 1 {
		for _, w := range ways {
			if w.space == "" {
				w.space = spaces()[0]
			}
			t, err := roundTrip(w.space, w.address)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			r, err := throughput(w.space, w.address)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			if block == 0 {
				continue // addresses are asked for, queues are filled
			}
			trips[w.name], rates[w.name] = append(trips[w.name], t), append(rates[w.name], r)
		}
	}
	figure, err := json.Marshal(map[string]map[string][]float64{"function": {"us": trips["function"], "mbit": rates["function"]}, "bridge": {"us": trips["bridge"], "mbit": rates["bridge"]}})
	fmt.Printf("functions: figure %s.\n", figure)
	return err
}

func dial(space, address, mode string) (conn net.Conn, err error) {
	err = network.Enter(space, func() error {
		conn, err = net.DialTimeout("tcp4", address+":"+echoPort, 10*time.Second)
		return err
	})
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
		_, err = io.WriteString(conn, mode)
	}
	return conn, err
}

// roundTrip is the median of many, in microseconds.
func roundTrip(space, address string) (float64, error) {
	conn, err := dial(space, address, "e")
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	b, all := make([]byte, 64), make([]float64, 0, pings)
	for range pings {
		start := time.Now()
		if _, err := conn.Write(b); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(conn, b); err != nil {
			return 0, err
		}
		all = append(all, float64(time.Since(start).Nanoseconds())/1000)
	}
	slices.Sort(all)
	return all[len(all)/2], nil
}

// throughput is in Mbit/s.
func throughput(space, address string) (float64, error) {
	conn, err := dial(space, address, "s")
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	start, b := time.Now(), make([]byte, 64<<10)
	for sent := 0; sent < bulk; sent += len(b) {
		if _, err := conn.Write(b); err != nil {
			return 0, err
		}
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(conn, b[:1]); err != nil {
		return 0, err
	}
	return bulk * 8 / time.Since(start).Seconds() / 1e6, nil
}
