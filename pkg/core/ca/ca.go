// Package ca answers: by which keys does this core rule, and what has it certified?
//
// One folder holds it all, and a copy of the folder is its backup:
//
//	root.key     the offline root. Needed only to make or rotate the ones below; move it
//	             to a safe place once the core runs. Nothing else is in that file.
//	root.crt     its certificate; join tokens carry its fingerprint
//	issuer.pem   the CA of device and TLS certificates
//	signer.pem   signs manifests, acknowledgements and commands
//	sealing.pem  boxes seal their enrolment to it and derive their state key with it
//	tls.pem      the core's own server certificate, with its names
//	unlock.pem   answers the challenges of boxes' consoles; the signer vouches for it
//	previous/    certificates of earlier issuers and signers that boxes still believe, and
//	             earlier sealing keys that boxes may still use
//
// Each .pem holds a key and its certificate in one file, so that no power cut
// parts them. issuer, signer and sealing are certified by the root, each for its one role.
package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Lives of certificates. A leaf never outlives its issuer.
const (
	rootLife    = 30 * year
	issuerLife  = 10 * year
	signerLife  = 10 * year
	sealingLife = 20 * year
	tlsLife     = 180 * day
	// DeviceLife is that of a device's certificate, unless Options say otherwise.
	DeviceLife = 90 * day

	day  = 24 * time.Hour
	year = 365 * day
	// backdate lets boxes whose clocks are a little behind accept what is new. What lives
	// for minutes begins less early: the moment of renewal counts from there.
	backdate = time.Hour
)

// Options tune a CA. The zero value serves.
type Options struct {
	Now        func() time.Time // nil is time.Now
	DeviceLife time.Duration    // 0 is the constant DeviceLife
}

// CA is an open authority. Its methods may be called from any goroutine.
type CA struct {
	dir        string
	now        func() time.Time
	deviceLife time.Duration

	mu                      sync.RWMutex
	root                    *x509.Certificate
	issuer, signer, sealing pair
	previous                []*x509.Certificate // newest first
	former                  formerSealing
	nonces                  nonces
	unlock                  unlockKey
}

type pair struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

const (
	rootName    = "root"
	tlsName     = "tls"
	previousDir = "previous"
)

// Open reads the CA in dir, and makes what is missing: everything in an empty folder, or
// what a power cut kept an earlier Open from making. Making anything but TLS
// certificates needs root.key.
func Open(dir string, opts Options) (*CA, error) {
	c := &CA{dir: dir, now: opts.Now, deviceLife: opts.DeviceLife}
	if c.now == nil {
		c.now = time.Now
	}
	if c.deviceLife <= 0 {
		c.deviceLife = DeviceLife
	}
	if err := os.MkdirAll(filepath.Join(dir, previousDir), 0o700); err != nil {
		return nil, err
	}
	if err := c.openRoot(); err != nil {
		return nil, fmt.Errorf("ca: root: %w", err)
	}
	for _, part := range []struct {
		p    *pair
		role string
		life time.Duration
	}{{&c.issuer, identity.RoleIssuer, issuerLife}, {&c.signer, identity.RoleSigner, signerLife}, {&c.sealing, identity.RoleSealing, sealingLife}} {
		p, err := readPair(c.path(part.role + ".pem"))
		if errors.Is(err, fs.ErrNotExist) {
			p, err = c.certify(part.role, part.life)
		}
		if err != nil {
			return nil, fmt.Errorf("ca: %s: %w", part.role, err)
		}
		*part.p = p
	}
	if err := c.readPrevious(); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	// The same for all who have this folder: a box may ask one core and enrol at another.
	own, err := c.issuer.key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("ca: issuer: %w", err)
	}
	c.nonces.key = sha256.Sum256(append([]byte("tributary nonces of enrolment\x00"), own...))
	// One look through the eyes of a box, before any box looks.
	if _, err := identity.DecodeTrust(c.Trust().Encode(), nil); err != nil {
		return nil, fmt.Errorf("ca: folder %s does not hold together: %w", dir, err)
	}
	return c, nil
}

func (c *CA) path(name string) string { return filepath.Join(c.dir, name) }

