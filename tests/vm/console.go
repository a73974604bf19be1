package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
)

// consoleMax bounds what is kept of a serial line.
const consoleMax = 8 << 20

// Console collects what a serial line says, and lets tests wait for it.
type Console struct {
	mu     sync.Mutex
	text   []byte
	cursor int
	// more is closed and replaced when something was said.
	more  chan struct{}
	ended string
	over  bool
	log   io.Writer
}

func newConsole(log io.Writer) *Console { return &Console{more: make(chan struct{}), log: log} }

// Write takes what the line says.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p...)
	if extra := len(c.text) - consoleMax; extra > 0 {
		c.text = append([]byte(nil), c.text[extra:]...)
		c.cursor = max(0, c.cursor-extra)
	}
	c.wake()
	return c.log.Write(p)
}

func (c *Console) wake() {
	close(c.more)
	c.more = make(chan struct{})
}

// end notes that nothing more will come.
func (c *Console) end(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended, c.over = why, true
	c.wake()
}

func (c *Console) expect(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	for {
		c.mu.Lock()
		loc := re.FindSubmatchIndex(c.text[c.cursor:])
		if loc != nil {
			var found []string
			for i := 0; i < len(loc); i += 2 {
				s := ""
				if loc[i] >= 0 {
					s = string(c.text[c.cursor+loc[i] : c.cursor+loc[i+1]])
				}
				found = append(found, s)
			}
			c.cursor += loc[1]
			c.mu.Unlock()
			return found, nil
		}
		more, over, why := c.more, c.over, c.ended
		c.mu.Unlock()
		if over {
			if why == "" {
				return nil, errors.New("the machine ended")
			}
			return nil, fmt.Errorf("the machine ended: %s", why)
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// String is all that was said.
func (c *Console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// Tail is the last lines that were said, without what moves a terminal's cursor.
func (c *Console) Tail(lines int) string {
	c.mu.Lock()
	text := bytes.Clone(c.text[max(0, len(c.text)-64<<10):])
	c.mu.Unlock()
	all := strings.Split(strings.TrimRight(plain(string(text)), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

var escapes = regexp.MustCompile("\x1b(\\[[0-9;?]*[a-zA-Z]|[()][A-Za-z0-9]|[=>78])|\r")

func plain(s string) string { return escapes.ReplaceAllString(s, "") }
