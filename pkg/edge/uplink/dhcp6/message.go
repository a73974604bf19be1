// Package dhcp6 answers: what does a DHCPv6 server (RFC 8415) say to a box: which address
// is it given, and which bootstrap servers (option 136, RFC 8572 section 8.2)?
//
// Client is a plain machine: it is told of the time and of packets, and says what to send.
package dhcp6

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// Types of messages (RFC 8415 section 7.3).
const (
	Solicit     = 1
	Advertise   = 2
	Request     = 3
	Reply       = 7
	InfoRequest = 11
)

// Options (RFC 8415 section 24; the others by their own RFCs).
const (
	optClientID  = 1
	optServerID  = 2
	optIANA      = 3
	optIAAddr    = 5
	optORO       = 6
	optElapsed   = 8
	optStatus    = 13
	optDNS       = 23 // RFC 3646
	optRefresh   = 32 // RFC 8415 section 21.23
	optSZTP      = 136
	maxMessage   = 4096
	maxServers   = 8
	maxOptions   = 64
	maxAddresses = 8
)

// Message is what of a message is of use here.
type Message struct {
	Type     byte
	XID      [3]byte
	Client   []byte // DUIDs
	Server   []byte
	Address  Address // of the first association of our own
	Refused  bool    // a status that is not success
	DNS      []netip.Addr
	SZTP     []byte
	Refresh  time.Duration // zero: not said
	asked    []uint16
	elapsed  time.Duration
	identity uint32 // of the association (IAID)
	wants    bool   // an address
}

// Address is one that was given; its IP is invalid where there is none.
type Address struct {
	IP               netip.Addr
	Preferred, Valid time.Duration
	Renew            time.Duration // T1
}

// forEver is the longest time that is taken for one: a day, since networks change.
const forEver = 24 * time.Hour

func seconds(b []byte) time.Duration {
	return min(time.Duration(binary.BigEndian.Uint32(b))*time.Second, forEver)
}

var errCut = errors.New("DHCPv6: a message that is cut")

// options calls do for each option of a list.
func options(b []byte, do func(code uint16, value []byte) error) error {
	for n := 0; len(b) > 0; n++ {
		if len(b) < 4 || n == maxOptions {
			return errCut
		}
		code, size := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if b = b[4:]; size > len(b) {
			return errCut
		}
		if err := do(code, b[:size]); err != nil {
			return err
		}
		b = b[size:]
	}
	return nil
}

// Parse reads a message of a server. Associations other than of the identity are left out.
func Parse(b []byte, identity uint32) (m Message, err error) {
	if len(b) < 4 || len(b) > maxMessage {
		return m, errCut
	}
	m.Type, m.XID = b[0], [3]byte(b[1:4])
	err = options(b[4:], func(code uint16, v []byte) error {
		switch code {
		case optClientID:
			m.Client = v
		case optServerID:
			m.Server = v
		case optStatus:
			m.Refused = m.Refused || len(v) >= 2 && binary.BigEndian.Uint16(v) != 0
		case optDNS:
			for ; len(v) >= 16 && len(m.DNS) < maxServers; v = v[16:] {
				m.DNS = append(m.DNS, netip.AddrFrom16([16]byte(v)))
			}
		case optRefresh:
			if len(v) == 4 {
				m.Refresh = seconds(v)
			}
		case optSZTP:
			m.SZTP = v
		case optIANA:
			return m.association(v, identity)
		}
		return nil
	})
	return m, err
}

// association reads an IA_NA (RFC 8415 section 21.4).
func (m *Message) association(v []byte, identity uint32) error {
	if len(v) < 12 || binary.BigEndian.Uint32(v) != identity {
		return nil
	}
	renew, n := seconds(v[4:]), 0
	return options(v[12:], func(code uint16, v []byte) error {
		switch {
		case code == optStatus:
			m.Refused = m.Refused || len(v) >= 2 && binary.BigEndian.Uint16(v) != 0
		case code == optIAAddr && len(v) >= 24 && !m.Address.IP.IsValid() && n < maxAddresses:
			n++
			ip := netip.AddrFrom16([16]byte(v))
			a := Address{IP: ip, Preferred: seconds(v[16:]), Valid: seconds(v[20:]), Renew: renew}
			if ip.IsGlobalUnicast() && !ip.Is4In6() && a.Valid > 0 && a.Preferred <= a.Valid {
				m.Address = a
			}
		}
		return nil
	})
}

// Encode writes a message of a client.
func (m *Message) Encode() []byte {
	b := append([]byte{m.Type}, m.XID[:]...)
	add := func(code uint16, v []byte) {
		b = binary.BigEndian.AppendUint16(b, code)
		b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
		b = append(b, v...)
	}
	add(optClientID, m.Client)
	if len(m.Server) > 0 {
		add(optServerID, m.Server)
	}
	add(optElapsed, binary.BigEndian.AppendUint16(nil, uint16(min(m.elapsed/(10*time.Millisecond), 0xffff))))
	var oro []byte
	for _, code := range m.asked {
		oro = binary.BigEndian.AppendUint16(oro, code)
	}
	add(optORO, oro)
	if m.wants {
		ia := binary.BigEndian.AppendUint32(nil, m.identity)
		ia = append(ia, make([]byte, 8)...) // the server's own times
		if m.Address.IP.IsValid() {
			ip := m.Address.IP.As16()
			ia = append(ia, 0, optIAAddr, 0, 24)
			ia = append(append(ia, ip[:]...), make([]byte, 8)...)
		}
		add(optIANA, ia)
	}
	return b
}
