package api

import (
	"encoding/hex"
	"time"
)

// AttestSpec is what a tenant or a fleet wants to see of its devices' TPMs.
type AttestSpec struct {
	// Required: secrets that a device does not hold yet are given to it only while it is
	// attested. Without it, what TPMs show is for people alone.
	Required bool `json:"required,omitempty"`
	// Systems are values of PCR 11, 64 hex digits each, by a name for people: of systems that
	// devices were flashed with, besides those of Releases. build.json has it as pcr11.
	Systems map[string]string `json:"systems,omitempty"`
}

// Attestation is what the core makes of a device's TPM.
type Attestation struct {
	// Attested: its TPM, which the core knows, showed a system that the device may run, and the
	// firmware's keys that it had before.
	Attested bool `json:"attested"`
	// System is the name of what it runs: a Release or an entry of a fleet's attest.systems.
	System string `json:"system,omitempty"`
	// Message says why it is not attested.
	Message string     `json:"message,omitempty"`
	Time    *time.Time `json:"time,omitempty"`
	// PCR11 and PCR7 are what it showed, in hex digits.
	PCR11 string `json:"pcr11,omitempty"`
	PCR7  string `json:"pcr7,omitempty"`
	// Sealed is what keeps the key of the device's state: "tpm2", or "file" with the reason.
	Sealed string `json:"sealed,omitempty"`
	Unfit  string `json:"unfit,omitempty"`
	// Escrow: the core could give the key back.
	Escrow bool `json:"escrow,omitempty"`
	// Waiting stands while the device waits for that key: approve it with
	// `edgectl device unlock-state`.
	Waiting *AttestWaiting `json:"waiting,omitempty"`
}

// AttestWaiting is a device whose TPM does not give the key of its state.
type AttestWaiting struct {
	Since time.Time `json:"since"`
	// Message says why, in the device's words; System is what it runs, empty when unknown.
	Message string `json:"message,omitempty"`
	System  string `json:"system,omitempty"`
	PCR7    string `json:"pcr7,omitempty"`
	// Approved is until when a person's approval holds, and By whose it is.
	Approved *time.Time `json:"approved,omitempty"`
	By       string     `json:"by,omitempty"`
}

// maxSystems bounds AttestSpec.Systems.
const maxSystems = 64

// ParsePCR reads the value of a SHA-256 PCR: 64 hex digits.
func ParsePCR(text string) (v [32]byte, ok bool) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(v) {
		return v, false
	}
	return [32]byte(b), true
}

func validateAttest(a *AttestSpec, f *findings) {
	if a == nil {
		return
	}
	if len(a.Systems) > maxSystems {
		f.addf("spec.attest.systems", "name those in use", "%d systems, at most %d", len(a.Systems), maxSystems)
	}
	for _, name := range sortedKeys(a.Systems) {
		if _, ok := ParsePCR(a.Systems[name]); !ok {
			f.addf("spec.attest.systems."+name, "write pcr11 of the image's build.json", "%s is no value of PCR 11: 64 hex digits", quote(a.Systems[name]))
		}
	}
}
