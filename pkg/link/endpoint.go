package link

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/manifest"
)

// EndpointConfig is what a box's end of the link is made of.
type EndpointConfig struct {
	RelayConfig
	Uplink Uplink
	// Downlink is nil on a box without children.
	Downlink Downlink
	// Below is told of newer manifests of devices below, for prefetching. It must not block.
	Below func([]*manifest.Signed)
	// CoreTime is told the core's clock whenever a signed acknowledgement names it, in
	// Unix seconds. It must not block.
	CoreTime func(unix int64)
	// Now defaults to time.Now.
	Now func() time.Time
}

// Endpoint runs a Relay over an Uplink and a Downlink. All methods may be called from
// any goroutine.
type Endpoint struct {
	cfg     EndpointConfig
	changed chan struct{}
	replan  chan struct{} // the next tick may have moved
	outside *outside

	mu        sync.Mutex
	relay     *Relay
	children  map[api.DeviceID]bool
	onCommand func([]byte)
}

// NewEndpoint makes an endpoint of what the store holds; Run runs it.
func NewEndpoint(cfg EndpointConfig) (*Endpoint, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Config = cfg.withDefaults()
	r, err := NewRelay(cfg.Now(), cfg.RelayConfig)
	if err != nil {
		return nil, err
	}
	return &Endpoint{cfg: cfg, relay: r, children: map[api.DeviceID]bool{}, changed: make(chan struct{}, 1),
		replan: make(chan struct{}, 1), outside: newOutside()}, nil
}

// Run carries frames until ctx ends.
func (e *Endpoint) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.cfg.Uplink.Run(ctx, (*fromParent)(e)) })
	if e.cfg.Downlink != nil {
		g.Go(func() error { return e.cfg.Downlink.Run(ctx, (*fromChildren)(e)) })
	}
	g.Go(func() error { return e.outside.run(ctx) })
	g.Go(func() error {
		return ticks(ctx, e.cfg.Now, e.replan, func() time.Time {
			e.mu.Lock()
			defer e.mu.Unlock()
			return e.relay.Next()
		}, func() { e.step(func(r *Relay, now time.Time) { r.Tick(now) }) })
	})
	return g.Wait()
}

// step gives the machine one input and does what comes of it: what must be kept is
// committed before it returns, the rest follows in order.
func (e *Endpoint) step(input func(*Relay, time.Time)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	input(e.relay, e.cfg.Now())
	eff := e.relay.Take()
	if len(eff.Ops) > 0 {
		if err := e.cfg.Store.Commit(eff.Ops, eff.Sync); err != nil {
			return errors.Join(err, e.remake())
		}
	}
	e.outside.put(func() { e.act(eff) })
	poke(e.replan)
	return nil
}

// remake begins again from the store after a commit failed: what the machine knew
// beyond it is forgotten, and every session starts anew.
func (e *Endpoint) remake() error {
	r, err := NewRelay(e.cfg.Now(), e.cfg.RelayConfig)
	if err != nil {
		return fmt.Errorf("begin again from the store: %w", err)
	}
	e.relay = r
	children := make([]api.DeviceID, 0, len(e.children))
	for id := range e.children {
		children = append(children, id)
	}
	e.outside.put(func() {
		e.cfg.Uplink.Reset("the store failed")
		for _, id := range children {
			e.cfg.Downlink.Kick(id, "the store failed")
		}
	})
	return nil
}

// act does the effects that are not commits. Frames that find no session are dropped:
// the link makes good.
func (e *Endpoint) act(eff Effects) {
	for _, f := range eff.Up {
		_ = e.cfg.Uplink.Send(f.Bytes, f.Reliable)
	}
	if eff.FetchRetained {
		_ = e.cfg.Uplink.FetchRetained()
	}
	if eff.ResetUp {
		e.cfg.Uplink.Reset("the parent does not answer")
	}
	if e.cfg.Downlink != nil {
		for _, r := range eff.Retain {
			if err := e.cfg.Downlink.Retain(r.Child, r.Raw); err != nil {
				e.cfg.Log.Warn("cannot retain a manifest", "child", r.Child, "err", err)
			}
		}
		for _, f := range eff.Down {
			_ = e.cfg.Downlink.Send(f.Child, f.Bytes, f.Reliable)
		}
		for _, id := range eff.Kick {
			e.cfg.Downlink.Kick(id, "told to by the link")
		}
	}
	if eff.Manifest != nil {
		poke(e.changed)
	}
	if len(eff.Below) > 0 && e.cfg.Below != nil {
		e.cfg.Below(eff.Below)
	}
	if eff.CoreTime != 0 && e.cfg.CoreTime != nil {
		e.cfg.CoreTime(eff.CoreTime)
	}
	e.mu.Lock()
	onCommand := e.onCommand
	e.mu.Unlock()
	for _, raw := range eff.Commands {
		if onCommand != nil {
			go onCommand(raw)
		}
	}
}

// Report sets a key of the box's reported state, durably, or removes it when value is
// nil. Last value wins; an equal value is no change. Errors: a key or value out of
// bounds, or the store's.
func (e *Endpoint) Report(key string, value []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.relay.Report(e.cfg.Now(), key, value); err != nil {
		return err
	}
	eff := e.relay.Take()
	if len(eff.Ops) > 0 {
		if err := e.cfg.Store.Commit(eff.Ops, eff.Sync); err != nil {
			e.relay.undoReport() // a full disk is no reason to lose the sessions
			return fmt.Errorf("store reported state: %w", err)
		}
	}
	e.outside.put(func() { e.act(eff) })
	poke(e.replan)
	return nil
}

