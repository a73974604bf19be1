package sriov

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Store keeps values under keys, on disk before Put returns; an empty value removes.
type Store interface {
	Load(bucket string, fn func(key, value []byte) error) error
	Put(bucket, key string, value []byte) error
}

// Machine is what takes the steps: Kernel, or a model of it in tests.
type Machine interface {
	Look() State
	Do(Step) error
}

// Config says what a Manager works with. Holders, Running, Away, Drain and Recover may be
// nil: then nobody holds anything.
type Config struct {
	Machine Machine
	Store   Store
	// Profile is what the box's hardware profile says of its cards; policies come before it.
	Profile []api.FunctionPolicy
	// Boot names this start of the box.
	Boot string
	// Holders names the services that hold each virtual function, Running tells whether one
	// has a container that runs, as far as that is known yet, Away lists functions whose interfaces are in containers.
	Holders func() map[string][]string
	Running func(user string) (runs, known bool)
	Away    func() (map[string]string, error)
	// Drain ends a service's container; it returns when that has ended.
	Drain func(ctx context.Context, user, reason string) error
	// Recover makes interfaces as they were that came back from containers by themselves.
	Recover func() error
	Now     func() time.Time
	Log     *slog.Logger
}

// Manager keeps the cards as the policies say. Its methods may be called from any
// goroutine.
type Manager struct {
	cfg  Config
	poke chan struct{}

	fresh bool       // no card was touched before this process since the box started
	doing sync.Mutex // one at a time looks, decides and does

	mu       sync.Mutex
	policies []api.FunctionPolicy
	found    map[string]Found
	address  map[string]string  // by function
	failed   map[string]failure // by step
	refused  []Refusal
	stuck    map[string]string // words, by service that did not end
	since    time.Time         // of the refusals or failures
	blocked  map[string]bool   // cards whose functions nobody gets now
	clear    map[string]bool   // cards that shall have none for now
	prepared map[string]time.Time
	state    State
	looked   time.Time
}

// failure is a step that the kernel refused.
type failure struct {
	card  string
	words string
	// sight is what the card was like; at is when. final says that the driver cannot do it, ever.
	sight string
	at    time.Time
	final bool
}

const (
	bucket        = "sriov"
	keyPolicies   = "policies"
	prefixFound   = "found/"
	prefixAddress = "address/"
)

// New reads what was kept. What cannot be read is dropped with a word in the log.
func New(cfg Config) (*Manager, error) {
	m := &Manager{cfg: cfg, poke: make(chan struct{}, 1), found: map[string]Found{}, address: map[string]string{}, failed: map[string]failure{}, blocked: map[string]bool{}, stuck: map[string]string{}, clear: map[string]bool{}, prepared: map[string]time.Time{}}
	err := cfg.Store.Load(bucket, func(k, value []byte) error {
		key, err := string(k), error(nil)
		if pci, ok := strings.CutPrefix(key, prefixFound); ok {
			var f Found
			if err = json.Unmarshal(value, &f); err == nil {
				m.found[pci] = f
			}
		} else if pci, ok := strings.CutPrefix(key, prefixAddress); ok {
			m.address[pci] = string(value)
		} else if key == keyPolicies {
			err = json.Unmarshal(value, &m.policies)
		}
		if err != nil {
			cfg.Log.Warn("what was kept of network cards cannot be read and is dropped", "key", key, "err", err)
		}
		return nil
	})
	m.fresh = !slices.ContainsFunc(slices.Collect(maps.Values(m.found)), func(f Found) bool { return f.Boot == cfg.Boot })
	return m, err
}

// SetPolicies puts other policies in force, soon; they outlive a restart.
func (m *Manager) SetPolicies(policies []api.FunctionPolicy) {
	raw, err := json.Marshal(policies)
	m.mu.Lock()
	old, _ := json.Marshal(m.policies)
	same := err == nil && (string(old) == string(raw) || len(m.policies)+len(policies) == 0)
	if !same {
		m.policies = slices.Clone(policies)
		clear(m.failed)
	}
	m.mu.Unlock()
	if same {
		return
	}
	if len(policies) == 0 {
		raw = nil
	}
	if err := errors.Join(err, m.cfg.Store.Put(bucket, keyPolicies, raw)); err != nil {
		m.cfg.Log.Warn("policies of network cards cannot be kept", "err", err)
	}
	m.Poke()
}

// Poke has the manager look again soon: cards may have come or gone, users ended.
func (m *Manager) Poke() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// idle says that there is nothing to keep: no policy, and no card that was touched.
func (m *Manager) idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.policies)+len(m.cfg.Profile)+len(m.found)+len(m.clear) == 0
}

