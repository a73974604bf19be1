package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Public is a box's TPM as others know it: the key that signs its quotes and the key to which
// secrets for it are encrypted, each as the TPM writes it (TPMT_PUBLIC).
type Public struct {
	Attestation, Endorsement []byte
}

// maxPublic bounds a key as a TPM writes it.
const maxPublic = 512

// MaxCredential is the longest secret that one credential carries, in bytes.
const MaxCredential = 32

func (t *TPM) endorsementKey() (*tpm2.CreatePrimaryResponse, func(), error) {
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.ECCEKTemplate)}.Execute(t.t)
	if err != nil {
		return nil, nil, fmt.Errorf("the endorsement key: %w", err)
	}
	return rsp, func() { t.flush(rsp.ObjectHandle) }, nil
}

// Public reads both keys. They are the same at each start, and after the TPM was cleared.
func (t *TPM) Public() (p Public, err error) {
	for _, k := range []struct {
		make func() (*tpm2.CreatePrimaryResponse, func(), error)
		to   *[]byte
	}{{t.attestationKey, &p.Attestation}, {t.endorsementKey, &p.Endorsement}} {
		rsp, done, err := k.make()
		if err != nil {
			return p, err
		}
		*k.to = rsp.OutPublic.Bytes()
		done()
	}
	return p, nil
}

// keys checks that both are what their names say: a key that signs nothing but what a TPM made,
// and one that decrypts nothing but what is for its own TPM. That they lie in one TPM shows when
// a credential is activated.
func (p Public) keys() (attestation, endorsement *tpm2.TPMTPublic, err error) {
	read := func(b []byte, what string, want tpm2.TPMAObject) (*tpm2.TPMTPublic, error) {
		if len(b) > maxPublic {
			return nil, fmt.Errorf("the %s key has %d bytes, more than %d", what, len(b), maxPublic)
		}
		k, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
		if err != nil {
			return nil, fmt.Errorf("the %s key: %w", what, err)
		}
		if !bytes.Equal(tpm2.Marshal(*k), b) {
			return nil, fmt.Errorf("the %s key is cut short, or goes on behind its end", what)
		}
		a := k.ObjectAttributes
		if k.Type != tpm2.TPMAlgECC || k.NameAlg != tpm2.TPMAlgSHA256 || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.Restricted ||
			a.SignEncrypt != want.SignEncrypt || a.Decrypt != want.Decrypt {
			return nil, fmt.Errorf("the %s key is not one that a TPM keeps to itself", what)
		}
		return k, nil
	}
	if attestation, err = read(p.Attestation, "attestation", tpm2.TPMAObject{SignEncrypt: true}); err != nil {
		return nil, nil, err
	}
	endorsement, err = read(p.Endorsement, "endorsement", tpm2.TPMAObject{Decrypt: true})
	return attestation, endorsement, err
}

// Key is the key that signs the box's quotes.
func (p Public) Key() (*ecdsa.PublicKey, error) {
	k, _, err := p.keys()
	if err != nil {
		return nil, err
	}
	return ecdsaKey(k)
}

func ecdsaKey(k *tpm2.TPMTPublic) (*ecdsa.PublicKey, error) {
	any, err := tpm2.Pub(*k)
	if err != nil {
		return nil, err
	}
	out, ok := any.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the attestation key is %T", any)
	}
	return out, nil
}

// Credential is a secret that one TPM alone opens.
type Credential struct {
	Blob, Secret []byte
}

// MakeCredential encrypts a secret of 1 to 32 bytes to the TPM that has both keys (TCG TPM 2.0
// part 1, 24). It needs no TPM.
func (p Public) MakeCredential(random io.Reader, secret []byte) (*Credential, error) {
	if len(secret) == 0 || len(secret) > MaxCredential {
		return nil, fmt.Errorf("a secret of %d bytes: 1 to %d can be encrypted", len(secret), MaxCredential)
	}
	attestation, endorsement, err := p.keys()
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(attestation)
	if err != nil {
		return nil, err
	}
	to, err := tpm2.ImportEncapsulationKey(endorsement)
	if err != nil {
		return nil, err
	}
	c := &Credential{}
	c.Blob, c.Secret, err = tpm2.CreateCredential(random, to, name.Buffer, secret)
	return c, err
}

// Activate opens a credential that was made for this TPM.
func (t *TPM) Activate(c Credential) ([]byte, error) {
	if len(c.Blob) > 256 || len(c.Secret) > 512 {
		return nil, errors.New("a credential that is too long")
	}
	attestation, done, err := t.attestationKey()
	if err != nil {
		return nil, err
	}
	defer done()
	endorsement, done, err := t.endorsementKey()
	if err != nil {
		return nil, err
	}
	defer done()
	srk, done, err := t.storageKey() // the answer is encrypted on the way: see Seal
	if err != nil {
		return nil, err
	}
	defer done()
	public, err := srk.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: attestation.ObjectHandle, Name: attestation.Name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: endorsement.ObjectHandle, Name: endorsement.Name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, endorsed)},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Blob},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
	}.Execute(t.t, tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Salted(srk.ObjectHandle, *public), tpm2.AESEncryption(128, tpm2.EncryptOut)))
	if err != nil {
		return nil, fmt.Errorf("%w: the credential is for another TPM, or was changed: %w", ErrRefused, err)
	}
	return rsp.CertInfo.Buffer, nil
}

// endorsed is the policy of an endorsement key: who knows the password of the hierarchy, which is
// empty, uses it.
func endorsed(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}, PolicySession: session, NonceTPM: nonce,
	}.Execute(t)
	return err
}
