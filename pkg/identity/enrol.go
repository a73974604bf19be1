package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/proxy"
)

// EnrolConfig is what a box needs to enrol.
type EnrolConfig struct {
	// ParentURL is the core's or a relay's HTTPS root, such as "https://10.0.0.1:8443".
	ParentURL string
	Token     JoinToken
	// Key and Seal are the box's own keys (LoadOrCreateKeys).
	Key, Seal *ecdsa.PrivateKey
	Name      string // wished for; empty leaves it to the core
	Hardware  api.Hardware
	Labels    map[string]string
	Relay     bool
	Addresses []string
	// IDevID is the box's birth certificate, where it comes by ExpectedToken, and Birth the
	// key of that; nil is Key.
	IDevID []*x509.Certificate
	Birth  crypto.Signer
	// HTTP is nil for a client of its own. Whom it connects to does not matter: what is
	// sent and believed is sealed and certified end to end.
	HTTP *http.Client
}

// Enrol makes the box known to the core, directly or through a relay. It may be
// repeated with the same keys: the core answers again with a certificate and does not
// use the token up twice. It fails with the core's *api.Error when refused, and with
// api.Unavailable when the parent is out of reach.
func Enrol(ctx context.Context, cfg EnrolConfig) (*Identity, *EnrolReply, error) {
	csr, err := NewCSR(cfg.Key, &cfg.Seal.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	var proof []byte
	if cfg.Birth != nil && !cfg.Key.PublicKey.Equal(cfg.Birth.Public()) {
		if proof, err = cfg.Birth.Sign(rand.Reader, birthDigest(csr), crypto.SHA256); err != nil {
			return nil, nil, err
		}
	}
	c := enrolClient{url: cfg.ParentURL, http: cfg.HTTP}
	if c.http == nil {
		c.http = enrolHTTP(nil)
		defer c.http.CloseIdleConnections()
	}
	return c.run(ctx, cfg.Token.RootFP[:], PathEnrol, cfg.Key, cfg.Seal, EnrolRequest{
		TokenID: cfg.Token.ID, Secret: cfg.Token.Secret, CSR: csr, Name: cfg.Name, Hardware: cfg.Hardware,
		Labels: cfg.Labels, Relay: cfg.Relay, Addresses: cfg.Addresses, IDevID: ders(cfg.IDevID), BirthProof: proof,
	})
}

// birthDigest is what the key of a birth certificate signs to vouch for a request.
func birthDigest(csr []byte) []byte {
	h := sha256.New()
	h.Write([]byte("tributary/birth/1\x00"))
	h.Write(csr)
	return h.Sum(nil)
}

// CheckBirth verifies that the key of a birth certificate vouches for a request: it is the
// request's own key, or signed it.
func CheckBirth(birth *x509.Certificate, csr, proof []byte) error {
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return err
	}
	if bytes.Equal(r.RawSubjectPublicKeyInfo, birth.RawSubjectPublicKeyInfo) {
		return nil
	}
	if pub, ok := birth.PublicKey.(*ecdsa.PublicKey); !ok || !ecdsa.VerifyASN1(pub, birthDigest(csr), proof) {
		return errors.New("the birth certificate is of another key, which does not vouch for this one")
	}
	return nil
}

// TurnedAway tells whether a peer refused the certificate that was shown to it (RFC 8446
// section 6.2). Clients that lie between may have kept the text of the error alone.
func TurnedAway(err error) bool {
	return err != nil && strings.Contains(err.Error(), "remote error: tls: bad certificate")
}

// RenewConfig is what a box needs to renew.
type RenewConfig struct {
	ParentURL string
	Identity  *Identity
	// Seal replaces the seal key; nil keeps it. The old one stays with the identity as
	// OldSeal.
	Seal *ecdsa.PrivateKey
	HTTP *http.Client // nil: a client of its own that shows the certificate in hand
	// Self is what the box says of itself (name, hardware, labels, relay, addresses), for a
	// core that was restored from a backup made before the box enrolled. Optional.
	Self EnrolConfig
}

