package tpm

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/tpm/attest"
)

// Sealer keeps the state's key in the box's TPM. Once Shut was called, it gives no key any more
// in this start, and neither does the TPM to anybody else.
type Sealer struct {
	// Open gives the TPM; fs.ErrNotExist when the box has none.
	Open func() (*TPM, func() error, error)
	// SecureBoot says whether the firmware checks what it starts. Without that anything could
	// measure into PCR 11 what the release would have, and a sealed key were no safer than an open one.
	SecureBoot func() bool
	// Signatures and Key are the files that the running image brought: the sections .pcrsig and .pcrpkey.
	Signatures, Key string
	// Wait is how long the TPM's driver may take to come, in a start that loads drivers beside
	// other things: for a key that was sealed, and for one to seal when the firmware says by
	// Expected that it has a TPM. Zero does not wait.
	Wait     time.Duration
	Expected func() bool

	turn   sync.Mutex
	shut   bool // by Shut
	shells int  // by OpenShell
}

// token is what stands in the header of the state's volume.
type token struct {
	Version int    `json:"version"`
	Public  []byte `json:"public"`
	Private []byte `json:"private"`
	PCR7    []byte `json:"pcr7"`
	Release []byte `json:"release"` // the release's public key, DER; the TPM knows it by its name in the policy
}

const (
	tokenVersion = 1
	maxToken     = 8 << 10
)

// Name implements boot's Sealer.
func (s *Sealer) Name() string { return "tpm2" }

// Fit tells why this box cannot seal a key, or nil when it can.
func (s *Sealer) Fit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.SecureBoot == nil || !s.SecureBoot() {
		return errors.New("without Secure Boot a sealed key would be given to any system: switch it on in the firmware")
	}
	for _, path := range []string{s.Signatures, s.Key} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("the running image brought no policy: %w", err)
		}
	}
	return nil
}

// Seal wraps the key. That the TPM gives it back, the next start shows, or Unseal before Shut.
func (s *Sealer) Seal(ctx context.Context, key []byte) (json.RawMessage, error) {
	return s.wrap(ctx, key, func(t *TPM) ([32]byte, error) { return t.PCR(PCRSecureBoot) })
}

// SealTo is Seal for a PCR 7 that is yet to come.
func (s *Sealer) SealTo(ctx context.Context, key []byte, pcr7 [32]byte) (json.RawMessage, error) {
	return s.wrap(ctx, key, func(*TPM) ([32]byte, error) { return pcr7, nil })
}

func (s *Sealer) wrap(ctx context.Context, key []byte, pcr7 func(*TPM) ([32]byte, error)) (json.RawMessage, error) {
	if err := s.Fit(ctx); err != nil {
		return nil, err
	}
	var text json.RawMessage
	err := s.With(ctx, s.expected(), func(t *TPM) error {
		value, err := pcr7(t)
		if err != nil {
			return err
		}
		sealed, err := s.seal(t, key, value)
		if err == nil {
			text, err = sealed.marshal()
		}
		return err
	})
	return text, err
}

func (s *Sealer) expected() bool { return s.Expected != nil && s.Expected() }

// With lends the box's TPM, and waits for its driver if it is told to.
func (s *Sealer) With(ctx context.Context, wait bool, do func(*TPM) error) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	t, done, err := s.open(ctx, wait)
	if err != nil {
		return err
	}
	defer func() { _ = done() }()
	return do(t)
}

// open opens the TPM, or waits for it first.
func (s *Sealer) open(ctx context.Context, wait bool) (*TPM, func() error, error) {
	const step = 20 * time.Millisecond
	if wait {
		var end context.CancelFunc
		ctx, end = context.WithTimeout(ctx, s.Wait)
		defer end()
	}
	tick := time.NewTicker(step)
	defer tick.Stop()
	for {
		t, done, err := s.Open()
		if !wait || !errors.Is(err, fs.ErrNotExist) {
			return t, done, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, err
		case <-tick.C:
		}
	}
}

func (s *Sealer) seal(t *TPM, key []byte, pcr7 [32]byte) (*token, error) {
	pem, err := readSmall(s.Key)
	if err != nil {
		return nil, fmt.Errorf("the release's key: %w", err)
	}
	release, err := ParseKey(pem)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(release)
	if err != nil {
		return nil, err
	}
	if err := t.RaiseFloor(0); err != nil {
		return nil, err
	}
	sealed, err := t.Seal(key, release, pcr7)
	if err != nil {
		return nil, err
	}
	return &token{Version: tokenVersion, Public: sealed.Public, Private: sealed.Private, PCR7: pcr7[:], Release: der}, nil
}

