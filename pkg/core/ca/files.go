package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"tributary.dev/tributary/pkg/boundedfile"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// maxFile bounds a file of the folder.
const maxFile = 64 << 10

func readPair(path string) (pair, error) {
	b, err := readBounded(path)
	if err != nil {
		return pair{}, err
	}
	block, rest := pem.Decode(b)
	if block == nil {
		return pair{}, errors.New("not a PEM file")
	}
	key, err := identity.ParseKey(pem.EncodeToMemory(block))
	if err != nil {
		return pair{}, err
	}
	certs, err := identity.ParseCerts(rest)
	if err != nil {
		return pair{}, err
	}
	if pub, ok := certs[0].PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(&key.PublicKey) {
		return pair{}, errors.New("key and certificate do not belong together")
	}
	return pair{key, certs[0]}, nil
}

func readCert(path string) (*x509.Certificate, error) {
	b, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	certs, err := identity.ParseCerts(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs[0], nil
}

func readBounded(path string) ([]byte, error) { return boundedfile.Read(path, maxFile) }

// Snapshot reads every file that a backup needs, by its path below the folder. root.key
// is among them while it lies there, so a backup is as secret as the folder: encrypt it.
func Snapshot(dir string) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name()[0] == '.' {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		b, err := readBounded(path)
		if errors.Is(err, fs.ErrNotExist) { // rotated away meanwhile
			return nil
		}
		out[filepath.ToSlash(rel)] = b
		return err
	})
	return out, err
}

// Restore writes a snapshot into an empty or missing folder. It refuses paths that lead
// out of the folder, and a folder that holds another CA. It may be repeated.
func Restore(dir string, files map[string][]byte) error {
	if old, err := os.ReadFile(filepath.Join(dir, rootName+".crt")); err == nil && !bytes.Equal(old, files[rootName+".crt"]) {
		return fmt.Errorf("ca: %s holds another CA: restore into an empty folder", dir)
	}
	if err := os.MkdirAll(filepath.Join(dir, previousDir), 0o700); err != nil {
		return err
	}
	for name, b := range files {
		parent := filepath.ToSlash(filepath.Dir(name))
		if !filepath.IsLocal(name) || parent != "." && parent != previousDir {
			return fmt.Errorf("ca: backup holds a file at the odd path %q", name)
		}
		if err := atomicfile.Write(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(dir)
}
