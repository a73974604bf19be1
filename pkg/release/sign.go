package release

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"tributary.dev/tributary/pkg/api"
)

// Releases are vouched for by TUF metadata that is made offline: a root (which keys, how many of them, for what) and,
// for each release, a targets file with the digest of its description. The box has a root in its image and keeps the
// newest that it accepted. A new root needs the threshold of the old one's keys and that of its own (TUF 1.0.33, 5.3).
// Snapshot and timestamp, which say that nothing newer exists, need keys that are online: that is the manifest's part,
// and the security counter's. So the core, which has no key of this kind, can choose among releases and make none.

// Target is the name of the description in the targets file.
const Target = "release.json"

// maxRoots bounds how many rotations one release may carry.
const maxRoots = 64

// ErrNotSigned is the refusal of metadata that does not carry the threshold of known keys' signatures.
var ErrNotSigned = &api.Error{Code: api.Forbidden, Message: "the release is not signed by enough of the keys that this box trusts", Remedy: "sign it with `edgectl release sign`; after a change of keys, add the newer root to the release"}

// Trusted is what a box believes about the owners of release keys.
type Trusted struct {
	root *metadata.Metadata[metadata.RootType]
	raw  []byte
}

// TrustRoot takes a root as given: from the image, or from what was kept.
func TrustRoot(raw []byte) (*Trusted, error) {
	root, err := parseRoot(raw)
	if err != nil {
		return nil, err
	}
	if err := root.VerifyDelegate(metadata.ROOT, root); err != nil {
		return nil, fmt.Errorf("a root that does not sign itself: %w", err)
	}
	return &Trusted{root, bytes.Clone(raw)}, nil
}

func parseRoot(raw []byte) (*metadata.Metadata[metadata.RootType], error) {
	if len(raw) > MaxMetadata {
		return nil, api.Errorf(api.TooLarge, "a root of %d bytes", len(raw))
	}
	root, err := metadata.Root().FromBytes(raw)
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: "not a root of release keys", Err: err}
	}
	for _, role := range []string{metadata.ROOT, metadata.TARGETS} {
		if r := root.Signed.Roles[role]; r == nil || r.Threshold < 1 {
			return nil, api.Errorf(api.Invalid, "a root without a threshold for %s", role)
		}
	}
	return root, nil
}

// Raw is the root, to be kept.
func (t *Trusted) Raw() []byte { return bytes.Clone(t.raw) }

// Version is the root's.
func (t *Trusted) Version() int64 { return t.root.Signed.Version }

// Expired tells whether the root's time is over at now. It binds only where the time is trusted.
func (t *Trusted) Expired(now time.Time) bool { return t.root.Signed.IsExpired(now) }

// Rotate accepts newer roots in the order of their versions; older ones are passed over. On an error nothing changes.
func (t *Trusted) Rotate(roots ...[]byte) (*Trusted, error) {
	if len(roots) > maxRoots {
		return nil, api.Errorf(api.TooLarge, "%d roots; at most %d are read", len(roots), maxRoots)
	}
	for _, raw := range roots {
		next, err := parseRoot(raw)
		if err != nil {
			return nil, err
		}
		if next.Signed.Version <= t.root.Signed.Version {
			continue
		}
		if next.Signed.Version != t.root.Signed.Version+1 {
			return nil, api.Errorf(api.Invalid, "root %d does not follow root %d: those between are missing", next.Signed.Version, t.root.Signed.Version)
		}
		if err := t.root.VerifyDelegate(metadata.ROOT, next); err != nil { // by the keys known so far
			return nil, errors.Join(ErrNotSigned, err)
		}
		if err := next.VerifyDelegate(metadata.ROOT, next); err != nil { // and by its own
			return nil, errors.Join(ErrNotSigned, err)
		}
		t = &Trusted{next, bytes.Clone(raw)}
	}
	return t, nil
}

