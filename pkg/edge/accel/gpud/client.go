package gpud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"tributary.dev/tributary/pkg/api"
)

// errGone is what a question gets whose answer can no longer come. Whether it was done is
// not known: the card's layout says.
func errGone(cause error) error {
	return &api.Error{Code: api.Unavailable, Message: "gpud ended before it answered", Remedy: "it is started again by itself; see its lines in the log", Err: cause}
}

// client is one connection to gpud.
type client struct {
	w     io.Writer
	write sync.Mutex

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan Reply
	dead    error // set once, when nothing more is read
	event   func(Event)
}

func newClient(w io.Writer, event func(Event)) *client {
	return &client{w: w, pending: map[uint64]chan Reply{}, event: event}
}

// read takes answers in until the connection ends, which ends all questions that wait.
func (c *client) read(r io.Reader) error {
	for {
		var a Reply
		if err := Read(r, &a); err != nil {
			c.end(err)
			return err
		}
		if a.Event != nil {
			c.event(*a.Event)
			continue
		}
		c.mu.Lock()
		waiting, ok := c.pending[a.ID]
		delete(c.pending, a.ID)
		c.mu.Unlock()
		if ok {
			waiting <- a // has room for one
		}
	}
}

func (c *client) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = errGone(err)
	for id, waiting := range c.pending {
		close(waiting)
		delete(c.pending, id)
	}
}

func (c *client) ask(ctx context.Context, q Request) (Reply, error) {
	waiting := make(chan Reply, 1)
	c.mu.Lock()
	if c.dead != nil {
		defer c.mu.Unlock()
		return Reply{}, c.dead
	}
	c.next++
	q.ID = c.next
	c.pending[q.ID] = waiting
	c.mu.Unlock()
	c.write.Lock()
	err := Write(c.w, q)
	c.write.Unlock()
	if err != nil {
		c.forget(q.ID)
		return Reply{}, errGone(err)
	}
	select {
	case <-ctx.Done():
		c.forget(q.ID)
		return Reply{}, ctx.Err()
	case a, ok := <-waiting:
		switch {
		case !ok:
			return Reply{}, errGone(nil)
		case a.Fault != nil:
			return Reply{}, a.Fault.err()
		}
		return a, nil
	}
}

func (c *client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// greet agrees on the version.
func (c *client) greet(ctx context.Context) (Hello, error) {
	a, err := c.ask(ctx, Request{Op: OpHello, Version: Version})
	if err != nil {
		return Hello{}, err
	}
	if a.Hello == nil || a.Hello.Version != Version {
		return Hello{}, fmt.Errorf("%w: it greets otherwise", ErrFrame)
	}
	return *a.Hello, nil
}

// closed reports whether an end of a connection is an ordinary one.
func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, io.ErrUnexpectedEOF)
}
