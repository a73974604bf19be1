package tpm

import (
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// identityTemplate is the key that a box is born with: P-256, it signs what it is given, and it
// never leaves the TPM. As the attestation key it is derived from the endorsement seed: nothing
// is stored, and a box whose TPM was cleared is still itself. Since it signs anything, it can
// vouch for nothing that a TPM has made: that is the attestation key's, which is another.
var identityTemplate = tpm2.TPMTPublic{
	Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		CurveID: tpm2.TPMECCNistP256,
		Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
	}),
	Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	}),
}

func (t *TPM) identityKey() (*tpm2.CreatePrimaryResponse, *ecdsa.PublicKey, func(), error) {
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(identityTemplate)}.Execute(t.t)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("the identity key: %w", err)
	}
	done := func() { t.flush(rsp.ObjectHandle) }
	public, err := rsp.OutPublic.Contents()
	if err == nil {
		var key *ecdsa.PublicKey
		if key, err = ecdsaKey(public); err == nil {
			return rsp, key, done, nil
		}
	}
	done()
	return nil, nil, nil, err
}

// IdentityKey is the public part of the key that the box is born with.
func (t *TPM) IdentityKey() (*ecdsa.PublicKey, error) {
	_, key, done, err := t.identityKey()
	if err != nil {
		return nil, err
	}
	done()
	return key, nil
}

// SignIdentity signs a SHA-256 digest by that key: ECDSA, in ASN.1's form, as crypto/ecdsa gives it.
func (t *TPM) SignIdentity(digest []byte) ([]byte, error) {
	if len(digest) != 32 {
		return nil, errors.New("a SHA-256 digest has 32 bytes")
	}
	key, _, done, err := t.identityKey()
	if err != nil {
		return nil, err
	}
	defer done()
	rsp, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(t.t)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return signature(sig)
}

// signature is the form of ECDSA signatures outside of TPMs.
func signature(sig *tpm2.TPMSSignatureECC) ([]byte, error) {
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer)})
}
