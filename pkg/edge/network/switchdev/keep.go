package switchdev

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Machine is what looks at cards and changes them: Devlink, or a model of it in tests.
type Machine interface {
	Look() ([]Observed, error)
	Do(device string, s Step) error
	Changes(ctx context.Context) (<-chan struct{}, error)
	Close()
}

// Notes keep policies and what was found across restarts.
type Notes interface {
	Load() ([]byte, error)
	Save([]byte) error
}

// Config says what a Keeper works with. Users, Drain and Clear may be nil.
type Config struct {
	// Open opens devlink; it may fail on a kernel without.
	Open  func() (Machine, error)
	Notes Notes
	// Profile is what the box's hardware profile says; policies come before it.
	Profile []api.FunctionPolicy
	// Boot names this start of the box: after another one what was found is void.
	Boot string
	// Facts tells by what policies name a card; nil asks /sys.
	Facts func(o *Observed) (pci, name, driver, id string)
	// Users names the services that use functions of a card, by port; Drain ends one.
	Users func(card string) map[string][]string
	Drain func(ctx context.Context, user, reason string) error
	// Clear has the virtual functions of a card taken away for as long as its switch changes, and
	// tells whether none is left: cards want none then, or do not care.
	Clear func(card string, away bool) bool
	// Look is how often cards are looked at without a word from the kernel (default 30 s), Retry
	// when a step that failed is tried again (5 min).
	Look, Retry time.Duration
	Now         func() time.Time
	Log         *slog.Logger
}

// Keeper keeps the switches of cards as the policies say. Its methods may be called from any
// goroutine.
type Keeper struct {
	cfg     Config
	poke    chan struct{}
	changed chan struct{}

	doing   sync.Mutex // one at a time looks, decides and does
	machine Machine    // nil until it is needed
	kept    kept
	failed  map[string]string // words, by card and step
	retry   time.Time

	mu       sync.Mutex
	policies []api.FunctionPolicy
	health   []api.CardHealth
	words    map[string][]string // by warning
	since    map[string]time.Time
}

// kept is what outlives a restart.
type kept struct {
	Boot     string               `json:"boot"`
	Policies []api.FunctionPolicy `json:"policies,omitempty"`
	Found    map[string]Found     `json:"found,omitempty"`
}

// NewKeeper reads what was kept; what cannot be read is dropped with a word in the log.
func NewKeeper(cfg Config) *Keeper {
	cfg.Look, cfg.Retry = cmp.Or(cfg.Look, 30*time.Second), cmp.Or(cfg.Retry, 5*time.Minute)
	if cfg.Facts == nil {
		cfg.Facts = facts
	}
	k := &Keeper{cfg: cfg, poke: make(chan struct{}, 1), changed: make(chan struct{}, 1), failed: map[string]string{}, words: map[string][]string{}, since: map[string]time.Time{}}
	raw, err := cfg.Notes.Load()
	if err == nil && raw != nil {
		err = json.Unmarshal(raw, &k.kept)
	}
	if err != nil {
		cfg.Log.Warn("what was kept of network cards' switches cannot be read and is dropped", "err", err)
		k.kept = kept{}
	}
	if k.kept.Boot != cfg.Boot {
		k.kept.Boot, k.kept.Found = cfg.Boot, nil
	}
	if k.kept.Found == nil {
		k.kept.Found = map[string]Found{}
	}
	k.policies = k.kept.Policies
	return k
}

// SetPolicies puts other policies in force, soon; they outlive a restart.
func (k *Keeper) SetPolicies(policies []api.FunctionPolicy) {
	policies = slices.DeleteFunc(slices.Clone(policies), func(p api.FunctionPolicy) bool { return p.Match == (api.FunctionMatch{}) })
	if !slices.ContainsFunc(policies, func(p api.FunctionPolicy) bool { return p.Switch != nil }) {
		policies = nil // none is about switches
	}
	k.mu.Lock()
	same := len(policies)+len(k.policies) == 0 || reflect.DeepEqual(policies, k.policies)
	k.policies = policies
	k.mu.Unlock()
	if !same {
		k.Poke()
	}
}

// Poke has the keeper look again soon: a function's user may have ended.
func (k *Keeper) Poke() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

// Changed is told of after Health changed.
func (k *Keeper) Changed() <-chan struct{} { return k.changed }

// Health tells how cards are that watch themselves.
func (k *Keeper) Health() []api.CardHealth {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.health)
}

