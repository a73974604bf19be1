package flow

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
)

// Notes keep, across restarts, what was changed on interfaces, so that it can be undone.
type Notes interface {
	Load() ([]byte, error)
	Save([]byte) error
}

// Config is what a Keeper is made of.
type Config struct {
	// Open opens the kernel in the calling thread's network namespace; flow.Open in all but tests.
	Open func() (*Kernel, error)
	// Endpoint finds a service of an app; nil: there are none.
	Endpoint func(app, service string) (Endpoint, bool)
	Notes    Notes
	// Look is how often the kernel is looked at without a word from it (default 30 s), Retry
	// when a card that refused a rule is asked again (5 min), and Tell how old the counters
	// that States gives may be (5 min): they cross a wire.
	Look, Retry, Tell time.Duration
	Now               func() time.Time
	Log               *slog.Logger
}

// Keeper keeps the kernel's rules as the policies want them.
type Keeper struct {
	cfg     Config
	poke    chan struct{}
	changed chan struct{}

	mu       sync.Mutex
	policies map[string]api.FlowPolicySpec // nil: nobody has said yet
	states   []api.FlowState
	told     time.Time
	warnings []api.Warning

	// of Run's goroutine
	hooked map[string]bool // interfaces that were readied here; kept in the notes
	turned map[string]bool // cards that took no rules before they were asked here; kept in the notes
	asked  map[int]bool    // cards that were asked to take rules
	retry  time.Time
	why    map[string]string // of rules in software, by identity: what the card said
	counts counts
}

// NewKeeper makes a keeper; Run does the work.
func NewKeeper(cfg Config) *Keeper {
	if cfg.Open == nil {
		cfg.Open = Open
	}
	cfg.Look, cfg.Retry, cfg.Tell = cmp.Or(cfg.Look, 30*time.Second), cmp.Or(cfg.Retry, 5*time.Minute), cmp.Or(cfg.Tell, 5*time.Minute)
	return &Keeper{cfg: cfg, poke: make(chan struct{}, 1), changed: make(chan struct{}, 1), hooked: map[string]bool{}, turned: map[string]bool{}, asked: map[int]bool{}, why: map[string]string{},
		counts: counts{last: map[place]count{}, gone: map[name]count{}}}
}

// Set says which policies hold, by name. It returns at once.
func (k *Keeper) Set(policies map[string]api.FlowPolicySpec) {
	k.mu.Lock()
	same := k.policies != nil && reflect.DeepEqual(k.policies, policies)
	k.policies = maps.Clone(policies)
	if k.policies == nil {
		k.policies = map[string]api.FlowPolicySpec{}
	}
	k.mu.Unlock()
	if !same {
		k.Poke()
	}
}

// Poke has the keeper look again, e.g. because an app's container is another.
func (k *Keeper) Poke() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

// Changed is told of after States changed.
func (k *Keeper) Changed() <-chan struct{} { return k.changed }

// States tell how each rule stands at each interface. Counters are at most Tell old.
func (k *Keeper) States() []api.FlowState {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.states)
}

// Warnings are flow-software, flow-waiting, flow-refused and flow-failed.
func (k *Keeper) Warnings() []api.Warning {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.warnings)
}

// fold is how long words of interfaces that come together are waited for.
const fold = 100 * time.Millisecond

// Run keeps the rules until ctx ends. Before the first Set it changes nothing; after its end the
// rules stand.
//
// Reads: policies, interfaces, apps' containers, the kernel's rules. Writes: the kernel's rules,
// interfaces of tunnels, whether cards are asked to take rules, the notes.
func (k *Keeper) Run(ctx context.Context) error {
	kernel, err := k.cfg.Open()
	if err != nil {
		return fmt.Errorf("flow: %w", err)
	}
	defer kernel.Close()
	changes, err := kernel.Changes(ctx)
	if err != nil {
		return fmt.Errorf("flow: %w", err)
	}
	k.load()
	look := time.NewTicker(k.cfg.Look)
	defer look.Stop()
	quiet := false // nothing is wanted, and nothing of ours stands
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.poke:
			quiet = false
		case <-look.C:
		case <-changes:
			select { // an interface changes in several words
			case <-ctx.Done():
				return nil
			case <-time.After(fold):
			}
			select {
			case <-changes:
			default:
			}
		}
		k.mu.Lock()
		policies := k.policies
		k.mu.Unlock()
		if policies != nil && !quiet {
			quiet = k.once(kernel, policies) && len(policies) == 0
		}
	}
}

// kept are the notes: names of interfaces, by what was changed there.
type kept struct {
	Hooked []string `json:"hooked,omitempty"`
	Turned []string `json:"turned,omitempty"`
}

