package boot

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/boot/luks"
)

// How STATE's key comes into the TPM (decision 061). A new STATE is opened by a key that stands in
// its own header. Once the box has enrolled, the agent makes another key, gives it to the core
// in escrow, and then hands it to process 1 (escrow): it opens STATE too, and the header holds
// it sealed by the TPM, beside what is needed to get it back from the core. The next start opens
// STATE by the TPM, and only that destroys the key that stood in the open.

// keyring is what is known of STATE's key.
type keyring struct {
	node   string    // STATE's partition
	source string    // what gave the key in this start: a Sealer's name, or ""
	unfit  string    // why that is not the TPM
	locked *Recovery // STATE is shut, and the core can open it
	given  bool      // the core has the key that the TPM gives at the next start
	closed bool      // the TPM gives nothing any more in this start, though STATE is not open
	id     string    // the number of the token that gave it
	key    []byte    // the one that the TPM keeps: process 1 seals it for what is foretold

	mu sync.Mutex // of those who change the header after the start
	// run stands in for what runs programs, where this process is not the first.
	run func(ctx context.Context, stdin []byte, argv ...string) (out string, code int, err error)
}

// Recovery is what a box needs to get STATE's key back from the core. It stands in STATE's
// header, in the open: nothing in it is secret.
type Recovery struct {
	Device string `json:"device"`
	// Parents are https://host:port, the best first; Root is the SHA-256 of the root's
	// certificate, by which the core is known.
	Parents []string `json:"parents"`
	Root    []byte   `json:"root"`
	// Why is the TPM's word on this start; it stands in memory's file alone.
	Why string `json:"why,omitempty"`
}

func (r *Recovery) check() error {
	if len(r.Device) != 13 || len(r.Root) != 32 || len(r.Parents) == 0 || len(r.Parents) > 16 {
		return errors.New("the recovery is not of a device, a root and its parents")
	}
	return nil
}

// token is a LUKS2 token of ours: what a Sealer made of the volume's key, or a Recovery.
type token struct {
	Type     string          `json:"type"`
	Keyslots []string        `json:"keyslots"`
	Sealed   json.RawMessage `json:"sealed"`

	id string
}

const (
	tokenPrefix   = "tributary-"
	tokenFile     = tokenPrefix + "file"
	tokenTPM      = tokenPrefix + "tpm2"
	tokenRecovery = tokenPrefix + "recovery"
)

// ours reads the tokens that are this system's.
func ours(ids []string, texts []json.RawMessage) (out []token) {
	for i, text := range texts {
		var t token
		if err := json.Unmarshal(text, &t); err != nil || !strings.HasPrefix(t.Type, tokenPrefix) {
			continue
		}
		t.id = ids[i]
		out = append(out, t)
	}
	return out
}

func find(tokens []token, kind string) (out []token) {
	for _, t := range tokens {
		if t.Type == kind {
			out = append(out, t)
		}
	}
	return out
}

// tidy says what to destroy in a header once STATE is open: a key that stood in the open when
// the TPM gave its own, or what was sealed in vain when it gave none. The TPM's other tokens stay:
// a release on trial may come back, to another PCR 7 (foretell drops them).
func tidy(source string, tokens []token, slots []string) (ids, kill []string) {
	var keep []string // slots
	for _, t := range tokens {
		if gone := source == "tpm2" && t.Type == tokenFile || source == "file" && (t.Type == tokenTPM || t.Type == tokenRecovery); gone {
			ids = append(ids, t.id)
		} else if t.Type == tokenPrefix+source {
			keep = append(keep, t.Keyslots...)
		}
	}
	if len(keep) == 0 {
		return nil, nil // not understood: nothing is destroyed
	}
	for _, s := range slots {
		if !slices.Contains(keep, s) {
			kill = append(kill, s)
		}
	}
	return ids, kill
}

// newStateKey makes STATE's first key, and what keeps it.
func (b *booter) newStateKey(ctx context.Context) (key []byte, keep func() error, err error) {
	key = make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, nil, err
	}
	s := fileSealer{}
	sealed, err := s.Seal(ctx, key)
	if err != nil {
		return nil, nil, err
	}
	b.opened(ctx, s.Name())
	return key, func() error {
		return b.importToken(ctx, token{Type: tokenFile, Keyslots: []string{"0"}, Sealed: sealed})
	}, nil
}

// stateKey goes through the tokens of STATE's header until one yields the key.
func (b *booter) stateKey(ctx context.Context) ([]byte, error) {
	tokens, _, err := b.header(ctx)
	if err != nil {
		return nil, err
	}
	var faults []error
	for _, s := range b.sealers() {
		for _, t := range find(tokens, tokenPrefix+s.Name()) {
			key, err := s.Unseal(ctx, t.Sealed)
			if err == nil {
				b.opened(ctx, s.Name())
				b.keys.id = t.id
				if s.Name() == "tpm2" {
					b.keys.key = bytes.Clone(key)
				}
				return key, nil
			}
			faults = append(faults, fmt.Errorf("%s: %w", s.Name(), err))
			b.keys.unfit = err.Error()
			b.say("STATE's key does not come from %s: %v", s.Name(), err)
		}
	}
	for _, t := range find(tokens, tokenRecovery) {
		var r Recovery
		if err := errors.Join(json.Unmarshal(t.Sealed, &r), r.check()); err != nil {
			faults = append(faults, err)
			continue
		}
		b.lock(&r, errors.Join(faults...))
	}
	return nil, errors.Join(append(faults, errors.New("no token of STATE's header yields its key"))...)
}

