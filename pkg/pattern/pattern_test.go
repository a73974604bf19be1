package pattern

import (
	"regexp"
	"sync"
	"testing"
)

// A pattern answers as the expression does that it stands for, whoever asks first.
func TestPattern(t *testing.T) {
	const text = `^([a-z]+)-(\d+)$`
	p, re := New(text), regexp.MustCompile(text)
	if p.re != nil {
		t.Error("it is compiled before anyone asks")
	}
	var asking sync.WaitGroup
	for _, s := range []string{"a-1", "a-", "-1", "", "abc-123"} {
		asking.Go(func() {
			if p.MatchString(s) != re.MatchString(s) {
				t.Errorf("%q: %v", s, p.MatchString(s))
			}
			if got, want := len(p.FindStringSubmatch(s)), len(re.FindStringSubmatch(s)); got != want || len(p.FindSubmatch([]byte(s))) != want {
				t.Errorf("%q: %d parts, not %d", s, got, want)
			}
			if got, want := p.ReplaceAllString(s, "$2"), re.ReplaceAllString(s, "$2"); got != want {
				t.Errorf("%q becomes %q, not %q", s, got, want)
			}
		})
	}
	asking.Wait()
	if p.String() != text {
		t.Errorf("it calls itself %q", p)
	}
}
