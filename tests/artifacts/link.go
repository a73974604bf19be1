package artifacts

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Link is a TCP link that counts the payload bytes that cross it, both ways, and may
// have a rate.
type Link struct {
	Addr     string
	to       string
	l        net.Listener
	up, down atomic.Int64 // bytes towards the parent, and from it
	rate     int64        // bytes a second each way; 0: unbounded

	mu    sync.Mutex
	conns map[net.Conn]bool
	free  [2]time.Time // when the wire is free again
}

// NewLink listens on the loopback and carries every connection to addr.
func NewLink(addr string, rate int64) (*Link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &Link{Addr: l.Addr().String(), to: addr, l: l, rate: rate, conns: map[net.Conn]bool{}}
	go k.accept()
	return k, nil
}

// Bytes is what crossed so far: towards the parent, and from it.
func (k *Link) Bytes() (up, down int64) { return k.up.Load(), k.down.Load() }

// Close cuts the link.
func (k *Link) Close() error {
	err := k.l.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		c.Close()
	}
	return err
}

func (k *Link) accept() {
	for {
		child, err := k.l.Accept()
		if err != nil {
			return
		}
		go k.carry(child)
	}
}

func (k *Link) carry(child net.Conn) {
	parent, err := net.Dial("tcp", k.to)
	if err != nil {
		child.Close()
		return
	}
	k.mu.Lock()
	k.conns[child], k.conns[parent] = true, true
	k.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { k.copy(parent, child, 0, &k.up) })
	wg.Go(func() { k.copy(child, parent, 1, &k.down) })
	wg.Wait()
	k.mu.Lock()
	delete(k.conns, child)
	delete(k.conns, parent)
	k.mu.Unlock()
}

// copy counts what it hands on; when one side ends, both do.
func (k *Link) copy(to, from net.Conn, way int, n *atomic.Int64) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 16<<10)
	for {
		got, err := from.Read(buf)
		if got > 0 {
			k.pass(way, got)
			n.Add(int64(got))
			if _, err := to.Write(buf[:got]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass waits until the wire has carried n bytes.
func (k *Link) pass(way, n int) {
	if k.rate <= 0 {
		return
	}
	k.mu.Lock()
	now := time.Now()
	if k.free[way].Before(now) {
		k.free[way] = now
	}
	k.free[way] = k.free[way].Add(time.Duration(n) * time.Second / time.Duration(k.rate))
	wait := time.Until(k.free[way])
	k.mu.Unlock()
	if wait > 2*time.Millisecond {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		<-timer.C
	}
}
