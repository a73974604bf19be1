package stream

import (
	"context"
	"errors"
	"io"
	"net"
)

// Input is the device's end: what the far person sends, taken apart.
type Input struct {
	// Stdin ends with io.EOF when the person closed theirs or went away.
	Stdin io.Reader
	// Resize holds the newest size only.
	Resize <-chan Size
	// Gone is closed when the person went away.
	Gone <-chan struct{}
}

// Input starts taking c's incoming frames apart; call it once, and Read no more.
// Its goroutine ends with the connection. Whoever does not read Stdin makes the
// person's side wait.
func (c *Conn) Input() Input {
	pr, pw := io.Pipe()
	resize := make(chan Size, 1)
	gone := make(chan struct{})
	in := &Input{Stdin: pr, Resize: resize, Gone: gone}
	c.input.Store(in)
	go func() { // the pings of NewConn find a dead peer while Stdin is not read
		<-c.closed
		pw.Close()
	}()
	go func() {
		defer close(gone)
		defer c.Close()
		for {
			f, err := c.Read()
			if err != nil {
				return
			}
			switch f.Type {
			case Stdin:
				_, _ = pw.Write(f.Payload) // nobody reads any more: dropped
			case CloseStdin:
				pw.Close()
			case Resize:
				if s, err := decodeSize(f.Payload); err == nil {
					select {
					case <-resize:
					default:
					}
					resize <- s
				}
			}
		}
	}()
	return *in
}

// Local is a person's side: what edgectl connects to the stream. Any field may be nil.
type Local struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size
}

// Run connects a person's terminal or socket to c until the far side ends, ctx is
// done, or the connection breaks. It returns the process's exit status. A Failure
// from the far side comes back as *api.Error. It closes c. A goroutine that is
// blocked in Stdin.Read outlives it, as reads of a terminal cannot be interrupted.
func Run(ctx context.Context, c *Conn, l Local) (exit int, err error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	if l.Stdin != nil {
		go func() {
			if _, err := io.Copy(c.Writer(Stdin), l.Stdin); err == nil {
				_ = c.Write(CloseStdin, nil)
			}
		}()
	}
	if l.Resize != nil {
		go func() {
			for {
				select {
				case s, ok := <-l.Resize:
					if !ok || c.Resize(s) != nil {
						return
					}
				case <-c.closed:
					return
				}
			}
		}()
	}
	for {
		f, err := c.Read()
		if err != nil {
			return 1, endOf(ctx, err)
		}
		if code, err, ended := f.ending(); ended {
			return code, err
		}
		w := l.Stdout
		if f.Type == Stderr {
			w = l.Stderr
		}
		if w == nil || f.Type != Stdout && f.Type != Stderr {
			continue
		}
		if _, err := w.Write(f.Payload); err != nil {
			return 1, err
		}
	}
}

// endOf names why a stream broke off: the caller's own cancel before all else.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return io.ErrUnexpectedEOF
	}
	return err
}
