package boot

import (
	"context"
	"encoding/json"
	"errors"
)

// Sealer keeps STATE's key so that only this box, in a state that its owner accepts, gets
// it back. What Seal returns is stored in STATE's own LUKS2 header, as a token of type
// "tributary-" + Name: it is written and destroyed together with the volume, survives a
// reinstalled system, and needs no partition of its own.
type Sealer interface {
	// Name is stable: it is in the header.
	Name() string
	// Seal wraps the key. An error means that this sealer cannot serve on this box.
	Seal(ctx context.Context, key []byte) (json.RawMessage, error)
	// Unseal gives the key back.
	Unseal(ctx context.Context, sealed json.RawMessage) ([]byte, error)
}

// TPM is the box's own, which seals, and by which the core knows the box again.
type TPM interface {
	Sealer
	// SealTo is Seal for another value of PCR 7 than the present one.
	SealTo(ctx context.Context, key []byte, pcr7 [32]byte) (json.RawMessage, error)
	// Fit tells why this box cannot seal; nil when it can. ErrNoTPM when it has none.
	Fit(ctx context.Context) error
	// OpenShell measures that a person gets a root shell.
	OpenShell(ctx context.Context) error
	// Shut ends unsealing for this start, for everybody. Without a TPM it does nothing.
	Shut(ctx context.Context) error
	// Quote answers a challenge of 32 bytes.
	Quote(ctx context.Context, nonce []byte) (Quoted, error)
	// Activate opens what the core encrypted to this TPM.
	Activate(ctx context.Context, blob, secret []byte) ([]byte, error)
	// Floor is the lowest security counter of a release that this TPM opens STATE for;
	// RaiseFloor makes it higher.
	Floor(ctx context.Context) (uint64, error)
	// Identity gives the public part (SPKI, DER) of the key that the box was born with, and its
	// signature (ECDSA, ASN.1) over a SHA-256 digest; none is asked for with nil.
	Identity(ctx context.Context, digest []byte) (public, signature []byte, err error)
	RaiseFloor(ctx context.Context, counter uint64) error
}

// ErrNoTPM is for what only a TPM can do.
var ErrNoTPM = errors.New("this box has no TPM 2.0 that the system may use")

// Quoted is a TPM's answer to a challenge, and what the core knows it by (TPMT_PUBLIC).
type Quoted struct {
	Evidence    []byte `json:"evidence"`
	Attestation []byte `json:"attestation"`
	Endorsement []byte `json:"endorsement"`
	// Sealed tells what keeps STATE's key: "tpm2" or "file"; empty while STATE is shut.
	Sealed string `json:"sealed"`
	// Unfit tells why the key is not sealed, on a box that could be otherwise; Ready, that it
	// will be once the core has its escrow.
	Unfit string `json:"unfit,omitempty"`
	Ready bool   `json:"ready,omitempty"`
	// Key is the digest of the key that the TPM keeps (attest.KeyDigest).
	Key []byte `json:"key,omitempty"`
}

// fileSealer seals nothing: the key stands in the header as it is. It is for boxes without a
// TPM, and raises state-key-unsealed. What is gained is that one overwritten header makes
// the whole disk unreadable (factory reset), and that a TPM can seal a key later.
type fileSealer struct{}

func (fileSealer) Name() string { return "file" }

func (fileSealer) Seal(_ context.Context, key []byte) (json.RawMessage, error) {
	return json.Marshal(key)
}

func (fileSealer) Unseal(_ context.Context, sealed json.RawMessage) (key []byte, err error) {
	return key, json.Unmarshal(sealed, &key)
}