// Renew gets a new certificate of the same device key, and the newest trust, also with
// a certificate that has expired. It may be repeated.
func Renew(ctx context.Context, cfg RenewConfig) (*Identity, *EnrolReply, error) {
	old := cfg.Identity
	if len(old.Cert) == 0 || old.Trust == nil {
		return nil, nil, errors.New("renew: the box has not enrolled")
	}
	seal := cfg.Seal
	if seal == nil {
		seal = old.Seal
	}
	csr, err := NewCSR(old.Key, &seal.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	c := enrolClient{url: cfg.ParentURL, http: cfg.HTTP}
	if c.http == nil {
		c.http = enrolHTTP(old)
		defer c.http.CloseIdleConnections()
	}
	fp := Fingerprint(old.Trust.Root)
	request := RenewRequest{CSR: csr, Cert: old.Cert[0].Raw,
		Name: cfg.Self.Name, Hardware: &cfg.Self.Hardware, Labels: cfg.Self.Labels, Relay: cfg.Self.Relay, Addresses: cfg.Self.Addresses}
	i, reply, err := c.run(ctx, fp[:], PathRenew, old.Key, seal, request)
	if cfg.HTTP == nil && TurnedAway(err) {
		// Whom the parent does not know, or no more, still hears why: the request needs no
		// certificate on the connection.
		bare := enrolHTTP(nil)
		defer bare.CloseIdleConnections()
		c.http = bare
		i, reply, err = c.run(ctx, fp[:], PathRenew, old.Key, seal, request)
	}
	if err != nil {
		return nil, nil, err
	}
	i.Now, i.OldSeal = old.Now, old.OldSeal
	if !seal.Equal(old.Seal) {
		i.OldSeal = old.Seal
	}
	return i, reply, nil
}

// FetchTrust gets the trust of today from a parent and verifies it against the root's
// fingerprint.
func FetchTrust(ctx context.Context, client *http.Client, parentURL string, rootFP [32]byte) (*Trust, error) {
	if client == nil {
		client = enrolHTTP(nil)
		defer client.CloseIdleConnections()
	}
	t, _, err := enrolClient{url: parentURL, http: client}.trust(ctx, rootFP[:])
	return t, err
}

// NewCSR makes a certificate request for a device: its id as common name, its seal key
// as an extension.
func NewCSR(key *ecdsa.PrivateKey, seal *ecdsa.PublicKey) ([]byte, error) {
	ext, err := SealKeyExtension(seal)
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:         pkix.Name{CommonName: KeyID(&key.PublicKey).String()},
		ExtraExtensions: []pkix.Extension{ext},
	}, key)
}

// ParseCSR checks a request of NewCSR and reads the two keys out of it.
func ParseCSR(der []byte) (key, seal *ecdsa.PublicKey, err error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	if key, err = p256(csr.PublicKey); err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	if seal, err = sealKeyIn(csr.Extensions); err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	if want := KeyID(key).String(); csr.Subject.CommonName != want {
		return nil, nil, fmt.Errorf("certificate request names %q but its key is that of %s", csr.Subject.CommonName, want)
	}
	return key, seal, nil
}

// StockCSR reads the two keys out of a request that any client may have made: whatever it
// calls itself, and with the device key in the seal key's place where it names none. The
// caller has checked its signature.
func StockCSR(csr *x509.CertificateRequest) (key, seal *ecdsa.PublicKey, err error) {
	if key, err = p256(csr.PublicKey); err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	for _, e := range csr.Extensions {
		if e.Id.Equal(OIDSealKey) {
			seal, err = sealKeyIn(csr.Extensions)
			return key, seal, err
		}
	}
	return key, key, nil
}

type enrolClient struct {
	url  string
	http *http.Client
}

// enrolHTTP is a client that takes any server: see EnrolConfig.HTTP.
func enrolHTTP(i *Identity) *http.Client {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	if i != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.tlsCertificate(), nil }
	}
	direct := (&net.Dialer{Timeout: 15 * time.Second}).DialContext
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg, Proxy: nil,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return proxy.From(ctx, direct)(ctx, network, address)
		}}}
}

