package attest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/tpm"
	judge "tributary.dev/tributary/pkg/tpm/attest"
)

// Recover answers a box that waits before its state: anybody on the network may come here, and
// only the TPM that is known speaks for a device. Nothing is kept of who does not prove that.
// The nonce is fresh: who calls has seen to that.
func (r *Room) Recover(ctx context.Context, nonce [32]byte, req *identity.RecoverRequest) (*identity.RecoverReply, error) {
	systems := r.cfg.Systems(req.Device)
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.records[req.Device]
	if old == nil || len(old.Escrow) == 0 || !r.cfg.Active(req.Device) {
		return nil, &api.Error{Code: api.Forbidden, Message: "the core has no key of this device's state in escrow", Remedy: "choose factory reset in the recovery console; the box then enrols anew"}
	}
	rec := r.copyOf(req.Device)
	system, pcr7, err := r.recognise(rec, systems, nonce, req.Evidence)
	if err != nil {
		r.cfg.Log.Warn("a box that waits for its state's key is refused", "device", req.Device, "err", err)
		return nil, &api.Error{Code: api.Forbidden, Message: err.Error(), Err: err}
	}
	now := r.cfg.Now()
	news := rec.Waiting == nil || !bytes.Equal(rec.Waiting.PCR7, pcr7) || rec.Waiting.System != system || rec.Waiting.Reason != clip(req.Reason)
	if news {
		rec.Waiting = &waiting{Since: now, Reason: clip(req.Reason), System: system, PCR7: pcr7}
		if err := r.save(ctx, req.Device, rec); err != nil {
			return nil, err
		}
		r.cfg.Changed(req.Device)
	}
	rec.Waiting.Last = now
	r.cfg.Alarm(req.Device, api.Warning{Name: "state-locked", Severity: api.Critical,
		Message: "the box waits for the key of its state, which its TPM does not give: " + clip(req.Reason)})
	if !rec.Approved.holds(now, pcr7) { // check: approval
		return &identity.RecoverReply{Message: "a person has to approve: edgectl device unlock-state " + r.cfg.NameOf(req.Device)}, nil
	}
	return r.give(ctx, req.Device, rec, pcr7)
}

// recognise judges who asks: the device's TPM, which has not opened its state in this start, on a
// system that the device may run or that it ran when it was last believed.
func (r *Room) recognise(rec *record, systems []judge.Release, nonce [32]byte, evidence []byte) (system string, pcr7 []byte, err error) {
	e, err := judge.Decode(evidence)
	if err != nil {
		return "", nil, err
	}
	key, err := rec.TPM.Key()
	if err != nil {
		return "", nil, err
	}
	known := func(one judge.Release) bool { return one.PCR11 == [32]byte(rec.Image) }
	if len(rec.Image) == 32 && !slices.ContainsFunc(systems, known) {
		systems = append(systems, judge.Release{Name: "as before", PCR11: [32]byte(rec.Image)})
	}
	x := judge.Expect{Key: key, Challenge: judge.Challenge{Nonce: nonce, Expires: r.cfg.Now().Add(Life)}, Now: r.cfg.Now(), Releases: systems}
	v, err := x.Verify(e)
	if err != nil {
		return "", nil, err
	}
	if v.StateOpened { // check: closed state
		return "", nil, errors.New("the box has opened its state in this start already")
	}
	value, ok := e.PCR(tpm.PCRSecureBoot)
	if !ok {
		return "", nil, errors.New("PCR 7 is not among the values")
	}
	return v.Release, value[:], nil
}

// give encrypts the key to the device's TPM, which alone opens it. It may be given again while
// the approval holds: an answer may be lost.
func (r *Room) give(ctx context.Context, id api.DeviceID, rec *record, pcr7 []byte) (*identity.RecoverReply, error) {
	key, err := r.cfg.OpenKey(identity.SealInfo{Device: id, Name: judge.EscrowName}, rec.Escrow)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	c, err := rec.TPM.MakeCredential(r.cfg.Random, key)
	if err != nil {
		return nil, err
	}
	by := ""
	if rec.Approved != nil {
		by = rec.Approved.By
	}
	if err := r.note(ctx, id, "given", fmt.Sprintf("encrypted to the device's TPM, for PCR 7 %x", pcr7), by); err != nil {
		return nil, err
	}
	r.cfg.Log.Info("a box gets the key of its state back", "device", id, "by", by)
	return &identity.RecoverReply{Blob: c.Blob, Secret: c.Secret}, nil
}

func (r *Room) note(ctx context.Context, id api.DeviceID, subject, message, actor string) error {
	return r.cfg.Store.AppendEvents(ctx, []store.DeviceEvent{{Device: id, Label: r.cfg.NameOf(id),
		Event: api.Event{Time: r.cfg.Now().UnixMilli(), Name: store.EventStateKey, Subject: subject, Message: message, Actor: actor}}})
}

// Approve is a person's word that a device's firmware may be as it shows now: a box that waits
// gets its key, and what a running device shows is the new measure. It holds for an hour, and
// for just those firmware's keys.
func (r *Room) Approve(ctx context.Context, id api.DeviceID, actor string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.copyOf(id)
	var pcr7 []byte
	now := r.cfg.Now()
	switch {
	case rec.Waiting != nil && now.Sub(rec.Waiting.Last) < forgetWaiting:
		pcr7 = rec.Waiting.PCR7
	case rec.Shown.Changed:
		pcr7 = rec.Shown.PCR7
	default:
		return &api.Error{Code: api.Conflict, Message: "the device does not wait for its state's key, and shows no firmware that is new", Remedy: "see status.attestation of `edgectl get device NAME -o yaml`"}
	}
	rec.Approved = &approval{By: actor, Until: now.Add(approvalLife), PCR7: pcr7}
	if err := r.note(ctx, id, "approved", fmt.Sprintf("for PCR 7 %x", pcr7), actor); err != nil {
		return err
	}
	if err := r.save(ctx, id, rec); err != nil {
		return err
	}
	r.cfg.Log.Info("a device's firmware is approved", "device", id, "by", actor)
	r.cfg.Changed(id)
	return nil
}

// Reseal seals anew what the core's present sealing key does not open, so that earlier ones can go. It may be repeated.
func (r *Room) Reseal(ctx context.Context, own *ecdsa.PrivateKey) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, rec := range r.records {
		info := identity.SealInfo{Device: id, Name: judge.EscrowName}
		if len(rec.Escrow) == 0 {
			continue
		}
		if key, err := identity.Open(own, info, rec.Escrow); err == nil {
			clear(key)
			continue
		}
		key, err := r.cfg.OpenKey(info, rec.Escrow)
		if err != nil {
			r.cfg.Log.Error("the key of a box's state in escrow opens by none of the core's keys; the box is asked again", "device", id, "err", err)
			continue
		}
		next := r.copyOf(id)
		next.Escrow, err = identity.Seal(&own.PublicKey, info, key)
		clear(key)
		if err == nil {
			err = r.save(ctx, id, next)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Tidy clears boxes that waited and went away, and lists them.
func (r *Room) Tidy(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Now()
	for id, rec := range r.records {
		if rec.Waiting == nil {
			continue
		}
		if rec.Waiting.Last.IsZero() { // read from the store: its time begins now
			rec.Waiting.Last = now
		}
		if now.Sub(rec.Waiting.Last) < forgetWaiting {
			continue
		}
		next := r.copyOf(id)
		next.Waiting = nil
		if err := r.save(ctx, id, next); err != nil {
			return err
		}
		r.cfg.Changed(id)
	}
	return nil
}
