package boot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"tributary.dev/tributary/pkg/tpm/attest"
)

// How STATE opens under firmware keys that are yet to come (decision 063). Before anything changes
// PCR 7 (a key appended to the firmware's lists, a release that another key signed), somebody who
// knows what it will be has the key sealed for that too: a further token beside the present one.
// All stay, since a trial may come back, until it is said anew what may come.

// maxForetold bounds the values of PCR 7 that STATE is sealed to: LUKS2's header has room for little more.
const maxForetold = 6

// Foretold is how STATE is sealed.
type Foretold struct {
	// Sealed: the TPM gives STATE's key, or will at the next start.
	Sealed bool `json:"sealed"`
	// PCR7 are the values for which it does.
	PCR7 [][]byte `json:"pcr7,omitempty"`
	// Word is the TPM's own on what was asked for: a quote whose nonce is attest.Foretold(values).
	Word *Quoted `json:"word,omitempty"`
}

// foretell seals STATE's key to each of these values of PCR 7, and destroys what was sealed to others, but for what opened
// STATE in this start. None given: it only tells how things stand. Each step is good at a cut.
func (b *booter) foretell(ctx context.Context, values [][]byte) (*Foretold, error) {
	b.keys.mu.Lock()
	defer b.keys.mu.Unlock()
	if len(values) > maxForetold {
		return nil, fmt.Errorf("%d values of PCR 7: at most %d", len(values), maxForetold)
	}
	for _, v := range values {
		if len(v) != 32 {
			return nil, errors.New("a value of PCR 7 has 32 bytes")
		}
	}
	if !b.state {
		return nil, errors.New("STATE is not open")
	}
	out := &Foretold{Sealed: b.keys.source == "tpm2" || b.keys.given}
	if out.Sealed && len(values) > 0 {
		if err := b.sealTo(ctx, values); err != nil {
			return nil, err
		}
	}
	tokens, _, err := b.header(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range find(tokens, tokenTPM) {
		out.PCR7 = append(out.PCR7, t.pcr7())
	}
	if len(values) > 0 {
		q, err := b.cfg.TPM.Quote(ctx, attest.Foretold(values))
		if err != nil {
			return nil, err
		}
		out.Word = &q
	}
	return out, nil
}

func (b *booter) sealTo(ctx context.Context, values [][]byte) error {
	tokens, _, err := b.header(ctx)
	if err != nil {
		return err
	}
	back := find(tokens, tokenRecovery)
	if len(back) == 0 || len(b.keys.key) == 0 {
		return errors.New("STATE's header has lost its recovery, or its key is not known: nothing is sealed anew")
	}
	known := map[string]bool{}
	var gone []string
	for _, t := range find(tokens, tokenTPM) {
		value := t.pcr7()
		wanted := slices.ContainsFunc(values, func(v []byte) bool { return bytes.Equal(v, value) })
		if wanted && !known[string(value)] {
			known[string(value)] = true
		} else if t.id != b.keys.id && b.keys.source == "tpm2" {
			gone = append(gone, t.id)
		}
	}
	for _, v := range values { // the new ones first
		if known[string(v)] {
			continue
		}
		known[string(v)] = true
		sealed, err := b.cfg.TPM.SealTo(ctx, b.keys.key, [32]byte(v))
		if err != nil {
			return err
		}
		if err := b.importToken(ctx, token{Type: tokenTPM, Keyslots: back[0].Keyslots, Sealed: sealed}); err != nil {
			return err
		}
		b.say("STATE opens at PCR 7 %x too", v)
	}
	return b.destroy(ctx, gone, nil)
}

// pcr7 is the value to which a TPM's token was sealed, by its own word; nil where it has none.
func (t token) pcr7() []byte {
	var s struct {
		PCR7 []byte `json:"pcr7"`
	}
	if json.Unmarshal(t.Sealed, &s) != nil {
		return nil
	}
	return s.PCR7
}
