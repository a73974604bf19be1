// Package recovery answers: what does a person at the box see, and what can they do there?
//
// The console has a model and two faces. The model (facts.go, pages.go) is a plain
// function: what the sources of the box say goes in, pages of lines and deeds come out.
// Every source may be missing, since the console is for the day on which things are; what
// is missing is shown as such. The faces are plain.go, numbered menus for a line that may
// be a teleprinter, and screen.go, drawn on a terminal. Both show the same pages and ask
// for the same deeds (deeds.go), which Box does.
package recovery

import (
	"context"
	"strings"
	"unicode"
)

// Mark says how a line is meant.
type Mark int

// The marks.
const (
	Plain Mark = iota
	Good
	Attention
	Bad
	Heading
)

// Line is one line of a page. A face wraps it.
type Line struct {
	Label string
	Text  string
	Mark  Mark
}

// Page is one page of the console.
type Page struct {
	// Name is one short word, Title what stands on top.
	Name, Title string
	Lines       []Line
	Deeds       []Deed
}

// Deed is something that a person can have done from a page.
type Deed struct {
	// ID is what Box.Do is asked for.
	ID    string
	Title string
	// Fields are asked for before. A field that is left empty keeps its Default.
	Fields []Field
	// Confirm is the word that has to be typed first; empty for deeds that harm nothing.
	Confirm string
	// Warning stands above the question for Confirm.
	Warning string
}

// Field is one question.
type Field struct {
	Name, Question, Default string
	// Choices, when there are any, are all that is taken.
	Choices []string
}

// Box is what the faces need of the box.
type Box interface {
	// Facts looks at the box. It takes no longer than a few seconds, whatever is broken.
	Facts(ctx context.Context) Facts
	// Do does a deed and says how it goes, a line at a time. The error is shown. It returns
	// when ctx ends.
	Do(ctx context.Context, id string, fields map[string]string, say func(line string)) error
}

// clean makes text from anywhere harmless to a terminal: no escape, no control character,
// one line, bounded.
func clean(text string) string {
	const most = 2000
	var out strings.Builder
	space := false
	for _, r := range text {
		if out.Len() > most {
			out.WriteString("...")
			break
		}
		if unicode.IsSpace(r) {
			space = out.Len() > 0
			continue
		}
		if !unicode.IsPrint(r) {
			r = '?'
		}
		if space {
			out.WriteByte(' ')
			space = false
		}
		out.WriteRune(r)
	}
	return out.String()
}

// ascii replaces what a terminal of 1978 cannot show.
func ascii(text string) string {
	return strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII {
			return '?'
		}
		return r
	}, text)
}

// wrap breaks text into lines of at most width runes, at spaces where it can.
func wrap(text string, width int) (out []string) {
	width = max(width, 1)
	var line []rune
	flush := func() {
		out = append(out, string(line))
		line = nil
	}
	for _, word := range strings.Fields(text) {
		w := []rune(word)
		if len(line) > 0 && len(line)+1+len(w) > width {
			flush()
		}
		if len(line) > 0 {
			line = append(line, ' ')
		}
		for len(line)+len(w) > width {
			n := width - len(line)
			line = append(line, w[:n]...)
			w = w[n:]
			flush()
		}
		line = append(line, w...)
	}
	if len(line) > 0 || len(out) == 0 {
		flush()
	}
	return out
}

// row is a Line laid out.
type row struct {
	text string
	mark Mark
}

// layout breaks a page's lines to a width: labels stand in a column where there is room for
// one, else on their own line.
func layout(lines []Line, width int) (out []row) {
	column := 0
	for _, l := range lines {
		column = max(column, len([]rune(l.Label)))
	}
	column = min(column+2, width/2)
	for _, l := range lines {
		label, text := l.Label, clean(l.Text)
		if l.Label == "" {
			for _, t := range wrap(text, width) {
				out = append(out, row{t, l.Mark})
			}
			continue
		}
		if len([]rune(label)) > column-1 {
			for _, t := range wrap(label, width) {
				out = append(out, row{t, l.Mark})
			}
			label = ""
		}
		for i, t := range wrap(text, width-column) {
			if i > 0 {
				label = ""
			}
			out = append(out, row{label + strings.Repeat(" ", column-len([]rune(label))) + t, l.Mark})
		}
	}
	return out
}
