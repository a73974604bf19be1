package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"tributary.dev/tributary/pkg/edge/recovery"
)

// live keeps the console on a terminal: it waits for a person, shows it, and waits again.
func live(ctx context.Context, o options, f *os.File, box *recovery.Appliance) error {
	old, err := term.MakeRaw(int(f.Fd()))
	if err == nil {
		defer func() { _ = term.Restore(int(f.Fd()), old) }() // the terminal may be gone
	}
	p := newPump(f)
	l := line{in: p, out: f, size: sizeOf(f, o), echo: true, colours: true, may: !o.plain, draws: screen(o.tty) && !o.plain}
	for {
		if err := greet(ctx, l, box); err != nil {
			if ctx.Err() != nil || err == io.EOF {
				return nil
			}
			return err
		}
		if err := talk(ctx, l, box); err != nil && ctx.Err() == nil {
			fmt.Fprintf(f, "\r\n%v\r\n", err)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// greet says who is there, and waits for Enter: nothing is shown to nobody.
func greet(ctx context.Context, l line, box *recovery.Appliance) error {
	b := recovery.Banner(box.Facts(ctx))
	if _, err := fmt.Fprintf(l.out, "\r\nTributary: %s, %s. Press Enter for the console.\r\n", b.Label, b.Text); err != nil {
		return err
	}
	in := l.in.reader(ctx)
	c := make([]byte, 1)
	for {
		if _, err := in.Read(c); err != nil {
			return err
		}
		if c[0] == '\r' || c[0] == '\n' {
			return nil
		}
	}
}

// screen tells whether a terminal is the machine's own screen, which can draw for certain;
// what hangs on a serial line, nobody knows.
func screen(tty string) bool {
	rest, ok := strings.CutPrefix(filepath.Base(tty), "tty")
	_, err := strconv.Atoi(rest)
	return ok && err == nil
}

// once shows the console on standard input and output.
func once(ctx context.Context, o options, in, out *os.File, box *recovery.Appliance) error {
	l := line{in: nil, out: out, size: sizeOf(out, o)}
	if term.IsTerminal(int(in.Fd())) && term.IsTerminal(int(out.Fd())) {
		old, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return err
		}
		defer func() { _ = term.Restore(int(in.Fd()), old) }() // the terminal may be gone
		l.echo = true
		if kind := os.Getenv("TERM"); kind != "" && kind != "dumb" {
			l.draws, l.colours = !o.plain, os.Getenv("NO_COLOR") == ""
		}
		resize := make(chan [2]int, 1)
		l.resize = resize
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go follow(ctx, l.size, resize)
	}
	l.in = newPump(in)
	return talk(ctx, l, box)
}

func follow(ctx context.Context, size func() (int, int), to chan<- [2]int) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	defer signal.Stop(changed)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			w, h := size()
			select {
			case to <- [2]int{w, h}:
			case <-ctx.Done():
				return
			}
		}
	}
}

func sizeOf(f *os.File, o options) func() (int, int) {
	return func() (int, int) {
		if o.width > 0 || o.height > 0 {
			return o.width, o.height
		}
		w, h, err := term.GetSize(int(f.Fd()))
		if err != nil {
			return 0, 0
		}
		return w, h
	}
}

var position = regexp.MustCompile(`\x1b\[(\d{1,4});(\d{1,4})R`)

// measure asks a terminal for its size: the cursor goes as far as it can and tells where it
// is (ECMA-48, CPR). A terminal that does not answer is taken for one of 80 by 24.
func measure(ctx context.Context, l line) (width, height int) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := io.WriteString(l.out, "\x1b7\x1b[999;999H\x1b[6n\x1b8"); err != nil {
		return 80, 24
	}
	in := l.in.reader(ctx)
	var seen bytes.Buffer
	b := make([]byte, 64)
	for seen.Len() < 1024 {
		n, err := in.Read(b)
		if err != nil {
			break
		}
		seen.Write(b[:n])
		if m := position.FindSubmatch(seen.Bytes()); m != nil {
			height, _ = strconv.Atoi(string(m[1])) // digits
			width, _ = strconv.Atoi(string(m[2]))
			if width >= 20 && height >= 6 {
				return min(width, recovery.MaxWidth), min(height, recovery.MaxHeight)
			}
			break
		}
	}
	return 80, 24
}
