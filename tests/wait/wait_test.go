package wait

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// deaf takes a failure instead of ending the test.
type deaf struct {
	testing.TB
	said string
}

func (d *deaf) Helper() {}

func (d *deaf) Fatalf(format string, args ...any) {
	d.said = format
	for _, a := range args {
		if s, ok := a.(string); ok {
			d.said += " " + s
		}
	}
}

func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int32
		go func() {
			time.Sleep(Limit - time.Second)
			n.Store(1)
		}()
		Until(t, "it comes late", func() bool { return n.Load() == 1 })
		d := &deaf{TB: t}
		Until(d, "pigs fly", func() bool { return false })
		if !strings.Contains(d.said, "pigs fly") {
			t.Errorf("said %q", d.said)
		}
		c := make(chan int)
		go func() {
			time.Sleep(Limit - time.Second)
			c <- 7
		}()
		if got := For(t, "seven", c); got != 7 {
			t.Error(got)
		}
	})
}