// Warnings are switch-waiting, switch-failed, card-failed and card-gone.
func (k *Keeper) Warnings() (out []api.Warning) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, w := range []struct {
		name, remedy string
	}{
		{"card-failed", "reset the card by its power; if it fails again, replace it"},
		{"card-gone", "plug the card in again, or take its policy away"},
		{"switch-failed", "take out of the policy what the card or its driver cannot do"},
		{"switch-waiting", "end the apps that use its functions, or write change: drain; look for ports with `edgectl describe device`"},
	} {
		if words := k.words[w.name]; len(words) > 0 {
			out = append(out, api.Warning{Name: w.name, Severity: api.Degraded, Since: k.since[w.name].Unix(), Message: brief(words), Remedy: w.remedy})
		}
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

// Run keeps the switches until ctx ends; after its end they stay.
//
// Reads: the policies, cards by devlink, who uses functions. Writes: cards, what was found of
// them; ends services where a policy says drain.
func (k *Keeper) Run(ctx context.Context) error {
	changes, err := k.listen(ctx)
	if err != nil {
		k.cfg.Log.Info("network cards are not looked after by devlink", "err", err)
		<-ctx.Done()
		return nil
	}
	defer k.close()
	look := time.NewTicker(k.cfg.Look)
	defer look.Stop()
	for {
		k.Settle(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-k.poke:
		case <-look.C:
		case <-changes:
			select { // a card changes in several words
			case <-ctx.Done():
				return nil
			case <-time.After(fold):
			}
			select {
			case <-changes:
			default:
			}
		}
	}
}

// fold is how long words of the kernel that come together are waited for.
const fold = 100 * time.Millisecond

func (k *Keeper) listen(ctx context.Context) (<-chan struct{}, error) {
	k.doing.Lock()
	defer k.doing.Unlock()
	if err := k.open(); err != nil {
		return nil, err
	}
	return k.machine.Changes(ctx)
}

func (k *Keeper) open() (err error) {
	if k.machine == nil {
		k.machine, err = k.cfg.Open()
	}
	return err
}

func (k *Keeper) close() {
	k.doing.Lock()
	defer k.doing.Unlock()
	if k.machine != nil {
		k.machine.Close()
		k.machine = nil
	}
}

// rounds bounds how often in a row it is decided anew.
const rounds = 16

// Begin is Settle for a box that starts; where there is nothing to keep it does not look.
func (k *Keeper) Begin(ctx context.Context) {
	k.doing.Lock()
	idle := len(k.kept.Policies)+len(k.cfg.Profile)+len(k.kept.Found) == 0
	k.doing.Unlock()
	if !idle {
		k.Settle(ctx)
	}
}

// Settle brings the cards to where the policies want them, as far as that can be now. It ends
// services that have to end first.
func (k *Keeper) Settle(ctx context.Context) {
	for range rounds {
		drain, more := k.once()
		for _, user := range drain {
			if err := k.cfg.Drain(ctx, user, "the switch of its network card is being changed"); err != nil {
				k.cfg.Log.Warn("a service does not end, and its network card's switch stays as it is", "service", user, "err", err)
				return
			}
		}
		if !more && len(drain) == 0 || ctx.Err() != nil {
			return
		}
	}
}

// once looks, decides and does. drain are services that have to end, more says that it is worth to
// look again.
func (k *Keeper) once() (drain []string, more bool) {
	k.doing.Lock()
	defer k.doing.Unlock()
	k.mu.Lock()
	policies := k.policies
	k.mu.Unlock()
	if !reflect.DeepEqual(policies, k.kept.Policies) {
		k.kept.Policies = policies
		k.save()
		clear(k.failed)
	}
	if err := k.open(); err != nil {
		return nil, false
	}
	all, err := k.machine.Look()
	if err != nil {
		k.cfg.Log.Warn("network cards cannot be looked at", "err", err)
		return nil, false
	}
	if now := k.cfg.Now(); now.Sub(k.retry) >= k.cfg.Retry || now.Before(k.retry) {
		k.retry = now
		clear(k.failed)
	}
	policies = slices.Concat(policies, k.cfg.Profile)
	r := round{k: k, there: map[string]bool{}}
	for i := range all {
		r.card(&all[i], policies)
	}
	for _, name := range slices.Sorted(maps.Keys(k.kept.Found)) {
		if !r.there[name] {
			r.gone = append(r.gone, name+" is gone, and what a policy says of it waits")
			for key := range k.failed {
				if strings.HasPrefix(key, name+" ") {
					delete(k.failed, key) // it may be another when it comes back
				}
			}
		}
	}
	k.publish(healthOf(all), map[string][]string{"switch-waiting": r.waits, "card-gone": r.gone, "switch-failed": slices.Sorted(maps.Values(k.failed))})
	return r.drain, r.did
}

// round is one look at all cards.
type round struct {
	k                  *Keeper
	there              map[string]bool
	waits, gone, drain []string
	did                bool
}

func (r *round) card(o *Observed, policies []api.FunctionPolicy) {
	k, name := r.k, o.Device.Name
	r.there[name] = true
	policy, change, upTo := k.policyFor(o, policies)
	known, touched := k.kept.Found[name]
	switch {
	case policy == nil && !touched:
		return
	case policy != nil && o.Device.Mode == "" && !touched:
		if !upTo {
			r.waits = append(r.waits, name+" has no switch")
		}
		return
	}
	old := &known
	if !touched {
		old = nil
	}
	next, changed := Remember(*o, policy, change, old)
	if changed {
		k.kept.Found[name] = next
		if !k.save() {
			return // nothing is touched that could not be put back
		}
	}
	var inUse map[string][]string
	if k.cfg.Users != nil {
		inUse = k.cfg.Users(name)
	}
	want := Want(*o, policy, next, inUse, func(s Step) bool { return k.failed[stepKey(name, s)] != "" })
	users := blocked(*o, want)
	if len(users) > 0 && next.Change == api.ChangeDrain && k.cfg.Drain != nil {
		r.drain = append(r.drain, users...)
		return
	}
	if len(users) == 0 && want.Mode != "" && want.Mode != o.Device.Mode && k.cfg.Clear != nil && !k.cfg.Clear(name, true) {
		r.waits = append(r.waits, fmt.Sprintf("the switch of %s stays %s until its virtual functions are gone", name, o.Device.Mode))
		return
	}
	steps, waits := Plan(*o, want)
	r.waits = append(r.waits, waits...)
	did := k.take(name, steps)
	r.did = r.did || did
	if len(steps) > 0 {
		return
	}
	if k.cfg.Clear != nil {
		k.cfg.Clear(name, false)
	}
	if policy == nil && len(waits) == 0 {
		delete(k.kept.Found, name) // it is as it was
		k.save()
	}
}

// take makes steps until one fails. What the kernel refuses is told, and not tried again for a
// while.
func (k *Keeper) take(card string, steps []Step) (did bool) {
	for _, s := range steps {
		key := stepKey(card, s)
		if k.failed[key] != "" {
			continue
		}
		if err := k.machine.Do(card, s); err != nil {
			k.cfg.Log.Warn("the switch of a network card is not as its policy says", "card", card, "step", s.Do, "err", err)
			k.failed[key] = err.Error()
			continue
		}
		did = true
		if s.Do == SetMode {
			k.cfg.Log.Info("the switch of a network card has another mode", "card", card, "mode", s.Value)
		}
	}
	return did
}

func stepKey(card string, s Step) string { return fmt.Sprintf("%s %+v", card, s) }

func (k *Keeper) save() bool {
	raw, err := json.Marshal(k.kept)
	if err = errors.Join(err, k.cfg.Notes.Save(raw)); err != nil {
		k.cfg.Log.Warn("what was found of network cards' switches is not kept", "err", err)
	}
	return err == nil
}

// policyFor is what the first policy that is about a card says of its switch.
func (k *Keeper) policyFor(o *Observed, policies []api.FunctionPolicy) (policy *api.SwitchPolicy, change string, upTo bool) {
	if len(policies) == 0 {
		return nil, "", false
	}
	pci, name, driver, id := k.cfg.Facts(o)
	i := slices.IndexFunc(policies, func(p api.FunctionPolicy) bool { return p.Match.Fits(pci, name, driver, id) })
	if i < 0 {
		return nil, "", false
	}
	return policies[i].Switch, policies[i].Change, policies[i].UpTo
}

// facts asks /sys what a card is.
func facts(o *Observed) (pci, name, driver, id string) {
	bus, at, _ := strings.Cut(o.Device.Name, "/")
	dir := filepath.Join("/sys/bus", bus, "devices", at)
	word := func(file string) string {
		b, _ := os.ReadFile(filepath.Join(dir, file)) // what is not there fits nothing
		return strings.TrimPrefix(strings.TrimSpace(string(b)), "0x")
	}
	if bus == "pci" {
		pci, id = at, word("vendor")+":"+word("device")
	}
	if to, err := os.Readlink(filepath.Join(dir, "driver")); err == nil {
		driver = filepath.Base(to)
	}
	return pci, o.Representors()["p0"], driver, id
}

// publish puts what was seen where others read it.
func (k *Keeper) publish(health []api.CardHealth, words map[string][]string) {
	words["card-failed"] = faults(health)
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, w := range words {
		if len(w) > 0 && len(k.words[name]) == 0 {
			k.since[name] = k.cfg.Now()
		}
	}
	same := reflect.DeepEqual(health, k.health)
	k.health, k.words = health, words
	if same {
		return
	}
	select {
	case k.changed <- struct{}{}:
	default:
	}
}
