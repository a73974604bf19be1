package voucher

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// forEver is the end of an IDevID certificate (IEEE 802.1AR section 8.7, RFC 5280 section
// 4.1.2.5: there is no good time for it to end).
var forEver = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// SelfIDevID is the birth certificate of a device that no manufacturer certified: by its
// own key, with its id for a serial number.
func SelfIDevID(key crypto.Signer) ([]*x509.Certificate, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("the device's key is not of a NIST curve")
	}
	c, err := idevid(pub, identity.KeyID(pub).String(), nil, key)
	return []*x509.Certificate{c}, err
}

// IssueIDevID certifies the key of a device for a serial number, by a manufacturer.
func IssueIDevID(pub *ecdsa.PublicKey, serial string, key *ecdsa.PrivateKey, chain []*x509.Certificate) ([]*x509.Certificate, error) {
	if err := CheckSerial(serial); err != nil {
		return nil, err
	}
	c, err := idevid(pub, serial, chain[0], key)
	return append([]*x509.Certificate{c}, chain...), err
}

func idevid(pub *ecdsa.PublicKey, serial string, issuer *x509.Certificate, key crypto.Signer) (*x509.Certificate, error) {
	tmpl := &x509.Certificate{
		Subject: pkix.Name{SerialNumber: serial}, NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: forEver,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if issuer == nil {
		tmpl.SerialNumber, issuer = big.NewInt(1), tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Serial reads whom an IDevID certificate speaks for. A manufacturer of those given
// vouches for any serial number; a device without one vouches for its own id alone.
// Possession of the key is the TLS handshake's matter.
func Serial(chain, manufacturers []*x509.Certificate) (string, error) {
	if len(chain) == 0 || len(chain) > maxCerts {
		return "", errors.New("the device shows no certificate of its birth (IDevID)")
	}
	leaf := chain[0]
	serial := leaf.Subject.SerialNumber
	if err := CheckSerial(serial); err != nil {
		return "", fmt.Errorf("the device's certificate: %w", err)
	}
	pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if ok && bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
		if identity.KeyID(pub).String() != serial {
			return "", fmt.Errorf("the device names itself %s, and nobody certified that", serial)
		}
		return serial, nil
	}
	if !ok {
		return "", errors.New("the device's key is not of a NIST curve")
	}
	at := leaf.NotBefore // births are not undone by time, nor by a wrong clock
	for _, c := range chain[1:] {
		if c.NotBefore.After(at) {
			at = c.NotBefore
		}
	}
	for _, c := range manufacturers {
		if c.NotBefore.After(at) {
			at = c.NotBefore
		}
	}
	if err := chains(leaf, chain[1:], manufacturers, at); err != nil {
		return "", fmt.Errorf("the certificate of %s is not by a manufacturer that is known here: %w", serial, err)
	}
	return serial, nil
}

// NewManufacturer makes the certificate under which a manufacturer signs vouchers and
// births: its own root, for as long as its devices live.
func NewManufacturer(key *ecdsa.PrivateKey, name string, from time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: from.AddDate(50, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// ParseBirth reads the key of a device and the certificates of its birth, its own first,
// from one PEM file.
func ParseBirth(text []byte) (key *ecdsa.PrivateKey, chain []*x509.Certificate, err error) {
	var certs bytes.Buffer
	for {
		var p *pem.Block
		if p, text = pem.Decode(text); p == nil {
			break
		}
		if p.Type == "CERTIFICATE" {
			err = pem.Encode(&certs, p)
		} else if p.Type != "EC PARAMETERS" { // openssl writes them beside a key
			key, err = identity.ParseKey(pem.EncodeToMemory(p))
		}
		if err != nil {
			return nil, nil, err
		}
	}
	if chain, err = identity.ParseCerts(certs.Bytes()); err != nil {
		return nil, nil, err
	}
	if key == nil || !key.PublicKey.Equal(chain[0].PublicKey) {
		return nil, nil, &api.Error{Code: api.Invalid, Message: "the file does not hold the key of its first certificate", Remedy: "write key and certificates of the box's birth into it, the box's own first"}
	}
	return key, chain, nil
}
