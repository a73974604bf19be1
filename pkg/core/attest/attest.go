// Package attest answers: what do the devices' TPMs show of them, and who gets the key of its
// state back?
//
// It keeps, for each device that has a TPM, the TPM's keys as the device first showed them over
// its authenticated link, the firmware's keys (PCR 7) of that time, what the TPM showed last, and
// the key of the device's state, encrypted to the core. It asks nobody and has no clock: who
// asks the devices brings their reports here (Report), and boxes that wait for their state's key
// come by Recover.
package attest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/tpm"
	judge "tributary.dev/tributary/pkg/tpm/attest"
)

// How long things hold.
const (
	// Life is how long a device may take to answer.
	Life = 2 * time.Minute
	// MaxAge is how long what a TPM showed holds while the device is not asked again.
	MaxAge = 48 * time.Hour
	// approvalLife is how long a person's approval holds: a box asks several times a minute.
	approvalLife = time.Hour
	// forgetWaiting is when a box that waited and does not ask any more is taken for gone.
	forgetWaiting = 10 * time.Minute
)

// Config is what a Room is given; everything is needed.
type Config struct {
	Store interface {
		store.Attestations
		store.Events
	}
	// Active tells whether a device may take part; NameOf gives its name, for events.
	Active func(api.DeviceID) bool
	NameOf func(api.DeviceID) string
	// Systems are those that a device may run. It is called without a lock of this room's.
	Systems func(api.DeviceID) []judge.Release
	// OpenKey decrypts what was sealed to the core.
	OpenKey func(info identity.SealInfo, sealed []byte) ([]byte, error)
	// Changed is told of devices of which something else is known now; it must not call back.
	Changed func(api.DeviceID)
	// Alarm raises a warning in a device's health, which stands for a while.
	Alarm  func(api.DeviceID, api.Warning)
	Now    func() time.Time
	Random io.Reader
	Log    *slog.Logger
}

// Room may be used from any goroutine.
type Room struct {
	cfg Config

	mu      sync.Mutex
	records map[api.DeviceID]*record
}

// record is what is kept of one device, as JSON.
type record struct {
	// TPM is known since the device first showed it; PCR7 and Image (PCR 11 without what the
	// system adds) are of the last report that was believed.
	TPM   tpm.Public `json:"tpm"`
	PCR7  []byte     `json:"pcr7,omitempty"`
	Image []byte     `json:"image,omitempty"`
	// Escrow is the key of the device's state, encrypted to the core.
	Escrow []byte `json:"escrow,omitempty"`
	// Asked is until when the question held with whose answer the escrow came.
	Asked time.Time `json:"asked,omitempty"`

	Shown    shown     `json:"shown"`
	Waiting  *waiting  `json:"waiting,omitempty"`
	Approved *approval `json:"approved,omitempty"`
}

// shown is the outcome of the last report.
type shown struct {
	At      time.Time `json:"at"`
	System  string    `json:"system,omitempty"` // empty when refused
	Refused string    `json:"refused,omitempty"`
	PCR7    []byte    `json:"pcr7,omitempty"`
	PCR11   []byte    `json:"pcr11,omitempty"`
	Boot    string    `json:"boot,omitempty"` // which start of the device it was
	Sealed  string    `json:"sealed,omitempty"`
	Unfit   string    `json:"unfit,omitempty"`
	// Changed: the firmware's keys, or the TPM itself, are not those that were known: a person
	// may take the new ones.
	Changed bool `json:"changed,omitempty"`
	// Unknown: all is well but for the system, which is none that the device may run.
	Unknown bool `json:"unknown,omitempty"`
}

// waiting is a box before its state.
type waiting struct {
	Since  time.Time `json:"since"`
	Last   time.Time `json:"-"`
	Reason string    `json:"reason,omitempty"`
	System string    `json:"system,omitempty"`
	PCR7   []byte    `json:"pcr7"`
}

// approval is a person's: for these firmware's keys, and no others.
type approval struct {
	By    string    `json:"by"`
	Until time.Time `json:"until"`
	PCR7  []byte    `json:"pcr7"`
}

// Open reads what is known.
func Open(ctx context.Context, cfg Config) (*Room, error) {
	r := &Room{cfg: cfg, records: map[api.DeviceID]*record{}}
	err := cfg.Store.EachAttestation(ctx, func(id api.DeviceID, text []byte) error {
		rec := &record{}
		if err := json.Unmarshal(text, rec); err != nil {
			return fmt.Errorf("what is known of the TPM of %s: %w", id, err)
		}
		r.records[id] = rec
		return nil
	})
	return r, err
}