// sealers are asked in order.
func (b *booter) sealers() []Sealer {
	if b.cfg.TPM == nil {
		return []Sealer{fileSealer{}}
	}
	return []Sealer{b.cfg.TPM, fileSealer{}}
}

// lock notes that the core is to be asked.
func (b *booter) lock(r *Recovery, why error) {
	b.keys.locked = r
	r.Why = why.Error()
	text, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(b.run(recoveryFile), text, 0o600)
	}
	if err != nil {
		b.say("%v", err)
	}
	b.warn(lockedWarning(why.Error()))
}

// recoveryFile is where the child that asks the core finds its Recovery.
const recoveryFile = "recovery.json"

func lockedWarning(why string) api.Warning {
	return api.Warning{Name: "state-locked", Severity: api.Critical,
		Message: "this box waits: its TPM does not give the key of STATE, and the core has it in escrow (" + why + ")",
		Remedy:  "if the change of the firmware was meant, approve it: edgectl device unlock-state NAME"}
}

// opened notes what gave the key, and warns when that is not the TPM.
func (b *booter) opened(ctx context.Context, by string) {
	b.keys.source = by
	if by == "tpm2" {
		b.keys.unfit = ""
		return
	}
	w := api.Warning{Name: "state-key-unsealed", Severity: api.Degraded,
		Message: "the key of this box's encrypted state lies beside it on the disk: who takes the disk can read it",
		Remedy:  "use a box with a TPM 2.0, switch its TPM on in the firmware, or accept it for this site"}
	if b.cfg.TPM != nil {
		err := b.cfg.TPM.Fit(ctx)
		switch {
		case b.keys.unfit != "":
			w.Message += " (" + b.keys.unfit + ")"
		case err != nil:
			b.keys.unfit = err.Error()
			w.Message += " (" + b.keys.unfit + ")"
		default:
			w.Remedy = "it is sealed to the TPM by the start that follows the box's enrolment; restart it"
		}
	}
	b.warn(w)
}

// shut ends unsealing for this start. A box whose TPM does not obey goes on without STATE if
// that was opened by the TPM: what comes later could have its key.
func (b *booter) shut(ctx context.Context) error {
	if b.cfg.TPM == nil {
		return nil
	}
	err := b.cfg.TPM.Shut(ctx)
	if err != nil && b.keys.source != "tpm2" {
		b.say("the TPM is not shut: %v", err) // nothing in it is of worth yet
		return nil
	}
	return err
}

// settleKey destroys in the header what is of no use any more. A fault is met again by the next start.
func (b *booter) settleKey(ctx context.Context) {
	tokens, slots, err := b.header(ctx)
	if err != nil {
		b.say("STATE's header: %v", err)
		return
	}
	ids, kill := tidy(b.keys.source, tokens, slots)
	if err := b.destroy(ctx, ids, kill); err != nil {
		b.say("STATE's header: %v", err)
	} else if len(kill) > 0 && b.keys.source == "tpm2" {
		b.say("STATE's key is in the TPM; the one that stood in the header is destroyed")
	}
}

func (b *booter) destroy(ctx context.Context, ids, kill []string) error {
	for _, slot := range kill {
		if err := b.cryptsetup(ctx, nil, "luksKillSlot", "--batch-mode", b.keys.node, slot); err != nil {
			return err
		}
	}
	for _, id := range ids {
		if err := b.cryptsetup(ctx, nil, "token", "remove", "--token-id", id, b.keys.node); err != nil {
			return err
		}
	}
	return nil
}

func (b *booter) importToken(ctx context.Context, t token) error {
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return b.cryptsetup(ctx, text, "token", "import", "--json-file", "-", b.keys.node)
}

// header reads tokens and used slots itself, or has cryptsetup mend a header of which a copy is
// torn first.
func (b *booter) header(ctx context.Context) (tokens []token, slots []string, err error) {
	h, err := readHeader(b.keys.node)
	if err != nil {
		b.say("%s: %v; cryptsetup is asked", b.keys.node, err)
		if err := b.mend(ctx, b.keys.node); err != nil {
			return nil, nil, err
		}
		if h, err = readHeader(b.keys.node); err != nil {
			return nil, nil, err
		}
	}
	return ours(h.TokenIDs(), h.Tokens()), h.Slots(), nil
}

func readHeader(node string) (*luks.Header, error) {
	f, err := os.Open(node)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return luks.Read(f)
}

// opens tells whether a key opens STATE.
func (b *booter) opens(key []byte) error {
	f, err := os.Open(b.keys.node)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	h, err := luks.Read(f)
	if err != nil {
		return err
	}
	_, err = h.Open(f, b.keys.node, size, key)
	return err
}

