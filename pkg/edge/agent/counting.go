package agent

import (
	"context"
	"net"
	"sync/atomic"
)

// Counter counts the bytes of connections to the parent, both ways.
type Counter struct{ Received, Sent atomic.Uint64 }

// Wrap counts what crosses c from now on.
func (k *Counter) Wrap(c net.Conn) net.Conn { return countedConn{c, k} }

type countedConn struct {
	net.Conn
	k *Counter
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.k.Received.Add(uint64(n))
	return n, err
}

func (c countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.k.Sent.Add(uint64(n))
	return n, err
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

func counted(dial dialFunc, wrap func(net.Conn) net.Conn) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return wrap(c), nil
	}
}
