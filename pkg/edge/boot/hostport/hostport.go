//go:build linux

// Package hostport answers: how does the host of a virtual machine ask the edged in it?
//
// A virtio-serial port named Name, if the machine has one, carries the local API as the
// socket does. The host owns the machine with all that is in it; the port gives it nothing
// that it could not take, and no network reaches it.
package hostport

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/edge/boot/appear"
	"tributary.dev/tributary/pkg/rest"
)

// Name is what QEMU's virtserialport device is called.
const Name = "tributary.local"

// pause is between looks for a host that is not connected. The kernel tells of its coming
// by a signal only.
const pause = 250 * time.Millisecond

// patience is how long a question waits for an edged that does not listen, because the machine
// has just started or edged is started again.
const patience = 5 * time.Second

// unavailable is said in edged's place when edged does not listen.
const unavailable = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"

// Find returns the port's device, or "" when the machine has none.
func Find(sys, dev string) string {
	names, _ := filepath.Glob(filepath.Join(sys, "class/virtio-ports/*/name"))
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == Name {
			return filepath.Join(dev, filepath.Base(filepath.Dir(n)))
		}
	}
	return ""
}

// Serve joins the machine's port to edged's local socket until the context ends. It
// returns nil at once when there is no such port.
func Serve(ctx context.Context, socket string, log *slog.Logger) error {
	path := Find("/sys", "/dev")
	if path == "" {
		return nil
	}
	port, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer port.Close()
	stop := context.AfterFunc(ctx, func() { _ = port.Close() })
	defer stop()
	log.Info("the machine's host may ask by its port", "port", Name)
	for ctx.Err() == nil {
		if err := converse(port, socket, patience); err != nil && !errors.Is(err, io.EOF) {
			if ctx.Err() != nil {
				break
			}
			return err
		}
		rest.For(ctx, pause)
	}
	return nil
}

// line is the guest's end of the port: a read finds the end when the host is not, or no
// longer, connected, and finds more when it is again.
type line interface {
	io.ReadWriter
	SetWriteDeadline(time.Time) error
}

// converse carries bytes while the host is connected. It ends with io.EOF when the host
// goes, and then nothing of the old conversation is left for the next.
func converse(port line, socket string, patience time.Duration) error {
	var edged *side
	defer func() { edged.close(port) }()
	buf := make([]byte, 32<<10)
	for {
		n, err := port.Read(buf)
		if n > 0 && edged.send(buf[:n]) != nil {
			edged.close(port)
			if edged, err = dial(port, socket, patience); err == nil {
				err = edged.send(buf[:n])
			}
			if err != nil {
				if _, err := io.WriteString(port, unavailable); err != nil {
					return err
				}
			}
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.EOF
		}
	}
}

// side is a connection to edged with what copies its answers to the port. Nil is one that
// is not there.
type side struct {
	conn net.Conn
	done chan struct{}
}

func dial(port line, socket string, patience time.Duration) (*side, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		conn, err = dialLater(socket, patience)
	}
	if err != nil {
		return nil, err
	}
	s := &side{conn: conn, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_, _ = io.Copy(struct{ io.Writer }{port}, conn)
		_ = conn.Close() // so that the next send dials anew
	}()
	return s, nil
}

// dialLater waits for edged without taking from it the processor by which it starts.
func dialLater(socket string, patience time.Duration) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		if err := appear.Wait(ctx, socket); err != nil {
			return nil, err
		}
		if conn, err = net.Dial("unix", socket); err == nil || ctx.Err() != nil {
			return conn, err
		}
		time.Sleep(10 * time.Millisecond) // it is not listened on yet, or no longer
	}
}

func (s *side) send(b []byte) error {
	if s == nil {
		return net.ErrClosed
	}
	_, err := s.conn.Write(b)
	return err
}

// close ends the conversation, and a write to a host that does not read.
func (s *side) close(port line) {
	if s == nil {
		return
	}
	_ = s.conn.Close()
	_ = port.SetWriteDeadline(time.Unix(1, 0))
	<-s.done
	_ = port.SetWriteDeadline(time.Time{})
}
