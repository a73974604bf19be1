// Package pool answers: which cards and slices can services of this box hold now, and what is done to a card when one is given, taken back, or fails?
//
// The decisions are those of package accel; here they meet a driver. NVIDIA's cards are asked
// through gpud; those of AMD and Intel are what /sys shows. The pool remembers, on disk: how
// it found each card, what the card is cut into, what was made ready, and what is cordoned.
// So each card is cut again after a reboot before a service holds it, and left as it was
// found when nobody does.
package pool

import (
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

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
)

// Driver is NVIDIA's, as gpud reaches it: *gpud.Keeper. While no gpud answers, its methods
// fail with api.Unavailable.
type Driver interface {
	accel.Cutter
	Cards(ctx context.Context) ([]gpud.Card, error)
	Sample(ctx context.Context) ([]gpud.Sample, error)
	// SetCompute says who may use a card at once: Default or Exclusive_Process.
	SetCompute(ctx context.Context, card, mode string) error
}

// Store keeps values under keys, on disk before Put returns; an empty value removes.
type Store interface {
	Load(bucket string, fn func(key, value []byte) error) error
	Put(bucket, key string, value []byte) error
}

// Config is what a Pool is made of. All but Move, Holders and Event are required.
type Config struct {
	Driver Driver
	// NVIDIA tells whether there is a card of NVIDIA's, so that gpud is to answer.
	NVIDIA func() bool
	// Seen are the cards that the box has on its buses, nil while that is not known.
	Seen  func() []api.Accelerator
	Store Store
	Files Files
	// Run is a folder for what lasts until the next boot; Boot names this one.
	Run, Boot string
	// Profile are the policies of the box's hardware profile; those that are set come before them.
	Profile []api.AcceleratorPolicy
	// Changed is told after each change of what there is; it must not wait.
	Changed func()
	// Move is asked to start those who hold these devices elsewhere; it may be asked again.
	Move func(devices []string, reason string)
	// Holders tells which services hold which devices, by the devices' names. Who holds
	// nothing is charged nothing.
	Holders func() map[string][]Holder
	// Event is told what happened.
	Event func(api.Event)
	Now   func() time.Time
	Log   *slog.Logger
}

// Pool has the devices. Its methods may be called from any goroutine; Run must be running.
type Pool struct {
	cfg    Config
	mps    *mps
	poked  chan struct{}
	ready  chan struct{} // closed when cards were told for the first time
	isOnce sync.Once

	// work is held while cards are read and changed, one at a time.
	work sync.Mutex

	mu       sync.Mutex
	cards    map[string]*card // by ID; of NVIDIA's
	policies []api.AcceleratorPolicy
	words    []api.Uncordon // of people
	silence  error          // why nothing is told
	since    time.Time      // since when
	events   []gpud.Event
	meter    ledger
}

// card is one of NVIDIA's.
type card struct {
	told     api.Accelerator
	compute  string // its compute mode
	kept     remembered
	settled  bool                 // in this process: restored and brought under its policy
	waits    string               // why its policy is not in force yet
	refused  string               // why it never will be
	layout   string               // why it cannot have all slices of its layout
	broken   string               // why it could not be made what it was
	fault    string               // why it is not what it is to be
	away     int                  // looks at which it was not told of
	promised map[string]time.Time // slices made for one who has not come for them yet
}

// remembered is what is kept of a card on disk.
type remembered struct {
	// Found is how the card was before anything was done to it; Now what it is made again
	// after a reboot.
	Found accel.Kept `json:"found"`
	Now   accel.Kept `json:"now"`
	// Boot is the start of the box in which this was so.
	Boot    string      `json:"boot"`
	Sharing api.Sharing `json:"sharing"`
	// Held are the devices that were made ready, each with the compute mode that the card
	// had before, where that was changed.
	Held     map[string]string        `json:"held,omitempty"`
	Findings []api.AcceleratorFinding `json:"findings,omitempty"`
	// Uncorrected is how many errors the card had counted when it was looked at last.
	Uncorrected uint64 `json:"uncorrected,omitempty"`
}

const (
	bucket      = "accelerators"
	cardKey     = "card/"
	journalKey  = "change/"
	policiesKey = "policies"
	usedKey     = "used"
)

// New reads what is remembered; Run does the work.
func New(cfg Config) (*Pool, error) {
	if cfg.Move == nil {
		cfg.Move = func([]string, string) {}
	}
	if cfg.Holders == nil {
		cfg.Holders = func() map[string][]Holder { return nil }
	}
	if cfg.Event == nil {
		cfg.Event = func(api.Event) {}
	}
	p := &Pool{cfg: cfg, poked: make(chan struct{}, 1), ready: make(chan struct{}), cards: map[string]*card{}, since: cfg.Now(), silence: errors.New("gpud has not answered yet")}
	p.mps = &mps{files: cfg.Files, log: cfg.Log, daemons: map[string]*daemon{}}
	err := cfg.Store.Load(bucket, func(key, value []byte) error {
		var err error
		switch name, isCard := strings.CutPrefix(string(key), cardKey); {
		case isCard:
			c := &card{told: api.Accelerator{ID: name}, promised: map[string]time.Time{}}
			if err = json.Unmarshal(value, &c.kept); err == nil {
				p.cards[name] = c
			}
		case string(key) == policiesKey:
			err = json.Unmarshal(value, &p.policies)
		case string(key) == usedKey:
			err = json.Unmarshal(value, &p.meter)
			p.meter.told = maps.Clone(p.meter.Used)
		}
		if err != nil { // it is told anew by the card or the core
			cfg.Log.Warn("what was kept of accelerators cannot be read and is dropped", "key", string(key), "err", err)
		}
		return nil
	})
	return p, err
}

