package tpm

import (
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Sealed is a key that a TPM has wrapped. Nothing in it is secret.
type Sealed struct {
	Public, Private []byte
	PCR7            [32]byte // what it was sealed to, to say why it is refused
}

// maxKey is what a TPM seals at most in one object.
const maxKey = 128

// Seal wraps a key of 1 to 128 bytes to the release's key and to PCR 7 as given: the present
// value, or the one foretold for after a change of the firmware's keys.
func (t *TPM) Seal(secret []byte, release *rsa.PublicKey, pcr7 [32]byte) (*Sealed, error) {
	if len(secret) == 0 || len(secret) > maxKey {
		return nil, fmt.Errorf("a key of %d bytes: 1 to %d can be sealed", len(secret), maxKey)
	}
	policy, err := sealPolicy(release, pcr7)
	if err != nil {
		return nil, err
	}
	srk, done, err := t.storageKey()
	if err != nil {
		return nil, err
	}
	defer done()
	public, err := srk.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.Create{
		// Encrypted on the way: a bus to a TPM chip can be listened to.
		ParentHandle: tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name,
			Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Salted(srk.ObjectHandle, *public), tpm2.AESEncryption(128, tpm2.EncryptIn))},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret})}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
			AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
		}),
	}.Execute(t.t)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	return &Sealed{Public: rsp.OutPublic.Bytes(), Private: rsp.OutPrivate.Buffer, PCR7: pcr7}, nil
}

// Unseal gives the key back. The error is ErrRefused when the TPM keeps it.
func (t *TPM) Unseal(s *Sealed, release *rsa.PublicKey, sigs *Signatures) ([]byte, error) {
	srk, done, err := t.storageKey()
	if err != nil {
		return nil, err
	}
	defer done()
	public, err := srk.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	object, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: s.Private}, InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](s.Public),
	}.Execute(t.t)
	if err != nil {
		return nil, fmt.Errorf("%w: it was sealed by another TPM, or this one was cleared: %w", ErrRefused, err)
	}
	defer t.flush(object.ObjectHandle)
	for tries := 1; ; tries++ {
		key, err := t.unsealOnce(s, srk.ObjectHandle, public, object, release, sigs)
		if !errors.Is(err, tpm2.TPMRCPCRChanged) || tries == maxTries {
			return key, err
		}
	}
}

// maxTries bounds how often a policy is begun anew. A TPM drops one when any PCR is extended
// before the end, and the kernel may extend PCR 10 for each driver that it loads meanwhile.
const maxTries = 100

func (t *TPM) unsealOnce(s *Sealed, srk tpm2.TPMHandle, public *tpm2.TPMTPublic, object *tpm2.LoadResponse, release *rsa.PublicKey, sigs *Signatures) ([]byte, error) {
	session, end, err := tpm2.PolicySession(t.t, tpm2.TPMAlgSHA256, 16, tpm2.Salted(srk, *public), tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return nil, fmt.Errorf("a session: %w", err)
	}
	defer func() { _ = end() }()
	if err := t.authorize(session, release, sigs); err != nil {
		return nil, err
	}
	if _, err := (tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: selection(PCRSecureBoot)}).Execute(t.t); err != nil {
		return nil, fmt.Errorf("PCR 7: %w", err)
	}
	rsp, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: object.ObjectHandle, Name: object.Name, Auth: session}}.Execute(t.t)
	if errors.Is(err, tpm2.TPMRCPolicyFail) {
		if now, pcrErr := t.PCR(PCRSecureBoot); pcrErr == nil && now != s.PCR7 {
			return nil, otherFirmware(now, s.PCR7)
		}
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	return rsp.OutData.Buffer, nil
}

func otherFirmware(now, was [32]byte) error {
	return fmt.Errorf("%w: Secure Boot's keys or settings are not those of when it was sealed (PCR 7 is %x, was %x)", ErrRefused, now, was)
}

// authorize brings the session to the policy that the release's key has signed for the system
// that runs. It only looks for the entry that fits; that it is right, the TPM checks.
func (t *TPM) authorize(session tpm2.Session, release *rsa.PublicKey, sigs *Signatures) error {
	pcr11, err := t.PCR(PCRKernel)
	if err != nil {
		return err
	}
	e, err := sigs.find(pcr11)
	if err != nil {
		return err
	}
	// First what takes long: an extended PCR would have the policy begun anew.
	ticket, name, err := t.checkSignature(release, e)
	if err != nil {
		return err
	}
	if _, err := (tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: selection(PCRKernel)}).Execute(t.t); err != nil {
		return fmt.Errorf("PCR 11: %w", err)
	}
	if e.Counter > 0 {
		if err := t.atLeastFloor(session, e.Counter); err != nil {
			return err
		}
	}
	policy, err := hex.DecodeString(e.Policy)
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{PolicySession: session.Handle(), ApprovedPolicy: tpm2.TPM2BDigest{Buffer: policy}, KeySign: *name, CheckTicket: *ticket}.Execute(t.t)
	if errors.Is(err, tpm2.TPMRCPCRChanged) {
		return fmt.Errorf("PCR 11: %w", err)
	}
	if err != nil {
		return fmt.Errorf("%w: the running system is not what the release's key has signed: %w", ErrRefused, err)
	}
	return nil
}

// find looks for the entry whose policy is that of PCR 11's present value.
func (s *Signatures) find(pcr11 [32]byte) (*entry, error) {
	if s == nil {
		return nil, fmt.Errorf("%w: there is no signature of the running system", ErrRefused)
	}
	for i := range s.entries {
		e := &s.entries[i]
		policy, err := Approval{PCR11: pcr11, Counter: e.Counter}.Digest()
		if err == nil && hex.EncodeToString(policy) == e.Policy {
			return e, nil
		}
	}
	return nil, fmt.Errorf("%w: no signature is for the running system (PCR 11 is %x)", ErrRefused, pcr11)
}

// checkSignature has the TPM verify the release's signature; its ticket says so to PolicyAuthorize.
func (t *TPM) checkSignature(release *rsa.PublicKey, e *entry) (*tpm2.TPMTTKVerified, *tpm2.TPM2BName, error) {
	key, err := tpm2.LoadExternal{InPublic: tpm2.New2B(keyPublic(release)), Hierarchy: tpm2.TPMRHOwner}.Execute(t.t)
	if err != nil {
		return nil, nil, fmt.Errorf("the release's key: %w", err)
	}
	defer t.flush(key.ObjectHandle)
	policy, err := hex.DecodeString(e.Policy)
	if err != nil {
		return nil, nil, err
	}
	digest := sha256.Sum256(policy)
	rsp, err := tpm2.VerifySignature{
		KeyHandle: key.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: digest[:]},
		Signature: tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA,
			&tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: e.Signature}})},
	}.Execute(t.t)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the policy is not signed by the release's key: %w", ErrRefused, err)
	}
	return &rsp.Validation, &key.Name, nil
}
