package release

import (
	"bytes"
	"errors"
	"fmt"
	"time"

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

// Ends is when the root's time is over: what it vouches for is new to nobody then.
func (t *Trusted) Ends() time.Time { return t.root.Signed.Expires }

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
// now on, to be kept whatever becomes of the release, and the description. past is a moment that is certainly over, by
// which roots and signatures end; zero where none is known. Of the roots only the last must not have ended (TUF 1.0.33,
// 5.3.10): so the owners of keys whose root ended make the next one, and all is well again.
func (t *Trusted) Verify(roots [][]byte, targets, description []byte, past time.Time) (*Trusted, Description, error) {
	next, err := t.Rotate(roots...)
	if err != nil {
		return nil, Description{}, err
	}
	if !past.IsZero() && next.root.Signed.IsExpired(past) { // check: end of the root
		return nil, Description{}, &api.Error{Code: api.Forbidden, Message: fmt.Sprintf("root %d of the release keys ended on %s", next.Version(), next.root.Signed.Expires.Format(time.DateOnly)),
			Remedy: "have the owners of its root keys sign the next root, and add that to the release: edgectl release sign --root"}
	}
	meta, err := parseTargets(targets)
	if err != nil {
		return nil, Description{}, err
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
	if !past.IsZero() && meta.Signed.IsExpired(past) { // check: expiry
		return nil, Description{}, api.Errorf(api.Forbidden, "the release's signature ended on %s", meta.Signed.Expires.Format(time.DateOnly))
	}
	d, err := ParseDescription(description)
	return next, d, err
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