// lookAgain is how often cards are looked at while there are policies.
const lookAgain = 30 * time.Second

// Run keeps the cards until ctx ends.
//
// Reads: the policies, the kernel's view of the cards, who holds what. Writes: the cards,
// what was found of them; ends services where a policy says drain.
func (m *Manager) Run(ctx context.Context) error {
	for {
		m.Settle(ctx)
		var again <-chan time.Time
		if !m.idle() {
			timer := time.NewTimer(lookAgain)
			defer timer.Stop()
			again = timer.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.poke:
		case <-again:
		}
	}
}

// rounds bounds how often in a row it is decided anew.
const rounds = 16

// Settle brings the cards to where the policies want them, as far as that can be now. It
// ends services that have to end first.
func (m *Manager) Settle(ctx context.Context) {
	if m.idle() && m.cfg.Recover == nil {
		return
	}
	for range rounds {
		out, more := m.once()
		if !more || ctx.Err() != nil {
			return
		}
		if len(out.Steps) > 0 {
			continue
		}
		if !m.drain(ctx, out) {
			return
		}
	}
}

// once looks, decides and does. more says that it is worth to go on.
func (m *Manager) once() (out Output, more bool) {
	held := map[string][]string{}
	if m.cfg.Holders != nil {
		held = m.cfg.Holders() // before the lock: who holds something may ask this room for more
	}
	m.doing.Lock()
	defer m.doing.Unlock()
	if m.cfg.Recover != nil {
		if err := m.cfg.Recover(); err != nil {
			m.cfg.Log.Warn("an interface that came back from a container is not as it was", "err", err)
		}
	}
	if m.idle() {
		return out, false
	}
	state := m.cfg.Machine.Look()
	in := Input{State: state, Boot: m.cfg.Boot, Held: held, Failed: map[string]bool{}}
	in.Busy = m.busy(in.Held)
	m.mu.Lock()
	m.state, m.looked = state, m.cfg.Now()
	m.forgive()
	in.Policies, in.Found = slices.Concat(m.policies, m.cfg.Profile), maps.Clone(m.found)
	in.Clear = maps.Clone(m.clear)
	for key := range m.failed {
		in.Failed[key] = true
	}
	m.mu.Unlock()
	out = Plan(in)
	for _, s := range out.Steps {
		m.take(s)
	}
	m.mu.Lock()
	m.looked = time.Time{}
	if (len(m.refused) == 0) != (len(out.Refused) == 0) {
		m.since = m.cfg.Now()
	}
	m.refused = out.Refused
	maps.DeleteFunc(m.stuck, func(user, _ string) bool { return !slices.Contains(out.Users(), user) })
	clear(m.blocked)
	for card := range out.Drain {
		m.blocked[card] = true
	}
	maps.Copy(m.blocked, m.clear)
	m.mu.Unlock()
	return out, len(out.Steps) > 0 || len(out.Drain) > 0
}

// tryAgain is how long a step that failed is left alone while its card is as it was.
const tryAgain = 5 * time.Minute

// forgive forgets failures that may be none now: a driver begins again, or was busy. m.mu is held.
func (m *Manager) forgive() {
	now := m.cfg.Now()
	for key, f := range m.failed {
		if age := now.Sub(f.at); f.sight != m.state.sight(f.card, f.final) || !f.final && (age < 0 || age >= tryAgain) {
			delete(m.failed, key)
		}
	}
}

// sight is what tells whether a card is as it was when a step failed. What its driver cannot do, it cannot whatever serves
// the functions.
func (s *State) sight(pci string, final bool) string {
	for i := range s.Cards {
		c := &s.Cards[i]
		if c.PCI != pci {
			continue
		}
		text := fmt.Sprint(c.Driver, c.Name, c.Link)
		for j := 0; j < len(c.Functions) && !final; j++ {
			text += fmt.Sprint(" ", c.Functions[j].PCI, c.Functions[j].Driver, c.Functions[j].Group)
		}
		return text
	}
	return ""
}

// preparing is how long a function that was made ready counts as in use: its container is
// being made.
const preparing = 30 * time.Second

func (m *Manager) busy(held map[string][]string) map[string]bool {
	busy := map[string]bool{}
	if m.cfg.Away != nil {
		away, err := m.cfg.Away()
		if err != nil {
			m.cfg.Log.Warn("which interfaces are in containers cannot be read", "err", err)
		}
		for pci := range away {
			busy[pci] = true
		}
	}
	m.mu.Lock()
	for pci, at := range m.prepared {
		if now := m.cfg.Now(); now.Sub(at) >= 0 && now.Sub(at) < preparing { // check: made ready
			busy[pci] = true
		} else {
			delete(m.prepared, pci)
		}
	}
	m.mu.Unlock()
	for pci, users := range held {
		for _, u := range users {
			if m.cfg.Running == nil {
				continue
			}
			// Containers outlive this process: until they are known, those who held a function
			// before may have it.
			runs, known := m.cfg.Running(u)
			busy[pci] = busy[pci] || runs || !known && !m.fresh
		}
	}
	return busy
}

