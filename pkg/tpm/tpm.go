// Package tpm answers: how does a box keep a key that only it, running a system that its
// release has signed, gets back, and how does it prove what it runs?
//
// The state's key is sealed under the TPM's storage key, to a policy of two parts: PCR 7 (the
// firmware's Secure Boot keys and settings) as it was when it was sealed, and whatever value of
// PCR 11 (the parts of the unified kernel image) the release's key has signed. So an update
// needs no new sealing: it brings the signature of its own PCR 11. A signature may also name
// the release's security counter; then the TPM compares it with the floor that it keeps itself.
//
// What the core needs to judge a quote stands in the package attest, which talks to no TPM.
package tpm

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"tributary.dev/tributary/pkg/tpm/attest"
)

// Device is the kernel's TPM 2.0 with its resource manager.
const Device = "/dev/tpmrm0"

// The PCRs that a sealed key depends on (UEFI's and systemd-stub's use of them).
const (
	PCRSecureBoot = 7
	PCRKernel     = attest.PCRKernel
)

// ErrRefused means that the TPM, or a check before it, keeps the key: this is another box, or it
// does not run what the key was sealed to.
var ErrRefused = errors.New("the TPM does not give the key")

// TPM is one open TPM. It is used from one goroutine at a time.
type TPM struct {
	t transport.TPM
}

// Open opens a device like Device. The error is fs.ErrNotExist when the box has no TPM.
func Open(device string) (*TPM, func() error, error) {
	if _, err := os.Stat(device); err != nil {
		return nil, nil, err
	}
	t, err := linuxtpm.Open(device)
	if err != nil {
		return nil, nil, err
	}
	return New(t), t.Close, nil
}

// New uses a TPM through that transport.
func New(t transport.TPM) *TPM { return &TPM{t: t} }

func selection(pcrs ...uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)}}}
}

// PCR reads one PCR's SHA-256 value.
func (t *TPM) PCR(n uint) (out [32]byte, err error) {
	rsp, err := tpm2.PCRRead{PCRSelectionIn: selection(n)}.Execute(t.t)
	if err != nil {
		return out, fmt.Errorf("PCR %d: %w", n, err)
	}
	if len(rsp.PCRValues.Digests) != 1 || len(rsp.PCRValues.Digests[0].Buffer) != len(out) {
		return out, fmt.Errorf("PCR %d has no SHA-256 value: switch the TPM's SHA-256 bank on in the firmware", n)
	}
	copy(out[:], rsp.PCRValues.Digests[0].Buffer)
	return out, nil
}

// Extend measures an event into a PCR, as image/uki.Extend foretells it.
func (t *TPM) Extend(n uint, event []byte) error {
	d := sha256.Sum256(event)
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(n), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: d[:]}}},
	}.Execute(t.t)
	if err != nil {
		return fmt.Errorf("PCR %d: %w", n, err)
	}
	return nil
}

// storageKey makes the TPM's storage root key (the TCG's ECC template): the same one each time,
// until the TPM is cleared.
func (t *TPM) storageKey() (*tpm2.CreatePrimaryResponse, func(), error) {
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t.t)
	if err != nil {
		return nil, nil, fmt.Errorf("the storage key: %w", err)
	}
	return rsp, func() { t.flush(rsp.ObjectHandle) }, nil
}

// flush gives a handle back. A failure costs room in the TPM until the next start, no more.
func (t *TPM) flush(h tpm2.TPMHandle) { _, _ = tpm2.FlushContext{FlushHandle: h}.Execute(t.t) }

// setBits is TPM2_NV_SetBits (TCG TPM 2.0 part 3, 31.10) with an empty password, which the
// library does not have.
func (t *TPM) setBits(index tpm2.TPMHandle, bits uint64) error {
	const noCode = 0
	cmd := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTSessions))
	cmd = binary.BigEndian.AppendUint32(cmd, 0) // the size, below
	cmd = binary.BigEndian.AppendUint32(cmd, 0x00000135)
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(index)) // who authorizes: the index itself
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(index))
	cmd = binary.BigEndian.AppendUint32(cmd, 9)
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(tpm2.TPMRSPW))
	cmd = append(cmd, 0, 0, 0, 0, 0) // no nonce, no attributes, an empty password
	cmd = binary.BigEndian.AppendUint64(cmd, bits)
	binary.BigEndian.PutUint32(cmd[2:], uint32(len(cmd)))
	rsp, err := t.t.Send(cmd)
	if err != nil {
		return err
	}
	if len(rsp) < 10 {
		return errors.New("the TPM's answer is cut short")
	}
	if code := tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:])); code != noCode {
		return code
	}
	return nil
}