// Refresh reads what another core may have found about devices; about all for none.
func (r *Room) Refresh(ctx context.Context, ids []api.DeviceID) error {
	known := map[api.DeviceID]*record{}
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.cfg.Store.EachAttestation(ctx, func(id api.DeviceID, text []byte) error {
		if ids != nil && !slices.Contains(ids, id) {
			return nil
		}
		rec := &record{}
		if err := json.Unmarshal(text, rec); err != nil {
			return fmt.Errorf("what is known of the TPM of %s: %w", id, err)
		}
		if old := r.records[id]; old != nil && old.Waiting != nil && rec.Waiting != nil {
			rec.Waiting.Last = old.Waiting.Last
		}
		known[id] = rec
		return nil
	})
	if err != nil {
		return err
	}
	if ids == nil {
		r.records = known
		return nil
	}
	for id, rec := range known {
		r.records[id] = rec
	}
	return nil
}

// save keeps a record, durably, in memory only when that worked. The caller holds mu.
func (r *Room) save(ctx context.Context, id api.DeviceID, rec *record) error {
	text, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := r.cfg.Store.PutAttestation(ctx, id, text); err != nil {
		return err
	}
	r.records[id] = rec
	return nil
}

// copyOf is a record that may be changed. The caller holds mu.
func (r *Room) copyOf(id api.DeviceID) *record {
	rec := &record{}
	if old := r.records[id]; old != nil {
		*rec = *old
	}
	return rec
}

// Known lists the devices that showed a TPM.
func (r *Room) Known() (ids []api.DeviceID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.records {
		ids = append(ids, id)
	}
	return ids
}

// Due tells whether a device that is there should be asked again.
func (r *Room) Due(id api.DeviceID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.records[id]
	return rec == nil || r.cfg.Now().Sub(rec.Shown.At) > MaxAge/2
}

// Heard tells whether a device's TPM was asked in the start that boot names.
func (r *Room) Heard(id api.DeviceID, boot string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.records[id]
	return rec != nil && rec.Shown.Boot == boot
}

// Attested tells whether a device's TPM shows what it should, and if not, why.
func (r *Room) Attested(id api.DeviceID) (ok bool, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attested(r.records[id])
}

func (r *Room) attested(rec *record) (ok bool, why string) {
	switch {
	case rec == nil:
		return false, "it has not shown a TPM"
	case rec.Shown.Refused != "":
		return false, rec.Shown.Refused
	case r.cfg.Now().Sub(rec.Shown.At) > MaxAge:
		return false, "its TPM was last heard " + r.cfg.Now().Sub(rec.Shown.At).Round(time.Hour).String() + " ago"
	}
	return true, ""
}

// Status is what people see; nil for a device that never showed a TPM.
func (r *Room) Status(id api.DeviceID) *api.Attestation {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.records[id]
	if rec == nil {
		return nil
	}
	s := &rec.Shown
	out := &api.Attestation{System: s.System, PCR7: hex.EncodeToString(s.PCR7), PCR11: hex.EncodeToString(s.PCR11), Sealed: s.Sealed, Unfit: s.Unfit, Escrow: len(rec.Escrow) > 0}
	out.Attested, out.Message = r.attested(rec)
	if !s.At.IsZero() {
		at := s.At.UTC().Truncate(time.Second)
		out.Time = &at
	}
	if w := rec.Waiting; w != nil {
		out.Waiting = &api.AttestWaiting{Since: w.Since.UTC().Truncate(time.Second), Message: w.Reason, System: w.System, PCR7: hex.EncodeToString(w.PCR7)}
		if a := rec.Approved; a != nil && r.cfg.Now().Before(a.Until) {
			until := a.Until.UTC().Truncate(time.Second)
			out.Waiting.Approved, out.Waiting.By = &until, a.By
		}
	}
	return out
}

