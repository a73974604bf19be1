package boot

import (
	"context"
	"errors"
	"time"
)

// keyLimit bounds what process 1 may take: a slow TPM, and cryptsetup on a busy box.
const keyLimit = 2 * time.Minute

// Quote asks process 1 for the TPM's answer to a challenge of 32 bytes. ErrNoTPM on a box
// without one.
func Quote(ctx context.Context, nonce []byte) (*Quoted, error) {
	a, err := send(ctx, request{Do: doQuote, Nonce: nonce}, keyLimit)
	return a.Quoted, err
}

// Escrow tells process 1 that the core has this key of 32 bytes in escrow: the TPM keeps it
// then, as STATE's.
func Escrow(ctx context.Context, key []byte, r Recovery) error {
	_, err := send(ctx, request{Do: doEscrow, Key: key, Recovery: &r}, keyLimit)
	return err
}

// Unlock gives process 1 what the core encrypted to this box's TPM. The box then starts anew.
func Unlock(ctx context.Context, blob, secret []byte) error {
	_, err := send(ctx, request{Do: doUnlock, Blob: blob, Secret: secret}, keyLimit)
	return err
}

// Waits tells process 1 why the core does not give STATE's key, for whoever stands before the box.
func Waits(ctx context.Context, why string) error {
	_, err := send(ctx, request{Do: doWait, Reason: why}, 10*time.Second)
	return err
}

// Floor is the lowest security counter of a release that the TPM opens STATE for, 0 at first.
// ErrNoTPM on a box without a TPM.
func Floor(ctx context.Context) (uint64, error) {
	a, err := send(ctx, request{Do: doFloor}, keyLimit)
	return a.Floor, err
}

// RaiseFloor makes counter (at most 64) the floor, unless that is higher already. It cannot be
// taken back, so it is for a release that is confirmed.
func RaiseFloor(ctx context.Context, counter uint64) error {
	if counter == 0 {
		return nil
	}
	_, err := send(ctx, request{Do: doFloor, Counter: counter}, keyLimit)
	return err
}

// Shut has the TPM give no key any more in this start, and note that a person gets a root shell:
// the box is not attested until the next one. A box without a TPM has nothing to shut.
func Shut(ctx context.Context) error {
	_, err := send(ctx, request{Do: doShut}, keyLimit)
	return err
}

// keyRequest answers the requests above.
func (b *booter) keyRequest(ctx context.Context, q request, a *Answer) error {
	ctx, cancel := context.WithTimeout(ctx, keyLimit)
	defer cancel()
	switch q.Do {
	case doEscrow:
		if q.Recovery == nil {
			return errors.New("escrow takes a recovery")
		}
		defer clear(q.Key)
		if err := b.escrow(ctx, q.Key, q.Recovery); err != nil {
			return err
		}
		if b.report.First && uptime() < firstRest {
			b.ask(request{Do: doReboot, Reason: "STATE's key goes into the TPM with this restart"})
		}
		return nil
	case doUnlock:
		return b.unlock(ctx, q.Blob, q.Secret)
	case doShut:
		if b.cfg.TPM == nil {
			return nil
		}
		b.keys.mu.Lock()
		defer b.keys.mu.Unlock()
		b.keys.closed = true
		return errors.Join(b.cfg.TPM.Shut(ctx), b.cfg.TPM.OpenShell(ctx))
	case doWait:
		b.waits(q.Reason)
		return nil
	}
	if b.cfg.TPM == nil {
		return ErrNoTPM
	}
	if q.Do == doQuote {
		return b.quote(ctx, q.Nonce, a)
	}
	if q.Counter > 0 {
		if err := b.cfg.TPM.RaiseFloor(ctx, q.Counter); err != nil {
			return err
		}
	}
	var err error
	a.Floor, err = b.cfg.TPM.Floor(ctx)
	return err
}

// firstRest is until when after its very first start a box may start once more by itself, so that
// the key of its STATE does not stand in the open for longer.
const firstRest = 15 * time.Minute

func (b *booter) quote(ctx context.Context, nonce []byte, a *Answer) error {
	q, err := b.cfg.TPM.Quote(ctx, nonce)
	if err != nil {
		return err
	}
	q.Sealed = b.keys.source
	if q.Sealed == "file" {
		if err := b.cfg.TPM.Fit(ctx); err != nil {
			q.Unfit = err.Error()
		} else {
			b.keys.mu.Lock()
			q.Ready = !b.keys.given
			b.keys.mu.Unlock()
		}
	}
	a.Quoted = &q
	return nil
}

// waits says on the consoles why the box still waits, whenever that is another reason.
func (b *booter) waits(why string) {
	if b.keys.locked == nil || len(why) > 500 {
		return
	}
	w := lockedWarning(why)
	b.mu.Lock()
	var known bool
	for i, old := range b.warnings {
		if old.Name == w.Name {
			known = old.Message == w.Message
			w.Since = old.Since
			b.warnings[i] = w
		}
	}
	b.mu.Unlock()
	if !known {
		b.say("STATE waits for its key: %s", why)
		b.save()
	}
}
