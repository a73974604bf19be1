package main

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/edge/recovery"
)

// line is a way to a person: bytes in, bytes out, and what is known of the far end.
type line struct {
	in   *pump
	out  io.Writer
	size func() (width, height int) // 0, 0 when nobody knows
	// draws: a terminal is known to be there; may: there may be one.
	draws, may bool
	echo       bool
	colours    bool
	resize     <-chan [2]int
}

// talk shows the console until the person leaves or the line ends.
func talk(ctx context.Context, l line, box *recovery.Appliance) error {
	drawn := l.draws
	for {
		session, end := context.WithCancel(ctx)
		width, height := l.size()
		var err error
		if drawn {
			if width == 0 {
				width, height = measure(session, l)
			}
			err = recovery.RunScreen(session, recovery.DrawConfig{In: l.in.reader(session), Out: l.out, Width: width, Height: height, Resize: l.resize, Colours: l.colours}, box)
		} else {
			err = recovery.RunPlain(session, recovery.PlainConfig{In: l.in.reader(session), Out: l.out, Width: width, Height: height, Draw: l.draws || l.may, Echo: l.echo}, box)
		}
		end()
		switch {
		case errors.Is(err, recovery.ErrDraw):
			drawn = true
		case errors.Is(err, recovery.ErrPlain):
			drawn = false
		case errors.Is(err, recovery.ErrShell):
			if err := enter(ctx, l, box); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// pump reads a line in one place, so that the faces can follow each other on it: a read
// that blocks belongs to none of them.
type pump struct {
	chunks chan []byte
	ended  chan struct{}
	mu     sync.Mutex
	rest   []byte
}

func newPump(r io.Reader) *pump {
	p := &pump{chunks: make(chan []byte), ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		for {
			b := make([]byte, 256)
			n, err := r.Read(b)
			if n > 0 {
				p.chunks <- b[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	return p
}

// reader reads until ctx ends.
func (p *pump) reader(ctx context.Context) io.Reader { return &session{ctx, p} }

type session struct {
	ctx context.Context
	p   *pump
}

// Read implements io.Reader. What comes when the session is over is left for the next.
func (s *session) Read(b []byte) (int, error) {
	s.p.mu.Lock()
	if len(s.p.rest) > 0 && s.ctx.Err() == nil {
		n := copy(b, s.p.rest)
		s.p.rest = s.p.rest[n:]
		s.p.mu.Unlock()
		return n, nil
	}
	s.p.mu.Unlock()
	select {
	case <-s.ctx.Done():
		return 0, io.EOF
	case <-s.p.ended:
		return 0, io.EOF
	case chunk := <-s.p.chunks:
		s.p.mu.Lock()
		defer s.p.mu.Unlock()
		if s.ctx.Err() != nil {
			s.p.rest = append(s.p.rest, chunk...)
			return 0, io.EOF
		}
		n := copy(b, chunk)
		s.p.rest = append(s.p.rest, chunk[n:]...)
		return n, nil
	}
}

// shutTime is how long process 1 may take to shut the TPM.
const shutTime = 10 * time.Second

// enter runs the shell that a person was let into.
func enter(ctx context.Context, l line, box *recovery.Appliance) error {
	d, ok := box.Desk.(*desk)
	if !ok {
		return errors.New("there is no shell here")
	}
	id, message := d.open, ""
	asked, cancel := context.WithTimeout(ctx, shutTime)
	if err := box.Shut(asked); err != nil {
		message = "the TPM was not shut before: " + err.Error()
	}
	cancel()
	d.tell("opened", id, message)
	message = ""
	err := shell(ctx, l, d.shell, shellTime)
	if err != nil {
		message = err.Error()
	}
	d.tell("closed", id, message)
	return err
}
