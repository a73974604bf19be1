// Package pkcs7 answers: how do firmware and kernel want to be told who signed?
//
// It writes the one form of CMS SignedData (RFC 2315, RFC 5652) that UEFI and Linux read: one RSA signer, SHA-256,
// PKCS #1 v1.5, no time. The same key and content give the same bytes, so that images are reproducible.
package pkcs7

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

var (
	oidData          = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01}
	oidSignedData    = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02}
	oidContentType   = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03}
	oidMessageDigest = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04}
	oidSHA256        = []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01}
	oidRSA           = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01}
)

// Tags of DER (X.690) that are used here and by callers of DER.
const (
	Integer     = 0x02
	BitString   = 0x03
	OctetString = 0x04
	Null        = 0x05
	OID         = 0x06
	Sequence    = 0x30
	Set         = 0x31
	Context0    = 0xa0 // constructed
)

// DER wraps the parts, one after the other, as one element.
func DER(tag byte, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	out := []byte{tag}
	switch {
	case n < 0x80:
		out = append(out, byte(n))
	default:
		b := big.NewInt(int64(n)).Bytes()
		out = append(append(out, 0x80|byte(len(b))), b...)
	}
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// SHA256 is the algorithm's identifier.
func SHA256() []byte { return DER(Sequence, DER(OID, oidSHA256), DER(Null)) }

// Signer is an RSA key and its certificate.
type Signer interface {
	crypto.Signer
	Certificate() *x509.Certificate
}

// SignDetached gives the SignedData over content that lies elsewhere, without signed attributes and without the outer
// ContentInfo, which is what EFI_VARIABLE_AUTHENTICATION_2 carries (UEFI 2.10, 8.2.2).
func SignDetached(s Signer, content []byte) ([]byte, error) {
	digest := sha256.Sum256(content)
	sig, err := s.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return signedData(s.Certificate(), DER(Sequence, DER(OID, oidData)), nil, sig), nil
}

// SignBare gives the whole ContentInfo over content that lies elsewhere, without signed attributes and without the
// certificate: the form in which Linux has it behind a module (scripts/sign-file.c).
func SignBare(s Signer, content []byte) ([]byte, error) {
	digest := sha256.Sum256(content)
	sig, err := s.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	data := signedBy(s.Certificate(), DER(Sequence, DER(OID, oidData)), nil, nil, sig)
	return DER(Sequence, DER(OID, oidSignedData), DER(Context0, data)), nil
}

// OpenBare checks what SignBare wrote over a content, by the certificate, which alone is trusted.
func OpenBare(raw, content []byte, cert *x509.Certificate) error {
	sd, err := parse(raw)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(content)
	return sd.verify(digest, cert)
}

// SignContent gives the whole ContentInfo over a content of that type (the OID's bytes), which must be one SEQUENCE,
// with the attributes content type and digest: the form of Authenticode.
func SignContent(s Signer, contentType, content []byte) ([]byte, error) {
	var inner asn1.RawValue
	if rest, err := asn1.Unmarshal(content, &inner); err != nil || len(rest) > 0 || inner.Tag != asn1.TagSequence {
		return nil, errors.New("the content to sign is not one SEQUENCE")
	}
	attrs := attributes(contentType, inner.Bytes)
	digest := sha256.Sum256(DER(Set, attrs))
	sig, err := s.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	info := DER(Sequence, DER(OID, contentType), DER(Context0, content))
	return DER(Sequence, DER(OID, oidSignedData), DER(Context0, signedData(s.Certificate(), info, attrs, sig))), nil
}

// attributes are in DER's order of a SET: the shorter first.
func attributes(contentType, content []byte) []byte {
	digest := sha256.Sum256(content)
	return append(
		DER(Sequence, DER(OID, oidContentType), DER(Set, DER(OID, contentType))),
		DER(Sequence, DER(OID, oidMessageDigest), DER(Set, DER(OctetString, digest[:])))...)
}

func signedData(cert *x509.Certificate, info, attrs, sig []byte) []byte {
	return signedBy(cert, info, DER(Context0, cert.Raw), attrs, sig)
}

func signedBy(cert *x509.Certificate, info, certs, attrs, sig []byte) []byte {
	var signed []byte
	if attrs != nil {
		signed = DER(Context0, attrs)
	}
	serial, _ := asn1.Marshal(cert.SerialNumber) // an integer always has a form
	signer := DER(Sequence,
		DER(Integer, []byte{1}),
		DER(Sequence, cert.RawIssuer, serial),
		SHA256(),
		signed,
		DER(Sequence, DER(OID, oidRSA), DER(Null)),
		DER(OctetString, sig))
	return DER(Sequence,
		DER(Integer, []byte{1}),
		DER(Set, SHA256()),
		info,
		certs,
		DER(Set, signer))
}

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"explicit,optional,tag:0"`
}

type signed struct {
	Version     int
	Digests     asn1.RawValue
	Info        contentInfo
	Certificate asn1.RawValue `asn1:"tag:0,optional"`
	Signers     []struct {
		Version    int
		Issuer     asn1.RawValue
		Digest     asn1.RawValue
		Attributes asn1.RawValue `asn1:"tag:0,optional"`
		Encryption asn1.RawValue
		Signature  []byte
	} `asn1:"set"`
}

// OpenContent checks what SignContent wrote against the certificate, which alone is trusted, and answers the content.
func OpenContent(raw, contentType []byte, cert *x509.Certificate) ([]byte, error) {
	sd, err := parse(raw)
	if err != nil {
		return nil, err
	}
	content := sd.Info.Content.Bytes // without the tag [0]
	var inner asn1.RawValue
	if _, err := asn1.Unmarshal(content, &inner); err != nil {
		return nil, err
	}
	digest := sha256.Sum256(DER(Set, attributes(contentType, inner.Bytes)))
	if err := sd.verify(digest, cert); err != nil {
		return nil, err
	}
	return content, nil
}

// parse reads a SignedData of one signer.
func parse(raw []byte) (*signed, error) {
	var outer contentInfo
	if _, err := asn1.Unmarshal(raw, &outer); err != nil {
		return nil, fmt.Errorf("the signature is no CMS: %w", err)
	}
	var sd signed
	if _, err := asn1.Unmarshal(outer.Content.Bytes, &sd); err != nil {
		return nil, fmt.Errorf("the signature is no SignedData: %w", err)
	}
	if len(sd.Signers) != 1 {
		return nil, fmt.Errorf("%d signers: want 1", len(sd.Signers))
	}
	return &sd, nil
}

func (s *signed) verify(digest [32]byte, cert *x509.Certificate) error {
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return errors.New("the certificate's key is not RSA")
	}
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], s.Signers[0].Signature); err != nil {
		return fmt.Errorf("not signed by %s: %w", cert.Subject.CommonName, err)
	}
	return nil
}
