package bundle

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/release"
)

// Keys are those of a checkout's own releases: one for the root, one for releases. A real owner keeps several of each,
// offline, puts the root into the folder as release-root.json, and signs with edgectl release.
type Keys struct {
	// Root is the TUF root that images carry.
	Root []byte
	// Release signs bundles; nil where only the root is there, and signing is done elsewhere.
	Release crypto.Signer
}

// Files of a Keys folder.
const (
	RootFile    = "release-root.json"
	rootKeyFile = "release-root.key"
	signKeyFile = "release.key"
)

// rootLife is how long a checkout's own root is good for; boxes without trusted time do not look at it.
const rootLife = 20 * 365 * 24 * time.Hour

// LoadOrCreate reads the folder; an empty one gets keys for development.
func LoadOrCreate(dir string, now time.Time) (*Keys, error) {
	raw, err := os.ReadFile(filepath.Join(dir, RootFile))
	if errors.Is(err, fs.ErrNotExist) {
		return create(dir, now)
	}
	if err != nil {
		return nil, err
	}
	if _, err := release.TrustRoot(raw); err != nil {
		return nil, fmt.Errorf("%s: %w", RootFile, err)
	}
	k := &Keys{Root: raw}
	signer, err := release.ReadKey(filepath.Join(dir, signKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	k.Release = signer
	return k, err
}

func create(dir string, now time.Time) (*Keys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := release.NewKey(filepath.Join(dir, rootKeyFile))
	if err != nil {
		return nil, err
	}
	signer, err := release.NewKey(filepath.Join(dir, signKeyFile))
	if err != nil {
		return nil, err
	}
	raw, err := release.NewRoot(1, now.Add(rootLife), []crypto.PublicKey{root.Public()}, 1, []crypto.PublicKey{signer.Public()}, 1)
	if err != nil {
		return nil, err
	}
	if raw, err = release.AddSignature(raw, root); err != nil {
		return nil, err
	}
	return &Keys{Root: raw, Release: signer}, atomicfile.Write(filepath.Join(dir, RootFile), raw, 0o644)
}
