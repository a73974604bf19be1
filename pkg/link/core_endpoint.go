package link

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// CoreEndpointConfig is what the core's end of the link is made of.
type CoreEndpointConfig struct {
	CoreConfig
	Downlink Downlink
	// Online is told which devices came and went. It must not block.
	Online func([]Presence)
	// Alarm is told what was found wrong about single devices. It must not block.
	Alarm func([]Alarm)
	// Now defaults to time.Now.
	Now func() time.Time
}

// CoreEndpoint runs a Core over a Downlink. Inputs only touch memory; one goroutine
// commits what they led to, so that all that came in during a commit shares the next.
// All methods may be called from any goroutine.
type CoreEndpoint struct {
	cfg    CoreEndpointConfig
	work   chan struct{}
	replan chan struct{}

	mu   sync.Mutex
	core *Core
	away outage
}

// outage is that the store does not answer; all of mu.
type outage struct {
	since time.Time // zero while it answers
	why   error
	held  int // bytes of frames taken in since
}

const (
	// firstWait and lastWait are how long a store that does not answer is left alone.
	firstWait, lastWait = 100 * time.Millisecond, 2 * time.Second
	// maxHeld bounds what is taken in while it does not: what is more is dropped, and found
	// missing by its sender when the store is back.
	maxHeld = 32 << 20

	awayWarning = "store-away"
)

// NewCoreEndpoint makes the endpoint. Publish every device's manifest before Run.
func NewCoreEndpoint(cfg CoreEndpointConfig) (*CoreEndpoint, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Config = cfg.withDefaults()
	k, err := NewCore(cfg.Now(), cfg.CoreConfig)
	if err != nil {
		return nil, err
	}
	return &CoreEndpoint{cfg: cfg, core: k, work: make(chan struct{}, 1), replan: make(chan struct{}, 1)}, nil
}

// Run serves until ctx ends, or until the store fails: what the core knows beyond its
// store is then void, and the process should begin again. A store that does not answer
// (api.Unavailable) has not failed: what came in waits for it, unacknowledged.
func (c *CoreEndpoint) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.cfg.Downlink.Run(ctx, (*toCore)(c)) })
	g.Go(func() error { return c.pump(ctx) })
	g.Go(func() error {
		return ticks(ctx, c.cfg.Now, c.replan, func() time.Time {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.core.Next()
		}, func() { c.step(func(k *Core, now time.Time) { k.Tick(now) }) })
	})
	return g.Wait()
}

// step gives the machine one input; pump does what comes of it.
func (c *CoreEndpoint) step(input func(*Core, time.Time)) {
	c.mu.Lock()
	input(c.core, c.cfg.Now())
	c.mu.Unlock()
	poke(c.work)
	poke(c.replan)
}

func (c *CoreEndpoint) pump(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.work:
		}
		c.mu.Lock()
		eff := c.core.Take()
		asked := c.core.Asked()
		c.mu.Unlock()
		if err := c.settle(ctx, eff, asked); err != nil {
			return fmt.Errorf("the core's store failed: %w", err)
		}
	}
}

// settle commits, then lets the world know.
func (c *CoreEndpoint) settle(ctx context.Context, eff Effects, asked []api.DeviceID) error {
	if len(eff.State) > 0 {
		if err := c.insist(ctx, func() error { return c.cfg.Store.ApplyState(eff.State) }); err != nil {
			return err
		}
	}
	c.act(eff)
	if len(eff.Batches) > 0 {
		var results []BatchResult
		if err := c.insist(ctx, func() (err error) { results, err = c.cfg.Store.AcceptBatches(eff.Batches); return err }); err != nil {
			return err
		}
		c.step(func(k *Core, now time.Time) { k.Counted(now, eff.Batches, results) })
	}
	for _, id := range asked {
		var p Position
		if err := c.insist(ctx, func() (err error) { p, err = c.cfg.Store.Position(id); return err }); err != nil {
			return err
		}
		c.step(func(k *Core, now time.Time) { k.Answer(now, id, p) })
	}
	return nil
}

