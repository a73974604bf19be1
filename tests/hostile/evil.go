package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/agent"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/stream"
)

// What it can do, by name.
const (
	alter       = "alter"             // flip a bit of every manifest on its way down
	forge       = "forge"             // make manifests with another content, under its own signature
	replay      = "replay"            // send old manifests, acknowledgements and commands again
	drop        = "drop"              // keep all manifests back
	mute        = "mute"              // keep everything back that the core signed
	mix         = "mix"               // give each child what is the others'
	forgeAcks   = "forge-acks"        // acknowledge under its own signature, so that records are forgotten
	alterState  = "alter-state"       // flip a bit of every value that its children report
	wipeState   = "wipe-state"        // say that its children report nothing
	aheadState  = "ahead-state"       // say that its children are in a state epoch far ahead
	forgeAttach = "forge-attachments" // attach children under its own signature
	alterBatch  = "alter-records"     // flip a bit of every batch of records
	repeatBatch = "repeat-records"    // send every batch many times, old ones too
	dropBatch   = "drop-records"      // let no record through
	wrongBlobs  = "wrong-blobs"       // answer digests with other bytes
	shortBlobs  = "short-blobs"       // break off half-way in every answer
	alterStream = "alter-streams"     // flip bits in sessions of exec and logs
	stealStream = "steal-streams"     // answer in a child's place
	impersonate = "impersonate"       // log in at the parent as a child
	replayEnrol = "replay-enrolments" // send enrolments again
)

var acts = []string{alter, forge, replay, drop, mute, mix, forgeAcks, alterState, wipeState, aheadState, forgeAttach, alterBatch, repeatBatch,
	dropBatch, wrongBlobs, shortBlobs, alterStream, stealStream, impersonate, replayEnrol}

// evil decides what is done and remembers what came by.
type evil struct {
	me      *identity.Identity
	seen    *seen
	log     *slog.Logger
	up      link.Uplink
	down    link.Downlink
	parents *agent.Parents

	mu     sync.Mutex
	active map[string]bool
	done   map[string]int
	kids   map[api.DeviceID]*kid
	enrols [][]byte
}

// kid is what it learned of one child.
type kid struct {
	manifests, acks, commands, batches [][]byte
	epoch, seq                         uint64 // of reported state
}

func newEvil(me *identity.Identity, s *seen, log *slog.Logger) *evil {
	return &evil{me: me, seen: s, log: log, active: map[string]bool{}, done: map[string]int{}, kids: map[api.DeviceID]*kid{}}
}

// Do replaces what is done; empty names are passed over.
func (e *evil) Do(names []string) error {
	next := map[string]bool{}
	for _, n := range names {
		if n != "" && !slices.Contains(acts, n) {
			return fmt.Errorf("%q is not one of %v", n, acts)
		}
		next[n] = n != ""
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.active = next
	e.log.Info("evil", "do", names)
	return nil
}

// Done tells how often each thing was done.
func (e *evil) Done() map[string]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.done)
}

// does reports whether an act is on, and counts it.
func (e *evil) does(act string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.active[act] {
		e.done[act]++
	}
	return e.active[act]
}

func (e *evil) note(what string) {
	e.mu.Lock()
	e.done[what]++
	e.mu.Unlock()
}

// kid finds what is known of a child; nil for the relay itself. Callers hold mu.
func (e *evil) kid(id api.DeviceID) *kid {
	if id == e.me.ID() {
		return nil
	}
	if e.kids[id] == nil {
		e.kids[id] = &kid{}
	}
	return e.kids[id]
}

// keep remembers b, the oldest and the newest few.
func keep(list [][]byte, b []byte) [][]byte {
	if len(list) >= 32 {
		list = slices.Delete(list, 1, 2)
	}
	return append(list, slices.Clone(b))
}

// evilUplink and evilDownlink stand between the real endpoint and its transports.
type evilUplink struct {
	link.Uplink
	e *evil
}

func (u evilUplink) Run(ctx context.Context, h link.UplinkHandler) error {
	return u.Uplink.Run(ctx, fromAbove{h, u.e})
}

func (u evilUplink) Send(frame []byte, reliable bool) error {
	var err error
	for _, f := range u.e.goingUp(frame) {
		err = errors.Join(err, u.Uplink.Send(f, reliable))
	}
	return err
}

type fromAbove struct {
	link.UplinkHandler
	e *evil
}

func (h fromAbove) FromParent(frame []byte) {
	h.e.see(frame)
	h.UplinkHandler.FromParent(frame)
}

func (h fromAbove) Retained(raw []byte) {
	_, _ = h.e.seen.Write(raw)
	h.UplinkHandler.Retained(raw)
}

type evilDownlink struct {
	link.Downlink
	e *evil
}

func (d evilDownlink) Run(ctx context.Context, h link.DownlinkHandler) error {
	return d.Downlink.Run(ctx, fromBelow{h, d.e})
}

