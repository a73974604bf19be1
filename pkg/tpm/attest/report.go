package attest

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
}

// Reply is the core's answer to a Report, on one line.
type Reply struct {
	Escrowed bool `json:"escrowed,omitempty"`
	// Refused is why the evidence is not believed.
	Refused string `json:"refused,omitempty"`
}

// MaxReport bounds a report in bytes.
const MaxReport = 64 << 10

// EscrowName is the name under which a state's key is encrypted to the core.
const EscrowName = "state-key"
