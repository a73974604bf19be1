// Package voucher answers: how does a box that has never met its owner know it, and
// believe what it is told at first?
//
// A voucher (RFC 8366) is the manufacturer's signed word that the device of a serial
// number belongs to whoever holds a pinned certificate. The owner's certificate leads
// to that pinned one, and signs the conveyed information (RFC 8572): where to go next,
// or how to begin. All three are CMS (RFC 5652); the contents are the JSON of RFC 7951.
package voucher

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of what is read, in bytes.
const (
	MaxVoucher  = 64 << 10
	MaxConveyed = 1 << 20
	maxSerial   = 64
	maxNonce    = 32
	minNonce    = 8
	maxDepth    = 16
)

// Assertion is how the manufacturer knows who owns the device (RFC 8366 section 5.3).
type Assertion string

// The assertions.
const (
	Verified  Assertion = "verified"
	Logged    Assertion = "logged"
	Proximity Assertion = "proximity"
)

// Voucher names the owner of one device. Times have whole seconds.
type Voucher struct {
	CreatedOn    time.Time  `json:"created-on"`
	ExpiresOn    *time.Time `json:"expires-on,omitempty"`
	Assertion    Assertion  `json:"assertion"`
	SerialNumber string     `json:"serial-number"`
	// PinnedDomainCert is the owner's root certificate, DER.
	PinnedDomainCert []byte `json:"pinned-domain-cert"`
	// Nonce is the device's own of 8 to 32 bytes; a voucher that has one need not expire.
	Nonce []byte `json:"nonce,omitempty"`
	// IDevIDIssuer and DomainCertRevocationChecks are read and given on; the latter is not
	// acted on: owners' certificates live briefly instead.
	IDevIDIssuer               []byte     `json:"idevid-issuer,omitempty"`
	DomainCertRevocationChecks bool       `json:"domain-cert-revocation-checks,omitempty"`
	LastRenewalDate            *time.Time `json:"last-renewal-date,omitempty"`
}

const voucherMember = "ietf-voucher:voucher"

// Check finds what no voucher may say. A voucher without nonce and without expiry is
// allowed by the RFC (a "bearer" voucher for ever) and here: sticks and lists of vendors
// hold such.
func (v *Voucher) Check() error {
	switch {
	case v.CreatedOn.IsZero():
		return errors.New("voucher: created-on is missing")
	case v.Assertion != Verified && v.Assertion != Logged && v.Assertion != Proximity:
		return fmt.Errorf("voucher: the assertion %.40q is none of verified, logged, proximity", v.Assertion)
	case v.Nonce != nil && (len(v.Nonce) < minNonce || len(v.Nonce) > maxNonce):
		return fmt.Errorf("voucher: a nonce of %d bytes; it has %d to %d", len(v.Nonce), minNonce, maxNonce)
	case v.ExpiresOn != nil && v.Nonce != nil:
		return errors.New("voucher: it has a nonce and expires; one of them only")
	case v.ExpiresOn != nil && !v.ExpiresOn.After(v.CreatedOn):
		return errors.New("voucher: it expires before it is made")
	}
	if err := CheckSerial(v.SerialNumber); err != nil {
		return fmt.Errorf("voucher: %w", err)
	}
	if _, err := v.Owner(); err != nil {
		return fmt.Errorf("voucher: pinned-domain-cert: %w", err)
	}
	return nil
}

// CheckSerial finds out whether a text can be a serial number: 1 to 64 printable ASCII
// characters without spaces at the ends.
func CheckSerial(s string) error {
	if s == "" || len(s) > maxSerial || strings.TrimSpace(s) != s {
		return fmt.Errorf("the serial number %.80q has not 1 to %d characters", s, maxSerial)
	}
	for _, r := range s {
		if r < ' ' || r > '~' {
			return fmt.Errorf("the serial number %.80q has characters that are not printable ASCII", s)
		}
	}
	return nil
}

// Owner parses the pinned certificate.
func (v *Voucher) Owner() (*x509.Certificate, error) {
	return x509.ParseCertificate(v.PinnedDomainCert)
}

// Sign makes the CMS form, signed by the manufacturer's key; chain has the certificate
// of the key first and may go on to its root.
func Sign(v *Voucher, key crypto.Signer, chain []*x509.Certificate) ([]byte, error) {
	if err := v.Check(); err != nil {
		return nil, err
	}
	w := *v
	w.CreatedOn = w.CreatedOn.UTC().Truncate(time.Second)
	b, err := json.Marshal(map[string]any{voucherMember: w})
	if err != nil {
		return nil, err
	}
	return signCMS(OIDVoucherJSON, b, key, chain)
}