// run is one exchange: trust, sealed request, checked reply.
func (c enrolClient) run(ctx context.Context, rootFP []byte, path string, key, seal *ecdsa.PrivateKey, request any) (*Identity, *EnrolReply, error) {
	trust, nonce, err := c.trust(ctx, rootFP)
	if err != nil {
		return nil, nil, err
	}
	sealing, err := p256(trust.Sealing.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	body, open, err := sealRequest(sealing, path, nonce, request)
	if err != nil {
		return nil, nil, err
	}
	status, header, answer, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return nil, nil, err
	}
	if header.Get("Content-Type") != SealedType {
		return nil, nil, plainError(status, answer)
	}
	reply, err := open(answer)
	if err != nil {
		return nil, nil, err
	}
	if e := reply.Error; e != nil {
		return nil, nil, &api.Error{Code: e.Code, Message: e.Message, Remedy: e.Remedy}
	}
	i, err := acceptReply(reply, rootFP, key, seal)
	return i, reply, err
}

// acceptReply believes a reply only so far as it fits the root and the box's own keys.
func acceptReply(r *EnrolReply, rootFP []byte, key, seal *ecdsa.PrivateKey) (*Identity, error) {
	i := &Identity{Key: key, Seal: seal}
	var err error
	if i.Trust, err = DecodeTrust(r.Trust, rootFP); err != nil {
		return nil, err
	}
	if len(r.Chain) == 0 || len(r.Chain) > 8 {
		return nil, fmt.Errorf("reply with %d certificates", len(r.Chain))
	}
	for _, der := range r.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("reply: %w", err)
		}
		i.Cert = append(i.Cert, cert)
	}
	// By the core's clock: the box may not have the time yet.
	_, role, err := i.Trust.VerifyChain(i.Cert, x509.ExtKeyUsageClientAuth, time.Unix(r.Time, 0))
	if err != nil {
		return nil, err
	}
	if role != RoleDevice {
		return nil, fmt.Errorf("reply certifies the role %q", role)
	}
	return i, i.check()
}

func (c enrolClient) trust(ctx context.Context, rootFP []byte) (*Trust, []byte, error) {
	status, header, body, err := c.do(ctx, http.MethodGet, PathTrust, nil)
	if err != nil {
		return nil, nil, err
	}
	if status != http.StatusOK {
		return nil, nil, plainError(status, body)
	}
	t, err := DecodeTrust(body, rootFP)
	if err != nil {
		return nil, nil, err
	}
	nonce, err := base64.RawURLEncoding.DecodeString(header.Get(NonceHeader))
	if err != nil || len(nonce) > 64 {
		return nil, nil, errors.New("trust comes with a malformed " + NonceHeader)
	}
	return t, nonce, nil
}

func (c enrolClient) do(ctx context.Context, method, path string, body []byte) (int, http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(c.url, "/")+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", SealedType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, nil, &api.Error{Code: api.Unavailable, Message: "the parent cannot be reached at " + c.url,
			Remedy: "check address, port and firewall; the box retries by itself", Err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxEnrolReply+1))
	if err != nil {
		return 0, nil, nil, &api.Error{Code: api.Unavailable, Message: "the parent's answer broke off", Err: err}
	}
	if len(b) > maxEnrolReply {
		return 0, nil, nil, api.Errorf(api.TooLarge, "the parent's answer is larger than %d bytes", maxEnrolReply)
	}
	return resp.StatusCode, resp.Header, b, nil
}

// plainError reads an answer that anyone between may have written: it is shown, and
// changes nothing.
func plainError(status int, body []byte) error {
	var e api.Error
	if json.Unmarshal(body, &e) == nil && e.Message != "" {
		return &e
	}
	code := api.Unavailable
	if status == http.StatusNotFound {
		code = api.NotFound
	}
	return api.Errorf(code, "the parent answered %d %s", status, http.StatusText(status))
}
