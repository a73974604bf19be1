package tpm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// FloorIndex is where the TPM keeps the floor of the security counter.
const FloorIndex = tpm2.TPMHandle(0x01805452)

// MaxCounter is the highest security counter. The floor is a set of bits, which a TPM only ever
// adds to: the first n bits stand for n. (A TPM's own counters start where they like, so that no
// signature made elsewhere could name their value.)
const MaxCounter = 64

// mask is how a TPM holds a counter.
func mask(counter uint64) uint64 {
	if counter >= MaxCounter {
		return ^uint64(0)
	}
	return 1<<counter - 1
}

// floorPublic is the floor's index, the same on each box, so that a signature made once names it.
func floorPublic(written bool) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: FloorIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{NT: tpm2.TPMNTBits, AuthRead: true, AuthWrite: true, NoDA: true, Written: written},
	}
}

func floorHandle() (tpm2.NamedHandle, error) {
	public := floorPublic(true)
	name, err := tpm2.NVName(&public)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	return tpm2.NamedHandle{Handle: FloorIndex, Name: *name}, nil
}

// Approval is the policy that a release's key signs: this value of PCR 11 and, unless Counter is
// zero, a floor no higher than Counter.
type Approval struct {
	PCR11   [32]byte
	Counter uint64
}

func pcrStep(p *tpm2.PolicyCalculator, pcr uint, value [32]byte) error {
	digest := sha256.Sum256(value[:])
	return tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: digest[:]}, Pcrs: selection(pcr)}.Update(p)
}

func counterOperand(counter uint64) tpm2.TPM2BOperand {
	return tpm2.TPM2BOperand{Buffer: binary.BigEndian.AppendUint64(nil, mask(counter))}
}

// Digest is the policy's digest, as a TPM computes it (TCG TPM 2.0 part 3, 23.7 and 23.9).
func (a Approval) Digest() ([]byte, error) {
	if a.Counter > MaxCounter {
		return nil, fmt.Errorf("security counter %d: at most %d", a.Counter, MaxCounter)
	}
	p, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	if err := pcrStep(p, PCRKernel, a.PCR11); err != nil {
		return nil, err
	}
	if a.Counter > 0 {
		index, err := floorHandle()
		if err != nil {
			return nil, err
		}
		if err := (tpm2.PolicyNV{NVIndex: index, OperandB: counterOperand(a.Counter), Operation: tpm2.TPMEOUnsignedLE}).Update(p); err != nil {
			return nil, err
		}
	}
	return p.Hash().Digest, nil
}

// Sign is the release's signature over the policy: RSA PKCS #1 v1.5 with SHA-256. It needs no
// TPM and is made where the release is built.
func (a Approval) Sign(key crypto.Signer) ([]byte, error) {
	if _, ok := key.Public().(*rsa.PublicKey); !ok {
		return nil, fmt.Errorf("a policy's key is RSA, not %T", key.Public())
	}
	policy, err := a.Digest()
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(policy) // and no policyRef
	return key.Sign(rand.Reader, digest[:], crypto.SHA256)
}

// Bounds of a signature file.
const (
	maxSignatures = 16 << 10
	maxEntries    = 16
)

// entry is one signed policy, in the words of systemd-measure; counter is ours.
type entry struct {
	PCRs        []uint `json:"pcrs"`
	Fingerprint string `json:"pkfp"` // SHA-256 of the public key's DER, hexadecimal
	Policy      string `json:"pol"`  // hexadecimal
	Signature   []byte `json:"sig"`
	Counter     uint64 `json:"counter,omitempty"`
}

// Signatures is what a release says of PCR 11: the content of a UKI's section .pcrsig.
type Signatures struct {
	entries []entry
}

// SignPolicy makes the signature file of a release with that PCR 11: the content of the section
// .pcrsig, in the form of systemd-measure. With a counter the TPM keeps the state's key when its
// floor is above it; zero leaves the floor out.
func SignPolicy(key crypto.Signer, pcr11 [32]byte, counter uint64) ([]byte, error) {
	a := Approval{PCR11: pcr11, Counter: counter}
	policy, err := a.Digest()
	if err != nil {
		return nil, err
	}
	sig, err := a.Sign(key)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	fp := sha256.Sum256(der)
	return json.Marshal(map[string][]entry{"sha256": {{
		PCRs: []uint{PCRKernel}, Fingerprint: hex.EncodeToString(fp[:]), Policy: hex.EncodeToString(policy), Signature: sig, Counter: counter,
	}}})
}

// ParseSignatures reads a signature file: at most 16 KiB and 16 entries. Entries of other PCRs
// and other banks are passed over.
func ParseSignatures(b []byte) (*Signatures, error) {
	if len(b) > maxSignatures {
		return nil, fmt.Errorf("the policy's signatures: %d bytes, at most %d", len(b), maxSignatures)
	}
	var file struct {
		SHA256 []entry `json:"sha256"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("the policy's signatures: %w", err)
	}
	if len(file.SHA256) > maxEntries {
		return nil, fmt.Errorf("the policy's signatures: %d entries, at most %d", len(file.SHA256), maxEntries)
	}
	out := &Signatures{}
	for _, e := range file.SHA256 {
		if len(e.PCRs) != 1 || e.PCRs[0] != PCRKernel || e.Counter > MaxCounter || len(e.Signature) > 512 || len(e.Policy) != 64 {
			continue
		}
		out.entries = append(out.entries, e)
	}
	if len(out.entries) == 0 {
		return nil, errors.New("the policy's signatures: none for PCR 11")
	}
	return out, nil
}

// ParseKey reads a release's public key for policies: RSA of 2048 to 4096 bits, as PEM or DER.
func ParseKey(b []byte) (*rsa.PublicKey, error) {
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	if len(b) > 1<<10 {
		return nil, errors.New("the release's key is too long")
	}
	any, err := x509.ParsePKIXPublicKey(bytes.TrimSpace(b))
	if err != nil {
		return nil, fmt.Errorf("the release's key: %w", err)
	}
	key, ok := any.(*rsa.PublicKey)
	if !ok || key.N.BitLen() < 2048 || key.N.BitLen() > 4096 || key.E != 65537 {
		return nil, errors.New("the release's key is not RSA of 2048 to 4096 bits with exponent 65537")
	}
	return key, nil
}

// keyPublic is the release's key as a TPM names it.
func keyPublic(key *rsa.PublicKey) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: tpm2.TPMKeyBits(key.N.BitLen())}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()}),
	}
}

// sealPolicy is what a sealed key asks for: a policy that the release's key has signed, and PCR 7
// as it is given here.
func sealPolicy(key *rsa.PublicKey, pcr7 [32]byte) ([]byte, error) {
	p, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	public := keyPublic(key)
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return nil, err
	}
	if err := (tpm2.PolicyAuthorize{KeySign: *name}).Update(p); err != nil {
		return nil, err
	}
	if err := pcrStep(p, PCRSecureBoot, pcr7); err != nil {
		return nil, err
	}
	return p.Hash().Digest, nil
}
