package vm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Get asks what a port of Spec.Ports serves by HTTP. The port is one line, so questions are
// asked one after another by the caller, and the guest cannot see that the host is gone
// before it has read all: a question that is given up may spoil the next.
func (m *Machine) Get(ctx context.Context, port, path string) ([]byte, error) {
	conn, err := m.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(30 * time.Second)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.Name+path, nil)
	if err != nil {
		return nil, err
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return nil, fmt.Errorf("%s: %s on port %s: %w", m.Name, path, port, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s: %.200s", m.Name, path, res.Status, body)
	}
	return body, err
}