func (k *Keeper) load() {
	raw, err := k.cfg.Notes.Load()
	var notes kept
	switch {
	case err != nil || raw == nil:
	case bytes.HasPrefix(raw, []byte("[")): // as older edged wrote them
		err = json.Unmarshal(raw, &notes.Hooked)
	default:
		err = json.Unmarshal(raw, &notes)
	}
	if err != nil {
		k.cfg.Log.Warn("what was changed on interfaces is not known", "err", err)
	}
	for _, n := range notes.Hooked {
		k.hooked[n] = true
	}
	for _, n := range notes.Turned {
		k.turned[n] = true
	}
}

func (k *Keeper) save() error {
	raw, err := json.Marshal(kept{slices.Sorted(maps.Keys(k.hooked)), slices.Sorted(maps.Keys(k.turned))})
	if err != nil {
		return err
	}
	return k.cfg.Notes.Save(raw)
}

// once brings the kernel to what the policies want, and looks how that went. It reports whether
// nothing failed.
func (k *Keeper) once(kernel *Kernel, policies map[string]api.FlowPolicySpec) bool {
	var faults []error
	fail := func(err error) {
		if err != nil {
			faults = append(faults, err)
		}
	}
	links, err := kernel.Links()
	if err != nil {
		k.publish(nil, nil, []error{err})
		return false
	}
	tunnels := Tunnels(policies)
	fail(kernel.Tunnels(tunnels, links))
	again, err := kernel.Links()
	if err != nil {
		k.publish(nil, nil, append(faults, err))
		return false
	}
	links = again
	set := Compile(policies, World{Links: links, Endpoint: k.cfg.Endpoint})
	if k.ask(kernel, set, links) {
		if again, err := kernel.Links(); err == nil {
			links = again
			set = Compile(policies, World{Links: links, Endpoint: k.cfg.Endpoint})
		}
	}
	fail(kernel.Sessions(set.Sessions, links, true))
	refused := k.apply(kernel, &set, links, fail)
	fail(kernel.Sessions(set.Sessions, links, false))
	filters, foreign, err := kernel.Filters(links)
	fail(err)
	if err == nil {
		fail(k.tidy(kernel, links, filters, foreign))
	}
	fail(kernel.DropTunnels(tunnels, links))
	k.publish(k.judge(kernel, &set, filters, refused), set.States, faults)
	return len(faults) == 0
}

// ask has the cards at which rules stand take these. It reports whether there was one to ask.
func (k *Keeper) ask(kernel *Kernel, set Set, links []Link) (any bool) {
	for _, r := range set.Rules {
		i := slices.IndexFunc(links, func(l Link) bool { return l.Index == r.Hook.Link })
		if i < 0 || r.Capable || r.Offload == api.OffloadOff || k.asked[r.Hook.Link] || links[i].Kind != "" || !links[i].Ethernet {
			continue
		}
		name := links[i].Name
		k.turned[name] = true // on the disk before it is done
		if err := k.save(); err != nil {
			k.cfg.Log.Warn("a card is not asked to take rules, since that could not be undone", "interface", name, "err", err)
			delete(k.turned, name)
			continue
		}
		k.asked[r.Hook.Link], any = true, true
		if err := kernel.AskOffload(name, true); err != nil {
			k.cfg.Log.Debug("an interface takes no rules into hardware", "interface", name, "err", err)
		}
	}
	return any
}

// apply runs the plan. Rules that the kernel refuses come back with its words, by identity;
// where there is one, the old rules of its interface stay.
func (k *Keeper) apply(kernel *Kernel, set *Set, links []Link, fail func(error)) map[string]string {
	refused := map[string]string{}
	broken := map[int]bool{}
	first, done := true, 0
	look := func() ([]Filter, error) {
		have, _, err := kernel.Filters(links)
		return have, err
	}
	mark := func(have []Filter, rules []Rule) {
		if now := k.cfg.Now(); first && now.After(k.retry) {
			k.retry = now.Add(k.cfg.Retry)
			again(have, rules)
		}
		first = false
	}
	step := func(s Step) {
		done++
		if s.Remove != nil {
			if !broken[s.Remove.Hook.Link] {
				fail(kernel.Remove(s.Remove))
			}
			return
		}
		fail(k.hook(kernel, s.Add.Hook.Link, links))
		why, err := kernel.Add(s.Add, s.Pref)
		switch {
		case err != nil:
			broken[s.Add.Hook.Link] = true
			refused[s.Add.ID()] = words(err)
		case why != "":
			k.why[s.Add.ID()] = why
		default:
			delete(k.why, s.Add.ID())
		}
		k.cfg.Log.Debug("a rule is added", "policy", s.Add.Policy, "rule", s.Add.Name, "interface", s.Add.Interface, "preference", s.Pref, "err", err)
	}
	inCard := func(r *Rule, pref uint16) bool {
		in, err := kernel.InHardware(r, pref)
		return in || err != nil // refused, or gone: nobody overtakes it
	}
	rules, err := settle(set.Rules, settler{look, mark, step, inCard})
	fail(err)
	set.Rules = rules
	if done > 0 {
		k.cfg.Log.Info("the rules for packets are changed", "steps", done, "rules", len(set.Rules), "refused", len(refused))
	}
	return refused
}

