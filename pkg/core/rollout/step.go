package rollout

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// step turns what was decided into what is written. It is nil when that is nothing.
func (l *look) step(p Progress, steps []Step) (*store.RolloutStep, error) {
	out := &store.RolloutStep{Key: l.state.Object.Key(), Revision: l.state.Object.Metadata.Revision, Devices: map[api.DeviceID]json.RawMessage{}, Most: l.most, MostAt: l.maxAt}
	before := l.status
	for _, s := range steps {
		id, err := api.ParseDeviceID(s.Device.ID)
		if err != nil {
			return nil, err
		}
		if err := l.carry(out, id, s, p); err != nil {
			return nil, err
		}
	}
	if p.Phase != l.status.Phase {
		if p.Phase == api.RolloutComplete && !l.status.Phase.Ended() && l.status.Ended == nil {
			l.complete(out)
		}
		if p.Phase.Ended() {
			out.Leave = l.keys
		}
	}
	l.sum(p)
	if len(out.Devices) == 0 && len(out.Give) == 0 && len(out.Leave) == 0 && alike(before, l.status) {
		return nil, nil
	}
	out.Status = l.status
	return out, nil
}

func alike(a, b api.RolloutStatus) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(x) == string(y)
}

// carry writes one device's next state, what it is given, and its place in the budget.
func (l *look) carry(out *store.RolloutStep, id api.DeviceID, s Step, p Progress) error {
	was, d := l.rows[id], s.Device
	next := kept{Name: d.Name, Site: d.Site, Relay: d.Relay, Wave: d.Wave, State: d.State, Touched: d.Touched, Since: d.Since, WellAt: d.WellAt, Until: d.Until, Slot: d.Slot, Why: d.Why, Before: was.Before}
	switch s.Do {
	case Give:
		if !was.Touched {
			next.Before = make([]int64, len(l.keys))
			for i := range l.keys {
				next.Before[i] = l.has(i, id)
			}
		}
		for i, c := range l.status.Change {
			out.Give = append(out.Give, l.gift(id, i, c.Revision, d.Until))
		}
	case Restore:
		next.Why = l.takeBack(out, id, &next, d.Until)
	default:
		l.settleGift(out, id, &was, &next, p)
	}
	if was.Slot && !next.Slot {
		out.Free = append(out.Free, id)
	}
	if !was.Slot && next.Slot {
		out.Claim = append(out.Claim, store.Slot{Device: id, Tenant: l.tenant, Site: d.Site, Relay: d.Relay})
	}
	l.rows[id] = next
	raw, err := json.Marshal(next)
	out.Devices[id] = raw
	return err
}

func (l *look) gift(id api.DeviceID, i int, number int64, until time.Time) store.Gift {
	g := store.Gift{Device: id, Key: l.keys[i], OwnRevision: store.OwnRevision{Number: number, Rollout: l.uid}}
	if !until.IsZero() && l.spec.Disrupts() {
		g.Permit = &api.Permit{Rollout: l.state.Object.Metadata.Name, Until: until.Unix(), Hours: l.spec.Hours}
	}
	return g
}

// takeBack gives a device what it had before, but what must not come back; it says what that is.
func (l *look) takeBack(out *store.RolloutStep, id api.DeviceID, k *kept, until time.Time) string {
	var stays []string
	for i := range l.keys {
		if why := l.barredOne(i, k, l.facts[id]); why != "" {
			stays = append(stays, why)
			continue
		}
		number := l.status.Change[i].Before
		if i < len(k.Before) && k.Before[i] != follows {
			number = k.Before[i]
		}
		g := l.gift(id, i, number, until)
		if g.Permit != nil {
			g.Permit.Hours = "" // going back heeds none
		}
		out.Give = append(out.Give, g)
	}
	return strings.Join(stays, "; ")
}

// settleGift has a device that came to an end have what all have again, where that is the same.
func (l *look) settleGift(out *store.RolloutStep, id api.DeviceID, was, next *kept, p Progress) {
	switch {
	case was.State == next.State:
	case was.State == Restoring && (next.State == Restored || next.State == Kept):
		for i := range l.keys {
			if l.barredOne(i, was, l.facts[id]) != "" {
				continue
			}
			if i < len(was.Before) && was.Before[i] != follows {
				out.Give = append(out.Give, l.gift(id, i, was.Before[i], time.Time{}))
			} else {
				out.Give = append(out.Give, store.Gift{Device: id, Key: l.keys[i], Follow: true})
			}
		}
		if next.Why == "" {
			next.Why = was.Why
		}
	case p.Phase == api.RolloutComplete && l.status.Phase == api.RolloutComplete && (next.State == Healthy || next.State == Failed):
		for i := range l.keys {
			out.Give = append(out.Give, store.Gift{Device: id, Key: l.keys[i], Follow: true})
		}
	}
}

