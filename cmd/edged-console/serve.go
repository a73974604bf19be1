package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"

	"tributary.dev/tributary/pkg/edge/recovery"
	"tributary.dev/tributary/pkg/link/stream"
)

// maxTalks bounds the people that are served at once on the sockets.
const maxTalks = 8

// firstFrame is how long a caller on the unix socket may take to say what it is.
const firstFrame = 10 * time.Second

// Whence a person comes who does not sit at a terminal of the box.
const (
	bySocket = "socket"
	byVsock  = "vsock"
)

// anyNumber is whatever number the machine has, now or once its driver is loaded
// (VMADDR_CID_ANY).
const anyNumber = 0xffffffff

// serve listens on the unix socket, for edged on behalf of a person elsewhere, and on vsock,
// for the machine's host.
func serve(ctx context.Context, o options, errs io.Writer) error {
	log := slog.New(slog.NewTextHandler(errs, nil))
	free := make(chan struct{}, maxTalks)
	ended := make(chan error, 2)
	listening := 0
	if o.socket != "" {
		l, err := listenUnix(o.socket)
		if err != nil {
			return err
		}
		listening++
		go func() {
			ended <- accept(ctx, l, free, log, func(c net.Conn) { framed(ctx, c, appliance(o.root, bySocket)) })
		}()
	}
	if o.port != 0 {
		if l, err := vsock.ListenContextID(anyNumber, uint32(o.port), nil); err != nil {
			log.Info("no vsock console", "err", err) // a machine that has no host
		} else {
			listening++
			go func() {
				ended <- accept(ctx, l, free, log, func(c net.Conn) {
					if !fromHost(c.RemoteAddr()) {
						log.Warn("vsock console refused", "from", c.RemoteAddr())
						return
					}
					raw(ctx, c, appliance(o.root, byVsock))
				})
			}()
		}
	}
	if listening == 0 {
		return errors.New("there is nothing to listen on")
	}
	return <-ended
}

// fromHost: only the machine's host may talk over vsock. The box's own programs, those in
// containers above all, share the address family, whatever their network namespace is;
// they come from the box's own number or from the local one.
func fromHost(a net.Addr) bool {
	v, ok := a.(*vsock.Addr)
	return ok && v.ContextID == vsock.Host
}

func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// A socket's file has the mode of the socket when it is bound (unix(7)): it is never anybody's else.
	conf := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var mode error
		err := raw.Control(func(fd uintptr) { mode = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, mode)
	}}
	return conf.Listen(context.Background(), "unix", path)
}

func accept(ctx context.Context, l net.Listener, free chan struct{}, log *slog.Logger, talk func(net.Conn)) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", l.Addr(), err)
		}
		select {
		case free <- struct{}{}:
		default:
			log.Warn("console refused: too many are open")
			c.Close()
			continue
		}
		go func() {
			defer func() { <-free }()
			defer c.Close()
			talk(c)
		}()
	}
}

// raw is a bare line, as a serial one.
func raw(ctx context.Context, c net.Conn, box *recovery.Appliance) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	_ = talk(ctx, line{in: newPump(c), out: c, size: func() (int, int) { return 0, 0 }, may: true, colours: true}, box) // the line ended
}

// framed speaks the frames of pkg/link/stream. The first is the size of the terminal; one
// of no size is a line that cannot draw.
func framed(ctx context.Context, c net.Conn, box *recovery.Appliance) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn := stream.NewConn(c, stream.Idle)
	in := conn.Input()
	go func() {
		select {
		case <-in.Gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	var size stream.Size
	select {
	case size = <-in.Resize:
	case <-time.After(firstFrame):
	case <-ctx.Done():
		conn.Close()
		return
	}
	resize := make(chan [2]int, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-in.Resize:
				select {
				case resize <- [2]int{int(s.Columns), int(s.Rows)}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	draws := size.Columns > 0 && size.Rows > 0
	l := line{in: newPump(in.Stdin), out: conn.Writer(stream.Stdout), size: func() (int, int) { return int(size.Columns), int(size.Rows) },
		draws: draws, echo: draws, colours: true, resize: resize}
	_ = conn.Finish(0, talk(ctx, l, box), stream.FinishGrace) // the person may have gone
}
