package wifi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// maxMessage bounds what the supplicant sends at once; it answers with 4 KiB at most.
const maxMessage = 16 << 10

// scanTime bounds a search; a card takes some seconds.
const scanTime = time.Minute

// Scan listens for the networks around. It asks the supplicant that keeps the card, or one
// of its own where none does.
func Scan(ctx context.Context, c Config) ([]Network, error) {
	ctx, end := context.WithTimeout(ctx, scanTime)
	defer end()
	s, err := dial(c.Dir, c.Link)
	if err != nil {
		own, cancel := context.WithCancel(ctx)
		cmd, out, err := c.start(own, nil)
		if err != nil {
			cancel()
			return nil, err
		}
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			b := make([]byte, 4096)
			for {
				if _, err := out.Read(b); err != nil {
					return
				}
			}
		}()
		defer func() {
			cancel()
			<-drained
			_ = cmd.Wait() // it was asked to end
		}()
		if s, err = await(ctx, c, drained); err != nil {
			return nil, err
		}
	}
	defer s.close()
	return s.scan(ctx)
}

// await waits for the socket of a supplicant that is starting.
func await(ctx context.Context, c Config, ended <-chan struct{}) (*socket, error) {
	for {
		if s, err := dial(c.Dir, c.Link); err == nil {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ended:
			return nil, fmt.Errorf("wpa_supplicant does not take the card %s", c.Link)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// socket is a talk with a supplicant.
type socket struct {
	conn *net.UnixConn
	path string
}

// talks tells the sockets of this process apart.
var talks atomic.Uint64

func dial(dir, link string) (*socket, error) {
	own := filepath.Join(dir, fmt.Sprintf(".talk-%d-%d", os.Getpid(), talks.Add(1)))
	conn, err := net.DialUnix("unixgram", &net.UnixAddr{Name: own, Net: "unixgram"}, &net.UnixAddr{Name: filepath.Join(dir, link), Net: "unixgram"})
	if err != nil {
		_ = os.Remove(own) // bound before the far end was tried, or not at all
		return nil, err
	}
	return &socket{conn, own}, nil
}

func (s *socket) close() {
	_ = s.conn.Close()
	_ = os.Remove(s.path) // nobody else has its name
}

// receive waits for one message.
func (s *socket) receive(ctx context.Context) (string, error) {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b := make([]byte, maxMessage)
	n, err := s.conn.Read(b)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return string(b[:n]), err
}

// ask waits for the answer to a command; events ("<2>CTRL-EVENT-…") may come before it.
func (s *socket) ask(ctx context.Context, command string) (string, error) {
	if _, err := s.conn.Write([]byte(command)); err != nil {
		return "", err
	}
	for {
		text, err := s.receive(ctx)
		if err != nil || !strings.HasPrefix(text, "<") {
			return text, err
		}
	}
}

// scan asks for a search, waits for its end, and reads what was heard.
func (s *socket) scan(ctx context.Context) ([]Network, error) {
	if text, err := s.ask(ctx, "ATTACH"); err != nil || strings.TrimSpace(text) != "OK" {
		return nil, errors.Join(err, fmt.Errorf("wpa_supplicant answers %.80q", text))
	}
	// While it searches for itself it is busy, and the end of that search does as well.
	if text, err := s.ask(ctx, "SCAN"); err != nil || !strings.HasPrefix(text, "OK") && !strings.HasPrefix(text, "FAIL-BUSY") {
		return nil, errors.Join(err, fmt.Errorf("the card does not search: wpa_supplicant answers %.80q", text))
	}
	for {
		text, err := s.receive(ctx)
		if err != nil {
			return nil, err
		}
		if strings.Contains(text, "CTRL-EVENT-SCAN-FAILED") {
			return nil, errors.New("the card's search failed")
		}
		if strings.Contains(text, "CTRL-EVENT-SCAN-RESULTS") {
			break
		}
	}
	text, err := s.ask(ctx, "SCAN_RESULTS")
	return Networks(text), err
}
