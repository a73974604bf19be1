package link

import (
	"log/slog"
	"math/rand/v2"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// Config tunes a party. Zero values mean the defaults.
type Config struct {
	// Fold is how long changes wait for others to share a frame. Default 50 ms.
	Fold time.Duration
	// Health is how often a party confirms its subtree to its parent. Default 1 min.
	Health time.Duration
	// RecordDelay is how long usage and telemetry wait for a fuller batch. Default: as long
	// as four of them take to come, from 2 s to 1 h, so that a device at rest signs and
	// sends one batch an hour.
	RecordDelay time.Duration
	// DeviceWindow bounds the unacknowledged bytes of a device's records, ChildWindow
	// those of all devices under one child. Defaults 256 KiB and 4 MiB.
	DeviceWindow, ChildWindow int
	// Grace is how long a lost session is kept quiet. Default 20 s.
	Grace time.Duration
	// Withheld is how long a newer manifest may take to arrive after a signed
	// acknowledgement has named it. Default five times Health, as that is now.
	Withheld time.Duration
	// Rand gives random numbers: feed names and jitter, nothing secret. Default math/rand.
	Rand func() uint64
	// Wall tells Unix seconds at a moment; default its own. Moments themselves never go
	// back (time.Now has a monotonic reading); the wall clock may.
	Wall func(now time.Time) int64
	Log  *slog.Logger
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.Fold, 50*time.Millisecond)
	def(&c.Health, time.Minute)
	def(&c.Grace, 20*time.Second)
	if c.DeviceWindow <= 0 {
		c.DeviceWindow = 256 << 10
	}
	if c.ChildWindow <= 0 {
		c.ChildWindow = 4 << 20
	}
	if c.Rand == nil {
		c.Rand = rand.Uint64
	}
	if c.Wall == nil {
		c.Wall = time.Time.Unix
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Effects is what a step wants done, in this order: commit Ops (or State), then the rest.
// When the commit fails nothing of the rest may happen, and the party must be made anew
// from its store.
type Effects struct {
	// Ops go to the Store; Sync waits for the disk.
	Ops  []Op
	Sync bool
	// State goes to CoreStore.ApplyState; then Batches to CoreStore.AcceptBatches and
	// the results to Core.Counted.
	State   []StateChange
	Batches []BatchIn

	Up     []Frame
	Down   []DownFrame
	Retain []Retained
	Kick   []api.DeviceID
	// FetchRetained asks for the manifest on m/<own id>.
	FetchRetained bool
	// ResetUp asks for another session with the parent.
	ResetUp bool

	// Manifest is a newer one for this device.
	Manifest *manifest.Signed
	// Below are newer manifests of devices below, for prefetching.
	Below []*manifest.Signed
	// Commands are for this device: signed bytes, not yet verified.
	Commands [][]byte
	// Online tells which devices came and went (core only).
	Online []Presence
	// Alarms tells what was found wrong about single devices, each name once a device
	// (core only).
	Alarms []Alarm
	// CoreTime is the core's clock by a signed acknowledgement, Unix seconds; 0 when
	// there is none.
	CoreTime int64
}

// Frame is bytes for the parent.
type Frame struct {
	Bytes    []byte
	Reliable bool
}

// DownFrame is bytes for one child.
type DownFrame struct {
	Child api.DeviceID
	Frame
}

// Retained is the manifest to keep on m/<child>.
type Retained struct {
	Child api.DeviceID
	Raw   []byte
}

// Presence is a device that came or went.
type Presence struct {
	Device api.DeviceID
	Online bool
	// Heard is the last sign that it lived: now of one that came, Core.Heard of one that went.
	Heard time.Time
}

// Alarm is something wrong with what a device sent, or with what came in its name.
type Alarm struct {
	Device   api.DeviceID
	Name     string // of the warning, e.g. "bad-mac"
	Severity api.Severity
	Message  string
}

// priority orders the messages of a step: those that steer, then state and manifests,
// then records.
type priority int

const (
	steer priority = iota
	state
	records
	priorities
)

// chunk is the size at which a frame is closed and another begun.
const chunk = 192 << 10

// outbox gathers a step's messages to one party.
type outbox struct {
	parts    [priorities][]byte
	reliable bool
}

func (o *outbox) add(p priority, msg []byte, reliable bool) {
	o.parts[p] = append(o.parts[p], msg...)
	o.reliable = o.reliable || reliable
}

func (o *outbox) size() (n int) {
	for _, p := range o.parts {
		n += len(p)
	}
	return n
}

// take closes the frame; ok is false when there is nothing to send.
func (o *outbox) take() (f Frame, body []byte) {
	n := o.size()
	if n == 0 {
		return f, nil
	}
	body = make([]byte, 0, n)
	for i, p := range o.parts {
		body = append(body, p...)
		o.parts[i] = nil
	}
	f = Frame{Bytes: packFrame(body), Reliable: o.reliable}
	o.reliable = false
	return f, body
}

// Class is what bytes on a link were spent on.
type Class int

// The classes.
const (
	ClassOther Class = iota
	ClassState
	ClassManifests
	ClassRecords
	classes
)

func (c Class) String() string { return [...]string{"other", "state", "manifests", "records"}[c] }

// Stats counts frame bytes by what they were spent on, on the way to the parent and to
// the children, frames that were refused, and batches of records that were dropped
// because their child's window was full.
type Stats struct {
	UpIn, UpOut, DownIn, DownOut [classes]uint64
	Refused, Dropped             uint64
}

// count shares a frame's wire bytes among the classes of its messages.
func count(to *[classes]uint64, class func(typ uint64) Class, msgs []message, wire int) {
	total := 0
	for _, m := range msgs {
		total += len(m.raw)
	}
	for _, m := range msgs {
		to[class(m.typ)] += uint64(wire * len(m.raw) / total)
	}
}

func upClass(typ uint64) Class {
	switch typ {
	case upState, upPatch, upAttach:
		return ClassState
	case upManifest:
		return ClassManifests
	case upBatch:
		return ClassRecords
	}
	return ClassOther
}

func downClass(typ uint64) Class {
	switch typ {
	case downManifests, downPatch:
		return ClassManifests
	case downAck:
		return ClassRecords
	}
	return ClassOther
}