// Report takes in what a device answered to a challenge, over a stream of its own: who speaks is
// known by its certificate. The error is the core's own trouble; what is wrong with the report
// stands in the reply.
func (r *Room) Report(ctx context.Context, id api.DeviceID, c judge.Challenge, report *judge.Report) (judge.Reply, error) {
	systems := r.cfg.Systems(id) // may wait for who waits for this room
	r.mu.Lock()
	defer r.mu.Unlock()
	if report.Unable != "" && r.records[id] == nil {
		return judge.Reply{}, nil // a box without a TPM, as most
	}
	rec := r.copyOf(id)
	fresh, err := r.judge(rec, systems, c, report)
	rec.Shown.At, rec.Shown.Boot, rec.Shown.Sealed, rec.Shown.Unfit = r.cfg.Now(), clip(report.Boot), clip(report.Sealed), clip(report.Unfit)
	if err != nil {
		rec.Shown.Refused, rec.Shown.System = err.Error(), ""
	}
	reply := judge.Reply{Refused: rec.Shown.Refused}
	if fresh && len(report.Escrow) > 0 {
		if err := r.takeEscrow(id, rec, c, report.Escrow); err != nil {
			r.cfg.Log.Warn("a device's escrow is not taken", "device", id, "err", err)
			reply.Refused = err.Error()
		} else {
			reply.Escrowed = true
		}
	}
	// Not of a box that does not name its key, nor once more of one that just brought what is not taken.
	reply.Again = fresh && len(report.Key) > 0 && len(report.Escrow) == 0 && report.Sealed == "tpm2" && !r.holds(id, rec, report.Key)
	if rec.TPM.Attestation == nil {
		return reply, nil // nothing to keep by which it would be known again
	}
	if err := r.save(ctx, id, rec); err != nil {
		return judge.Reply{}, err
	}
	if reply.Escrowed {
		r.cfg.Log.Info("the key of a device's state is in escrow", "device", id)
	}
	r.cfg.Changed(id)
	return reply, nil
}

// clip bounds a word of a device's.
func clip(s string) string { return s[:min(len(s), 256)] }

// judge fills rec.Shown. fresh: the device's own TPM has spoken, whatever it runs.
func (r *Room) judge(rec *record, systems []judge.Release, c judge.Challenge, report *judge.Report) (fresh bool, err error) {
	old := rec.Shown
	rec.Shown = shown{PCR7: old.PCR7, PCR11: old.PCR11}
	if report.Unable != "" {
		return false, errors.New(clip(report.Unable))
	}
	e, err := judge.Decode(report.Evidence)
	if err != nil {
		return false, err
	}
	public := tpm.Public{Attestation: report.Attestation, Endorsement: report.Endorsement}
	key, err := public.Key()
	if err != nil {
		return false, err
	}
	x := judge.Expect{Key: key, Challenge: c, Now: r.cfg.Now(), Releases: systems}
	if _, err := x.Authentic(e); err != nil {
		return false, err
	}
	pcr7, _ := e.PCR(tpm.PCRSecureBoot)
	pcr11, _ := e.PCR(tpm.PCRKernel)
	rec.Shown.PCR7, rec.Shown.PCR11 = pcr7[:], pcr11[:]
	approved := rec.Approved.holds(r.cfg.Now(), pcr7[:])
	known := rec.TPM.Attestation == nil || bytes.Equal(rec.TPM.Attestation, public.Attestation) && bytes.Equal(rec.TPM.Endorsement, public.Endorsement)
	if !known && !approved { // check: identity
		rec.Shown.Changed = true
		return false, errors.New("another TPM answers for this device than the one that is known")
	}
	if rec.PCR7 != nil && !bytes.Equal(rec.PCR7, pcr7[:]) && !approved && !r.foretold(rec, systems, report.Words, pcr7[:]) { // check: baseline
		rec.Shown.Changed = true
		return true, fmt.Errorf("the firmware's keys or settings changed: PCR 7 is %x, was %x", pcr7, rec.PCR7)
	}
	if !known {
		rec.Escrow = nil // no other TPM opens what would be made of it
	}
	rec.TPM, rec.PCR7, rec.Waiting, rec.Approved = public, pcr7[:], nil, nil
	rec.Image = nil
	if image, ok := e.Image(); ok {
		rec.Image = image[:]
	}
	v, err := x.Verify(e)
	if err != nil {
		image := func(one judge.Release) bool { return one.PCR11 == [32]byte(rec.Image) }
		rec.Shown.Unknown = rec.Image != nil && !slices.ContainsFunc(systems, image)
		return true, err
	}
	rec.Shown.System = v.Release
	return true, nil
}

