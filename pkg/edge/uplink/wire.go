package uplink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

const (
	clientPort, serverPort = 68, 67
	maxPacket              = 1500
)

// wire is a packet socket on one interface: it sends before there is an address, and hears
// answers to an address that is not yet the box's.
type wire struct {
	f     *os.File
	index int
}

// filter is a BPF program (linux/filter.h) that lets through whole UDP datagrams to port 68.
var filter = []unix.SockFilter{
	{Code: 0x30, K: 9},             // ldb [9]: the protocol
	{Code: 0x15, Jf: 6, K: 17},     // UDP?
	{Code: 0x28, K: 6},             // ldh [6]: fragments
	{Code: 0x45, Jt: 4, K: 0x1fff}, // not the first one?
	{Code: 0xb1, K: 0},             // ldxb 4*([0]&0xf): the header's length
	{Code: 0x48, K: 2},             // ldh [x+2]: the port
	{Code: 0x15, Jf: 1, K: clientPort},
	{Code: 0x06, K: 0xffff}, // take
	{Code: 0x06, K: 0},      // drop
}

func openWire(index int) (*wire, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := errors.Join(unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap(unix.ETH_P_IP), Ifindex: index})); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &wire{f: os.NewFile(uintptr(fd), "dhcp"), index: index}, nil
}

func swap(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wire) close() { w.f.Close() }

// send broadcasts on the link; to is the server where it is known, else everyone.
func (w *wire) send(p *dhcpv4.DHCPv4, from, to netip.Addr) error {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	frame := datagram(p.ToBytes(), from, to)
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), frame, 0, &unix.SockaddrLinklayer{Protocol: swap(unix.ETH_P_IP), Ifindex: w.index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}})
		return sent != unix.EAGAIN
	})
	return errors.Join(err, sent)
}

// receive waits until the deadline for an answer.
func (w *wire) receive(deadline time.Time) (*dhcpv4.DHCPv4, error) {
	if err := w.f.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	b := make([]byte, maxPacket)
	for {
		n, err := w.f.Read(b)
		if err != nil {
			return nil, err
		}
		if p, err := parseDatagram(b[:n]); err == nil {
			return p, nil
		}
	}
}

// datagram wraps a message in UDP and IPv4 (RFC 768, RFC 791). The UDP checksum is left out,
// as IPv4 allows.
func datagram(payload []byte, from, to netip.Addr) []byte {
	if !from.Is4() {
		from = netip.IPv4Unspecified()
	}
	if !to.Is4() {
		to = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	b := make([]byte, 28, 28+len(payload))
	be := binary.BigEndian
	b[0], b[8], b[9] = 0x45, 64, 17
	be.PutUint16(b[2:], uint16(28+len(payload)))
	src, dst := from.As4(), to.As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(be.Uint16(b[i:]))
	}
	sum = sum&0xffff + sum>>16
	be.PutUint16(b[10:], ^uint16(sum&0xffff+sum>>16))
	be.PutUint16(b[20:], clientPort)
	be.PutUint16(b[22:], serverPort)
	be.PutUint16(b[24:], uint16(8+len(payload)))
	return append(b, payload...)
}

// parseDatagram takes the DHCP message out of an IPv4 packet.
func parseDatagram(b []byte) (p *dhcpv4.DHCPv4, err error) {
	defer func() { // the decoder of strangers' packets is not ours
		if r := recover(); r != nil {
			p, err = nil, fmt.Errorf("dhcp: %v", r)
		}
	}()
	if len(b) < 20 || b[0]>>4 != 4 || b[9] != 17 {
		return nil, errors.New("no UDP over IPv4")
	}
	head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < 20 || total > len(b) || head+8 > total {
		return nil, errors.New("cut short")
	}
	udp := b[head:total]
	if n := int(binary.BigEndian.Uint16(udp[4:])); n < 8 || n > len(udp) || binary.BigEndian.Uint16(udp[2:]) != clientPort {
		return nil, errors.New("not for a DHCP client")
	} else {
		udp = udp[:n]
	}
	return dhcpv4.FromBytes(udp[8:])
}
