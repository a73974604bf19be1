package boot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// Socket is where process 1 listens to the other programs of the box; root alone may
// open it. One JSON object a line goes in, one comes back.
const Socket = Dir + "/init.sock"

// What can be asked for.
const (
	doStatus   = "status"
	doReboot   = "reboot"
	doPowerOff = "poweroff"
)

type request struct {
	Do     string `json:"do"`
	Reason string `json:"reason,omitempty"`
}

// Answer is what process 1 says.
type Answer struct {
	Error    string        `json:"error,omitempty"`
	Children []ChildStatus `json:"children,omitempty"`
}

func (b *booter) serveControl(ctx context.Context) error {
	_ = os.Remove(Socket) // none, on a fresh /run
	l, err := net.Listen("unix", Socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(Socket, 0o600); err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(time.Second) // out of files, most likely
				continue
			}
			go func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				_ = guarded(ctx, func(context.Context) error { return json.NewEncoder(conn).Encode(b.answer(conn)) })
			}()
		}
	}()
	return nil
}

func (b *booter) answer(r io.Reader) Answer {
	line, err := bufio.NewReaderSize(io.LimitReader(r, 4<<10), 4<<10).ReadSlice('\n')
	if err != nil {
		return Answer{Error: "one line of JSON is wanted"}
	}
	q, err := parseRequest(line)
	if err != nil {
		return Answer{Error: err.Error()}
	}
	if q.Do == doStatus {
		b.mu.Lock()
		children := b.children
		b.mu.Unlock()
		var a Answer
		for _, c := range children {
			a.Children = append(a.Children, c.status())
		}
		return a
	}
	b.ask(q)
	return Answer{}
}

func parseRequest(line []byte) (q request, err error) {
	if err := json.Unmarshal(line, &q); err != nil {
		return q, err
	}
	switch q.Do {
	case doStatus, doReboot, doPowerOff:
		return q, nil
	}
	return q, errors.New("do is status, reboot or poweroff")
}

// Ask asks process 1 of this box for "status", "reboot" or "poweroff", with a reason for
// the log. It returns when the wish is taken, not when it is fulfilled.
func Ask(ctx context.Context, do, reason string) (Answer, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", Socket)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := json.NewEncoder(conn).Encode(request{Do: do, Reason: reason}); err != nil {
		return Answer{}, err
	}
	var a Answer
	if err := json.NewDecoder(io.LimitReader(conn, 1<<20)).Decode(&a); err != nil {
		return Answer{}, err
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}