// Ready is closed once NVIDIA's cards were told and brought to what they were.
func (p *Pool) Ready() <-chan struct{} { return p.ready }

// Poke has it look soon.
func (p *Pool) Poke() {
	select {
	case p.poked <- struct{}{}:
	default:
	}
}

// Again is told that another gpud answers (gpud.Config).
func (p *Pool) Again(gpud.Hello) { p.Poke() }

// maxEvents bounds the events that wait: a broken card may tell a great many.
const maxEvents = 256

// Tell takes an event of a card (gpud.Config).
func (p *Pool) Tell(e gpud.Event) {
	p.mu.Lock()
	if len(p.events) < maxEvents {
		p.events = append(p.events, e)
	}
	p.mu.Unlock()
	p.Poke()
}

// SetPolicies puts policies in force, durably, where nobody is disturbed by it: a card that
// is held another way keeps that until it is given back.
func (p *Pool) SetPolicies(list []api.AcceleratorPolicy) error {
	p.mu.Lock()
	same := reflect.DeepEqual(list, p.policies) || len(list) == 0 && len(p.policies) == 0
	p.mu.Unlock()
	if same {
		return nil
	}
	var raw []byte
	if len(list) > 0 {
		var err error
		if raw, err = json.Marshal(list); err != nil {
			return err
		}
	}
	if err := p.cfg.Store.Put(bucket, policiesKey, raw); err != nil {
		return err
	}
	p.mu.Lock()
	p.policies = list
	p.mu.Unlock()
	p.Poke()
	return nil
}

// lookEvery is how often cards are looked at when nothing is told: what they use is read then.
const lookEvery = 10 * time.Second

// Run looks after the cards until ctx ends. What it did to cards stays.
func (p *Pool) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	defer p.mps.wait()
	for {
		p.Look(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-p.poked:
		}
	}
}

// Look reads the cards once, brings them to what they are to be, and judges what they told.
func (p *Pool) Look(ctx context.Context) {
	if !p.cfg.NVIDIA() {
		p.mu.Lock()
		none := len(p.cards) == 0
		p.mu.Unlock()
		if none {
			return // a box without
		}
	}
	before := p.snapshot()
	p.work.Lock()
	err := p.look(ctx)
	p.work.Unlock()
	p.mu.Lock()
	switch {
	case err == nil:
		p.silence = nil
	case p.silence == nil:
		p.silence, p.since = err, p.cfg.Now()
	default:
		p.silence = err
	}
	p.mu.Unlock()
	if err == nil {
		p.isOnce.Do(func() { close(p.ready) })
	}
	p.judge(ctx)
	if !reflect.DeepEqual(before, p.snapshot()) {
		p.cfg.Changed()
	}
}

// snapshot is what others see.
func (p *Pool) snapshot() []api.Accelerator {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nvidia()
}

// nvidia are NVIDIA's cards as they were told last, by address. p.mu is held.
func (p *Pool) nvidia() []api.Accelerator {
	var out []api.Accelerator
	for _, id := range slices.Sorted(maps.Keys(p.cards)) {
		c := p.cards[id]
		if c.told.PCI == "" {
			continue // remembered, and not told in this life
		}
		out = append(out, c.shown())
	}
	slices.SortStableFunc(out, func(a, b api.Accelerator) int { return strings.Compare(a.PCI, b.PCI) })
	return out
}

// shown is a card with what is known of it beside what it tells.
func (c *card) shown() api.Accelerator {
	a := c.told
	a.Sharing = c.kept.Sharing
	a.Findings = append(slices.Clone(a.Findings), c.kept.Findings...)
	if a.MIG != nil {
		m := *a.MIG
		m.Instances = slices.Clone(m.Instances)
		for i := range m.Instances {
			_, held := c.kept.Held[sliceID(a.ID, m.Instances[i].Placement)]
			m.Instances[i].Busy = m.Instances[i].Busy || held
		}
		c.kept.Now.Fill(&m)
		a.MIG = &m
		accel.Cordon(&a)
	}
	return a
}

// Fill puts what the drivers tell in the place of what the bus shows.
func (p *Pool) Fill(list []api.Accelerator) []api.Accelerator {
	told := p.snapshot()
	for _, a := range list {
		if !slices.ContainsFunc(told, func(t api.Accelerator) bool { return t.PCI == a.PCI }) {
			told = append(told, a)
		}
	}
	slices.SortStableFunc(told, func(a, b api.Accelerator) int { return strings.Compare(a.PCI, b.PCI) })
	return told
}