// escrow makes a key that the core has in escrow the one that the TPM keeps. A cut leaves the
// old key good, and what was begun is destroyed by the next start.
func (b *booter) escrow(ctx context.Context, key []byte, r *Recovery) error {
	b.keys.mu.Lock()
	defer b.keys.mu.Unlock()
	if err := r.check(); err != nil {
		return err
	}
	if b.cfg.TPM == nil {
		return ErrNoTPM
	}
	if !b.state || b.keys.source != "file" || b.keys.given || len(key) != keySize {
		return errors.New("STATE's key is not one that waits to be sealed")
	}
	tokens, slots, err := b.header(ctx)
	if err != nil {
		return err
	}
	ids, kill := tidy(b.keys.source, tokens, slots) // what an earlier try left
	if err := b.destroy(ctx, ids, kill); err != nil {
		return err
	}
	old := find(tokens, tokenFile)
	if len(old) != 1 {
		return fmt.Errorf("STATE's header has %d open keys, not one", len(old))
	}
	oldKey, err := fileSealer{}.Unseal(ctx, old[0].Sealed)
	if err != nil {
		return err
	}
	sealed, err := b.cfg.TPM.Seal(ctx, key)
	if err != nil {
		return err
	}
	slot := freeSlot(old[0].Keyslots)
	if err := b.addKey(ctx, oldKey, key, slot); err != nil {
		return err
	}
	recovery, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// The TPM's last: it never stands without the way back.
	for _, t := range []token{{Type: tokenRecovery, Sealed: recovery}, {Type: tokenTPM, Sealed: sealed}} {
		t.Keyslots = []string{slot}
		if err := b.importToken(ctx, t); err != nil {
			return err
		}
	}
	b.keys.given, b.keys.key = true, bytes.Clone(key)
	b.say("the core has STATE's key in escrow, and the TPM keeps it from the next start on")
	return nil
}

func freeSlot(used []string) string {
	if slices.Contains(used, "0") {
		return "1"
	}
	return "0"
}

func (b *booter) addKey(ctx context.Context, old, key []byte, slot string) error {
	f, err := os.CreateTemp("", "key") // in memory, and shown to root alone
	if err != nil {
		return err
	}
	file := f.Name()
	defer os.Remove(file)
	if _, err := f.Write(old); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return b.cryptsetup(ctx, key, "luksAddKey", "--batch-mode", "--key-file", file, "--keyfile-size", fmt.Sprint(len(old)),
		"--new-keyfile-size", fmt.Sprint(len(key)), "--key-slot", slot, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha256", b.keys.node, "-")
}

// cryptsetup changes the header.
func (b *booter) cryptsetup(ctx context.Context, stdin []byte, args ...string) error {
	run := b.procs.run
	if b.keys.run != nil {
		run = b.keys.run
	}
	_, _, err := run(ctx, stdin, append([]string{"cryptsetup"}, args...)...)
	return err
}

// unlock takes STATE's key from what the core encrypted to this TPM, seals it to the box as it
// is now, proves that the TPM gives it back, and starts the box anew.
func (b *booter) unlock(ctx context.Context, blob, secret []byte) error {
	b.keys.mu.Lock()
	defer b.keys.mu.Unlock()
	if b.keys.locked == nil || b.cfg.TPM == nil {
		return errors.New("STATE does not wait for its key")
	}
	key, err := b.cfg.TPM.Activate(ctx, blob, secret)
	if err != nil {
		return err
	}
	defer clear(key)
	if err := b.opens(key); err != nil {
		return fmt.Errorf("what the core sent does not open STATE: %w", err)
	}
	sealed, err := b.cfg.TPM.Seal(ctx, key)
	if err != nil {
		return err
	}
	if !b.keys.closed { // else the next start shows it, or waits again
		again, err := b.cfg.TPM.Unseal(ctx, sealed)
		if err != nil {
			return fmt.Errorf("sealed anew, but not given back: %w", err)
		}
		if !bytes.Equal(again, key) {
			return errors.New("sealed anew, but another key is given back")
		}
		clear(again)
	}
	if err := b.reseal(ctx, sealed); err != nil {
		return err
	}
	err = b.cfg.TPM.Shut(ctx)
	b.ask(request{Do: doReboot, Reason: "STATE's key came back from the core and is sealed anew"})
	return err
}

// reseal puts the TPM's new token in the old one's place: the new first.
func (b *booter) reseal(ctx context.Context, sealed json.RawMessage) error {
	tokens, _, err := b.header(ctx)
	if err != nil {
		return err
	}
	back := find(tokens, tokenRecovery)
	if len(back) == 0 {
		return errors.New("STATE's header has lost its recovery")
	}
	if err := b.importToken(ctx, token{Type: tokenTPM, Keyslots: back[0].Keyslots, Sealed: sealed}); err != nil {
		return err
	}
	var ids []string
	for _, t := range find(tokens, tokenTPM) {
		ids = append(ids, t.id)
	}
	return b.destroy(ctx, ids, nil)
}
