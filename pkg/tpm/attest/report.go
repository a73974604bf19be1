package attest

import "crypto/sha256"

// Report is what a box answers when the core asks: one JSON object on one line, of at most
// MaxReport bytes.
type Report struct {
	// Unable says why there is no evidence: no TPM, or no system of ours that has it.
	Unable string `json:"unable,omitempty"`
	// Evidence is an Evidence in CBOR; Attestation and Endorsement are the TPM's keys
	// (TPMT_PUBLIC).
	Evidence    []byte `json:"evidence,omitempty"`
	Attestation []byte `json:"attestation,omitempty"`
	Endorsement []byte `json:"endorsement,omitempty"`
	// Boot names this start of the box, as it reports it.
	Boot string `json:"boot,omitempty"`
	// Sealed is what keeps the key of the box's state: "tpm2" or "file"; Unfit is why it is not
	// the TPM.
	Sealed string `json:"sealed,omitempty"`
	Unfit  string `json:"unfit,omitempty"`
	// Escrow is a key of the state, encrypted to the core (identity.Seal under EscrowName). The
	// box uses it once the core says that it has it.
	Escrow []byte `json:"escrow,omitempty"`
	// Key is KeyDigest of the key that the TPM keeps: a core that has another in escrow, or none, asks for it again.
	Key []byte `json:"key,omitempty"`
	// Words are what the TPM said of PCR 7 before that changed, the oldest first; at most MaxWords.
	Words []Word `json:"words,omitempty"`
}

// Word is a TPM's own word on what PCR 7 may become of what it was: Evidence is a quote with the nonce Foretold(PCR7).
type Word struct {
	PCR7     [][]byte `json:"pcr7"`
	Evidence []byte   `json:"evidence"`
}

// MaxWords bounds what a report says of the past.
const MaxWords = 8

// KeyDigest is by which a key of a box's state is known without being told.
func KeyDigest(key []byte) []byte {
	d := sha256.Sum256(append([]byte("tributary: the key of a state\x00"), key...))
	return d[:]
}

// Reply is the core's answer to a Report, on one line.
type Reply struct {
	Escrowed bool `json:"escrowed,omitempty"`
	// Again: the core lacks the key that the box's TPM keeps; it asks once more, and the answer may bring it.
	Again bool `json:"again,omitempty"`
	// Refused is why the evidence is not believed.
	Refused string `json:"refused,omitempty"`
}

// MaxReport bounds a report in bytes.
const MaxReport = 64 << 10

// EscrowName is the name under which a state's key is encrypted to the core.
const EscrowName = "state-key"
