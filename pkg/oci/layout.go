package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// CheckLayout reads one repository's image layout in a folder and says what a box that has nothing else would miss: a
// blob that is not what its name says, or one that a manifest names and that is not there. Of an index, only what is
// for one of those architectures must be there. It returns the digests that index.json names.
func CheckLayout(folder string, architectures ...string) (digests []string, err error) {
	blobs := filepath.Join(folder, "blobs", "sha256")
	if _, err := os.Stat(filepath.Join(folder, "oci-layout")); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(folder, "index.json"))
	if err != nil {
		return nil, err
	}
	top, err := ParseContent(raw)
	if err != nil {
		return nil, err
	}
	if len(top.Children()) == 0 {
		return nil, errors.New("index.json names nothing")
	}
	for _, d := range top.Children() {
		digests = append(digests, d.Digest)
		if err := checkTree(blobs, d, architectures, maxNesting); err != nil {
			return nil, err
		}
	}
	return digests, nil
}

// maxNesting bounds how deep manifests name each other: an index, its image, and one to spare.
const maxNesting = 4

func checkTree(blobs string, d Descriptor, architectures []string, depth int) error {
	if depth == 0 {
		return errors.New(d.Digest + " lies too deep")
	}
	if err := CheckDigest(d.Digest); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(blobs, strings.TrimPrefix(d.Digest, "sha256:")))
	if err != nil {
		return err
	}
	defer f.Close()
	var head bytes.Buffer
	n, err := io.Copy(&capped{&head}, newVerifier(f, d.Digest))
	if errors.Is(err, errCorrupt) {
		return fmt.Errorf("%s: the file is not what its name says", d.Digest)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.Digest, err)
	}
	if n != d.Size {
		return fmt.Errorf("%s has %d bytes, not the %d that are said of it", d.Digest, n, d.Size)
	}
	switch d.MediaType {
	case TypeManifest, TypeIndex, TypeDockerManifest, TypeDockerIndex:
	default:
		return nil
	}
	c, err := ParseContent(head.Bytes())
	if err != nil {
		return err
	}
	for _, child := range c.Children() {
		if p := child.Platform; c.Index() && p != nil && len(architectures) > 0 && !slices.Contains(architectures, p.Architecture) {
			continue
		}
		if err := checkTree(blobs, child, architectures, depth-1); err != nil {
			return err
		}
	}
	return nil
}

// capped keeps as much as a manifest may have.
type capped struct{ b *bytes.Buffer }

func (c *capped) Write(b []byte) (int, error) {
	c.b.Write(b[:min(len(b), MaxManifest-min(c.b.Len(), MaxManifest))])
	return len(b), nil
}