// again marks filters that a card refused as others, so that the plan replaces them: the card
// may have room by now.
func again(have []Filter, rules []Rule) {
	for i := range have {
		f := &have[i]
		for _, r := range rules {
			if r.asks() && !f.InHardware && f.Hook == r.Hook && f.ID == r.ID() {
				f.ID = "asked again"
			}
		}
	}
}

// hook readies an interface; that it is ours to undo is on the disk before it is done.
func (k *Keeper) hook(kernel *Kernel, link int, links []Link) error {
	i := slices.IndexFunc(links, func(l Link) bool { return l.Index == link })
	if i < 0 || k.hooked[links[i].Name] {
		_, err := kernel.Hook(link)
		return err
	}
	name := links[i].Name
	hooked, err := kernel.hooked()
	if err != nil || hooked[link] {
		return err // another's
	}
	k.hooked[name] = true
	if err := k.save(); err != nil {
		return err
	}
	_, err = kernel.Hook(link)
	return err
}

// tidy gives interfaces back on which nothing stands any more.
func (k *Keeper) tidy(kernel *Kernel, links []Link, filters []Filter, foreign map[int]int) error {
	used := func(l Link) bool {
		return foreign[l.Index] > 0 || slices.ContainsFunc(filters, func(f Filter) bool { return f.Hook.Link == l.Index })
	}
	gone, failed := giveBack(k.hooked, links, used, func(l Link) error { return kernel.Unhook(l.Index) })
	off, err := giveBack(k.turned, links, used, func(l Link) error {
		delete(k.asked, l.Index)
		if !l.Offload {
			return nil
		}
		return kernel.AskOffload(l.Name, false)
	})
	failed = errors.Join(failed, err)
	if gone || off {
		failed = errors.Join(failed, k.save())
	}
	return failed
}

// giveBack undoes what was done to interfaces that nobody uses, and takes them, and those that went, out of names.
func giveBack(names map[string]bool, links []Link, used func(Link) bool, undo func(Link) error) (changed bool, failed error) {
	for name := range names {
		i := slices.IndexFunc(links, func(l Link) bool { return l.Name == name })
		if i >= 0 {
			if used(links[i]) {
				continue
			}
			if err := undo(links[i]); err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s is not as it was: %w", name, err))
				continue
			}
		}
		delete(names, name)
		changed = true
	}
	return changed, failed
}

// judge tells how the rules that stand do.
func (k *Keeper) judge(kernel *Kernel, set *Set, filters []Filter, refused map[string]string) []api.FlowState {
	by := map[name]*api.FlowState{}
	var order []name
	k.counts.see(set.Rules, filters)
	for i := range set.Rules {
		r := &set.Rules[i]
		if r.Answers {
			if why := refused[r.ID()]; why != "" {
				k.cfg.Log.Warn("answers of an app do not get back the address that was called", "policy", r.Policy, "rule", r.Name, "why", why)
			}
			continue
		}
		n := name{r.Policy, r.Name, r.Interface}
		s := by[n]
		if s == nil {
			s = &api.FlowState{Policy: r.Policy, Rule: r.Name, Interface: r.Interface, State: api.FlowInHardware}
			by[n], order = s, append(order, n)
		}
		at := slices.IndexFunc(filters, func(f Filter) bool { return f.Hook == r.Hook && f.ID == r.ID() })
		switch {
		case at < 0:
			s.State, s.Why = api.FlowRefused, cmp.Or(refused[r.ID()], "the kernel does not have it")
		case !filters[at].InHardware && s.State != api.FlowRefused:
			s.State, s.Why = api.FlowInSoftware, k.reason(kernel, r)
		}
	}
	out := make([]api.FlowState, 0, len(order))
	for _, n := range order {
		c := k.counts.of(n)
		by[n].Packets, by[n].Bytes, by[n].Hardware = c.packets, c.bytes, c.hardware
		out = append(out, *by[n])
	}
	return out
}