// foretold tells whether the device's TPM said, by its known key and on a system that the device may run, that PCR 7 may
// become this of what it was when it was last believed; maybe in several steps.
func (r *Room) foretold(rec *record, systems []judge.Release, words []judge.Word, pcr7 []byte) bool {
	key, err := rec.TPM.Key()
	if err != nil || len(words) > judge.MaxWords {
		return false
	}
	if len(rec.Image) == 32 {
		systems = append(slices.Clone(systems), judge.Release{Name: "as before", PCR11: [32]byte(rec.Image)})
	}
	may := [][]byte{rec.PCR7}
	has := func(v []byte) bool { return slices.ContainsFunc(may, func(m []byte) bool { return bytes.Equal(m, v) }) }
	now := r.cfg.Now()
	for _, w := range words {
		e, err := judge.Decode(w.Evidence)
		if err != nil {
			return false
		}
		x := judge.Expect{Key: key, Challenge: judge.Challenge{Nonce: [judge.NonceSize]byte(judge.Foretold(w.PCR7)), Expires: now.Add(Life)}, Now: now, Releases: systems}
		was, _ := e.PCR(tpm.PCRSecureBoot)
		if _, err := x.Verify(e); err == nil && has(was[:]) {
			may = append(may, w.PCR7...)
		}
	}
	return has(pcr7)
}

// holds tells whether the core has the key of that digest in escrow.
func (r *Room) holds(id api.DeviceID, rec *record, digest []byte) bool {
	if len(rec.Escrow) == 0 {
		return false
	}
	key, err := r.cfg.OpenKey(identity.SealInfo{Device: id, Name: judge.EscrowName}, rec.Escrow)
	if err != nil {
		return false
	}
	defer clear(key)
	return bytes.Equal(judge.KeyDigest(key), digest)
}

// Review judges anew by what the devices may run now, and lists those of which the outcome is
// another. What their TPMs showed stays as good as it was.
func (r *Room) Review(ctx context.Context) (changed []api.DeviceID, err error) {
	for _, id := range r.Known() {
		systems := r.cfg.Systems(id)
		if again, err := r.review(ctx, id, systems); err != nil {
			return changed, err
		} else if again {
			changed = append(changed, id)
		}
	}
	return changed, nil
}

func (r *Room) review(ctx context.Context, id api.DeviceID, systems []judge.Release) (changed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.copyOf(id)
	s := &rec.Shown
	if len(rec.Image) != 32 || s.Refused != "" && !s.Unknown {
		return false, nil
	}
	at := slices.IndexFunc(systems, func(one judge.Release) bool { return one.PCR11 == [32]byte(rec.Image) })
	switch {
	case at >= 0 && (s.System != systems[at].Name || s.Unknown):
		s.System, s.Refused, s.Unknown = systems[at].Name, "", false
	case at < 0 && !s.Unknown:
		s.System, s.Unknown = "", true
		s.Refused = fmt.Errorf("%w: the box runs a system that is none of the releases it may run any more", judge.ErrRefused).Error()
	default:
		return false, nil
	}
	if err := r.save(ctx, id, rec); err != nil {
		return false, err
	}
	r.cfg.Changed(id)
	return true, nil
}

func (a *approval) holds(now time.Time, pcr7 []byte) bool {
	return a != nil && now.Before(a.Until) && bytes.Equal(a.PCR7, pcr7)
}

// takeEscrow keeps a key that the core can open, and no other. An answer that was overtaken by that
// to a later question comes too late: the device has used the later key.
func (r *Room) takeEscrow(id api.DeviceID, rec *record, c judge.Challenge, sealed []byte) error {
	if !c.Expires.After(rec.Asked) {
		return errors.New("a later answer has brought a key already")
	}
	key, err := r.cfg.OpenKey(identity.SealInfo{Device: id, Name: judge.EscrowName}, sealed)
	if err != nil {
		return err
	}
	defer clear(key)
	if len(key) != tpm.MaxCredential {
		return fmt.Errorf("a key of %d bytes, not %d", len(key), tpm.MaxCredential)
	}
	rec.Escrow, rec.Asked = bytes.Clone(sealed), c.Expires
	return nil
}

// Key is the key that signs a device's quotes; for tests and tools.
func (r *Room) Key(id api.DeviceID) (*ecdsa.PublicKey, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.records[id]
	if rec == nil {
		return nil, false
	}
	key, err := rec.TPM.Key()
	return key, err == nil
}
