package recovery

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/charmbracelet/x/ansi"

	"tributary.dev/tributary/tests/wait"
)

// glass is a terminal as the kernel's is in raw mode (console_codes(4)): text, the cursor's
// ways and what erases. It has no scrolling region, and fails on what it does not know.
type glass struct {
	mu            sync.Mutex
	width, height int
	cells         [][]rune
	x, y          int
	rest          []byte
	strange       []string
}

func newGlass(width, height int) *glass {
	g := &glass{width: width, height: height}
	for range height {
		g.cells = append(g.cells, slices.Repeat([]rune{' '}, width))
	}
	return g
}

// Write implements io.Writer.
func (g *glass) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	in := append(g.rest, b...)
	for len(in) > 0 {
		n := g.eat(in)
		if n == 0 {
			break
		}
		in = in[n:]
	}
	g.rest = bytes.Clone(in)
	return len(b), nil
}

// eat takes one character or code; 0 is that more of it has to come.
func (g *glass) eat(in []byte) int {
	switch c := in[0]; {
	case c == '\r':
		g.x = 0
		return 1
	case c == '\n': // in raw mode it leads down alone
		g.y = min(g.y+1, g.height-1)
		return 1
	case c == '\b':
		g.x = max(g.x-1, 0)
		return 1
	case c == 0x1b:
		return g.escape(in)
	case c < ' ':
		g.strange = append(g.strange, fmt.Sprintf("%q", c))
		return 1
	}
	r := []rune(string(in[:min(4, len(in))]))[0]
	size := len(string(r))
	if r == '\ufffd' {
		if len(in) < 4 {
			return 0
		}
		size = 1
	}
	g.x = min(g.x, g.width-1)
	g.cells[g.y][g.x] = r
	g.x++ // behind the last column it waits
	return size
}

func (g *glass) escape(in []byte) int {
	if len(in) < 2 {
		return 0
	}
	if in[1] != '[' {
		if in[1] == ']' || in[1] == 'P' { // titles and questions, up to their end
			for _, end := range []string{"\x07", "\x1b\\"} {
				if at := bytes.Index(in[2:], []byte(end)); at >= 0 {
					return 2 + at + len(end)
				}
			}
			return 0
		}
		return 2
	}
	end := slices.IndexFunc(in[2:], func(r byte) bool { return r >= '@' && r <= '~' })
	if end < 0 {
		return 0
	}
	args, code := string(in[2:2+end]), in[2+end]
	n := func(i, other int) int {
		if f := strings.Split(args, ";"); i < len(f) {
			if v, err := strconv.Atoi(f[i]); err == nil && v > 0 {
				return v
			}
		}
		return other
	}
	blank := func(y, from, to int) {
		for x := max(from, 0); x < min(to, g.width); x++ {
			g.cells[y][x] = ' '
		}
	}
	x := min(g.x, g.width-1)
	switch {
	case code == 'm' || code == 'h' || code == 'l' || strings.HasPrefix(args, "?") || strings.HasPrefix(args, ">") || strings.HasPrefix(args, "=") || code == 'q' || code == 'c' || code == 'n':
	case code == 'H' || code == 'f':
		g.y, g.x = min(n(0, 1), g.height)-1, min(n(1, 1), g.width)-1
	case code == 'A':
		g.y = max(g.y-n(0, 1), 0)
	case code == 'B':
		g.y = min(g.y+n(0, 1), g.height-1)
	case code == 'C':
		g.x = min(x+n(0, 1), g.width-1)
	case code == 'D':
		g.x = max(x-n(0, 1), 0)
	case code == 'G' || code == '`':
		g.x = min(n(0, 1), g.width) - 1
	case code == 'd':
		g.y = min(n(0, 1), g.height) - 1
	case code == 'K':
		blank(g.y, map[int]int{0: x}[n(0, 0)], map[int]int{0: g.width, 1: x + 1, 2: g.width}[n(0, 0)])
	case code == 'J':
		for y := range g.height {
			switch {
			case n(0, 0) == 2 || y > g.y && n(0, 0) == 0 || y < g.y && n(0, 0) == 1:
				blank(y, 0, g.width)
			case y == g.y && n(0, 0) == 0:
				blank(y, x, g.width)
			case y == g.y:
				blank(y, 0, x+1)
			}
		}
	case code == 'X':
		blank(g.y, x, x+n(0, 1))
	case code == '@':
		row := slices.Insert(g.cells[g.y], x, slices.Repeat([]rune{' '}, n(0, 1))...)
		g.cells[g.y] = row[:g.width]
	case code == 'P':
		row := slices.Delete(slices.Clone(g.cells[g.y]), x, min(x+n(0, 1), g.width))
		g.cells[g.y] = append(row, slices.Repeat([]rune{' '}, g.width-len(row))...)
	default:
		g.strange = append(g.strange, fmt.Sprintf("%q", in[:3+end]))
	}
	return 3 + end
}

