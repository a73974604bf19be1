package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// monitor speaks QMP: JSON objects, one a line (QEMU, docs/interop/qmp-spec).
type monitor struct {
	conn net.Conn
	mu   sync.Mutex
	last int
	// waiting holds who waits for which reply.
	waiting map[int]chan reply
	events  []string
	more    chan struct{}
	over    bool
}

type reply struct {
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
}

var errMonitorEnded = errors.New("the machine ended")

// newMonitor reads on conn until it ends, and enters command mode.
func newMonitor(ctx context.Context, conn net.Conn, readers *sync.WaitGroup) (*monitor, error) {
	m := &monitor{conn: conn, waiting: map[int]chan reply{}, more: make(chan struct{})}
	readers.Go(m.read)
	return m, m.do(ctx, "qmp_capabilities", nil, nil)
}

func (m *monitor) read() {
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var r reply
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			continue
		}
		m.mu.Lock()
		switch {
		case r.Event != "":
			m.events = append(m.events, r.Event)
			close(m.more)
			m.more = make(chan struct{})
		case m.waiting[r.ID] != nil:
			m.waiting[r.ID] <- r
			delete(m.waiting, r.ID)
		}
		m.mu.Unlock()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	close(m.more)
	m.more = make(chan struct{})
	for _, w := range m.waiting {
		close(w)
	}
	m.waiting = nil
}

func (m *monitor) do(ctx context.Context, command string, arguments, result any) error {
	m.mu.Lock()
	if m.over {
		m.mu.Unlock()
		return errMonitorEnded
	}
	m.last++
	id, answer := m.last, make(chan reply, 1)
	m.waiting[id] = answer
	m.mu.Unlock()
	request := map[string]any{"execute": command, "id": id}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return err
	}
	select {
	case r, ok := <-answer:
		switch {
		case !ok:
			return errMonitorEnded
		case r.Error != nil:
			return fmt.Errorf("%s: %s", r.Error.Class, r.Error.Desc)
		case result != nil:
			return json.Unmarshal(r.Return, result)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// event waits for an event and consumes it.
func (m *monitor) event(ctx context.Context, name string) error {
	for {
		m.mu.Lock()
		for i, e := range m.events {
			if e == name {
				m.events = append(m.events[:i], m.events[i+1:]...)
				m.mu.Unlock()
				return nil
			}
		}
		more, over := m.more, m.over
		m.mu.Unlock()
		if over {
			return errMonitorEnded
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