// Append puts a record into the spool and returns its number when it is durable.
func (e *Endpoint) Append(kind api.RecordKind, payload []byte) (uint64, error) {
	seq, err := e.cfg.Spool.Append(kind, payload)
	if err != nil {
		return 0, err
	}
	return seq, e.step(func(r *Relay, now time.Time) { r.Appended(now, kind) })
}

// Manifest is the newest verified one for this box, or nil.
func (e *Endpoint) Manifest() *manifest.Signed {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.relay.Manifest()
}

// Changed receives when a newer manifest is in force; several may share one signal.
func (e *Endpoint) Changed() <-chan struct{} { return e.changed }

// OnCommand sets who takes signed commands for this box; each call has a goroutine.
func (e *Endpoint) OnCommand(fn func(raw []byte)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.onCommand = fn
}

// Parent names the parent, and tells whether it answers.
func (e *Endpoint) Parent() (id string, connected bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	parent, connected, _ := e.relay.Connected()
	if parent.IsZero() {
		return identity.CoreName, connected
	}
	return parent.String(), connected
}

// Warnings lists what is wrong with the link, by name.
func (e *Endpoint) Warnings() []api.Warning {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.relay.Warnings()
}

// Stats returns the byte counters so far.
func (e *Endpoint) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.relay.Stats()
}

// SetHealth changes how often the box confirms its subtree.
func (e *Endpoint) SetHealth(d time.Duration) {
	_ = e.step(func(r *Relay, now time.Time) { r.setHealth(now, d) })
}

func (r *Relay) setHealth(now time.Time, d time.Duration) {
	if d <= 0 {
		d = Config{}.withDefaults().Health
	}
	if r.cfg.Health == d {
		return
	}
	r.cfg.Health = d
	if next := now.Add(d); r.u.nextBeat.After(next) {
		r.u.nextBeat = next
	}
	r.due(r.u.nextBeat)
}

// fromParent is the Endpoint as its Uplink sees it.
type fromParent Endpoint

func (h *fromParent) ParentUp(parent api.DeviceID) {
	h.step(func(r *Relay, now time.Time) { r.ParentUp(now, parent) })
}

func (h *fromParent) ParentDown(error) {
	h.step(func(r *Relay, now time.Time) { r.ParentDown(now) })
}

func (h *fromParent) FromParent(frame []byte) {
	h.step(func(r *Relay, now time.Time) { r.FromParent(now, frame) })
}

func (h *fromParent) Retained(raw []byte) {
	h.step(func(r *Relay, now time.Time) { r.Retained(now, raw) })
}

func (h *fromParent) step(input func(*Relay, time.Time)) { (*Endpoint)(h).logged(input) }

// logged is step for inputs that have nobody to return an error to.
func (e *Endpoint) logged(input func(*Relay, time.Time)) {
	if err := e.step(input); err != nil {
		e.cfg.Log.Error("the link's store failed; beginning again from it", "err", err)
	}
}

// fromChildren is the Endpoint as its Downlink sees it.
type fromChildren Endpoint

func (h *fromChildren) ChildUp(child api.DeviceID, cert []byte) {
	(*Endpoint)(h).logged(func(r *Relay, now time.Time) { h.children[child] = true; r.ChildUp(now, child, cert) })
}

func (h *fromChildren) ChildDown(child api.DeviceID) {
	(*Endpoint)(h).logged(func(r *Relay, now time.Time) { delete(h.children, child); r.ChildDown(now, child) })
}

func (h *fromChildren) FromChild(child api.DeviceID, frame []byte) {
	(*Endpoint)(h).logged(func(r *Relay, now time.Time) { r.FromChild(now, child, frame) })
}

// identityKeys answers a relay's questions about keys from an identity.
type identityKeys struct {
	live *identity.Live
	// state is made of the identity beside it: a curve multiplication.
	state atomic.Pointer[ofIdentity]
}

type ofIdentity struct {
	me  *identity.Identity
	key [32]byte
}

// KeysOf makes DeviceKeys and RelayKeys of an identity; renewals are seen at once.
func KeysOf(live *identity.Live) interface {
	DeviceKeys
	RelayKeys
} {
	return &identityKeys{live: live}
}

func (k *identityKeys) Sign(aad, payload []byte) ([]byte, error) {
	return identity.Sign(k.live.Get().Key, aad, payload)
}

func (k *identityKeys) VerifyCore(cose, aad []byte) ([]byte, error) {
	return k.live.Get().Trust.Verify(cose, aad)
}

func (k *identityKeys) OpenManifest(raw []byte) (*manifest.Signed, error) {
	return manifest.Open(raw, k.live.Get().Trust)
}

func (k *identityKeys) StateKey() ([32]byte, error) {
	me := k.live.Get()
	if known := k.state.Load(); known != nil && known.me == me {
		return known.key, nil
	}
	key, err := me.StateKey()
	if err == nil {
		k.state.Store(&ofIdentity{me, key})
	}
	return key, err
}

// Certificate takes an expired certificate too: it speaks for a key, and whether a
// session may be had with it was decided by TLS.
func (k *identityKeys) Certificate(der []byte) (api.DeviceID, crypto.PublicKey, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return api.DeviceID{}, nil, err
	}
	trust := k.live.Get().Trust
	chain := append([]*x509.Certificate{leaf}, trust.Issuers...)
	id, _, err := trust.VerifyChain(chain, x509.ExtKeyUsageClientAuth, leaf.NotBefore)
	return id, leaf.PublicKey, err
}

func (k *identityKeys) Verify(pub crypto.PublicKey, cose, aad []byte) ([]byte, error) {
	return identity.Verify(pub, cose, aad)
}

// Acked is the last of the box's records that the core has counted.
func (e *Endpoint) Acked() uint64 {
	_, _, acked, _ := e.cfg.Spool.Range()
	return acked
}
