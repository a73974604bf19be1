package boot

import (
	"context"
	"encoding/json"
)

// Sealer keeps STATE's key so that only this box, in a state that its owner accepts, gets
// it back. What Seal returns is stored in STATE's own LUKS2 header, as a token of type
// "tributary-" + Name: it is written and destroyed together with the volume, survives a
// reinstalled system, and needs no partition of its own.
type Sealer interface {
	// Name is stable: it is in the header.
	Name() string
	// Seal wraps the key. An error means that this sealer cannot serve on this box (no
	// TPM); the next is asked.
	Seal(ctx context.Context, key []byte) (json.RawMessage, error)
	// Unseal gives the key back.
	Unseal(ctx context.Context, sealed json.RawMessage) ([]byte, error)
}

// sealers are asked in order; the last always serves.
func (b *booter) sealers() []Sealer {
	return append(b.cfg.Sealers[:len(b.cfg.Sealers):len(b.cfg.Sealers)], fileSealer{})
}

// fileSealer seals nothing: the key stands in the header as it is. It is for boxes without a
// TPM, and raises state-key-unsealed. What is gained is that one overwritten header makes
// the whole disk unreadable (factory reset), and that a TPM can seal the same key later.
type fileSealer struct{}

func (fileSealer) Name() string { return "file" }

func (fileSealer) Seal(_ context.Context, key []byte) (json.RawMessage, error) {
	return json.Marshal(key)
}

func (fileSealer) Unseal(_ context.Context, sealed json.RawMessage) (key []byte, err error) {
	return key, json.Unmarshal(sealed, &key)
}
