package machines

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// wire joins a box's emulated network to the core: doors on the loopback, for HTTPS, for MQTT
// and for boxes that look for their owner. While it is cut nothing passes and nothing is refused, as with a cable
// that lies in two.
type wire struct {
	https, mqtt, bootstrap *door

	mu sync.Mutex
	// open is closed while the wire carries; a cut puts an open one in its place.
	open     chan struct{}
	ended    chan struct{}
	down, up uint64
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
}

// door listens for a box and leads to one address of the core, once that is known.
type door struct {
	listener net.Listener
	port     int
	to       string // guarded by the wire's mu
}

func newWire() (*wire, error) {
	w := &wire{open: make(chan struct{}), ended: make(chan struct{}), conns: map[net.Conn]bool{}}
	close(w.open)
	var errs [3]error
	w.https, errs[0] = w.listen()
	w.mqtt, errs[1] = w.listen()
	w.bootstrap, errs[2] = w.listen()
	if err := errors.Join(errs[:]...); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// lead has the doors lead to where the core is. Before that nobody comes through.
func (w *wire) lead(https, mqtt, bootstrap string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.https.to, w.mqtt.to, w.bootstrap.to = https, mqtt, bootstrap
}

// ports are where a machine finds the core, as edged's --parent.
func (w *wire) ports() string { return fmt.Sprintf("10.0.2.2:%d,%d", w.mqtt.port, w.https.port) }

func (w *wire) listen() (*door, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &door{listener: l, port: l.Addr().(*net.TCPAddr).Port}
	w.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.carry(c, d) })
		}
	})
	return d, nil
}

// carry joins a box's connection to the core until one of them ends.
func (w *wire) carry(box net.Conn, d *door) {
	defer box.Close()
	if !w.wait() || !w.hold(box) {
		return
	}
	defer w.drop(box)
	w.mu.Lock()
	to := d.to
	w.mu.Unlock()
	core, err := net.DialTimeout("tcp", to, 10*time.Second)
	if err != nil {
		return
	}
	defer core.Close()
	if !w.hold(core) {
		return
	}
	defer w.drop(core)
	back := make(chan struct{})
	go func() {
		defer close(back)
		w.copy(box, core, &w.down)
		_ = box.Close()
	}()
	w.copy(core, box, &w.up)
	_ = core.Close()
	<-back
}

// copy counts what it carries, and holds it while the wire is cut.
func (w *wire) copy(to, from net.Conn, count *uint64) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !w.wait() {
				return
			}
			w.mu.Lock()
			*count += uint64(n)
			w.mu.Unlock()
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				w.wait() // the end, too, passes only over a whole wire
			}
			return
		}
	}
}

// wait returns when the wire carries; false when it is gone.
func (w *wire) wait() bool {
	w.mu.Lock()
	open := w.open
	w.mu.Unlock()
	select {
	case <-open:
		return true
	case <-w.ended:
		return false
	}
}

func (w *wire) hold(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conns == nil {
		return false
	}
	w.conns[c] = true
	return true
}

func (w *wire) drop(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, c)
}

func (w *wire) cut(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.open:
		if cut {
			w.open = make(chan struct{})
		}
	default:
		if !cut {
			close(w.open)
		}
	}
}

func (w *wire) bytes() (down, up uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.down, w.up
}

func (w *wire) close() {
	close(w.ended)
	for _, d := range []*door{w.https, w.mqtt, w.bootstrap} {
		if d != nil {
			_ = d.listener.Close()
		}
	}
	w.mu.Lock()
	for c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
	w.mu.Unlock()
	w.wg.Wait()
}