func (c *CA) openRoot() error {
	cert, err := readCert(c.path(rootName + ".crt"))
	if err == nil {
		c.root = cert
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Parts without their root are a damaged folder, not an empty one.
	if _, err := os.Stat(c.path(identity.RoleIssuer + ".pem")); err == nil {
		return errors.New("root.crt is missing but issuer.pem is there: restore the folder from a backup")
	}
	key, err := identity.LoadOrCreateKey(c.path(rootName + ".key"))
	if err != nil {
		return err
	}
	kid := hex.EncodeToString(identity.KID(&key.PublicKey)[:4])
	tmpl := c.template("Tributary root "+kid, rootLife)
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.MaxPathLen = true, true, 1
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	cert, err = sign(tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return err
	}
	c.root = cert
	return atomicfile.Write(c.path(rootName+".crt"), identity.FormatCerts([]*x509.Certificate{cert}), 0o644)
}

// certify makes a key and has the root certify it for a role.
func (c *CA) certify(role string, life time.Duration) (pair, error) {
	rootKey, err := c.rootKey()
	if err != nil {
		return pair{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	tmpl := c.template("Tributary "+role+" "+hex.EncodeToString(identity.KID(&key.PublicKey)[:4]), life)
	switch role {
	case identity.RoleIssuer:
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.MaxPathLenZero = true, true, true
		tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	case identity.RoleSigner:
		tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	case identity.RoleSealing:
		tmpl.KeyUsage = x509.KeyUsageKeyAgreement
	}
	ext, err := identity.RoleExtension(role)
	if err != nil {
		return pair{}, err
	}
	tmpl.ExtraExtensions = []pkix.Extension{ext}
	cert, err := sign(tmpl, c.root, &key.PublicKey, rootKey)
	if err != nil {
		return pair{}, err
	}
	p := pair{key, cert}
	return p, writePair(c.path(role+".pem"), p, nil)
}

func (c *CA) rootKey() (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(c.path(rootName + ".key"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &api.Error{Code: api.Forbidden, Message: "the root key is not here",
			Remedy: "put root.key back into " + c.dir + " for this one step, then move it away again"}
	}
	if err != nil {
		return nil, err
	}
	key, err := identity.ParseKey(b)
	if err != nil {
		return nil, err
	}
	if pub, ok := c.root.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(&key.PublicKey) {
		return nil, errors.New("root.key is not the key of root.crt")
	}
	return key, nil
}

// RootKeyPresent tells whether root.key lies in the folder, for a reminder to move it.
func (c *CA) RootKeyPresent() bool {
	_, err := os.Stat(c.path(rootName + ".key"))
	return err == nil
}

// Fingerprint is the root's, as join tokens carry it.
func (c *CA) Fingerprint() [32]byte { return identity.Fingerprint(c.root) }

// Trust is what boxes of this core believe, newest first.
func (c *CA) Trust() *identity.Trust {
	c.mu.RLock()
	defer c.mu.RUnlock()
	t := &identity.Trust{Root: c.root, Issuers: []*x509.Certificate{c.issuer.cert}, Signers: []*x509.Certificate{c.signer.cert}, Sealing: c.sealing.cert}
	for _, p := range c.previous {
		switch identity.RoleOf(p) {
		case identity.RoleIssuer:
			t.Issuers = append(t.Issuers, p)
		case identity.RoleSigner:
			t.Signers = append(t.Signers, p)
		}
	}
	return t
}

// Signer is the online key for manifests, acknowledgements and commands, and its key id.
func (c *CA) Signer() (key *ecdsa.PrivateKey, kid []byte) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.signer.key, identity.KID(&c.signer.key.PublicKey)
}

// Rotate replaces the issuer or the signer (identity.RoleIssuer, RoleSigner). The old
// certificate stays in the trust until Forget; boxes learn of the new one when they
// renew or meet a signer that they do not know. Needs root.key.
func (c *CA) Rotate(role string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var part *pair
	var life time.Duration
	switch role {
	case identity.RoleIssuer:
		part, life = &c.issuer, issuerLife
	case identity.RoleSigner:
		part, life = &c.signer, signerLife
	default:
		return api.Errorf(api.Invalid, "a key of role %q does not rotate", role)
	}
	if _, err := c.rootKey(); err != nil {
		return err
	}
	old := part.cert
	name := filepath.Join(previousDir, fmt.Sprintf("%s-%020d.pem", role, c.now().UnixNano()))
	if err := atomicfile.Write(c.path(name), identity.FormatCerts([]*x509.Certificate{old}), 0o644); err != nil {
		return err
	}
	p, err := c.certify(role, life)
	if err != nil {
		return err
	}
	*part = p
	c.previous = slices.Insert(c.previous, 0, old)
	return nil
}

// Forget takes all earlier issuers and signers out of the trust. What they signed is
// refused by boxes that have the new trust.
func (c *CA) Forget() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	entries, err := os.ReadDir(c.path(previousDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), identity.RoleSealing+"-") {
			continue // it signed nothing
		}
		if err := os.Remove(filepath.Join(c.path(previousDir), e.Name())); err != nil {
			return err
		}
	}
	c.previous = nil
	return atomicfile.SyncDir(c.path(previousDir))
}

func (c *CA) readPrevious() error {
	entries, err := os.ReadDir(c.path(previousDir))
	if err != nil {
		return err
	}
	type dated struct {
		stamp string
		cert  *x509.Certificate
	}
	var found []dated
	for _, e := range entries {
		role, stamp, ok := strings.Cut(strings.TrimSuffix(e.Name(), ".pem"), "-")
		if !ok || !strings.HasSuffix(e.Name(), ".pem") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if role == identity.RoleSealing {
			if err := c.readFormer(e.Name(), stamp); err != nil {
				return err
			}
			continue
		}
		cert, err := readCert(filepath.Join(c.path(previousDir), e.Name()))
		if err != nil {
			return err
		}
		// A cut between the two steps of Rotate leaves the one in force here as well.
		if identity.RoleOf(cert) == role && !cert.Equal(c.issuer.cert) && !cert.Equal(c.signer.cert) {
			found = append(found, dated{stamp, cert})
		}
	}
	slices.SortFunc(found, func(a, b dated) int { return strings.Compare(b.stamp, a.stamp) })
	c.former.sort()
	for _, d := range found {
		c.previous = append(c.previous, d.cert)
	}
	return nil
}

// Identity is the core's own, with a server certificate for the given host names and
// addresses: the one on disk while it has these names and two thirds of its life are not
// over, else a new one. Call it at start and daily, and hand the result to
// identity.Live.
func (c *CA) Identity(names []string) (*identity.Identity, error) {
	p, chain, _, err := c.serverPair(c.path(tlsName+".pem"), names)
	if err != nil {
		return nil, err
	}
	return &identity.Identity{Key: p.key, Seal: c.SealingKeys()[0], Cert: chain, Trust: c.Trust(), Now: c.now}, nil
}

// Replica is the identity by which one of several cores reaches the broker that they share: of
// a name of its own.
func (c *CA) Replica(name string) (*identity.Identity, error) {
	trust := c.Trust()
	c.mu.RLock()
	defer c.mu.RUnlock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ext, err := identity.RoleExtension(identity.RoleCore)
	if err != nil {
		return nil, err
	}
	tmpl := c.template(name, tlsLife)
	tmpl.ExtraExtensions = []pkix.Extension{ext}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	cert, err := c.issue(tmpl, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &identity.Identity{Key: key, Seal: c.sealing.key, Cert: []*x509.Certificate{cert, c.issuer.cert}, Trust: trust, Now: c.now}, nil
}

// ServerFile keeps a key and server certificate of the core's in a file of its own, for a
// broker that carries its link: made, or made anew when two thirds of its life are over or
// the names have changed. It tells until when the certificate lives, and whether it is new.
func (c *CA) ServerFile(path string, names []string) (until time.Time, made bool, err error) {
	p, _, made, err := c.serverPair(path, names)
	if err != nil {
		return until, made, err
	}
	return p.cert.NotAfter, made, nil
}

func (c *CA) serverPair(path string, names []string) (_ pair, chain []*x509.Certificate, made bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tmpl := c.template(identity.CoreName, tlsLife)
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	old, err := readPair(path)
	if err == nil && c.fresh(old.cert, tmpl) {
		return old, []*x509.Certificate{old.cert, c.issuer.cert}, false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pair{}, nil, false, fmt.Errorf("ca: %s: %w", path, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, nil, false, err
	}
	ext, err := identity.RoleExtension(identity.RoleCore)
	if err != nil {
		return pair{}, nil, false, err
	}
	tmpl.ExtraExtensions = []pkix.Extension{ext}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	cert, err := c.issue(tmpl, &key.PublicKey)
	if err != nil {
		return pair{}, nil, false, err
	}
	p := pair{key, cert}
	return p, []*x509.Certificate{cert, c.issuer.cert}, true, writePair(path, p, []*x509.Certificate{c.issuer.cert})
}

func (c *CA) fresh(cert, want *x509.Certificate) bool {
	third := cert.NotAfter.Sub(cert.NotBefore) / 3
	return c.now().Before(cert.NotAfter.Add(-third)) && cert.CheckSignatureFrom(c.issuer.cert) == nil &&
		slices.Equal(cert.DNSNames, want.DNSNames) && slices.EqualFunc(cert.IPAddresses, want.IPAddresses, net.IP.Equal)
}

// IssueDevice certifies a device's two keys for a tenant. The chain has the leaf first.
func (c *CA) IssueDevice(key, seal *ecdsa.PublicKey, tenant string) ([]*x509.Certificate, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	role, err := identity.RoleExtension(identity.RoleDevice)
	if err != nil {
		return nil, err
	}
	sealExt, err := identity.SealKeyExtension(seal)
	if err != nil {
		return nil, err
	}
	tmpl := c.template(identity.KeyID(key).String(), c.deviceLife)
	tmpl.Subject.Organization = []string{tenant}
	tmpl.ExtraExtensions = []pkix.Extension{role, sealExt}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	// A relay serves its children with the same certificate.
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	cert, err := c.issue(tmpl, key)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{cert, c.issuer.cert}, nil
}

func (c *CA) issue(tmpl *x509.Certificate, pub *ecdsa.PublicKey) (*x509.Certificate, error) {
	if tmpl.NotAfter.After(c.issuer.cert.NotAfter) {
		tmpl.NotAfter = c.issuer.cert.NotAfter
	}
	return sign(tmpl, c.issuer.cert, pub, c.issuer.key)
}

func (c *CA) template(name string, life time.Duration) *x509.Certificate {
	now := c.now()
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-min(backdate, life/20)), NotAfter: now.Add(life),
	}
}

// sign makes a certificate with a random serial number (RFC 5280 section 4.1.2.2).
func sign(tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func writePair(path string, p pair, chain []*x509.Certificate) error {
	b, err := identity.FormatKey(p.key)
	if err != nil {
		return err
	}
	b = append(b, identity.FormatCerts(append([]*x509.Certificate{p.cert}, chain...))...)
	return atomicfile.Write(path, b, 0o600)
}
