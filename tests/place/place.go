// Package place answers: where does a test listen later, or again, so that nobody else does
// meanwhile?
//
// A port of 127.0.0.1 that was listened on and left may be given to anybody, as the near end
// of a connection too. These addresses are the process's own.
package place

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"

	"tributary.dev/tributary/tests/wait"
)

// first is below what kernels give out, and where no test of this project listens on all addresses.
const first = 20000

var last atomic.Uint32

// Left returns an address, HOST:PORT, at which nobody listens, and nobody will but who is told of it.
func Left() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d:%d", 64+pid>>16&63, pid>>8&255, pid&255, first+last.Add(1)%10000)
}

// Take listens at an address that was left, once whoever listened there last is gone.
func Take(t testing.TB, address string) net.Listener {
	t.Helper()
	var ln net.Listener
	wait.Seen(t, "the address is free", func() (any, bool) {
		var err error
		ln, err = net.Listen("tcp", address)
		return err, err == nil
	})
	t.Cleanup(func() { ln.Close() })
	return ln
}
