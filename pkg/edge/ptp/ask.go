package ptp

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// What is asked of ptp4l: management messages of IEEE 1588-2008, clause 15, over its unix
// socket, as pmc(8) does.
const (
	idDefaultDataSet = 0x2000 // 15.5.3.3.1
	idCurrentDataSet = 0x2001 // 15.5.3.4.1
	idPortDataSet    = 0x2004 // 15.5.3.7.1
	idTimeStatusNP   = 0xC000 // linuxptp's own

	headerBytes = 34 // 13.3
	bodyBytes   = 14 // 15.4.1: target, hops, action
	typeManage  = 0xD
	tlvManage   = 0x0001
	tlvError    = 0x0002
	actionGet   = 0
	actionReply = 2
	maxMessage  = 1500
	anyPort     = 0xffff
	maxPorts    = 16
)

// States of a port (8.2.5.3.1).
var states = map[byte]string{1: "initializing", 2: "faulty", 3: "disabled", 4: "listening", 5: "pre-master", 6: "master", 7: "passive", 8: "uncalibrated", 9: "slave", 10: "grand-master"}

// Reading is how ptp4l is.
type Reading struct {
	// State of the port that counts: slave, where one follows somebody.
	State string
	// OffsetNS is how far the box is from who it follows, DelayNS the mean way there.
	OffsetNS, DelayNS int64
	// Grandmaster is the identity of the clock that it follows in the end; Present says that
	// there is one other than itself.
	Grandmaster string
	Present     bool

	ports int
}

// counts are the states that tell more of a box than those of its other ports, the best first.
var counts = []string{"slave", "uncalibrated", "grand-master", "master"}

// better is the one of two ports' states that counts.
func better(a, b string) string {
	for _, s := range counts {
		if a == s || b == s {
			return s
		}
	}
	return cmp.Or(a, b)
}

// request is a GET of one management id, of a port by its number or of the clock (anyPort).
func request(id uint16, port uint16, domain byte, seq uint16) []byte {
	b := make([]byte, headerBytes+bodyBytes+6)
	b[0], b[1] = typeManage, 2
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	b[4] = domain
	binary.BigEndian.PutUint16(b[28:], 1) // source port
	binary.BigEndian.PutUint16(b[30:], seq)
	b[32], b[33] = 4, 0x7f
	for i := range 8 {
		b[headerBytes+i] = 0xff // whatever clock it is
	}
	binary.BigEndian.PutUint16(b[headerBytes+8:], port)
	b[headerBytes+12] = actionGet // and no hops: it is for this machine alone
	binary.BigEndian.PutUint16(b[headerBytes+bodyBytes:], tlvManage)
	binary.BigEndian.PutUint16(b[headerBytes+bodyBytes+2:], 2)
	binary.BigEndian.PutUint16(b[headerBytes+bodyBytes+4:], id)
	return b
}

// parse reads an answer: its number, id and data.
func parse(b []byte) (seq, id uint16, data []byte, err error) {
	const need = headerBytes + bodyBytes + 6
	if len(b) < need || len(b) > maxMessage || b[0]&0xf != typeManage {
		return 0, 0, nil, fmt.Errorf("%d bytes are no management message", len(b))
	}
	seq = binary.BigEndian.Uint16(b[30:])
	tlv := b[headerBytes+bodyBytes:]
	kind, length := binary.BigEndian.Uint16(tlv), int(binary.BigEndian.Uint16(tlv[2:]))
	if length < 2 || len(tlv) < 4+length {
		return 0, 0, nil, errors.New("a management message is cut off")
	}
	id = binary.BigEndian.Uint16(tlv[4:])
	if kind == tlvError {
		return seq, 0, nil, fmt.Errorf("it answers with error %#x", id)
	}
	if kind != tlvManage || b[headerBytes+12]&0xf != actionReply {
		return 0, 0, nil, errors.New("a management message that is no answer")
	}
	return seq, id, tlv[6 : 4+length], nil
}

// take adds what an answer says.
func (r *Reading) take(id uint16, data []byte) error {
	switch {
	case id == idDefaultDataSet && len(data) >= 20:
		r.ports = int(binary.BigEndian.Uint16(data[2:]))
	case id == idTimeStatusNP && len(data) >= 50:
		r.OffsetNS = int64(binary.BigEndian.Uint64(data))
		r.Present = binary.BigEndian.Uint32(data[38:]) != 0
		r.Grandmaster = hex.EncodeToString(data[42:50])
	case id == idCurrentDataSet && len(data) >= 18:
		r.DelayNS = int64(binary.BigEndian.Uint64(data[10:])) >> 16 // TimeInterval: nanoseconds by 2^16
	case id == idPortDataSet && len(data) >= 20:
		state := states[data[10]]
		if state == "" {
			state = fmt.Sprintf("state %d", data[10])
		}
		r.State = better(r.State, state)
	default:
		return fmt.Errorf("an answer of %d bytes to %#x", len(data), id)
	}
	return nil
}

// Ask asks ptp4l at its socket; mine is a path for the answers, which must not exist.
func Ask(socket, mine string, domain int, limit time.Duration) (r Reading, err error) {
	_ = os.Remove(mine) // of one that was killed
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: mine, Net: "unixgram"})
	if err != nil {
		return r, err
	}
	defer os.Remove(mine)
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return r, err
	}
	seq := uint16(0)
	ask := func(id, port uint16) error {
		seq++
		return exchange(c, socket, request(id, port, byte(domain), seq), &r)
	}
	for _, id := range []uint16{idDefaultDataSet, idTimeStatusNP, idCurrentDataSet} {
		if err := ask(id, anyPort); err != nil {
			return r, err
		}
	}
	for port := range min(r.ports, maxPorts) {
		if err := ask(idPortDataSet, uint16(port+1)); err != nil {
			return r, err
		}
	}
	return r, nil
}

// exchange asks one question, and takes what is answered to it.
func exchange(c *net.UnixConn, socket string, question []byte, r *Reading) error {
	if _, err := c.WriteToUnix(question, &net.UnixAddr{Name: socket, Net: "unixgram"}); err != nil {
		return err
	}
	asked := binary.BigEndian.Uint16(question[30:])
	for b := make([]byte, maxMessage+1); ; {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		seq, id, data, err := parse(b[:n])
		if seq != asked && (err == nil || seq != 0) {
			continue // late
		}
		if err != nil {
			return err
		}
		return r.take(id, data)
	}
}
