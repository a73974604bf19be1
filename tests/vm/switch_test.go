package vm

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"
)

// cable is a machine's end of a port.
type cable struct {
	net.Conn
	t *testing.T
}

func plugged(t *testing.T, s *Switch, name string) cable {
	t.Helper()
	f, err := s.plug(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return cable{c, t}
}

// say sends a frame between two addresses, named by a number each; 255 is everybody.
func (c cable) say(to, from byte, text string) {
	c.t.Helper()
	frame := append([]byte{0, 0, 0, 0, to, to, to, to, to, to, from * 2, 0, 0, 0, 0, 0, 8, 0}, text...)
	if to != 255 {
		copy(frame[4:], []byte{to * 2, 0, 0, 0, 0, 0})
	}
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	if _, err := c.Write(frame); err != nil {
		c.t.Fatal(err)
	}
}

func (c cable) hears(text string) {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	frame, err := readFrame(c)
	if err != nil || !bytes.HasSuffix(frame, []byte(text)) {
		c.t.Fatalf("heard %q, %v; wanted %q", frame, err, text)
	}
}

func TestSwitch(t *testing.T) {
	s := NewSwitch()
	defer s.Close()
	a, b, c := plugged(t, s, "a"), plugged(t, s, "b"), plugged(t, s, "c")
	a.say(255, 1, "to all")
	b.hears("to all")
	c.hears("to all")
	b.say(1, 2, "to a alone")
	a.hears("to a alone")
	s.Cut("a")
	c.say(255, 3, "a is cut off")
	b.hears("a is cut off") // and a does not: the next that it hears is another
	s.Heal("a")
	b.say(255, 2, "back")
	a.hears("back")
	c.hears("back") // so "to a alone" did not come here
	down, up := s.Bytes("b")
	if down != 14*2+uint64(len("to all")+len("a is cut off")) || up != 14*2+uint64(len("to a alone")+len("back")) {
		t.Errorf("b: %d down, %d up", down, up)
	}
	// A machine that starts again has a new cable at the old port.
	b = plugged(t, s, "b")
	a.say(2, 1, "still you")
	b.hears("still you")
}

func TestFrameBounds(t *testing.T) {
	if _, err := readFrame(bytes.NewReader([]byte{255, 0, 0, 0})); err == nil {
		t.Error("a frame of 4 GB is taken")
	}
	if _, err := readFrame(bytes.NewReader([]byte{0, 0, 0, 9, 1})); err == nil {
		t.Error("half a frame is taken")
	}
}
