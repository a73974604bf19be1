package main

import (
	"bytes"
	"io"
	"math"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/manifest"
)

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }

func deviceID(b []byte) (id api.DeviceID) {
	copy(id[:], b)
	return id
}

// goingDown is what becomes of a frame to a child; nil is nothing.
func (e *evil) goingDown(child api.DeviceID, frame []byte) []byte {
	list, _, err := openFrame(frame)
	if err != nil {
		return frame
	}
	var out []message
	changed := false
	for _, m := range list {
		was := len(out)
		switch m.typ() {
		case downRun, downPatch:
			first := 1
			if m.typ() == downRun {
				first = 3
			}
			if e.does(drop) || e.does(mute) {
				break
			}
			if e.does(alter) {
				m = append(message{}, m...)
				for i := first; i < len(m); i++ {
					m[i] = encode(flip(m.bytes(i)))
				}
				changed = true
			}
			out = append(out, m)
		case downAck, downCommand:
			if e.downSigned(child, m) {
				out = append(out, m)
			}
		default:
			out = append(out, m)
		}
		changed = changed || len(out) == was
	}
	switch {
	case !changed:
		return frame
	case len(out) == 0:
		return nil
	}
	return packFrame(out...)
}

// downSigned remembers an acknowledgement or a command, and tells whether it goes on.
func (e *evil) downSigned(child api.DeviceID, m message) bool {
	raw := m.bytes(2)
	e.mu.Lock()
	if k := e.kid(child); m.typ() == downAck {
		k.acks = keep(k.acks, raw)
	} else {
		k.commands = keep(k.commands, raw)
	}
	e.mu.Unlock()
	if m.typ() == downAck {
		return !e.does(mute)
	}
	if e.does(stealStream) {
		go e.steal(child, raw)
		return false
	}
	return true
}

// retain is what becomes of a retained manifest.
func (e *evil) retain(child api.DeviceID, raw []byte) ([]byte, bool) {
	if raw == nil {
		return nil, true
	}
	e.mu.Lock()
	if k := e.kid(child); k != nil {
		k.manifests = keep(k.manifests, raw)
	}
	e.mu.Unlock()
	if e.does(drop) || e.does(mute) {
		return nil, false
	}
	if e.does(alter) {
		raw = flip(raw)
	}
	return raw, true
}

// goingUp is what becomes of a frame to the parent: none, one or many.
func (e *evil) goingUp(frame []byte) [][]byte {
	list, _, err := openFrame(frame)
	if err != nil {
		return [][]byte{frame}
	}
	var out, again []message
	for _, m := range list {
		switch m.typ() {
		case upState:
			m = e.state(m, 3)
		case upPatch:
			m = e.state(m, 1)
		case upBatch:
			var more []message
			if m, more = e.batch(m); m == nil {
				continue
			}
			again = append(again, more...)
		}
		out = append(out, m)
	}
	var frames [][]byte
	if len(out) > 0 {
		frames = append(frames, packFrame(out...))
	}
	for _, m := range again {
		frames = append(frames, packFrame(m))
	}
	return frames
}

// batch is what becomes of a batch of a child's records.
func (e *evil) batch(m message) (message, []message) {
	id, raw := deviceID(m.bytes(1)), m.bytes(2)
	e.mu.Lock()
	k := e.kid(id)
	var old [][]byte
	if k != nil {
		k.batches = keep(k.batches, raw)
		old = k.batches
	}
	e.mu.Unlock()
	switch {
	case k == nil:
	case e.does(dropBatch):
		return nil, nil
	case e.does(alterBatch):
		return newMessage(upBatch, id[:], flip(raw)), nil
	case e.does(repeatBatch):
		var again []message
		for _, b := range append(old, raw) {
			again = append(again, newMessage(upBatch, id[:], b))
		}
		return m, again
	}
	return m, nil
}

// state looks at the groups of a message and may alter their values.
func (e *evil) state(m message, first int) message {
	out := append(message{}, m...)
	for i := first; i < len(m); i++ {
		var g message
		if cbor.Unmarshal(m[i], &g) != nil || len(g) < 4 {
			continue
		}
		id := deviceID(g.bytes(0))
		e.mu.Lock()
		k := e.kid(id)
		if k != nil && g.uint(1) >= k.epoch {
			k.epoch, k.seq = g.uint(1), g.uint(2)
		}
		e.mu.Unlock()
		if k == nil || !e.does(alterState) {
			continue
		}
		entries := 4
		if g.uint(3) == g.uint(2) {
			entries = 5
		}
		for j := entries; j < len(g); j++ {
			var entry message
			if cbor.Unmarshal(g[j], &entry) != nil || len(entry) < 4 {
				continue
			}
			if v := entry.bytes(1); len(v) > 0 {
				entry[1] = encode(flip(v))
				g[j] = encode(entry)
			}
		}
		out[i] = encode(g)
	}
	return out
}

