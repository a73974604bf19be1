package network

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Listener is a socket on which a program of the box itself takes connections, or
// datagrams from anybody.
type Listener struct {
	Protocol string // tcp or udp
	Addr     netip.AddrPort
}

// Listeners lists them, in the network namespace of this process (proc(5), net/tcp).
// The thread's own view is read: threads that visit another namespace serve nobody else.
func Listeners() ([]Listener, error) { return listenersIn("/proc/thread-self/net") }

func listenersIn(dir string) ([]Listener, error) {
	var out []Listener
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6"} {
		file, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("network: sockets of the device: %w", err)
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			if addr, ok := parseListener(lines.Text(), name[:3]); ok {
				out = append(out, Listener{Protocol: name[:3], Addr: addr})
			}
		}
		if err := errors.Join(lines.Err(), file.Close()); err != nil {
			return nil, fmt.Errorf("network: sockets of the device: %w", err)
		}
	}
	return out, nil
}

// parseListener reads a line of net/tcp or net/udp: the address is in hex, each word of
// four bytes in the machine's order (little-endian on all platforms here).
func parseListener(line, protocol string) (netip.AddrPort, bool) {
	const listening, unconnected = "0A", "07" // include/net/tcp_states.h
	fields := strings.Fields(line)
	if len(fields) < 4 || protocol == "tcp" && fields[3] != listening || protocol == "udp" && fields[3] != unconnected {
		return netip.AddrPort{}, false
	}
	words, number, _ := strings.Cut(fields[1], ":")
	raw, err := hex.DecodeString(words)
	port, perr := strconv.ParseUint(number, 16, 16)
	if err != nil || perr != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), ok
}

// Takes tells whether publishing a port would take what is meant for the listener: a
// rule for published ports comes before any socket, so it is as with bind(2), where a
// socket on all addresses stands against every other one of its port.
func (p Port) Takes(l Listener) bool {
	if p.Host == 0 || p.Host != int(l.Addr.Port()) || l.Protocol != protocolOf(p) {
		return false
	}
	host, err := netip.ParseAddr(p.HostIP)
	if a := l.Addr.Addr(); a.Is6() && !a.IsUnspecified() {
		return host == a // containers have IPv4 addresses alone
	}
	return err != nil || host.IsUnspecified() || l.Addr.Addr().IsUnspecified() || host.Unmap() == l.Addr.Addr()
}

func protocolOf(p Port) string {
	if p.Protocol == "" {
		return "tcp"
	}
	return p.Protocol
}
