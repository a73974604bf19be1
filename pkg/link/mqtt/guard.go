package mqtt

import (
	"errors"
	"fmt"
	"net"
)

// MQTT control packet types (MQTT 3.1.1 section 2.2.1).
const (
	typeConnack  = 2
	typePublish  = 3
	typePuback   = 4
	typeSuback   = 9
	typeUnsuback = 11
	typePingresp = 13
)

// errPacket tells that a parent sent what no broker sends.
var errPacket = errors.New("malformed MQTT from the parent")

// framer follows the packets of a byte stream from a broker, however it is cut, and
// refuses types and lengths that a client never needs. The client library allocates
// what a header announces, up to 256 MiB, before it looks further; a hostile relay must
// not be able to make it.
type framer struct {
	kind byte
	// lengthBytes counts the bytes of the remaining length seen so far.
	lengthBytes int
	length      uint32
	body        uint32 // bytes of the packet still to come
	state       uint8
}

const (
	atHeader uint8 = iota
	atLength
	atBody
)

// feed looks at the next bytes of the stream.
func (f *framer) feed(b []byte) error {
	for len(b) > 0 {
		switch f.state {
		case atHeader:
			f.kind, f.state, f.length, f.lengthBytes = b[0]>>4, atLength, 0, 0
			b = b[1:]
		case atLength:
			f.length |= uint32(b[0]&0x7f) << (7 * f.lengthBytes)
			f.lengthBytes++
			more := b[0]&0x80 != 0
			b = b[1:]
			if more && f.lengthBytes == 4 {
				return fmt.Errorf("%w: length field of more than 4 bytes", errPacket)
			}
			if more {
				continue
			}
			if err := plausible(f.kind, f.length); err != nil {
				return err
			}
			f.body, f.state = f.length, atBody
			if f.body == 0 {
				f.state = atHeader
			}
		case atBody:
			n := uint32(min(len(b), int(f.body)))
			b, f.body = b[n:], f.body-n
			if f.body == 0 {
				f.state = atHeader
			}
		}
	}
	return nil
}

// plausible checks a packet's type and remaining length from a broker's side (sections
// 3.2 to 3.13); a client of QoS 0 and 1 meets no other types.
func plausible(kind byte, length uint32) error {
	ok := false
	switch kind {
	case typeConnack, typePuback, typeUnsuback:
		ok = length == 2
	case typeSuback:
		ok = length == 3 // we subscribe to one topic a packet; the library panics on more
	case typePingresp:
		ok = length == 0
	case typePublish:
		ok = length >= 2 && length <= maxPacket
	}
	if !ok {
		return fmt.Errorf("%w: packet of type %d with %d bytes", errPacket, kind, length)
	}
	return nil
}

// errEnded is what reading and writing give once the session was ended on this side. The
// library takes net.ErrClosed, by its text, for a sign that it closed the connection
// itself, and would never tell that it is lost.
var errEnded = errors.New("session was ended")

// guardedConn fails a read that brings what framer refuses; it stands above TLS.
type guardedConn struct {
	net.Conn
	f framer
}

func (c *guardedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if bad := c.f.feed(b[:n]); bad != nil {
		c.Close()
		return 0, bad
	}
	return n, ended(err)
}

func (c *guardedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, ended(err)
}

func ended(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return errEnded
	}
	return err
}