// reason says why a rule is in software; empty where it was to be.
func (k *Keeper) reason(kernel *Kernel, r *Rule) string {
	if r.Offload == api.OffloadOff || !r.Capable && r.Offload == api.OffloadPreferred {
		return ""
	}
	if r.Soft {
		return "rule " + r.Behind + " comes before it and is in software, which a card would overtake"
	}
	if !r.Capable {
		return "the interface takes no rules into hardware"
	}
	if _, known := k.why[r.ID()]; !known {
		k.why[r.ID()] = kernel.Why(r)
	}
	return cmp.Or(k.why[r.ID()], "the card did not take it")
}

// publish makes states and warnings known.
func (k *Keeper) publish(stand, waiting []api.FlowState, faults []error) {
	states := append(stand, waiting...)
	slices.SortStableFunc(states, func(a, b api.FlowState) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Interface, b.Interface))
	})
	now := k.cfg.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.warnings = k.warn(states, faults, now)
	same := slices.EqualFunc(k.states, states, func(a, b api.FlowState) bool {
		a.Packets, a.Bytes, a.Hardware, b.Packets, b.Bytes, b.Hardware = 0, 0, 0, 0, 0, 0
		return a == b
	})
	if same && (slices.Equal(k.states, states) || now.Sub(k.told) < k.cfg.Tell) {
		return
	}
	k.states, k.told = states, now
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// warn names what is not as it was wanted. A warning keeps the time since which it holds.
func (k *Keeper) warn(states []api.FlowState, faults []error, now time.Time) (out []api.Warning) {
	lines := map[string][]string{}
	for _, s := range states {
		if s.State != api.FlowInHardware && s.Why != "" {
			lines["flow-"+s.State] = append(lines["flow-"+s.State], fmt.Sprintf("rule %s of %s: %s", s.Rule, strings.TrimSuffix(s.Policy+" at "+s.Interface, " at "), s.Why))
		}
	}
	for _, err := range faults {
		if !errors.Is(err, unix.ENODEV) { // an interface went meanwhile; its word is on the way
			lines["flow-failed"] = append(lines["flow-failed"], err.Error())
		}
	}
	for _, n := range slices.Sorted(maps.Keys(lines)) {
		list := lines[n]
		if len(list) > 3 {
			list = append(list[:3:3], fmt.Sprintf("and %d more", len(list)-3))
		}
		w := api.Warning{Name: n, Severity: api.Degraded, Message: strings.Join(list, "; "), Since: now.Unix(), Remedy: remedies[n]}
		if i := slices.IndexFunc(k.warnings, func(o api.Warning) bool { return o.Name == n }); i >= 0 {
			w.Since = k.warnings[i].Since
		}
		out = append(out, w)
	}
	return out
}

var remedies = map[string]string{
	"flow-" + api.FlowInSoftware: "have the rule match what the card can, put fewer before it, or write offload: off where software will do",
	"flow-" + api.FlowWaiting:    "bring the interface or app that is named, or take the policy from this device's fleet",
	"flow-" + api.FlowRefused:    "change the rule; until then those before it stay",
	"flow-failed":                "it is tried again; edged's log has what the kernel says",
}

// name is a rule at an interface, as people know it; place a filter in the kernel.
type (
	name  struct{ policy, rule, link string }
	place struct {
		hook Hook
		pref uint16
		id   string
	}
	count struct {
		name                     name
		packets, bytes, hardware uint64
	}
)

// counts add up what filters counted, those that were replaced included.
type counts struct {
	last map[place]count // that the kernel has
	gone map[name]count  // that it had
}

// see takes in what the kernel says now.
func (c *counts) see(rules []Rule, filters []Filter) {
	type id struct {
		hook Hook
		id   string
	}
	names := map[id]name{}
	for i := range rules {
		if r := &rules[i]; !r.Answers {
			names[id{r.Hook, r.ID()}] = name{r.Policy, r.Name, r.Interface}
		}
	}
	now := map[place]count{}
	for _, f := range filters {
		if n, ok := names[id{f.Hook, f.ID}]; ok {
			now[place{f.Hook, f.Pref, f.ID}] = count{n, f.Packets, f.Bytes, f.Hardware}
		}
	}
	for at, was := range c.last {
		// What went, and what began anew, is added to what is gone.
		if is, still := now[at]; !still || is.packets < was.packets {
			sum := c.gone[was.name]
			c.gone[was.name] = count{was.name, sum.packets + was.packets, sum.bytes + was.bytes, sum.hardware + was.hardware}
		}
	}
	c.last = now
	wanted := map[name]bool{}
	for _, n := range names {
		wanted[n] = true
	}
	maps.DeleteFunc(c.gone, func(n name, _ count) bool { return !wanted[n] })
}

func (c *counts) of(n name) count {
	sum := c.gone[n]
	for _, is := range c.last {
		if is.name == n {
			sum.packets, sum.bytes, sum.hardware = sum.packets+is.packets, sum.bytes+is.bytes, sum.hardware+is.hardware
		}
	}
	return sum
}
