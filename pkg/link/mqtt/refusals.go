package mqtt

import (
	"sync"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"

	"tributary.dev/tributary/pkg/api"
)

const (
	// refusalsEvery is how often one device's refusals are told of.
	refusalsEvery = time.Minute
	// maxRefused bounds the devices that are remembered for it.
	maxRefused = 1024
)

// refusals keeps a device that tries again and again from filling the log.
type refusals struct {
	mu   sync.Mutex
	last map[api.DeviceID]refusal
}

type refusal struct {
	told   time.Time
	untold int
}

// tell reports whether a refusal is to be told of, and how many of the same device were
// not since the last that was.
func (r *refusals) tell(id api.DeviceID, now time.Time) (untold int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, known := r.last[id]
	if known && now.Sub(old.told) < refusalsEvery {
		old.untold++
		r.last[id] = old
		return 0, false
	}
	if r.last == nil || len(r.last) >= maxRefused {
		r.last = map[api.DeviceID]refusal{}
	}
	r.last[id] = refusal{told: now}
	return old.untold, true
}

// refuse warns of what a device asked for and may not. The device is the certificate's:
// what it calls itself is part of what it asked for.
func (h *hook) refuse(cl *mochi.Client, what, asked string, why error) {
	peer := peerOf(cl)
	untold, ok := h.b.refused.tell(peer.id, time.Now())
	if !ok {
		return
	}
	if len(asked) > 80 {
		asked = asked[:80] + "…"
	}
	h.b.cfg.Log.Warn("refused what a device asked for", "device", peer.id, "remote", cl.Net.Remote, "what", what, "asked", asked, "err", why, "alsoRefused", untold)
}
