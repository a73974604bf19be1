package link

import (
	"context"
	"errors"

	"tributary.dev/tributary/pkg/api"
)

// ErrDown is what Send returns while there is no session. The link forgets the
// frame and makes good by itself when the session is back.
var ErrDown = errors.New("no session")

// Uplink is the way to the parent. pkg/link/mqtt implements it: publish on
// u/<own id>, subscribe to d/<own id>, clean session.
type Uplink interface {
	// Run keeps one session with one of the parents, with jittered backoff and with
	// the next parent after some failures, until ctx ends. It calls h from one
	// goroutine at a time, in the order of events; a Send from within a call of h is
	// allowed and must not block on h.
	Run(ctx context.Context, h UplinkHandler) error
	// Send hands a frame to the session. It may be called from any goroutine, keeps
	// the order of calls, does not keep the slice, and does not wait for the peer:
	// QoS 0, or QoS 1 when reliable. The frame may still be lost; the link copes.
	// Errors: ErrDown.
	Send(frame []byte, reliable bool) error
	// SetParents replaces the list of possible parents, best first. A session with a
	// parent that is still listed is kept.
	SetParents(parents []api.ParentRef)
	// FetchRetained subscribes to m/<own id> once; what the parent retains there comes
	// through UplinkHandler.Retained. The subscription ends with the session.
	FetchRetained() error
	// Reset ends the session; Run makes another.
	Reset(reason string)
}

// UplinkHandler receives what happens on the way to the parent.
type UplinkHandler interface {
	// ParentUp tells of a new session after its CONNACK; parent is zero for the core.
	ParentUp(parent api.DeviceID)
	ParentDown(err error)
	// FromParent passes one frame from d/<own id>. The slice belongs to the callee.
	FromParent(frame []byte)
	// Retained passes the full manifest from m/<own id>: untrusted bytes.
	Retained(raw []byte)
}

// Downlink is the way to the children. pkg/link/mqtt implements it twice: over the
// embedded broker (sessions are known from its hooks), and for the core over an
// external broker (a child's session begins with its first frame, and ends with its
// last will, which is an empty payload on u/<id>).
type Downlink interface {
	// Run serves until ctx ends. It calls h from one goroutine at a time per child.
	Run(ctx context.Context, h DownlinkHandler) error
	// Send hands a frame to one child's session; see Uplink.Send. Errors: ErrDown.
	Send(child api.DeviceID, frame []byte, reliable bool) error
	// Retain replaces the retained manifest on m/<child>; nil removes it.
	Retain(child api.DeviceID, raw []byte) error
	// Kick ends a child's session.
	Kick(child api.DeviceID, reason string)
}

// DownlinkHandler receives what happens on the way to the children.
type DownlinkHandler interface {
	// ChildUp tells of a child's new session. cert is its verified certificate in DER
	// form, or nil when the broker does not tell; a second ChildUp without a ChildDown
	// replaces the session.
	ChildUp(child api.DeviceID, cert []byte)
	ChildDown(child api.DeviceID)
	// FromChild passes one frame from u/<child>. The slice belongs to the callee.
	FromChild(child api.DeviceID, frame []byte)
}
