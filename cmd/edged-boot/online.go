package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"time"
)

// online asks the agent whether it reaches its parent. It speaks the little HTTP that this
// takes, so that process 1 needs no client.
func online(ctx context.Context, socket string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second)) // a connection that has just been opened takes it
	if _, err := io.WriteString(conn, "GET /status HTTP/1.0\r\n\r\n"); err != nil {
		return false
	}
	text, err := io.ReadAll(io.LimitReader(conn, 4<<20))
	if err != nil {
		return false
	}
	_, body, _ := bytes.Cut(text, []byte("\r\n\r\n"))
	var s struct {
		Online bool `json:"online"`
	}
	return json.Unmarshal(body, &s) == nil && s.Online
}
