package stream

import (
	"bufio"
	"bytes"
	"net"
	"net/http"
	"sync"
)

// tapWriter lets a test see what a hijacked connection carries.
type tapWriter struct {
	http.ResponseWriter
	seen *lockedBuffer
}

func (w tapWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	return tapConn{c, w.seen}, rw, err
}

type tapConn struct {
	net.Conn
	seen *lockedBuffer
}

func (c tapConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.seen.Write(p[:n])
	return n, err
}

func (c tapConn) Write(p []byte) (int, error) {
	c.seen.Write(p)
	return c.Conn.Write(p)
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) { b.mu.Lock(); b.buf.Write(p); b.mu.Unlock() }

func (b *lockedBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func (b *lockedBuffer) Len() int { return len(b.Bytes()) }
