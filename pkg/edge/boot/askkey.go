package boot

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"tributary.dev/tributary/pkg/tpm/attest"
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

// SealedKey is the key of STATE that the TPM keeps, for a core that lost it from its escrow.
func SealedKey(ctx context.Context) ([]byte, error) {
	a, err := send(ctx, request{Do: doKey}, keyLimit)
	return a.Key, err
}

func (b *booter) sealedKey() ([]byte, error) {
	b.keys.mu.Lock()
	defer b.keys.mu.Unlock()
	if b.keys.source != "tpm2" {
		return nil, errors.New("STATE was not opened by the TPM")
	}
	return b.keys.key, nil
}

// Foretell has STATE's key sealed to each of these values of PCR 7, of 32 bytes: the present one must be among them, and
// what was sealed to others goes. None given: it only tells how STATE is sealed. ErrNoTPM on a box without a TPM.
func Foretell(ctx context.Context, pcr7 [][]byte) (*Foretold, error) {
	a, err := send(ctx, request{Do: doForetell, PCR7: pcr7}, keyLimit)
	return a.Foretold, err
}

// identityKey is the key that the TPM was born with, as process 1 uses it.
type identityKey struct{ public *ecdsa.PublicKey }

// Identity is the P-256 key that a box with a TPM is born with: it is the same for the whole life of the TPM, and never
// leaves it. ErrNoTPM on a box without one, and fs.ErrNotExist where process 1 is not ours.
func Identity(ctx context.Context) (crypto.Signer, error) {
	a, err := send(ctx, request{Do: doIdentity}, keyLimit)
	if err != nil {
		return nil, err
	}
	any, err := x509.ParsePKIXPublicKey(a.Public)
	if err != nil {
		return nil, err
	}
	public, ok := any.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the TPM's identity is %T", any)
	}
	return &identityKey{public}, nil
}

func (k *identityKey) Public() crypto.PublicKey { return k.public }

// Sign implements crypto.Signer, for SHA-256 alone.
func (k *identityKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, errors.New("the TPM's identity signs SHA-256 digests")
	}
	a, err := send(context.Background(), request{Do: doIdentity, Digest: digest}, keyLimit)
	return a.Signature, err
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
	var err error
	switch q.Do {
	case doQuote:
		return b.quote(ctx, q.Nonce, a)
	case doForetell:
		a.Foretold, err = b.foretell(ctx, q.PCR7)
		return err
	case doKey:
		a.Key, err = b.sealedKey()
		return err
	case doIdentity:
		a.Public, a.Signature, err = b.cfg.TPM.Identity(ctx, q.Digest)
		return err
	}
	if q.Counter > 0 {
		if err := b.cfg.TPM.RaiseFloor(ctx, q.Counter); err != nil {
			return err
		}
	}
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
	if q.Sealed == "tpm2" {
		q.Key = attest.KeyDigest(b.keys.key)
	}
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