func (d evilDownlink) Send(child api.DeviceID, frame []byte, reliable bool) error {
	if frame = d.e.goingDown(child, frame); frame == nil {
		return nil
	}
	return d.Downlink.Send(child, frame, reliable)
}

func (d evilDownlink) Retain(child api.DeviceID, raw []byte) error {
	raw, ok := d.e.retain(child, raw)
	if !ok {
		return nil
	}
	return d.Downlink.Retain(child, raw)
}

type fromBelow struct {
	link.DownlinkHandler
	e *evil
}

func (h fromBelow) FromChild(child api.DeviceID, frame []byte) {
	h.e.see(frame)
	h.DownlinkHandler.FromChild(child, frame)
}

// see writes a frame down in clear.
func (e *evil) see(frame []byte) {
	if _, body, err := openFrame(frame); err == nil {
		_, _ = e.seen.Write(body)
	}
}

// run makes things up, again and again.
func (e *evil) run(ctx context.Context) error {
	t := time.NewTicker(300 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			e.invent(ctx)
		}
	}
}

func (e *evil) invent(ctx context.Context) {
	e.mu.Lock()
	kids := map[api.DeviceID]kid{}
	for id, k := range e.kids {
		kids[id] = *k
	}
	enrols := e.enrols
	e.mu.Unlock()
	for id, k := range kids {
		for act, frames := range map[string]func() []message{
			forge:     func() []message { return forgedManifests(e.me, &k) },
			replay:    func() []message { return replayed(id, &k) },
			mix:       func() []message { return mixed(e.me, id, kids) },
			forgeAcks: func() []message { return forgedAcks(e.me, id, &k) },
		} {
			if !e.is(act) {
				continue
			}
			for _, m := range frames() {
				e.note(act)
				_ = e.down.Send(id, packFrame(m), true)
				if raw := m.bytes(1); m.typ() == downPatch {
					_ = e.down.Retain(id, raw)
				}
			}
		}
		for act, m := range map[string]message{wipeState: wiped(id, &k), aheadState: ahead(id), forgeAttach: forgedAttachment(e.me, id)} {
			if e.does(act) {
				_ = e.up.Send(packFrame(m), true)
			}
		}
		if e.does(impersonate) {
			e.outcome(impersonate, e.loginAs(ctx, id))
		}
	}
	for _, body := range enrols {
		if e.does(replayEnrol) {
			e.outcome(replayEnrol, e.enrolAgain(ctx, body))
		}
	}
}

func (e *evil) is(act string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.active[act]
}

// outcome counts whether somebody fell for it.
func (e *evil) outcome(act string, err error) {
	if err == nil {
		e.note(act + ".accepted")
		return
	}
	e.note(act + ".refused")
	e.log.Info("refused", "act", act, "err", err)
}

// loginAs tries a session at the parent under a child's name with the relay's own
// certificate (MQTT 3.1.1 section 3.1).
func (e *evil) loginAs(ctx context.Context, id api.DeviceID) error {
	at := e.parents.List()[0]
	d := tls.Dialer{Config: identity.NewLive(e.me).ClientTLS(at.Device), NetDialer: &net.Dialer{Timeout: 5 * time.Second}}
	c, err := d.DialContext(ctx, "tcp", at.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	name := id.String()
	packet := append([]byte{0x10, byte(12 + len(name)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(name))}, name...)
	if _, err := c.Write(packet); err != nil {
		return err
	}
	var ack [4]byte
	if _, err := io.ReadFull(c, ack[:]); err != nil {
		return err
	}
	if ack[0] != 0x20 || ack[3] != 0 {
		return fmt.Errorf("CONNACK %x", ack)
	}
	return nil
}

// steal answers a command to a child in its place.
func (e *evil) steal(id api.DeviceID, raw []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := stream.Verify(raw, e.me.Trust, id, time.Now(), new(stream.Replay))
	if err != nil {
		e.log.Error("a command cannot be read", "err", err)
		return
	}
	conn, err := stream.Answer(ctx, identity.NewLive(e.me), e.parents.Stream, c)
	if err == nil { // TLS 1.3 tells its client late that it is refused: the person sees who won
		_, _ = io.WriteString(conn.Writer(stream.Stdout), "stolen\n")
		err = conn.Finish(0, nil, time.Second)
	}
	e.log.Info("answered for a child", "err", err)
}

// enrolAgain posts an enrolment that came by. An answer is no proof of harm: it is
// sealed to who wrote the request; a second device would be.
func (e *evil) enrolAgain(ctx context.Context, body []byte) error {
	base, client, err := e.parents.Endpoint()
	if err != nil {
		return err
	}
	u := base.JoinPath(identity.EnrolPrefix, "device")
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), io.NopCloser(newReader(body)))
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		return errors.New(res.Status)
	}
	return nil
}
