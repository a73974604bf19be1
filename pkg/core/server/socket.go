package server

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/stream"
)

// socketGrace is how long a browser may take to read the last frame.
const socketGrace = 5 * time.Second

// tokenProtocol begins the subprotocol by which a browser, which cannot send a header with a
// WebSocket, tells its token.
const tokenProtocol = "bearer."

// isWebSocket reports whether a request opens a WebSocket (RFC 6455, section 4.1).
func isWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// socketToken is the token that a WebSocket brings; "" for none.
func socketToken(r *http.Request) string {
	if !isWebSocket(r) {
		return ""
	}
	for _, v := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(v, ",") {
			if token, ok := strings.CutPrefix(strings.TrimSpace(p), tokenProtocol); ok {
				return token
			}
		}
	}
	return ""
}

// sameOrigin refuses a WebSocket that a page of another origin opens: browsers send cookies
// along whoever asks, and let every page open one.
func sameOrigin(r *http.Request) error {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return nil // no browser
	}
	u, err := url.Parse(origin)
	if err != nil || !strings.EqualFold(u.Host, r.Host) { // check: origin
		return &api.Error{Code: api.Forbidden, Message: "a page of " + origin + " may not open streams here", Remedy: "open the console at the core's own address"}
	}
	return nil
}

// acceptSocket takes a WebSocket over, whose origin was looked at. A failure was answered.
func acceptSocket(w http.ResponseWriter, r *http.Request) (*stream.Conn, error) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{stream.Protocol}, InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	c.SetReadLimit(2 * stream.MaxPayload)
	return stream.NewConn(websocket.NetConn(r.Context(), c, websocket.MessageBinary), stream.Idle), nil
}