// Claimables lists what services can hold. A card of NVIDIA's that gpud does not tell of is
// there with the reason.
func (p *Pool) Claimables() (list []api.Claimable) {
	seen := p.cfg.Seen() // asks who may be asking us: without our lock
	p.mu.Lock()
	defer p.mu.Unlock()
	told := p.nvidia()
	for i := range told {
		list = append(list, accel.Claimables(&told[i])...)
	}
	for _, a := range seen {
		if slices.ContainsFunc(told, func(t api.Accelerator) bool { return t.PCI == a.PCI }) {
			continue
		}
		c := accel.Claimables(&a)
		switch {
		case a.Vendor == "nvidia":
			c[0].Fault = "gpud tells nothing of it"
			if p.silence != nil {
				c[0].Fault = p.silence.Error()
			}
		case a.Driver == "" || len(accel.RenderNodes(&a)) == 0:
			c[0].Fault = "it has no driver with a render node"
		}
		list = append(list, c...)
	}
	return list
}

// sliceID names a slice the same after a reboot, as its UUID does not.
func sliceID(card string, at api.MIGPlacement) string { return card + "/" + at.String() }

// parse takes a device's name apart: at is empty for a whole card.
func parse(id string) (card, at string) {
	card, at, _ = strings.Cut(id, "/")
	return card, at
}

// save keeps what is remembered of a card. p.work is held, p.mu is not.
func (p *Pool) save(c *card) error {
	p.mu.Lock()
	raw, err := json.Marshal(c.kept)
	id := c.told.ID
	p.mu.Unlock()
	if err != nil {
		return err
	}
	return p.cfg.Store.Put(bucket, cardKey+id, raw)
}

// change does fn to a card under the lock, and keeps what came of it.
func (p *Pool) change(c *card, fn func()) error {
	p.mu.Lock()
	fn()
	p.mu.Unlock()
	return p.save(c)
}

// journal is accel.Journal in the store.
type journal struct{ store Store }

func (j journal) Get(card string) (steps []accel.Step, err error) {
	err = j.store.Load(bucket, func(key, value []byte) error {
		if string(key) == journalKey+card {
			return json.Unmarshal(value, &steps)
		}
		return nil
	})
	return steps, err
}

func (j journal) Put(card string, steps []accel.Step) error {
	if len(steps) == 0 {
		return j.store.Put(bucket, journalKey+card, nil)
	}
	raw, err := json.Marshal(steps)
	if err != nil {
		return err
	}
	return j.store.Put(bucket, journalKey+card, raw)
}

// Warnings names what is wrong with cards.
func (p *Pool) Warnings() (out []api.Warning) {
	here := p.cfg.NVIDIA()
	p.mu.Lock()
	defer p.mu.Unlock()
	if here && p.silence != nil && p.cfg.Now().Sub(p.since) >= patience {
		out = append(out, api.Warning{Name: "gpud-silent", Severity: api.Degraded, Since: p.since.Unix(), Message: "there is a card of NVIDIA's, and gpud tells nothing: " + p.silence.Error(),
			Remedy: "install the driver, of one version with its library (the release's extension nvidia); edged's log has what gpud says"})
	}
	for _, id := range slices.Sorted(maps.Keys(p.cards)) {
		c := p.cards[id]
		for _, f := range slices.Concat(c.told.Findings, c.kept.Findings) {
			w := f.Warning
			if f.Action == string(accel.ActCordon) || f.Action == string(accel.ActMove) {
				w.Message += "; " + cmp.Or(f.Slice, "the card") + " is given to no one else"
			}
			out = append(out, w)
		}
		for name, words := range map[string]string{"gpu-policy-waits": c.waits, "gpu-policy-refused": c.refused, "gpu-layout": c.layout, "gpu-not-restored": c.broken, "gpu-not-settled": c.fault} {
			if words != "" {
				out = append(out, api.Warning{Name: name, Severity: api.Degraded, Since: p.cfg.Now().Unix(), Message: id + ": " + words, Remedy: remedies[name]})
			}
		}
	}
	for card, words := range p.mps.faults() {
		out = append(out, api.Warning{Name: "gpu-mps-down", Severity: api.Degraded, Since: p.cfg.Now().Unix(), Message: fmt.Sprintf("the control daemon of MPS for %s does not answer: %s", card, words), Remedy: "it is started again by itself"})
	}
	slices.SortStableFunc(out, func(a, b api.Warning) int { return strings.Compare(a.Name+a.Message, b.Name+b.Message) })
	return out
}

// patience is how long a driver may take before its silence is told.
const patience = 30 * time.Second

var remedies = map[string]string{
	"gpu-policy-waits":   "it is put in force when nobody holds the card",
	"gpu-policy-refused": "change the settings' accelerators",
	"gpu-layout":         "change the layout in the settings' accelerators; the slices of it that fit are kept ready",
	"gpu-not-settled":    "it is tried again by itself; stop what uses the card and is no app",
	"gpu-not-restored":   "restart the box, or reset the card while nothing uses it",
}
