package server

import (
	"context"
	"encoding/json"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Heard tells when there was last a sign that a device lives, and whether it can be reached.
type Heard func(api.DeviceID) (at time.Time, reachable bool)

// show is an object as the person who asks reads it: without secrets, and a device with
// when it was last seen as of now. The store's own is from when something else of its
// status changed, for being heard of is no change.
func (s *Server) show(ctx context.Context, o *api.Object) *api.Object {
	return s.cfg.Heard.show(s.showUsed(ctx, veilCode(ctx, redact(o))))
}

// showUsed adds to a Quota what of it is used now.
func (s *Server) showUsed(ctx context.Context, o *api.Object) *api.Object {
	if o == nil || o.Kind != api.KindQuota {
		return o
	}
	used, err := s.cfg.Store.Used(ctx, o.Metadata.Tenant)
	if err != nil {
		s.cfg.Log.Warn("what is used of a quota cannot be told", "quota", o.Key().String(), "err", err)
		return o
	}
	c := *o
	if c.Status, err = json.Marshal(api.QuotaStatus{Used: used}); err != nil {
		return o
	}
	return &c
}

func (h Heard) show(o *api.Object) *api.Object {
	if h == nil || o == nil || o.Kind != api.KindDevice {
		return o
	}
	var known struct {
		ID       api.DeviceID `json:"id"`
		Online   bool         `json:"online"`
		LastSeen time.Time    `json:"lastSeen"`
	}
	if json.Unmarshal(o.Status, &known) != nil || !known.Online {
		return o
	}
	at, reachable := h(known.ID)
	if at = at.UTC().Truncate(time.Second); !reachable || !at.After(known.LastSeen) {
		return o
	}
	var status map[string]json.RawMessage
	if json.Unmarshal(o.Status, &status) != nil {
		return o
	}
	status["lastSeen"], _ = json.Marshal(at) // a time of this era always encodes
	c := *o
	if raw, err := json.Marshal(status); err == nil {
		c.Status = raw
	}
	return &c
}
