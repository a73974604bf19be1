package vm

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
)

// frameMax bounds a frame: virtio cards may hand over joined segments of 64 KiB.
const frameMax = 128 << 10

// Switch is an Ethernet switch in this process, between cards of machines. It learns
// addresses, counts bytes for each port, and cuts ports. A port whose machine does not
// read loses frames, as on a real one.
type Switch struct {
	mu    sync.Mutex
	ports map[string]*port
	macs  map[[6]byte]*port
	wg    sync.WaitGroup
}

type port struct {
	name string
	conn net.Conn
	out  chan []byte
	cut  bool
	// down counts to the machine, up from it.
	down, up uint64
}

// NewSwitch makes a switch without ports; they appear as machines start.
func NewSwitch() *Switch { return &Switch{ports: map[string]*port{}, macs: map[[6]byte]*port{}} }

// plug makes a port, or gives it a new cable, and returns the machine's end. Counters and
// cuts stay.
func (s *Switch) plug(name string) (*os.File, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.port(name)
	if p.conn != nil {
		_ = p.conn.Close()
		close(p.out)
	}
	p.conn, p.out = ours, make(chan []byte, 1024)
	s.wg.Go(func() { s.read(p, ours) })
	s.wg.Go(func() { write(ours, p.out) })
	return theirs, nil
}

// Join makes a port for a program in this process, which reads and writes frames as a machine
// does: four bytes of length, then the frame.
func (s *Switch) Join(name string) (net.Conn, error) {
	theirs, err := s.plug(name)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	return net.FileConn(theirs)
}

// port is called with the lock held.
func (s *Switch) port(name string) *port {
	p := s.ports[name]
	if p == nil {
		p = &port{name: name}
		s.ports[name] = p
	}
	return p
}

// read takes frames from a machine: four bytes of length, then the frame.
func (s *Switch) read(p *port, conn net.Conn) {
	defer conn.Close()
	for {
		frame, err := readFrame(conn)
		if err != nil {
			return
		}
		s.forward(p, frame)
	}
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > frameMax {
		return nil, errors.New("a frame is too long")
	}
	frame := make([]byte, 4+n)
	copy(frame, head[:])
	_, err := io.ReadFull(r, frame[4:])
	return frame, err
}

func write(conn net.Conn, out <-chan []byte) {
	defer conn.Close()
	for frame := range out {
		if _, err := conn.Write(frame); err != nil {
			for range out { // drain until the port is replugged or the switch closes
			}
			return
		}
	}
}

// forward hands a frame, with its length before it, to where its address was last seen,
// or to all.
func (s *Switch) forward(from *port, frame []byte) {
	if len(frame) < 4+14 {
		return
	}
	to, source := [6]byte(frame[4:10]), [6]byte(frame[10:16])
	s.mu.Lock()
	defer s.mu.Unlock()
	if from.cut {
		return
	}
	from.up += uint64(len(frame) - 4)
	s.macs[source] = from
	if p := s.macs[to]; p != nil && to[0]&1 == 0 {
		p.send(frame)
		return
	}
	for _, p := range s.ports {
		if p != from {
			p.send(frame)
		}
	}
}

func (p *port) send(frame []byte) {
	if p.cut || p.out == nil {
		return
	}
	select {
	case p.out <- frame:
		p.down += uint64(len(frame) - 4)
	default:
	}
}

// Cut makes a port lose every frame in both directions; Heal ends that. The guest still
// sees a link.
func (s *Switch) Cut(port string)  { s.set(port, true) }
func (s *Switch) Heal(port string) { s.set(port, false) }

func (s *Switch) set(name string, cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.port(name).cut = cut
}

// Bytes tells what went to a port's machine and what came from it, Ethernet headers
// included.
func (s *Switch) Bytes(name string) (down, up uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.port(name)
	return p.down, p.up
}

// Close ends all ports. Machines see their link go.
func (s *Switch) Close() {
	s.mu.Lock()
	for _, p := range s.ports {
		if p.conn != nil {
			_ = p.conn.Close()
			close(p.out)
			p.conn, p.out = nil, nil
		}
	}
	s.mu.Unlock()
	s.wg.Wait()
}