// newest is the newest manifest of a child that came by; nil when none did.
func (k *kid) newest() *manifest.Signed {
	if len(k.manifests) == 0 {
		return nil
	}
	s, err := manifest.Parse(k.manifests[len(k.manifests)-1])
	if err != nil {
		return nil
	}
	return s
}

// forgedManifests are manifests of the next generation with another content, under the
// relay's own key: once by its own name, once by the name of the core's key, and once
// with the core's signature from the manifest before.
func forgedManifests(me *identity.Identity, k *kid) (out []message) {
	s := k.newest()
	if s == nil {
		return nil
	}
	m := s.Manifest
	m.Generation++
	items := map[string]manifest.Item{}
	for key, it := range m.Items {
		if strings.HasPrefix(key, manifest.PrefixApp) {
			refs := append([]manifest.Ref{}, it.Refs...)
			for i := range refs {
				refs[i].Digest = "sha256:" + strings.Repeat("66", 32)
			}
			it.Refs = refs
		}
		it.Gen = m.Generation
		items[key] = it
	}
	m.Items = items
	kid, err := identity.KeyIDOf(s.Raw)
	if err != nil {
		return nil
	}
	for _, name := range [][]byte{nil, kid} {
		if f, err := manifest.Sign(m, me.Key, name); err == nil {
			out = append(out, newMessage(downPatch, f.Raw))
			transplanted := append(bytes.Clone(f.Raw[:len(f.Raw)-64]), s.Raw[len(s.Raw)-64:]...)
			out = append(out, newMessage(downPatch, transplanted))
		}
	}
	return out
}

// replayed is everything old: manifests, acknowledgements, commands.
func replayed(id api.DeviceID, k *kid) (out []message) {
	if len(k.manifests) > 1 {
		out = append(out, newMessage(downPatch, k.manifests[0]), newMessage(downPatch, k.manifests[len(k.manifests)-2]))
	}
	for _, a := range k.acks {
		out = append(out, newMessage(downAck, id[:], a))
	}
	for _, c := range k.commands {
		out = append(out, newMessage(downCommand, id[:], c))
	}
	return out
}

// mixed is what belongs to the other children: their manifests, their acknowledgements,
// their commands, and the child's own manifest with another's secrets.
func mixed(me *identity.Identity, id api.DeviceID, kids map[api.DeviceID]kid) (out []message) {
	own := kids[id]
	for other, k := range kids {
		if other == id {
			continue
		}
		if s := k.newest(); s != nil {
			out = append(out, newMessage(downPatch, s.Raw))
			if mine := own.newest(); mine != nil {
				m := mine.Manifest
				m.Generation++
				m.Items = map[string]manifest.Item{}
				for key, it := range mine.Manifest.Items {
					if strings.HasPrefix(key, manifest.PrefixSecret) {
						it.Body = s.Manifest.Items[key].Body
					}
					m.Items[key] = it
				}
				if f, err := manifest.Sign(m, me.Key, nil); err == nil {
					out = append(out, newMessage(downPatch, f.Raw))
				}
			}
		}
		for _, a := range k.acks {
			out = append(out, newMessage(downAck, id[:], a))
		}
		for _, c := range k.commands {
			out = append(out, newMessage(downCommand, id[:], c))
		}
	}
	return out
}

// forgedAcks say that far more was counted and backed up than there is, in a higher
// core epoch and long after now.
func forgedAcks(me *identity.Identity, id api.DeviceID, k *kid) (out []message) {
	if len(k.batches) == 0 {
		return nil
	}
	h, err := record.Peek(k.batches[len(k.batches)-1])
	if err != nil {
		return nil
	}
	a := record.Ack{CoreEpoch: 1, SpoolEpoch: h.Epoch, Acked: h.Last + 1000, Safe: h.Last + 1000, Generation: 1 << 20,
		Time: time.Now().Add(10 * 365 * 24 * time.Hour).Unix(), StateEpoch: k.epoch, StateSeq: k.seq + 1000, Explicit: true}
	for _, epoch := range []uint64{1, 1 << 40} {
		a.CoreEpoch = epoch
		raw, err := record.SealAck(record.By(me.Key), id, a)
		if err != nil {
			return nil
		}
		out = append(out, newMessage(downAck, id[:], raw))
	}
	return out
}

// wiped tells that a child reports nothing any more.
func wiped(id api.DeviceID, k *kid) message {
	seq := k.seq + 1
	return newMessage(upPatch, []any{id[:], k.epoch, seq, seq, seq})
}

// ahead tells that a child is in a state epoch that no clock will reach.
func ahead(id api.DeviceID) message {
	return newMessage(upPatch, []any{id[:], uint64(math.MaxUint64), 1, 1, 1})
}

// forgedAttachment attaches a child elsewhere, under the relay's key.
func forgedAttachment(me *identity.Identity, id api.DeviceID) message {
	self := me.ID()
	payload := encode([]any{id[:], self[:], 1 << 20})
	raw, err := identity.Sign(me.Key, []byte(link.AttachPurpose), payload)
	if err != nil {
		panic(err) // a P-256 key in memory signs
	}
	return newMessage(upAttach, []any{raw})
}
