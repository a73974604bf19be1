package linksim

import (
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
)

// StartCore starts the core's process on its database.
func (w *World) StartCore() {
	if w.Core.Link != nil {
		return
	}
	w.trace("core starts, epoch %d", w.DB.Epoch)
	k, err := link.NewCore(w.Now, link.CoreConfig{Config: w.Link, Epoch: w.DB.Epoch, Store: w.DB, Keys: coreKeys{w.Keys}})
	if err != nil {
		w.Fail("core does not start: %v", err)
		return
	}
	w.Core.Link, w.Core.wake = k, time.Time{}
	for _, id := range sortedIDs(w.DB.Fleet) {
		d := w.DB.Fleet[id]
		k.Publish(w.Now, d.Signed, d.Tombs)
	}
	w.Core.run()
}

// CrashCore kills the core's process. Its database keeps what was committed.
func (w *World) CrashCore() {
	if w.Core.Link == nil {
		return
	}
	w.trace("core crashes")
	w.Core.Link = nil
	for _, id := range sortedIDs(w.links) {
		if w.links[id].parent.IsZero() {
			w.hangUp(id)
		}
	}
}

// RestoreCore replaces the core by one that was restored from a backup, under a new
// epoch; every manifest is rendered again.
func (w *World) RestoreCore(backup *Database) {
	w.CrashCore()
	epoch := max(w.DB.Epoch, backup.Epoch) + 1
	w.DB = backup
	w.DB.Epoch = epoch
	for _, id := range sortedIDs(w.DB.Fleet) {
		if err := w.DB.Fleet[id].Set(w.Keys, id, epoch, w.Now.Unix(), nil); err != nil {
			w.Fail("sign: %v", err)
		}
	}
	w.trace("core restored, epoch %d", epoch)
	w.StartCore()
}

// Want changes what the core wants of a device; a nil value removes an item.
func (w *World) Want(id api.DeviceID, items map[string][]byte) {
	if w.Core.Link == nil {
		return
	}
	d := w.DB.Fleet[id]
	if d == nil {
		d = NewDesired(w.DB.Epoch)
		w.DB.Fleet[id] = d
	}
	if err := d.Set(w.Keys, id, w.DB.Epoch, w.Now.Unix(), items); err != nil {
		w.Fail("sign: %v", err)
		return
	}
	w.Core.Link.Publish(w.Now, d.Signed, d.Tombs)
	w.Core.run()
}

// run does what the core's last input led to.
func (c *Core) run() {
	w := c.w
	for c.Link != nil {
		k := c.Link
		eff := k.Take()
		if err := w.DB.ApplyState(eff.State); err != nil {
			w.Fail("apply: %v", err)
		}
		w.heard(eff.State)
		w.alarmed(eff.Alarms)
		if len(eff.State) > 0 && w.chance(w.Net.CrashAt) {
			c.dieAndReturn()
			return
		}
		for _, f := range eff.Down {
			if s := w.links[f.Child]; s != nil && s.parent.IsZero() {
				w.send(f.Child, false, f.Frame)
			}
		}
		if len(eff.Batches) > 0 {
			if w.chance(w.Net.CrashAt) {
				c.dieAndReturn()
				return
			}
			results, err := w.DB.AcceptBatches(eff.Batches)
			if err != nil {
				w.Fail("accept: %v", err)
			}
			if w.chance(w.Net.CrashAt) {
				c.dieAndReturn()
				return
			}
			k.Counted(w.Now, eff.Batches, results)
			continue
		}
		asked := k.Asked()
		if len(asked) == 0 {
			c.plan()
			return
		}
		for _, id := range asked {
			p, _ := w.DB.Position(id)
			k.Answer(w.Now, id, p)
		}
	}
}

func (c *Core) plan() {
	at := c.Link.Next()
	if at.IsZero() || !c.wake.IsZero() && !c.wake.After(at) && c.wake.After(c.w.Now) {
		return
	}
	c.wake = at
	k := c.Link
	c.w.After(max(at.Sub(c.w.Now), 0), func() {
		if c.Link != k || c.wake != at {
			return
		}
		c.wake = time.Time{}
		k.Tick(c.w.Now)
		c.run()
	})
}

func (c *Core) dieAndReturn() {
	c.w.CrashCore()
	c.w.After(time.Duration(c.w.Rand.Int64N(int64(5*time.Second))), c.w.StartCore)
}
