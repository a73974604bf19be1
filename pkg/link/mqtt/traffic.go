package mqtt

import (
	"net"
	"sync/atomic"
)

// Traffic counts the bytes of one link as TCP carried them: MQTT and TLS included,
// handshakes too. It may be shared by several connections and read at any time. What the
// bytes were for, pkg/link counts frame by frame; the rest of Wire is overhead.
type Traffic struct{ in, out atomic.Uint64 }

// Wire is what crossed, both ways.
func (t *Traffic) Wire() (received, sent uint64) { return t.in.Load(), t.out.Load() }

// countingConn counts what crosses a connection; it stands below TLS.
type countingConn struct {
	net.Conn
	t *Traffic
}

func (c *countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.t.in.Add(uint64(n))
	return n, err
}

func (c *countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.t.out.Add(uint64(n))
	return n, err
}
