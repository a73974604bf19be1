package tpm

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"tributary.dev/tributary/pkg/tpm/attest"
)

// attestationTemplate is a key that signs nothing but what the TPM itself has made: restricted,
// and bound to this TPM. It is derived from the TPM's endorsement seed, so that it is the same
// each time, needs no storing, and outlives a TPM that was cleared: a box whose firmware lost its
// settings is still known.
var attestationTemplate = tpm2.TPMTPublic{
	Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		CurveID: tpm2.TPMECCNistP256,
		Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
	}),
	Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	}),
}

func (t *TPM) attestationKey() (*tpm2.CreatePrimaryResponse, func(), error) {
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(attestationTemplate)}.Execute(t.t)
	if err != nil {
		return nil, nil, fmt.Errorf("the attestation key: %w", err)
	}
	return rsp, func() { t.flush(rsp.ObjectHandle) }, nil
}

// AttestationKey is the public part of the key that signs this box's quotes: the core keeps it
// when the box is enrolled.
func (t *TPM) AttestationKey() (*ecdsa.PublicKey, error) {
	key, done, err := t.attestationKey()
	if err != nil {
		return nil, err
	}
	defer done()
	public, err := key.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	return ecdsaKey(public)
}

// Quote answers a challenge: the TPM signs the nonce and those PCRs. log is what went into PCR 11.
func (t *TPM) Quote(nonce [attest.NonceSize]byte, pcrs []uint, log [][]byte) (*attest.Evidence, error) {
	pcrs = slices.Compact(slices.Sorted(slices.Values(pcrs)))
	if len(pcrs) == 0 || pcrs[len(pcrs)-1] >= 24 {
		return nil, errors.New("a quote is over some of the PCRs 0 to 23")
	}
	key, done, err := t.attestationKey()
	if err != nil {
		return nil, err
	}
	defer done()
	rsp, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: nonce[:]},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		PCRSelect:      selection(pcrs...),
	}.Execute(t.t)
	if err != nil {
		return nil, fmt.Errorf("the quote: %w", err)
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	der, err := signature(sig)
	if err != nil {
		return nil, err
	}
	e := &attest.Evidence{Quote: rsp.Quoted.Bytes(), Signature: der, Log: log}
	for _, n := range pcrs {
		v, err := t.PCR(n)
		if err != nil {
			return nil, err
		}
		e.PCRs = append(e.PCRs, attest.PCR{Index: n, Value: v[:]})
	}
	return e, nil
}
