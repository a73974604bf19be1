package link

import (
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// MaxRevoked bounds the devices that a relay's manifest names as retired.
const MaxRevoked = 4096

// EncodeRevoked makes the body of a manifest.KeyRevoked of sorted ids.
func EncodeRevoked(ids []api.DeviceID) []byte {
	b := make([]byte, 0, 8*len(ids))
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return putBytes(nil, b)
}

func decodeRevoked(body []byte) (map[api.DeviceID]struct{}, error) {
	r := reader{b: body}
	ids := r.bytes(8 * MaxRevoked)
	if r.err == nil && (len(ids)%8 != 0 || len(r.b) > 0) {
		r.fail("a list of devices expected")
	}
	if r.err != nil {
		return nil, r.err
	}
	out := make(map[api.DeviceID]struct{}, len(ids)/8)
	for ; len(ids) > 0; ids = ids[8:] {
		out[api.DeviceID(ids[:8])] = struct{}{}
	}
	return out, nil
}

// obey takes from the box's own manifest which devices are retired: their sessions end,
// and nothing more is heard of them here. Their certificates may be good for months.
func (r *Relay) obey(now time.Time, s *manifest.Signed) {
	item, ok := s.Manifest.Items[manifest.KeyRevoked]
	if !ok {
		r.revoked = nil
		return
	}
	ids, err := decodeRevoked(item.Body)
	if err != nil {
		r.warn(now, "revoked-unreadable", api.Critical, fmt.Sprintf("which devices are retired cannot be read: %v", err))
		return
	}
	delete(ids, r.self)
	r.revoked = ids
	for id := range ids {
		if c := r.children[id]; c != nil {
			if c.up {
				r.eff.Kick = append(r.eff.Kick, id)
			}
			delete(r.children, id)
		}
		row := r.rows[id]
		if row == nil {
			continue
		}
		for _, below := range r.below(id) {
			if below.id != id {
				r.goneIn(now, below) // they come back through another parent
			}
		}
		r.goneIn(now, row)
	}
}

// Revoked reports whether a device is retired, as far as the box's manifest tells.
func (r *Relay) Revoked(id api.DeviceID) bool { return r.turnedAway(id) }

func (n *node) turnedAway(id api.DeviceID) bool {
	_, ok := n.revoked[id]
	return ok
}

// Adopted reports whether a device has its place at this relay: it signed its attachment to
// it, and has attached nowhere else since, as far as is known here.
func (r *Relay) Adopted(id api.DeviceID) bool {
	row := r.rows[id]
	return row != nil && id != r.self && row.att.Parent == r.self
}

// Adopted reports whether a device has its place at this relay.
func (e *Endpoint) Adopted(id api.DeviceID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.relay.Adopted(id)
}

// Revoked reports whether a device is retired, as far as the box's manifest tells.
func (e *Endpoint) Revoked(id api.DeviceID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.relay.Revoked(id)
}
