// Package usb answers: how does an update that a person brought to the box get to the
// updater?
//
// The console unpacks it, an OCI image layout in a tar, into a folder of the agent's, checks
// each part against its name, and writes a wish beside it. The agent looks into that folder by
// digest before it asks its parent, and wants what the wish names, until the manifest names
// another release than it did then. Who vouches for the release is checked as for any other.
package usb

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/pattern"
)

// Repo is the repository's name to the updater.
const Repo = "usb/update"

const (
	wishFile = "wish.json"
	maxIndex = 1 << 20
	maxWish  = 4 << 10
)

var layoutName = pattern.New(`^(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})$`)

// Home is the folder where updates from USB lie.
type Home string

// In is the home below the agent's data.
func In(data string) Home { return Home(filepath.Join(data, "usb")) }

func (h Home) repo() string { return filepath.Join(string(h), Repo) }
func (h Home) wish() string { return filepath.Join(string(h), wishFile) }

// Make makes the folder.
func (h Home) Make() error { return os.MkdirAll(filepath.Dir(h.repo()), 0o700) }

// Wish is what a person wants installed.
type Wish struct {
	Digest string    `json:"digest"`
	By     string    `json:"by"`
	Time   time.Time `json:"time"`
	// Over is the digest of the release that the manifest named when the agent first read the
	// wish: empty for none, nil while it has not.
	Over *string `json:"over,omitempty"`
}

// Offer unpacks an update and writes the wish for it. What was offered before is gone then.
func (h Home) Offer(ctx context.Context, r io.Reader, w Wish) error {
	next := h.repo() + ".new"
	if err := errors.Join(h.Make(), os.RemoveAll(next), os.MkdirAll(filepath.Join(next, "blobs/sha256"), 0o700)); err != nil {
		return err
	}
	var err error
	if w.Digest, err = unpackLayout(ctx, r, next); err != nil {
		return errors.Join(fmt.Errorf("no whole update: %w", err), os.RemoveAll(next))
	}
	// The wish goes first: while the folder is exchanged, nothing of it is wanted.
	if err := errors.Join(h.drop(), os.RemoveAll(h.repo()), os.Rename(next, h.repo()), atomicfile.SyncDir(filepath.Dir(h.repo()))); err != nil {
		return err
	}
	return h.write(w)
}

func (h Home) write(w Wish) error {
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return atomicfile.Write(h.wish(), text, 0o600)
}

func (h Home) drop() error {
	if err := os.Remove(h.wish()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Wanted is the digest of the update that a person brought; empty when there is none, or the
// manifest, which names the release of that digest (or none), has had another since.
func (h Home) Wanted(manifest string) (string, error) {
	info, err := os.Stat(h.wish())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err == nil && info.Size() > maxWish {
		err = fmt.Errorf("a wish of %d bytes", info.Size())
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(h.wish())
	}
	if err != nil {
		return "", err
	}
	var w Wish
	if err := json.Unmarshal(text, &w); err != nil || w.Digest == "" {
		return "", errors.Join(errors.New("a torn wish"), err, h.drop())
	}
	switch {
	case w.Over == nil:
		w.Over = &manifest
		return w.Digest, h.write(w)
	case *w.Over != manifest:
		return "", errors.Join(h.drop(), os.RemoveAll(h.repo()))
	}
	return w.Digest, nil
}

// unpackLayout unpacks an OCI image layout with one manifest, checks each blob against its
// name, and gives back the manifest's digest.
func unpackLayout(ctx context.Context, r io.Reader, to string) (digest string, err error) {
	in := tar.NewReader(r)
	var index []byte
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		if err := ctx.Err(); err != nil {
			return "", err
		}
		name := strings.TrimPrefix(h.Name, "./")
		switch {
		case h.Typeflag == tar.TypeDir:
			continue
		case h.Typeflag != tar.TypeReg || !layoutName.MatchString(name):
			return "", fmt.Errorf("%.80q does not belong into it", name)
		case name == "index.json":
			if index, err = io.ReadAll(io.LimitReader(in, maxIndex)); err != nil {
				return "", err
			}
		default:
			if err := unpackBlob(in, filepath.Join(to, name), strings.TrimPrefix(name, "blobs/sha256/")); err != nil {
				return "", err
			}
		}
	}
	var list struct {
		Manifests []struct {
			Digest string `json:"digest"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(index, &list); err != nil || len(list.Manifests) != 1 {
		return "", errors.New("its index names not one manifest")
	}
	digest = list.Manifests[0].Digest
	hash, ok := strings.CutPrefix(digest, "sha256:")
	if _, err := os.Stat(filepath.Join(to, "blobs/sha256", filepath.Base(hash))); !ok || err != nil {
		return "", errors.New("the manifest that its index names is not in it")
	}
	return digest, nil
}

func unpackBlob(r io.Reader, path, want string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), r)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); len(want) == 64 && got != want {
		return fmt.Errorf("a part is damaged: %s is %s", want[:12], got[:12])
	}
	return nil
}
