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
	// Code is a QR code, true for a dark module; Text then stands beside it, a line of Text a
	// line.
	Code [][]bool
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
	// Secret is not shown as it is typed.
	Secret bool
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

// masked hides what is typed, but not that it is.
func masked(f Field, text string) string {
	if f.Secret {
		return strings.Repeat("*", len([]rune(text)))
	}
	return text
}

// row is a Line laid out.
type row struct {
	text string
	mark Mark
	// lead is how much of text is of a code.
	lead int
}

// layout breaks a page's lines to a width: labels stand in a column where there is room for
// one, else on their own line.
func layout(lines []Line, width int, draw func([][]bool) []string) (out []row) {
	column := 0
	for _, l := range lines {
		column = max(column, len([]rune(l.Label)))
	}
	column = min(column+2, width/2)
	for _, l := range lines {
		if len(l.Code) > 0 {
			out = append(out, codeRows(l, width, draw)...)
			continue
		}
		label, text := l.Label, clean(l.Text)
		if l.Label == "" {
			for _, t := range wrap(text, width) {
				out = append(out, row{text: t, mark: l.Mark})
			}
			continue
		}
		if len([]rune(label)) > column-1 {
			for _, t := range wrap(label, width) {
				out = append(out, row{text: t, mark: l.Mark})
			}
			label = ""
		}
		for i, t := range wrap(text, width-column) {
			if i > 0 {
				label = ""
			}
			out = append(out, row{text: label + strings.Repeat(" ", column-len([]rune(label))) + t, mark: l.Mark})
		}
	}
	return out
}

// codeRows sets the text of a code beside it where there is room, else above it.
func codeRows(l Line, width int, draw func([][]bool) []string) (out []row) {
	const gap, least = 2, 24
	code := draw(l.Code)
	wide := len([]rune(code[0]))
	if wide > width {
		l.Text += "\n(This screen is too narrow for the code.)"
		code, wide = nil, 0
	}
	room := width - wide - gap
	beside := wide > 0 && room >= least
	if !beside {
		room = width
	}
	var text []string
	for line := range strings.SplitSeq(l.Text, "\n") {
		text = append(text, wrap(clean(line), room)...)
	}
	if !beside {
		for _, t := range text {
			out = append(out, row{text: t, mark: l.Mark})
		}
		text = nil
	}
	for i := range max(len(code), len(text)) {
		r := row{text: strings.Repeat(" ", wide), mark: l.Mark}
		if i < len(code) {
			r.text, r.lead = code[i], wide
		}
		if i < len(text) {
			r.text += strings.Repeat(" ", gap) + text[i]
		}
		out = append(out, r)
	}
	return out
}

// quiet is the light border of a code, in modules. The standard asks for four; readers of
// today do with two, and a screen of 24 lines has no more.
const quiet = 2

func dark(code [][]bool, x, y int) bool {
	x, y = x-quiet, y-quiet
	return y >= 0 && y < len(code) && x >= 0 && x < len(code[y]) && code[y][x]
}

// halfBlocks draws a code with two modules a cell, one above the other: light modules are
// what shines.
func halfBlocks(code [][]bool) (out []string) {
	size := len(code) + 2*quiet
	for y := 0; y < size; y += 2 {
		var line strings.Builder
		for x := range size {
			above, below := dark(code, x, y), y+1 >= size || dark(code, x, y+1)
			line.WriteRune([]rune{'█', '▀', '▄', ' '}[bit(above)<<1|bit(below)])
		}
		out = append(out, line.String())
	}
	return out
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// hashes draws a code for a terminal that has no blocks, two characters a module.
func hashes(code [][]bool) (out []string) {
	size := len(code) + 2*quiet
	for y := range size {
		var line strings.Builder
		for x := range size {
			if dark(code, x, y) {
				line.WriteString("  ")
			} else {
				line.WriteString("##")
			}
		}
		out = append(out, line.String())
	}
	return out
}