// shows is what a person reads.
func (g *glass) shows() (text string, strange []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, row := range g.cells {
		text += strings.TrimRight(string(row), " ") + "\n"
	}
	return text, slices.Clone(g.strange)
}

// TestDrawnOnGlass: on a terminal in raw mode each page looks as it was meant, whatever was
// there before it.
func TestDrawnOnGlass(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {160, 50}, {200, 60}, {40, 12}} {
		width, height := size[0], size[1]
		ctx, cancel := context.WithCancel(t.Context())
		in, typed := io.Pipe()
		g := newGlass(width, height)
		ended := make(chan error, 1)
		go func() {
			ended <- RunScreen(ctx, DrawConfig{In: in, Out: g, Width: width, Height: height, Colours: true}, &testBox{facts: wellBox()})
		}()
		s := NewScreen(wellBox())
		for _, key := range []string{"", "j", "j", "j", "j", "k", "k", "2", "\x1b", "j", "j", "j", "j", "j", "j", "j", "j", "k"} {
			if key != "" {
				if _, err := io.WriteString(typed, key); err != nil {
					t.Fatal(err)
				}
				s.Key(strings.ReplaceAll(key, "\x1b", "esc"))
			}
			var want string
			for line := range strings.SplitSeq(ansi.Strip(s.View(width, height)), "\n") {
				want += strings.TrimRight(line, " ") + "\n"
			}
			wait.Seen(t, fmt.Sprintf("after %q, on %dx%d, the screen shows\n%s", key, width, height, want), func() (any, bool) {
				text, _ := g.shows()
				return "\n" + text, text == want
			})
		}
		if _, strange := g.shows(); len(strange) > 0 {
			t.Errorf("codes that the kernel's terminal does not know: %q", strange)
		}
		if _, err := io.WriteString(typed, "q"); err != nil {
			t.Fatal(err)
		}
		if err := wait.For(t, "the end", ended); err != nil {
			t.Error(err)
		}
		cancel()
		_ = in.Close()
	}
}

// TestSizeIsBounded: who is far away names the size of the terminal, at first and later.
func TestSizeIsBounded(t *testing.T) {
	in, typed := io.Pipe()
	g := newGlass(MaxWidth, MaxHeight)
	resize, ended := make(chan [2]int), make(chan error, 1)
	go func() {
		ended <- RunScreen(t.Context(), DrawConfig{In: in, Out: g, Width: 1 << 16, Height: 1 << 16, Resize: resize}, &testBox{facts: wellBox()})
	}()
	looks := func(key string, width, height int) {
		t.Helper()
		s := NewScreen(wellBox())
		if key != "" {
			if _, err := io.WriteString(typed, key); err != nil {
				t.Fatal(err)
			}
			s.Key(key)
		}
		var want string
		for line := range strings.SplitSeq(ansi.Strip(s.View(width, height)), "\n") {
			want += strings.TrimRight(line, " ") + "\n"
		}
		wait.Seen(t, "the screen is drawn in its bounds", func() (any, bool) {
			text, _ := g.shows()
			return "\n" + text, text == want
		})
	}
	looks("", MaxWidth, MaxHeight)
	resize <- [2]int{1<<16 - 1, 1<<16 - 1}
	looks("j", MaxWidth, MaxHeight)
	if _, err := io.WriteString(typed, "q"); err != nil {
		t.Fatal(err)
	}
	if err := wait.For(t, "the end", ended); err != nil {
		t.Error(err)
	}
}