// complete gives the change to all, and keeps from those that are away what they have to wait for.
func (l *look) complete(out *store.RolloutStep) {
	out.All = map[api.Key]int64{}
	for i, c := range l.status.Change {
		out.All[l.keys[i]] = c.Revision
	}
	for id, k := range l.rows {
		for i, c := range l.status.Change {
			own, has := l.given(i).Own[id]
			switch {
			case has && own.Rollout == store.Pinned:
			case k.State == Waiting:
				number := c.Before
				if has && !k.Touched {
					number = own.Number
				} else if k.Touched { // it may have taken the change, and goes on with it when it is back
					number = c.Revision
				}
				out.Give = append(out.Give, l.gift(id, i, number, k.Until))
			case k.State == Given:
			case has && own.Rollout == l.uid || hadOwn(&k, i):
				out.Give = append(out.Give, store.Gift{Device: id, Key: l.keys[i], Follow: true})
			}
		}
	}
}

func hadOwn(k *kept, i int) bool { return k.Touched && i < len(k.Before) && k.Before[i] != follows }

// maxUnhappy bounds the devices that a status names.
const maxUnhappy = 20

// sum brings the status up to date.
func (l *look) sum(p Progress) {
	s := &l.status
	s.Phase, s.Wave, s.Approved, s.Message = p.Phase, p.Wave+1, p.Approved, p.Message
	if since := p.WaveSince.UTC(); !since.IsZero() {
		s.WaveSince = &since
	}
	if s.Ended == nil && p.Phase.Ended() {
		s.Ended = &l.now
	}
	s.Waves, s.Devices, s.Unhappy = make([]api.WaveStatus, Waves(&l.spec)), api.RolloutCounts{}, nil
	for i := range s.Waves {
		s.Waves[i].Name = WaveOf(&l.spec, i).Name
	}
	for id, k := range l.rows {
		away := l.facts[id] == nil || !l.facts[id].online
		tally(&s.Devices, k.State, away)
		if k.Wave < len(s.Waves) {
			tally(&s.Waves[k.Wave].RolloutCounts, k.State, away)
		}
		if k.State == Failed || k.State == Skipped || k.State == Kept || k.Why != "" && k.State == Restored {
			s.Unhappy = append(s.Unhappy, k.device())
		}
	}
	slices.SortFunc(s.Unhappy, func(a, b api.RolloutDevice) int { return strings.Compare(a.Name, b.Name) })
	s.Unhappy = s.Unhappy[:min(len(s.Unhappy), maxUnhappy)]
	s.Estimate = l.estimate(p)
}

func (k *kept) device() api.RolloutDevice {
	since := k.Since.UTC()
	return api.RolloutDevice{Name: k.Name, Site: k.Site, Wave: k.Wave + 1, State: string(k.State), Since: &since, Why: k.Why}
}

func tally(c *api.RolloutCounts, s State, away bool) {
	c.All++
	switch s {
	case Waiting:
		if c.Waiting++; away {
			c.Away++
		}
	case Given:
		c.Given++
	case Healthy:
		c.Healthy++
	case Failed:
		c.Failed++
	case Skipped:
		c.Skipped++
	case Restoring:
		c.Restoring++
	case Restored:
		c.Restored++
	case Kept:
		c.Kept++
	}
}

// estimate is when those that are there may be through, by how long those took that are.
func (l *look) estimate(p Progress) *time.Time {
	c, s := &l.status.Devices, l.status.Started
	through, left := c.Healthy+c.Failed, c.Waiting-c.Away+c.Given
	if s == nil || p.Phase != api.RolloutRunning || left == 0 {
		return nil
	}
	after := l.spec.Soak() // a first guess, while nobody is through
	if through > 0 {
		after = time.Duration(float64(l.now.Sub(*s)) / float64(through) * float64(left))
	}
	for n := p.Wave; n < len(l.spec.Waves); n++ {
		after += time.Duration(l.spec.Waves[n].Pause)
	}
	at := l.now.Add(max(after, l.spec.Soak())).Truncate(30 * time.Second)
	return &at
}
