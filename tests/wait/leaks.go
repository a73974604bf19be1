package wait

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// Leaks is a TestMain: when the tests have passed, no goroutine of theirs may go on for
// longer than Limit. goleak alone gives them some two seconds, which a busy machine takes.
func Leaks(m *testing.M, options ...goleak.Option) {
	code := m.Run()
	if code == 0 {
		if seen, ok := poll(Limit, leaks(options)); !ok {
			fmt.Fprintln(os.Stderr, seen)
			code = 1
		}
	}
	os.Exit(code)
}

// NoLeaks is Leaks for one test, at its end.
func NoLeaks(t testing.TB, options ...goleak.Option) {
	t.Helper()
	Seen(t, "no goroutine is left", leaks(options))
}

func leaks(options []goleak.Option) func() (any, bool) {
	return func() (any, bool) {
		err := goleak.Find(options...)
		return err, err == nil
	}
}
