package recovery

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"
)

// PlainConfig is a line to a person.
type PlainConfig struct {
	In  io.Reader
	Out io.Writer
	// Width and Height are of the terminal; 0 is 80 columns, and no stops.
	Width, Height int
	// Draw is offered as "s" when the line may lead to a real terminal.
	Draw bool
	// Echo shows what is typed, for lines on which nothing else does.
	Echo bool
}

// ErrShell is what a deed fails with that let the person into a shell: the face ends with it,
// and whoever runs the face runs the shell and then the face again.
var ErrShell = errors.New("the shell is open")

// ErrDraw is returned by RunPlain when the person wants the drawn screen.
var ErrDraw = errors.New("the drawn screen is wanted")

// maxLine bounds what a person may type.
const maxLine = 1024

type plain struct {
	cfg   PlainConfig
	box   Box
	lines chan string
	ended chan struct{}
	mu    sync.Mutex // on Out and over
	over  bool       // Out is another's again
	// secret: what is typed now is not shown.
	secret atomic.Bool
}

// RunPlain shows numbered menus until In ends (nil), ctx ends, or the person wants another
// face (ErrDraw) or was let into a shell (ErrShell). It sends no escape codes, and nothing but ASCII and what was typed. A goroutine that
// is blocked in In.Read outlives it, and writes nothing any more.
func RunPlain(ctx context.Context, cfg PlainConfig, box Box) error {
	if cfg.Width <= 0 {
		cfg.Width = 80
	}
	cfg.Width = max(cfg.Width, 20)
	p := &plain{cfg: cfg, box: box, lines: make(chan string), ended: make(chan struct{})}
	stop := make(chan struct{})
	defer func() {
		close(stop)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.over = true
	}()
	go p.read(stop)
	err := p.menu(ctx)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// read takes lines apart, whatever ends them (a serial line sends CR), and bounds them.
func (p *plain) read(stop chan struct{}) {
	defer close(p.ended)
	in := bufio.NewReaderSize(p.cfg.In, 256)
	var line []rune
	after := rune(0)
	for {
		c, size, err := in.ReadRune()
		if err != nil {
			return
		}
		switch {
		case c == '\n' && after == '\r':
		case c == '\n' || c == '\r':
			p.echo("\r\n")
			select {
			case p.lines <- string(line):
			case <-stop:
				return
			}
			line = line[:0]
		case c == 8 || c == 127:
			if len(line) > 0 {
				line = line[:len(line)-1]
				p.echo("\b \b")
			}
		case c == 4 && len(line) == 0: // end of transmission
			return
		case c == utf8.RuneError && size == 1: // no text: noise on the line
		case unicode.IsPrint(c) && len(line) < maxLine:
			line = append(line, c)
			if p.secret.Load() {
				p.echo("*")
			} else {
				p.echo(string(c))
			}
		}
		after = c
	}
}

func (p *plain) echo(text string) {
	if p.cfg.Echo {
		p.write(text)
	}
}

func (p *plain) say(text string) {
	text = ascii(text)
	p.write(text + "\r\n")
}

// write is for both who read and who answers.
func (p *plain) write(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	_, _ = io.WriteString(p.cfg.Out, text) // a line that broke ends the reading too
}

// ask prints a question and waits for a line.
func (p *plain) ask(ctx context.Context, question string) (string, error) {
	p.write(ascii(question))
	select {
	case line := <-p.lines:
		return strings.TrimSpace(line), nil
	case <-p.ended:
		return "", io.EOF
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// facts looks at the box, within a bound.
func (p *plain) facts(ctx context.Context) Facts {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	return p.box.Facts(ctx)
}

// lookTime bounds a look at the box.
const lookTime = 8 * time.Second

func (p *plain) menu(ctx context.Context) error {
	for {
		f := p.facts(ctx)
		pages := Pages(f)
		b := Banner(f)
		p.say("")
		p.rows([]row{{text: "== Tributary: " + b.Label + ", " + b.Text + " =="}})
		p.rows(menuRows(pages, p.cfg.Width))
		question := fmt.Sprintf("Page 1-%d, q to leave, Enter to look again: ", len(pages))
		if p.cfg.Draw {
			question = fmt.Sprintf("Page 1-%d, q to leave, s for the drawn screen: ", len(pages))
		}
		line, err := p.ask(ctx, question)
		if err != nil {
			return err
		}
		p.say("")
		switch n := choose(line, pages); {
		case line == "":
		case line == "s" && p.cfg.Draw:
			return ErrDraw
		case slices.Contains([]string{"q", "quit", "exit"}, line):
			return io.EOF
		case n >= 0:
			if err := p.page(ctx, pages[n].Name); err != nil {
				return err
			}
		default:
			p.say(fmt.Sprintf("%q is not on the menu.", clean(line)))
		}
	}
}

// choose takes a number or a page's name; -1 is none.
func choose(line string, pages []Page) int {
	if n, err := strconv.Atoi(line); err == nil {
		if n >= 1 && n <= len(pages) {
			return n - 1
		}
		return -1
	}
	return slices.IndexFunc(pages, func(p Page) bool { return p.Name == strings.ToLower(line) })
}

// menuRows puts the pages in as many columns as fit.
func menuRows(pages []Page, width int) (out []row) {
	widest := 0
	for _, p := range pages {
		widest = max(widest, len(p.Title))
	}
	cell := widest + 6
	columns := max(1, min(2, width/cell))
	deep := (len(pages) + columns - 1) / columns
	for i := range deep {
		text := ""
		for c := range columns {
			if n := c*deep + i; n < len(pages) {
				text += fmt.Sprintf("%-*s", cell, fmt.Sprintf("%3d  %s", n+1, pages[n].Title))
			}
		}
		out = append(out, row{text: strings.TrimRight(text, " ")})
	}
	return out
}

func (p *plain) rows(rows []row) {
	for _, r := range rows {
		p.say(r.text)
	}
}

// page shows one page and does its deeds until the person goes back.
func (p *plain) page(ctx context.Context, name string) error {
	for {
		pages := Pages(p.facts(ctx))
		page := pages[max(0, slices.IndexFunc(pages, func(p Page) bool { return p.Name == name }))]
		p.say("-- " + page.Title + " --")
		if err := p.paged(ctx, plainRows(page.Lines, p.cfg.Width)); err != nil {
			return err
		}
		for i, d := range page.Deeds {
			p.say(fmt.Sprintf("%3d  %s", i+1, d.Title))
		}
		question := "Enter to go back: "
		if len(page.Deeds) > 0 {
			question = fmt.Sprintf("1-%d, r to look again, Enter to go back: ", len(page.Deeds))
		}
		line, err := p.ask(ctx, question)
		if err != nil {
			return err
		}
		p.say("")
		if line == "" {
			return nil
		}
		if line == "r" {
			continue
		}
		n, err := strconv.Atoi(line)
		if err != nil || n < 1 || n > len(page.Deeds) {
			p.say(fmt.Sprintf("%q is not on this page.", clean(line)))
			continue
		}
		if err := p.deed(ctx, page.Deeds[n-1]); err != nil {
			return err
		}
	}
}

// plainRows gives marks in signs instead of colours.
func plainRows(lines []Line, width int) (out []row) {
	for _, r := range layout(lines, width-2, hashes) {
		sign := "  "
		switch r.mark {
		case Bad:
			sign = "! "
		case Attention:
			sign = "* "
		}
		out = append(out, row{text: strings.TrimRight(sign+r.text, " "), lead: r.lead})
	}
	return out
}

// paged stops where the screen is full.
func (p *plain) paged(ctx context.Context, rows []row) error {
	full := p.cfg.Height - 3
	if p.cfg.Height <= 0 || full < 4 {
		full = len(rows) + 1
	}
	for i, r := range rows {
		if i > 0 && i%full == 0 {
			line, err := p.ask(ctx, fmt.Sprintf("(%d more, Enter to go on, q to stop) ", len(rows)-i))
			if err != nil {
				return err
			}
			if line == "q" {
				return nil
			}
		}
		p.say(r.text)
	}
	return nil
}

// deed asks what a deed needs and has it done. Its failure is shown and is not the
// console's.
func (p *plain) deed(ctx context.Context, d Deed) error {
	values, err := p.fields(ctx, d)
	if err != nil || values == nil {
		return err
	}
	if d.Confirm != "" {
		for _, w := range wrap(d.Warning, p.cfg.Width) {
			p.say(w)
		}
		line, err := p.ask(ctx, fmt.Sprintf("Type %q to go on: ", d.Confirm))
		if err != nil {
			return err
		}
		if line != d.Confirm {
			p.say("Nothing was done.")
			return nil
		}
	}
	var said []row
	live := p.cfg.Height <= 0
	do, cancel := context.WithTimeout(ctx, deedTime)
	defer cancel()
	err = p.box.Do(do, d.ID, values, func(line string) {
		for _, t := range wrap(clean(line), p.cfg.Width) {
			if live {
				p.say(t)
			} else {
				said = append(said, row{text: t})
			}
		}
	})
	if e := p.paged(ctx, said); e != nil {
		return e
	}
	if errors.Is(err, ErrShell) {
		return err
	}
	if err != nil {
		p.say(strings.Join(wrap("FAILED: "+clean(err.Error()), p.cfg.Width), "\r\n"))
	} else {
		p.say("Done.")
	}
	return nil
}

// deedTime bounds a deed.
const deedTime = 10 * time.Minute

func (p *plain) fields(ctx context.Context, d Deed) (map[string]string, error) {
	values := map[string]string{}
	for _, f := range d.Fields {
		question := "  " + f.Question + ": "
		if f.Default != "" {
			question = fmt.Sprintf("  %s [%s]: ", f.Question, f.Default)
		}
		p.secret.Store(f.Secret)
		line, err := p.ask(ctx, question)
		p.secret.Store(false)
		if err != nil {
			return nil, err
		}
		if line == "" {
			line = f.Default
		}
		if len(f.Choices) > 0 && !slices.Contains(f.Choices, line) {
			p.say(fmt.Sprintf("%q is none of %s. Nothing was done.", clean(line), strings.Join(f.Choices, ", ")))
			return nil, nil
		}
		values[f.Name] = line
	}
	return values, nil
}
