// Package pattern answers: when is a regular expression compiled? When it is first asked:
// compiling takes longer than what most programs do with it, and every program that imports
// a package would pay for all of that package's at its start, used or not.
package pattern

import (
	"regexp"
	"sync"
)

// Pattern is a regular expression that is compiled when it is first used. It is used by
// several goroutines at once.
type Pattern struct {
	text string
	once sync.Once
	re   *regexp.Regexp
}

// New gives the pattern of a text that package regexp takes; the first use panics where it
// does not (tests/house compiles all that stand in the sources).
func New(text string) *Pattern { return &Pattern{text: text} }

// Regexp is the compiled expression.
func (p *Pattern) Regexp() *regexp.Regexp {
	p.once.Do(func() { p.re = regexp.MustCompile(p.text) })
	return p.re
}

// String is the pattern's text.
func (p *Pattern) String() string { return p.text }

// MatchString is that of regexp.Regexp, as are the following.
func (p *Pattern) MatchString(s string) bool { return p.Regexp().MatchString(s) }

func (p *Pattern) FindStringSubmatch(s string) []string { return p.Regexp().FindStringSubmatch(s) }

func (p *Pattern) FindSubmatch(b []byte) [][]byte { return p.Regexp().FindSubmatch(b) }

func (p *Pattern) ReplaceAllString(s, by string) string { return p.Regexp().ReplaceAllString(s, by) }
