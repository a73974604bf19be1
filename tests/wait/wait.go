// Package wait answers: how does a test wait for what it did not start itself?
//
// By a condition and one bound that a loaded machine does not reach: how soon something
// comes is the machine's affair, whether it comes is the test's. What does not come is
// told with what was seen last and with what every goroutine does.
package wait

import (
	"bytes"
	"runtime"
	"testing"
	"time"
)

// Limit is how long a test waits for anything.
const Limit = 2 * time.Minute

const step = 2 * time.Millisecond

// Until waits until ok holds; what completes "waited in vain until …". It polls, so ok must
// be cheap, and may not fail the test itself.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Seen(t, what, func() (any, bool) { return nil, ok() })
}

// Seen is Until for a condition that also tells what it saw, which is shown when it never holds.
func Seen(t testing.TB, what string, look func() (seen any, ok bool)) {
	t.Helper()
	if seen, ok := poll(Limit, look); !ok {
		t.Fatalf("waited %s in vain until %s; seen last: %+v\n%s", Limit, what, seen, goroutines())
	}
}

// For returns what comes from a channel, or its zero value when that is closed.
func For[T any](t testing.TB, what string, from <-chan T) T {
	t.Helper()
	limit := time.NewTimer(Limit)
	defer limit.Stop()
	select {
	case v := <-from:
		return v
	case <-limit.C:
		t.Fatalf("waited %s in vain for %s\n%s", Limit, what, goroutines())
		panic("unreachable")
	}
}

func poll(limit time.Duration, look func() (any, bool)) (any, bool) {
	for end := time.Now().Add(limit); ; time.Sleep(step) {
		late := time.Now().After(end) // asked before the look: a process that was stopped meanwhile looks once more
		if seen, ok := look(); ok || late {
			return seen, ok
		}
	}
}

func goroutines() []byte {
	b := make([]byte, 1<<16)
	return bytes.TrimSpace(b[:runtime.Stack(b, true)])
}