// insist does something with the store until it answers. Whether a call that failed was
// committed nobody knows: the store takes it again.
func (c *CoreEndpoint) insist(ctx context.Context, do func() error) error {
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		err := do()
		if err == nil || api.CodeOf(err) != api.Unavailable {
			c.answered()
			return err
		}
		c.silent(err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// silent notes that the store does not answer.
func (c *CoreEndpoint) silent(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away.since.IsZero() {
		c.away = outage{since: c.cfg.Now(), why: err}
		c.cfg.Log.Warn("the core's store does not answer: devices keep their records meanwhile", "err", err)
	}
}

// answered notes that it does.
func (c *CoreEndpoint) answered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.away.since.IsZero() {
		c.cfg.Log.Info("the core's store answers again", "after", c.cfg.Now().Sub(c.away.since).Round(time.Millisecond))
		c.away = outage{}
	}
}

// room tells whether a frame may be taken in.
func (c *CoreEndpoint) room(size int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away.since.IsZero() {
		return true
	}
	if c.away.held+size > maxHeld { // check: held
		return false
	}
	c.away.held += size
	return true
}

// act does the effects that are not commits. Frames that find no session are dropped:
// the link makes good.
func (c *CoreEndpoint) act(eff Effects) {
	for _, r := range eff.Retain {
		if err := c.cfg.Downlink.Retain(r.Child, r.Raw); err != nil {
			c.cfg.Log.Warn("cannot retain a manifest", "child", r.Child, "err", err)
		}
	}
	for _, f := range eff.Down {
		_ = c.cfg.Downlink.Send(f.Child, f.Bytes, f.Reliable)
	}
	for _, id := range eff.Kick {
		c.cfg.Downlink.Kick(id, "told to by the link")
	}
	if len(eff.Online) > 0 && c.cfg.Online != nil {
		c.cfg.Online(eff.Online)
	}
	if len(eff.Alarms) > 0 && c.cfg.Alarm != nil {
		c.cfg.Alarm(eff.Alarms)
	}
}

// Publish puts a device's manifest in force; one that is not newer is ignored. tombs
// are its removals as manifest.Since wants them, and may be nil.
func (c *CoreEndpoint) Publish(s *manifest.Signed, tombs map[string]uint64) error {
	c.step(func(k *Core, now time.Time) { k.Publish(now, s, tombs) })
	return nil
}

// Command sends a signed command towards a device. Errors: api.Unavailable when there
// is no way just now; nothing is kept for later.
func (c *CoreEndpoint) Command(id api.DeviceID, raw []byte) (err error) {
	c.step(func(k *Core, _ time.Time) { err = k.Command(id, raw) })
	return err
}

// Forget drops a retired device.
func (c *CoreEndpoint) Forget(id api.DeviceID) {
	c.step(func(k *Core, now time.Time) { k.Forget(now, id) })
}

// Answer sends a device its position again, after it moved for another reason than
// its own records (a backup).
func (c *CoreEndpoint) Answer(id api.DeviceID, p Position) {
	c.step(func(k *Core, now time.Time) { k.Answer(now, id, p) })
}

// Learn takes in where a device is attached, as another core has found it.
func (c *CoreEndpoint) Learn(attachment []byte) {
	c.step(func(k *Core, now time.Time) { k.Learn(now, attachment) })
}

// Via finds the child of the core that the way to a device goes through.
func (c *CoreEndpoint) Via(id api.DeviceID) (child api.DeviceID, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.core.Via(id)
}

// Reachable reports whether the way to a device is open as far as is known.
func (c *CoreEndpoint) Reachable(id api.DeviceID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.core.Reachable(id)
}

// Heard is when there was last a sign that a device lives (Core.Heard), and whether the
// way to it is open.
func (c *CoreEndpoint) Heard(id api.DeviceID) (at time.Time, reachable bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.core.Heard(id), c.core.Reachable(id)
}

// Warnings lists what is wrong with the link, by name.
func (c *CoreEndpoint) Warnings() []api.Warning {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.core.Warnings()
	if !c.away.since.IsZero() {
		list = append(list, api.Warning{Name: awayWarning, Severity: api.Critical, Since: c.away.since.Unix(), Message: "the core's store does not answer: " + c.away.why.Error()})
	}
	return list
}

// Stats returns the byte counters so far.
func (c *CoreEndpoint) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.core.Stats()
}

// toCore is the CoreEndpoint as its Downlink sees it.
type toCore CoreEndpoint

func (h *toCore) ChildUp(child api.DeviceID, cert []byte) {
	(*CoreEndpoint)(h).step(func(k *Core, now time.Time) { k.ChildUp(now, child, cert) })
}

func (h *toCore) ChildDown(child api.DeviceID) {
	(*CoreEndpoint)(h).step(func(k *Core, now time.Time) { k.ChildDown(now, child) })
}

func (h *toCore) FromChild(child api.DeviceID, frame []byte) {
	c := (*CoreEndpoint)(h)
	if c.room(len(frame)) {
		c.step(func(k *Core, now time.Time) { k.FromChild(now, child, frame) })
	}
}
