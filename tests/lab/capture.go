package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Capture writes every packet of every interface of a box to a file.
type Capture struct {
	fd   int
	file *os.File
	stop chan struct{}
	done chan error
	once sync.Once
}

// Capture begins; the file grows until Close. Packets follow one another without
// headers of the file's own: it is for searching.
func (b *Box) Capture(path string) (*Capture, error) {
	fd, err := b.ns.packetSocket()
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", b.Name, err)
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	c := &Capture{fd: fd, file: f, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() { c.done <- c.copy() }()
	return c, nil
}

// packetSocket opens a raw socket in the namespace, whatever namespace the caller is in.
func (n *namespace) packetSocket() (fd int, err error) {
	ns, err := os.Open("/run/netns/" + n.name)
	if err != nil {
		return -1, err
	}
	defer ns.Close()
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return
		}
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	}()
	<-opened
	if err != nil {
		return -1, err
	}
	// Enough for an image that crosses while this process waits for a core, and an end
	// to each read so that Close is heard.
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func (c *Capture) copy() error {
	buf := make([]byte, 256<<10) // larger than any segment that a veth carries unsplit
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		switch {
		case err == nil:
			if _, err := c.file.Write(buf[:n]); err != nil {
				return err
			}
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			select {
			case <-c.stop: // and nothing waits any more
				return nil
			default:
			}
		default:
			return err
		}
	}
}

// Close ends the capture after the packets that wait, and fails when any were lost.
func (c *Capture) Close() (err error) {
	c.once.Do(func() {
		close(c.stop)
		err = <-c.done
		stats, serr := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if serr == nil && stats.Drops > 0 {
			serr = fmt.Errorf("%d of %d packets were not captured", stats.Drops, stats.Packets)
		}
		err = errors.Join(err, serr, unix.Close(c.fd), c.file.Close())
	})
	return err
}
