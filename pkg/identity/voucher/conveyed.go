package voucher

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// Conveyed is what an owner tells a new device: exactly one of the two (RFC 8572
// section 6).
type Conveyed struct {
	Redirect   *Redirect
	Onboarding *Onboarding
}

// Redirect names other bootstrap servers, best first.
type Redirect struct {
	Servers []Server `json:"bootstrap-server"`
}

// Server is a bootstrap server. TrustAnchor is CMS like an owner certificate; a server
// without one, or named by somebody who is not trusted, is not trusted either.
type Server struct {
	Address     string `json:"address"`
	Port        uint16 `json:"port,omitempty"` // 443 when it is 0
	TrustAnchor []byte `json:"trust-anchor,omitempty"`
}

// Onboarding says how a device begins.
type Onboarding struct {
	BootImage *BootImage `json:"boot-image,omitempty"`
	Handling  string     `json:"configuration-handling,omitempty"` // merge or replace
	// Scripts are read so that a device can say that it runs none.
	PreScript  []byte `json:"pre-configuration-script,omitempty"`
	Config     []byte `json:"configuration,omitempty"`
	PostScript []byte `json:"post-configuration-script,omitempty"`
}

// BootImage is the system that the device shall run before it goes on.
type BootImage struct {
	Name         string   `json:"os-name,omitempty"`
	Version      string   `json:"os-version,omitempty"`
	URIs         []string `json:"download-uri,omitempty"`
	Verification []Hash   `json:"image-verification,omitempty"`
}

// Hash is of an image; Value is hexadecimal with colons between the bytes.
type Hash struct {
	Algorithm string `json:"hash-algorithm"` // ietf-sztp-conveyed-info:sha-256
	Value     string `json:"hash-value"`
}

// ImageName is the os-name of our own releases.
const ImageName = "Tributary"

const sha256Name = "ietf-sztp-conveyed-info:sha-256"

// ReleaseImage writes a release of ours, "repository@sha256:…" in a registry of a host, as
// a boot image: what is verified is its OCI manifest, and by that all the rest.
func ReleaseImage(host, version, artifact string) (*BootImage, error) {
	repo, digest, ok := strings.Cut(artifact, "@sha256:")
	raw, err := hex.DecodeString(digest)
	if !ok || err != nil || len(raw) != 32 {
		return nil, fmt.Errorf("%.200q is no artifact by digest", artifact)
	}
	parts := make([]string, len(raw))
	for i, b := range raw {
		parts[i] = fmt.Sprintf("%02x", b)
	}
	return &BootImage{Name: ImageName, Version: version, URIs: []string{"https://" + host + "/v2/" + repo + "/manifests/sha256:" + digest},
		Verification: []Hash{{sha256Name, strings.Join(parts, ":")}}}, nil
}

// Release reads what ReleaseImage writes. Where it lies matters to others: a box asks its
// parent for the repository and digest.
func (b *BootImage) Release() (repo, digest string, err error) {
	if b.Name != ImageName {
		return "", "", fmt.Errorf("it is %.40q, not %s", b.Name, ImageName)
	}
	for _, h := range b.Verification {
		if h.Algorithm == sha256Name {
			digest = "sha256:" + strings.ToLower(strings.ReplaceAll(h.Value, ":", ""))
		}
	}
	if raw, err := hex.DecodeString(strings.TrimPrefix(digest, "sha256:")); err != nil || len(raw) != 32 {
		return "", "", errors.New("it has no SHA-256")
	}
	for _, text := range b.URIs[:min(len(b.URIs), maxServers)] {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" {
			continue
		}
		path, ok := strings.CutPrefix(u.Path, "/v2/")
		if repo, ok2 := strings.CutSuffix(path, "/manifests/"+digest); ok && ok2 && repo != "" && len(repo) <= 256 {
			return repo, digest, nil
		}
	}
	return "", "", errors.New("it lies in no registry by that SHA-256")
}

const (
	redirectMember   = "ietf-sztp-conveyed-info:redirect-information"
	onboardingMember = "ietf-sztp-conveyed-info:onboarding-information"
	maxServers       = 16
)

// Check finds what conveyed information may not say.
func (c *Conveyed) Check() error {
	switch {
	case (c.Redirect == nil) == (c.Onboarding == nil):
		return errors.New("conveyed information: it is not one of redirect and onboarding")
	case c.Redirect != nil:
		if n := len(c.Redirect.Servers); n == 0 || n > maxServers {
			return fmt.Errorf("conveyed information: %d bootstrap servers; 1 to %d are allowed", n, maxServers)
		}
		for _, s := range c.Redirect.Servers {
			if _, err := s.URL(); err != nil {
				return fmt.Errorf("conveyed information: %w", err)
			}
		}
	case c.Onboarding.Handling != "" && c.Onboarding.Handling != "merge" && c.Onboarding.Handling != "replace":
		return fmt.Errorf("conveyed information: configuration-handling %.40q is neither merge nor replace", c.Onboarding.Handling)
	}
	return nil
}