// take does one step. What the kernel refuses is told, and not tried again before policies or
// the card are others, or some minutes have gone.
func (m *Manager) take(s Step) {
	var err error
	switch s.Op {
	case Remember:
		raw, merr := json.Marshal(s.Found)
		if err = errors.Join(merr, m.cfg.Store.Put(bucket, prefixFound+s.Card, raw)); err == nil {
			m.mu.Lock()
			m.found[s.Card] = *s.Found
			m.mu.Unlock()
		}
	case Forget:
		if err = m.cfg.Store.Put(bucket, prefixFound+s.Card, nil); err == nil {
			m.mu.Lock()
			delete(m.found, s.Card)
			m.mu.Unlock()
		}
	default:
		err = m.cfg.Machine.Do(s)
	}
	if err == nil {
		if s.Op == Count {
			m.cfg.Log.Info("virtual functions of a network card", "card", s.Card, "number", s.Number)
		}
		return
	}
	m.cfg.Log.Warn("a network card is not as its policy says", "step", s.String(), "err", err)
	m.mu.Lock()
	if len(m.failed) == 0 {
		m.since = m.cfg.Now()
	}
	final := errors.Is(err, errCannot)
	m.failed[s.Key()] = failure{card: s.Card, words: err.Error(), sight: m.state.sight(s.Card, final), at: m.cfg.Now(), final: final}
	m.mu.Unlock()
}

// drain ends the services that are in the way. false says that it did not come to that.
func (m *Manager) drain(ctx context.Context, out Output) bool {
	if m.cfg.Drain == nil {
		return false
	}
	ok := true
	for _, user := range out.Users() {
		err := m.cfg.Drain(ctx, user, "the virtual functions of its network card are being changed")
		if err != nil {
			m.cfg.Log.Warn("a service does not end, and its network card stays as it is", "service", user, "err", err)
			ok = false
			m.mu.Lock()
			if len(m.refused)+len(m.stuck) == 0 {
				m.since = m.cfg.Now()
			}
			m.stuck[user] = fmt.Sprintf("%s does not end, and its network card stays as it is: %v", user, err)
			m.mu.Unlock()
			continue
		}
		m.mu.Lock()
		delete(m.stuck, user)
		clear(m.prepared)
		m.mu.Unlock()
	}
	return ok
}

// Warnings tells what is not as the policies say.
func (m *Manager) Warnings() []api.Warning {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []api.Warning
	if len(m.refused)+len(m.stuck) > 0 {
		words, remedy := slices.Sorted(maps.Values(m.stuck)), "see in its log why it does not end, or end the app"
		for _, r := range m.refused {
			words, remedy = append(words, r.Words), m.refused[0].Remedy
		}
		out = append(out, api.Warning{Name: "network-policy-refused", Severity: api.Degraded, Since: m.since.Unix(), Message: brief(words), Remedy: remedy})
	}
	if len(m.failed) > 0 {
		var words []string
		remedy := "take out of the policy what the card or its driver cannot do"
		for _, f := range m.failed {
			if words = append(words, f.words); !f.final {
				remedy = "it is tried again when the card changes, and after 5 minutes; if it fails then too, see the kernel's log, or take it out of the policy"
			}
		}
		slices.Sort(words)
		out = append(out, api.Warning{Name: "network-policy-failed", Severity: api.Degraded, Since: m.since.Unix(), Message: brief(words), Remedy: remedy})
	}
	return out
}

// brief joins the first words of many.
func brief(words []string) string {
	const most = 4
	if n := len(words); n > most {
		words = append(slices.Clone(words[:most]), fmt.Sprintf("and %d more", n-most))
	}
	return strings.Join(words, "; ")
}

// now is a view of the cards that is at most a second old.
func (m *Manager) now() State {
	m.mu.Lock()
	state, looked := m.state, m.looked
	m.mu.Unlock()
	if age := m.cfg.Now().Sub(looked); age >= 0 && age < time.Second {
		return state
	}
	state = m.cfg.Machine.Look()
	m.mu.Lock()
	m.state, m.looked = state, m.cfg.Now()
	m.mu.Unlock()
	return state
}
