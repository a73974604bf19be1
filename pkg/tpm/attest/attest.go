// Package attest answers: does this box, now, run a system that its release has signed?
//
// The core asks with a nonce; the box's TPM signs it together with the digest of its PCRs, and
// the box sends the PCRs' values and the log of what went into PCR 11. Judging is pure: no TPM,
// no clock, no network. The key that signs is the box's attestation key, which the core keeps
// since the box was enrolled.
package attest

// PCRKernel is where systemd-stub measures the parts of a unified kernel image.
const PCRKernel = 11

// StateOpened is what a box measures into PCR 11 when it has taken the state's key out.
const StateOpened = "tributary:state-opened"