// URL is the server's root, such as https://10.0.0.1:8444.
func (s Server) URL() (string, error) {
	host := s.Address
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + host + "]"
	} else if err != nil && (host == "" || len(host) > 253 || strings.ContainsFunc(host, notHost)) {
		return "", fmt.Errorf("%.80q is no address of a bootstrap server", s.Address)
	}
	port := s.Port
	if port == 0 {
		port = 443
	}
	u := fmt.Sprintf("https://%s:%d", host, port)
	_, err := url.Parse(u)
	return u, err
}

func notHost(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.')
}

func (c *Conveyed) encode() ([]byte, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if c.Redirect != nil {
		return json.Marshal(map[string]any{redirectMember: c.Redirect})
	}
	return json.Marshal(map[string]any{onboardingMember: c.Onboarding})
}

// SignConveyed makes the CMS form, signed by the key of the owner's certificate.
func SignConveyed(c *Conveyed, key crypto.Signer, chain []*x509.Certificate) ([]byte, error) {
	b, err := c.encode()
	if err != nil {
		return nil, err
	}
	return signCMS(OIDConveyedJSON, b, key, chain)
}

// OpenConveyed verifies that conveyed information is signed by the key of the owner's
// certificate (OpenOwnerCertificate) and reads it.
func OpenConveyed(raw []byte, owner *x509.Certificate) (*Conveyed, error) {
	s, err := parseCMS(raw, MaxConveyed, OIDConveyedJSON)
	if err != nil {
		return nil, fmt.Errorf("conveyed information: %w", err)
	}
	if !bytes.Equal(s.signer.RawSubjectPublicKeyInfo, owner.RawSubjectPublicKeyInfo) {
		return nil, errors.New("conveyed information: it is not signed by the owner's certificate")
	}
	if err := s.verify(); err != nil {
		return nil, fmt.Errorf("conveyed information: %w", err)
	}
	return decodeConveyed(s.content)
}

// PlainConveyed makes the form that nobody signed (RFC 8572 section 3.1): CMS that is the
// content itself.
func PlainConveyed(c *Conveyed) ([]byte, error) {
	b, err := c.encode()
	if err != nil {
		return nil, err
	}
	octets, err := asn1.Marshal(b)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(plain{Kind: OIDConveyedJSON, Content: asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: octets}})
}

// plain is CMS's ContentInfo (RFC 5652 section 3).
type plain struct {
	Kind    asn1.ObjectIdentifier
	Content asn1.RawValue
}

func readPlain(raw []byte) (content []byte, ok bool) {
	var p plain
	if len(raw) > MaxConveyed {
		return nil, false
	}
	rest, err := asn1.Unmarshal(raw, &p)
	if err != nil || len(rest) > 0 || !p.Kind.Equal(OIDConveyedJSON) || p.Content.Class != asn1.ClassContextSpecific || p.Content.Tag != 0 {
		return nil, false
	}
	rest, err = asn1.Unmarshal(p.Content.Bytes, &content)
	return content, err == nil && len(rest) == 0
}

// PeekConveyed reads conveyed information, signed or not, without any verification. A
// device takes no more from it than where else to ask (RFC 8572 section 5.4: an untrusted
// redirect).
func PeekConveyed(raw []byte) (*Conveyed, error) {
	if content, ok := readPlain(raw); ok {
		return decodeConveyed(content)
	}
	p7, err := parseCMS(raw, MaxConveyed, OIDConveyedJSON)
	if err != nil {
		return nil, fmt.Errorf("conveyed information: %w", err)
	}
	return decodeConveyed(p7.content)
}

func decodeConveyed(content []byte) (*Conveyed, error) {
	var w map[string]json.RawMessage
	if err := strictJSON(content, &w); err != nil {
		return nil, fmt.Errorf("conveyed information: %w", err)
	}
	if len(w) != 1 {
		return nil, fmt.Errorf("conveyed information: %d members; it has one", len(w))
	}
	c := &Conveyed{}
	var err error
	if body, ok := w[redirectMember]; ok {
		c.Redirect = &Redirect{}
		err = strictJSON(body, c.Redirect)
	} else if body, ok := w[onboardingMember]; ok {
		c.Onboarding = &Onboarding{}
		err = strictJSON(body, c.Onboarding)
	}
	if err != nil {
		return nil, fmt.Errorf("conveyed information: %w", err)
	}
	return c, c.Check()
}
