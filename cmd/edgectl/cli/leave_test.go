package cli

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// Keys go through until the one that leaves; what was typed with it in one go before it still does.
func TestUntilKey(t *testing.T) {
	for typed, want := range map[string]string{"": "", "ls\r": "ls\r", "ls\r\x1dlost": "ls\r", "\x1d": "", "a\x1d\x1d": "a"} {
		for _, in := range []io.Reader{strings.NewReader(typed), iotest.OneByteReader(strings.NewReader(typed))} {
			u := &untilKey{in, leaveKey}
			got, err := io.ReadAll(u)
			if err != nil || string(got) != want {
				t.Errorf("%q: %q, %v", typed, got, err)
			}
			if n, err := u.Read(make([]byte, 8)); n != 0 || err != io.EOF {
				t.Errorf("%q: it goes on with %d, %v", typed, n, err)
			}
		}
	}
}
