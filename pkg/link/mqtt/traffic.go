package mqtt

import (
	"net"
	"sync/atomic"
)

// Class says what a byte on the wire was for.
type Class uint8

// The classes. Artifacts do not cross MQTT.
const (
	Other     Class = iota // MQTT headers, TLS, pings, everything not named below
	Manifests              // manifests and their deltas
	State                  // reported state
	Records                // records and their acknowledgements
	numClasses
)

func (c Class) String() string {
	return [...]string{"other", "manifests", "state", "records"}[c]
}

// Shares tells how a frame divides among the classes, in any unit (bytes before
// compression serve).
type Shares [numClasses]int

// Classify looks at a frame and tells its shares. It must not keep the frame.
type Classify func(frame []byte) Shares

// Traffic counts the bytes of one link, both ways, by class. The sum over the classes is
// what crossed TCP. It may be shared by several connections and read at any time.
type Traffic struct {
	wire   [2]atomic.Uint64 // TCP payload
	frames [2][numClasses]atomic.Uint64
}

// direction indexes Traffic.
type direction int

const (
	received direction = iota
	sent
)

// Count is one reading of Traffic.
type Count struct {
	Class     string // "manifests", "state", "records", "other"
	Direction string // "received", "sent"
	Bytes     uint64
}

// Counts reads all counters: metric tributary_link_bytes_total{class,direction}.
func (t *Traffic) Counts() []Count {
	var out []Count
	for d, name := range []string{"received", "sent"} {
		var named uint64
		for c := Manifests; c < numClasses; c++ {
			n := t.frames[d][c].Load()
			named += n
			out = append(out, Count{c.String(), name, n})
		}
		// Frames are counted when they are handed over, the wire when it is written.
		out = append(out, Count{Other.String(), name, t.wire[d].Load() - min(named, t.wire[d].Load())})
	}
	return out
}

// Wire is the TCP payload that crossed, both ways.
func (t *Traffic) Wire() (receivedBytes, sentBytes uint64) {
	return t.wire[received].Load(), t.wire[sent].Load()
}

// frame counts a frame by its shares.
func (t *Traffic) frame(d direction, frame []byte, classify Classify) {
	if classify == nil || len(frame) == 0 {
		return
	}
	shares, total := classify(frame), 0
	for _, s := range shares {
		total += max(s, 0)
	}
	for c := Manifests; c < numClasses && total > 0; c++ {
		t.frames[d][c].Add(uint64(len(frame)) * uint64(max(shares[c], 0)) / uint64(total))
	}
}

// retained counts a frame that is a manifest whole.
func (t *Traffic) retained(d direction, raw []byte) {
	t.frames[d][Manifests].Add(uint64(len(raw)))
}

// countingConn counts what crosses a connection; it stands below TLS.
type countingConn struct {
	net.Conn
	t *Traffic
}

func (c *countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.t.wire[received].Add(uint64(n))
	return n, err
}

func (c *countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.t.wire[sent].Add(uint64(n))
	return n, err
}