// Unseal gives the key back.
func (s *Sealer) Unseal(ctx context.Context, sealed json.RawMessage) (key []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.With(ctx, true, func(t *TPM) error {
		key, err = s.unseal(t, sealed)
		return err
	})
	return key, err
}

func (s *Sealer) unseal(t *TPM, sealed json.RawMessage) ([]byte, error) {
	k, err := parseToken(sealed)
	if err != nil {
		return nil, err
	}
	// The TPM would say so too, after a while: of several tokens all but one are for other firmware keys.
	if now, err := t.PCR(PCRSecureBoot); err == nil && now != [32]byte(k.PCR7) {
		return nil, otherFirmware(now, [32]byte(k.PCR7))
	}
	release, err := ParseKey(k.Release)
	if err != nil {
		return nil, err
	}
	file, err := readSmall(s.Signatures)
	if err != nil {
		return nil, fmt.Errorf("the policy's signatures: %w", err)
	}
	sigs, err := ParseSignatures(file)
	if err != nil {
		return nil, err
	}
	return t.Unseal(&Sealed{Public: k.Public, Private: k.Private, PCR7: [32]byte(k.PCR7)}, release, sigs)
}

// Shut makes PCR 11 a value that no release signs: whoever comes later in this start gets no
// key. On a box without a TPM there is nothing to shut.
func (s *Sealer) Shut(ctx context.Context) error {
	if s.shut {
		return nil
	}
	err := s.With(ctx, s.expected(), func(t *TPM) error { return t.Extend(PCRKernel, []byte(attest.StateOpened)) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s.shut = err == nil
	return err
}

// OpenShell measures that a person got a root shell: from then on the system is what that person
// made of it, and is not attested until the next start. Without a TPM there is nothing to measure.
func (s *Sealer) OpenShell(ctx context.Context) error {
	err := s.With(ctx, s.expected(), func(t *TPM) error { return t.Extend(PCRKernel, []byte(attest.ShellOpened)) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		s.shells++
	}
	return err
}

// Quote answers a challenge with the TPM's word on PCRs 7 and 11, and with the keys by which the
// core knows this TPM. events is the firmware's log (EventLog).
func (s *Sealer) Quote(ctx context.Context, nonce [attest.NonceSize]byte, events string) (e *attest.Evidence, p Public, err error) {
	var log [][]byte
	if b, readErr := os.ReadFile(events); readErr == nil { // without a log the core can only compare
		if log, err = ParseEventLog(b, PCRKernel); err != nil {
			return nil, p, err
		}
		if s.shut {
			log = append(log, attest.Event([]byte(attest.StateOpened)))
		}
		for range s.shells {
			log = append(log, attest.Event([]byte(attest.ShellOpened)))
		}
	}
	err = s.With(ctx, false, func(t *TPM) error {
		if p, err = t.Public(); err == nil {
			e, err = t.Quote(nonce, []uint{PCRSecureBoot, PCRKernel}, log)
		}
		return err
	})
	return e, p, err
}

func (k *token) marshal() (json.RawMessage, error) { return json.Marshal(k) }

// parseToken reads a token of at most 8 KiB. It stands on an open disk: anything may be in it,
// and the TPM is what judges it.
func parseToken(b []byte) (*token, error) {
	if len(b) > maxToken {
		return nil, fmt.Errorf("a sealed key of %d bytes: at most %d", len(b), maxToken)
	}
	var k token
	if err := json.Unmarshal(b, &k); err != nil {
		return nil, fmt.Errorf("the sealed key: %w", err)
	}
	if k.Version != tokenVersion {
		return nil, fmt.Errorf("the sealed key has form %d, known is %d", k.Version, tokenVersion)
	}
	if len(k.PCR7) != 32 || len(k.Public) == 0 || len(k.Public) > 1<<10 || len(k.Private) == 0 || len(k.Private) > 1<<10 || len(k.Release) > 1<<10 {
		return nil, errors.New("the sealed key's parts have not the sizes that they can have")
	}
	return &k, nil
}

// readSmall reads a file of at most 16 KiB.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSignatures+1))
	if err == nil && len(b) > maxSignatures {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxSignatures)
	}
	return b, err
}