// Verify checks a release: roots that came with it, its targets file, its description. It answers what is believed from
// now on, to be kept whatever becomes of the release, and the description. now is zero where the time is not trusted.
func (t *Trusted) Verify(roots [][]byte, targets, description []byte, now time.Time) (*Trusted, Description, error) {
	next, err := t.Rotate(roots...)
	if err != nil {
		return nil, Description{}, err
	}
	if len(targets) > MaxMetadata {
		return nil, Description{}, api.Errorf(api.TooLarge, "metadata of %d bytes", len(targets))
	}
	meta, err := metadata.Targets().FromBytes(targets)
	if err != nil {
		return nil, Description{}, &api.Error{Code: api.Invalid, Message: "not the metadata of a release", Err: err}
	}
	if err := next.root.VerifyDelegate(metadata.TARGETS, meta); err != nil { // check: signatures
		return nil, Description{}, errors.Join(ErrNotSigned, err)
	}
	file := meta.Signed.Targets[Target]
	if file == nil {
		return nil, Description{}, api.Errorf(api.Invalid, "the signed metadata names no %s", Target)
	}
	if err := file.VerifyLengthHashes(description); err != nil { // check: digest
		return nil, Description{}, &api.Error{Code: api.Forbidden, Message: "the release's description is not the one that was signed", Err: err}
	}
	if !now.IsZero() && meta.Signed.IsExpired(now) { // check: expiry
		return nil, Description{}, api.Errorf(api.Forbidden, "the release's signature ended on %s", meta.Signed.Expires.Format(time.DateOnly))
	}
	d, err := ParseDescription(description)
	return next, d, err
}

// NewRoot makes an unsigned root: keys, how many of them make a new root, and how many a release.
func NewRoot(version int64, expires time.Time, rootKeys []crypto.PublicKey, rootThreshold int, releaseKeys []crypto.PublicKey, releaseThreshold int) ([]byte, error) {
	root := metadata.Root(expires)
	root.Signed.Version = version
	for _, role := range []struct {
		name      string
		keys      []crypto.PublicKey
		threshold int
	}{{metadata.ROOT, rootKeys, rootThreshold}, {metadata.TARGETS, releaseKeys, releaseThreshold}} {
		if role.threshold < 1 || role.threshold > len(role.keys) {
			return nil, api.Errorf(api.Invalid, "%d of %d keys for %s", role.threshold, len(role.keys), role.name)
		}
		for _, k := range role.keys {
			key, err := metadata.KeyFromPublicKey(k)
			if err != nil {
				return nil, err
			}
			if err := root.Signed.AddKey(key, role.name); err != nil {
				return nil, err
			}
		}
		root.Signed.Roles[role.name].Threshold = role.threshold
	}
	return root.ToBytes(false)
}

// NewTargets makes the unsigned metadata of a release.
func NewTargets(description []byte, version int64, expires time.Time) ([]byte, error) {
	if _, err := ParseDescription(description); err != nil {
		return nil, err
	}
	targets := metadata.Targets(expires)
	targets.Signed.Version = version
	file, err := metadata.TargetFile().FromBytes(Target, description, "sha256")
	if err != nil {
		return nil, err
	}
	targets.Signed.Targets[Target] = file
	return targets.ToBytes(false)
}

// AddSignature signs a root or a targets file with one more key (P-256 or Ed25519). A second signature of the same key
// takes the place of the first. Several people sign one after the other, each where the key is.
func AddSignature(raw []byte, key crypto.Signer) ([]byte, error) {
	if len(raw) > MaxMetadata {
		return nil, api.Errorf(api.TooLarge, "metadata of %d bytes", len(raw))
	}
	signer, err := signature.LoadSigner(key, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	public, err := metadata.KeyFromPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	id, err := public.ID()
	if err != nil {
		return nil, err
	}
	var head struct {
		Signed struct {
			Type string `json:"_type"`
		} `json:"signed"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: "not TUF metadata", Err: err}
	}
	switch head.Signed.Type {
	case metadata.ROOT:
		return addTo[metadata.RootType](metadata.Root(), raw, signer, id)
	case metadata.TARGETS:
		return addTo[metadata.TargetsType](metadata.Targets(), raw, signer, id)
	}
	return nil, api.Errorf(api.Invalid, "metadata of type %q is not signed here", head.Signed.Type)
}

func addTo[T metadata.Roles](empty *metadata.Metadata[T], raw []byte, signer signature.Signer, id string) ([]byte, error) {
	m, err := empty.FromBytes(raw)
	if err != nil {
		return nil, err
	}
	kept := m.Signatures[:0]
	for _, s := range m.Signatures {
		if s.KeyID != id {
			kept = append(kept, s)
		}
	}
	m.Signatures = kept
	if _, err := m.Sign(signer); err != nil {
		return nil, err
	}
	return m.ToBytes(false)
}
