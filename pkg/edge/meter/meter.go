package meter

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Config is what a Meter is made of. Store and Reader are required.
type Config struct {
	Store  Store
	Reader Reader
	// Targets lists what runs now, and what ended but is not yet removed. May be nil
	// when the caller passes targets through Final alone.
	Targets func() []Target
	// Accelerators tells what services have used of cards since they were first counted, by
	// "app/service"; counters that are on the disk, and so never go back. May be nil.
	Accelerators func() map[string]api.AcceleratorUse
	// Now is the wall clock; Uptime the time since boot, suspend included; BootID
	// changes with every boot. Nil means the machine's own.
	Now    func() time.Time
	Uptime func() time.Duration
	BootID string
	Log    *slog.Logger
}

// Meter integrates use and cuts it into intervals. It may be used from several
// goroutines.
type Meter struct {
	cfg Config

	mu    sync.Mutex // the innermost: nothing of the caller's is called under it but Reader and Store
	state state
	// asked counts lists of targets that were asked for and are not read yet; dropped has
	// the targets that lost their baseline meanwhile.
	asked   int
	dropped map[string]bool
	// cut is when the last interval ended in this process, or when it began; seen is when
	// all targets were read last, zero before the first time.
	cut, seen instant
}

// New loads what was kept. A blob that cannot be read is an error: losing it
// would count use twice, so the caller decides (rebuild from a copy, or Reset).
func New(cfg Config) (*Meter, error) {
	if cfg.Store == nil || cfg.Reader == nil {
		return nil, errors.New("meter: Store and Reader are required")
	}
	cfg = withDefaults(cfg)
	m := &Meter{cfg: cfg, dropped: map[string]bool{}}
	blob, err := cfg.Store.Load()
	if err != nil {
		return nil, err
	}
	if m.state, err = decodeState(blob); err != nil {
		return nil, err
	}
	m.cut = m.clock()
	if m.state.Last == 0 {
		m.state.Last = m.cut.wall
	}
	return m, nil
}

// Sample reads every target once and integrates. Nothing is written to the store:
// counters are cumulative, so a crash between samples loses only the finer shape
// of the memory curve.
func (m *Meter) Sample() error {
	list := m.ask()
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.answered()
	return m.sample(list)
}

// ask lists the containers. m.mu must not be held: who answers has a lock of its own, and
// calls the meter under it. What ends between the answer and the lock is not read from
// the list again: without its baseline all its use would look new.
func (m *Meter) ask() []Target {
	m.mu.Lock()
	m.asked++
	m.mu.Unlock()
	if m.cfg.Targets == nil {
		return nil
	}
	return m.cfg.Targets()
}

// answered ends what ask began. m.mu is held.
func (m *Meter) answered() {
	if m.asked--; m.asked == 0 {
		clear(m.dropped)
	}
}

func (m *Meter) drop(id string) {
	delete(m.state.Base, id)
	if m.asked > 0 {
		m.dropped[id] = true
	}
}

func (m *Meter) sample(list []Target) error {
	var errs []error
	for _, t := range list {
		if !m.dropped[t.ID] {
			errs = append(errs, m.read(t))
		}
	}
	m.seen = m.clock()
	return errors.Join(errs...)
}

func (m *Meter) read(t Target) error {
	r, err := m.cfg.Reader.Read(t)
	if err != nil {
		return err
	}
	now := m.clock()
	m.state.advance(m.seen.steady(t, now), r, now)
	return nil
}

func (m *Meter) clock() instant {
	return instant{wall: m.cfg.Now().UnixMilli(), up: m.cfg.Uptime().Milliseconds(), boot: m.cfg.BootID}
}

// Final reads a target that has ended, before its cgroup goes, and keeps the
// result durably. Calling it again for the same target adds nothing.
func (m *Meter) Final(t Target) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.read(t); err != nil {
		return err
	}
	return m.save()
}

// Forget drops the baseline of a target whose container or process is gone for
// good; its ID never comes back.
func (m *Meter) Forget(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop(id)
}

// Retain drops the baselines of all targets but these. Call it only with a
// complete list.
func (m *Meter) Retain(ids []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	keep := make(map[string]bool, len(ids))
	for _, id := range ids {
		keep[id] = true
	}
	for id := range m.state.Base {
		if !keep[id] {
			m.drop(id)
		}
	}
}

// Collect cuts the interval since the last one. The result stays pending, durable
// and the same, until Commit(u.To): a caller that died in between finds it again.
// So a record is written once when its writer checks, after a restart, whether the
// newest usage record it holds already ends at u.To, and then only commits.
func (m *Meter) Collect() (api.Usage, error) {
	list := m.ask()
	var cards map[string]api.AcceleratorUse
	if m.cfg.Accelerators != nil {
		cards = m.cfg.Accelerators()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.answered()
	if m.state.Pending != nil {
		return *m.state.Pending, nil
	}
	before := m.state.Cards
	m.state.addCards(cards)
	if err := m.sample(list); err != nil {
		m.cfg.Log.Warn("some containers could not be metered", "err", err)
	}
	acc := m.state.Acc
	now := m.clock()
	u := api.Usage{From: m.state.Last, To: m.end(now), Uses: uses(acc)}
	m.state.Pending, m.state.Acc, m.state.Last = &u, map[string]accumulated{}, u.To
	if err := m.save(); err != nil {
		m.state.Pending, m.state.Acc, m.state.Last = nil, acc, u.From
		m.state.Cards = before // and what was added is taken out again
		for key, a := range acc {
			a.Use.Accelerator = api.AcceleratorUse{}
			acc[key] = a
		}
		return api.Usage{}, err
	}
	m.cut = now
	return u, nil
}

// end is when the interval ends that is cut now. Where the wall clock was set back,
// intervals take half of the time that passed until it has come up with them: each has a
// length, and none overlap.
func (m *Meter) end(now instant) int64 {
	return max(m.state.Last+1, now.wall, m.state.Last+max(0, now.up-m.cut.up)/2)
}

// Pending returns the interval that was collected and not committed, if any.
func (m *Meter) Pending() (api.Usage, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Pending == nil {
		return api.Usage{}, false
	}
	return *m.state.Pending, true
}

// Commit says that the record of the interval ending at to is durable. A commit
// of another interval does nothing, so it may be repeated.
func (m *Meter) Commit(to int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Pending == nil || m.state.Pending.To != to {
		return nil
	}
	was := m.state.Pending
	m.state.Pending = nil
	if err := m.save(); err != nil {
		m.state.Pending = was
		return err
	}
	return nil
}

// Read reads one target now, for people who watch; it changes nothing.
func (m *Meter) Read(t Target) (Reading, error) { return m.cfg.Reader.Read(t) }

func (m *Meter) save() error {
	blob, err := m.state.encode()
	if err != nil {
		return err
	}
	return m.cfg.Store.Save(blob)
}

func uses(acc map[string]accumulated) []api.ContainerUse {
	out := make([]api.ContainerUse, 0, len(acc))
	for _, a := range acc {
		use := a.Use
		// Byte-milliseconds are kept so that short samples do not round to nothing;
		// the rest below a second goes with the interval.
		use.MemoryByteSeconds = a.MemoryByteMillis / 1000
		if use.RunMillis|use.CPUMicros|use.MemoryByteSeconds|use.RxBytes|use.TxBytes != 0 || use.Accelerator != (api.AcceleratorUse{}) {
			out = append(out, use)
		}
	}
	slices.SortFunc(out, func(a, b api.ContainerUse) int {
		return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Service, b.Service))
	})
	return out
}