// Open verifies a voucher against the manufacturers' certificates and reads it. The
// signer's chain is judged at the time when the voucher was made: a manufacturer's
// certificate may end before its vouchers are used. Whether the voucher fits a device is
// the caller's question.
func Open(raw []byte, anchors []*x509.Certificate) (*Voucher, error) {
	s, err := parseCMS(raw, MaxVoucher, OIDVoucherJSON)
	if err != nil {
		return nil, fmt.Errorf("voucher: %w", err)
	}
	if err := s.verify(); err != nil {
		return nil, fmt.Errorf("voucher: %w", err)
	}
	v, err := decode(s.content)
	if err != nil {
		return nil, err
	}
	if err := chains(s.signer, s.certs, anchors, v.CreatedOn); err != nil {
		return nil, fmt.Errorf("voucher: it is not signed by a manufacturer that this device knows: %w", err)
	}
	if born(s.signer) && !slices.ContainsFunc(anchors, s.signer.Equal) {
		return nil, fmt.Errorf("voucher: it is signed by the device %.64q, not by its manufacturer", s.signer.Subject.SerialNumber)
	}
	return v, nil
}

// born tells the certificate of a device's birth: its subject has a serial number (IEEE 802.1AR
// section 8.6, RFC 8995 section 2.3.1). Such chain to the manufacturer as its own signers do, and
// without this whoever takes one device over would own all others of the maker.
func born(c *x509.Certificate) bool { return c.Subject.SerialNumber != "" }

// Intact reads a voucher and verifies that it is as its signer made it, whoever that is.
func Intact(raw []byte) (*Voucher, error) {
	s, err := parseCMS(raw, MaxVoucher, OIDVoucherJSON)
	if err == nil {
		err = s.verify()
	}
	if err != nil {
		return nil, fmt.Errorf("voucher: %w", err)
	}
	return decode(s.content)
}

// Peek reads a voucher without any verification, to show or to sort it.
func Peek(raw []byte) (*Voucher, error) {
	s, err := parseCMS(raw, MaxVoucher, OIDVoucherJSON)
	if err != nil {
		return nil, fmt.Errorf("voucher: %w", err)
	}
	return decode(s.content)
}

func decode(content []byte) (*Voucher, error) {
	var w map[string]json.RawMessage
	if err := strictJSON(content, &w); err != nil {
		return nil, fmt.Errorf("voucher: %w", err)
	}
	body, ok := w[voucherMember]
	if !ok || len(w) != 1 {
		return nil, errors.New("voucher: the content is not one " + voucherMember)
	}
	var v Voucher
	if err := strictJSON(body, &v); err != nil {
		return nil, fmt.Errorf("voucher: %w", err)
	}
	return &v, v.Check()
}

// strictJSON reads one value without unknown members, twice-named members, or deep nesting.
func strictJSON(b []byte, v any) error {
	if !utf8.Valid(b) {
		return errors.New("the JSON is not UTF-8")
	}
	if err := plainJSON(b); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// plainJSON refuses names that stand twice in an object: of two readers one might take
// the first, the other the last.
func plainJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	type level struct {
		names map[string]bool // nil in an array
		key   bool            // the next string is a name
	}
	var stack []level
	for n := 0; ; n++ {
		t, err := d.Token()
		if err == io.EOF && n > 0 && len(stack) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if n > 0 && len(stack) == 0 {
			return errors.New("something follows the JSON value")
		}
		var top *level
		if len(stack) > 0 {
			top = &stack[len(stack)-1]
		}
		if name, ok := t.(string); ok && top != nil && top.names != nil && top.key {
			if top.names[name] {
				return fmt.Errorf("%.60q stands twice", name)
			}
			top.names[name], top.key = true, false
			continue
		}
		if top != nil && top.names != nil {
			top.key = true // after a value comes a name
		}
		switch t {
		case json.Delim('{'):
			stack = append(stack, level{names: map[string]bool{}, key: true})
		case json.Delim('['):
			stack = append(stack, level{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
		}
		if len(stack) > maxDepth {
			return errors.New("the JSON is nested too deep")
		}
	}
}
