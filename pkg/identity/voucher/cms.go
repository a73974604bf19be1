package voucher

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"github.com/smallstep/pkcs7"

	"tributary.dev/tributary/pkg/identity"
)

// The kinds of content (RFC 8366 section 8.3, RFC 8572 section 10.4).
var (
	OIDVoucherJSON  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 40}
	OIDConveyedJSON = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 43}
)

const maxCerts = 8

func signCMS(kind asn1.ObjectIdentifier, content []byte, key crypto.Signer, chain []*x509.Certificate) ([]byte, error) {
	if len(chain) == 0 || len(chain) > maxCerts {
		return nil, fmt.Errorf("a chain of %d certificates; 1 to %d are needed", len(chain), maxCerts)
	}
	if pub, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the certificate is not of the key that signs")
	}
	sd, err := pkcs7.NewSignedData(content)
	if err != nil {
		return nil, err
	}
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	inner := sd.GetSignedData()
	inner.ContentInfo.ContentType = kind
	inner.Version = 3 // RFC 5652 section 5.1: the content is not id-data
	if err := sd.AddSigner(chain[0], key, pkcs7.SignerInfoConfig{}); err != nil {
		return nil, err
	}
	for _, c := range chain[1:] {
		sd.AddCertificate(c)
	}
	return sd.Finish()
}

// signed is a parsed CMS signed-data with one signer.
type signed struct {
	p7      *pkcs7.PKCS7
	content []byte
	signer  *x509.Certificate
	certs   []*x509.Certificate
}

// parseCMS reads signed-data of one kind of content with exactly one signer, whose
// certificate is inside. Nothing is verified yet. The kind is read from the signed
// attributes, which the signature covers, so that no signature over one kind of content
// serves for another.
func parseCMS(raw []byte, most int, kind asn1.ObjectIdentifier) (*signed, error) {
	p7, err := parse(raw, most)
	if err != nil {
		return nil, err
	}
	s := &signed{p7: p7, content: p7.Content, signer: p7.GetOnlySigner(), certs: p7.Certificates}
	if s.signer == nil {
		return nil, errors.New("the CMS has not exactly one signer with its certificate")
	}
	var got asn1.ObjectIdentifier
	if err := p7.UnmarshalSignedAttribute(pkcs7.OIDAttributeContentType, &got); err != nil {
		return nil, fmt.Errorf("the CMS does not say what it holds: %w", err)
	}
	if !got.Equal(kind) {
		return nil, fmt.Errorf("the CMS holds content of kind %v, not %v", got, kind)
	}
	return s, nil
}

func (s *signed) verify() error {
	if err := s.p7.Verify(); err != nil {
		return fmt.Errorf("the signature is wrong: %w", err)
	}
	return nil
}

// parse reads CMS within bounds. The outer length must be that of the message: what
// follows it would be signed by nobody.
func parse(raw []byte, most int) (p7 *pkcs7.PKCS7, err error) {
	if len(raw) > most {
		return nil, fmt.Errorf("the CMS has %d bytes, more than %d", len(raw), most)
	}
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(raw, &outer)
	if err != nil || len(rest) > 0 {
		return nil, errors.New("no CMS in DER, or something follows it")
	}
	if !nestedWithin(raw, 48) {
		return nil, errors.New("the CMS is nested too deep")
	}
	// The parser is of others and reads what strangers send: a panic of it is a refusal.
	defer func() {
		if e := recover(); e != nil {
			p7, err = nil, fmt.Errorf("the CMS cannot be read: %v", e)
		}
	}()
	if p7, err = pkcs7.Parse(raw); err != nil {
		return nil, err
	}
	if len(p7.Certificates) > maxCerts {
		return nil, fmt.Errorf("the CMS holds %d certificates, more than %d", len(p7.Certificates), maxCerts)
	}
	return p7, nil
}

// nestedWithin bounds the nesting of DER.
func nestedWithin(b []byte, depth int) bool {
	for len(b) > 0 {
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(b, &v)
		if err != nil {
			return true // the parser tells; contents need not be DER
		}
		if v.IsCompound && (depth == 0 || !nestedWithin(v.Bytes, depth-1)) {
			return false
		}
		b = rest
	}
	return true
}

// chains checks that a certificate leads to one of the anchors, at a time. An anchor
// itself is good for itself.
func chains(leaf *x509.Certificate, others, anchors []*x509.Certificate, at time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, a := range anchors {
		if bytes.Equal(a.Raw, leaf.Raw) {
			if at.Before(leaf.NotBefore) || at.After(leaf.NotAfter) {
				return fmt.Errorf("the certificate of the signer is not valid at %s", at.UTC().Format(time.RFC3339))
			}
			return nil
		}
		roots.AddCert(a)
	}
	for _, c := range others {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// OwnerCertificate makes the owner-certificate artifact (RFC 8572 section 3.2): CMS
// without content and signers, the certificate first.
func OwnerCertificate(chain []*x509.Certificate) ([]byte, error) {
	if len(chain) == 0 || len(chain) > maxCerts {
		return nil, fmt.Errorf("a chain of %d certificates; 1 to %d are needed", len(chain), maxCerts)
	}
	var der []byte
	for _, c := range chain {
		der = append(der, c.Raw...)
	}
	return pkcs7.DegenerateCertificate(der)
}

// OpenOwnerCertificate reads the owner-certificate artifact and checks that it leads to
// the owner that a voucher pins. A zero time leaves the certificate's own times aside,
// for a device that has no trusted clock.
func OpenOwnerCertificate(raw []byte, pinned *x509.Certificate, at time.Time) (*x509.Certificate, error) {
	p7, err := parse(raw, MaxVoucher)
	if err != nil {
		return nil, fmt.Errorf("owner certificate: %w", err)
	}
	if len(p7.Certificates) == 0 {
		return nil, errors.New("owner certificate: it is empty")
	}
	// The certificates are a SET: DER may have sorted them, so the leaf is whichever issued
	// none of the others.
	leaf := p7.Certificates[0]
	for _, c := range p7.Certificates {
		if !issues(c, p7.Certificates) {
			leaf = c
			break
		}
	}
	if at.IsZero() {
		at = leaf.NotBefore
		if at.Before(pinned.NotBefore) {
			at = pinned.NotBefore
		}
	}
	if err := chains(leaf, p7.Certificates, []*x509.Certificate{pinned}, at); err != nil {
		return nil, fmt.Errorf("owner certificate: it is not of the owner that the voucher names: %w", err)
	}
	if err := speaks(leaf, pinned); err != nil {
		return nil, fmt.Errorf("owner certificate: %w", err)
	}
	return leaf, nil
}

// speaks checks that a certificate below an owner's root is of one who may speak for him. An
// owner of our kind certifies his boxes and his core's TLS below the same root, and each says by
// its role what it is for: a box that was taken over is no owner of the others. Certificates of
// other owners' making have no roles.
func speaks(leaf, root *x509.Certificate) error {
	switch role := identity.RoleOf(leaf); {
	case bytes.Equal(leaf.Raw, root.Raw):
		return nil
	case role == "":
		return nil
	case role != identity.RoleSigner:
		return fmt.Errorf("it is a certificate of role %q, which does not speak for the owner", role)
	}
	if err := leaf.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("it is a signer that the root did not certify itself: %w", err)
	}
	return nil
}

func issues(c *x509.Certificate, others []*x509.Certificate) bool {
	for _, o := range others {
		if !bytes.Equal(o.Raw, c.Raw) && bytes.Equal(o.RawIssuer, c.RawSubject) {
			return true
		}
	}
	return false
}
