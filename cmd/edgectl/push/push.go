// Package push answers: how does an image on a person's disk get into the core's
// registry?
//
// It takes an OCI image layout (a folder, or a tar of one, as skopeo, buildah and
// `docker buildx -o type=oci` write them) or a docker-archive (`docker save`), and
// speaks the ordinary protocol of OCI registries.
package push

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"tributary.dev/tributary/pkg/api"
)

// Source is an opened image or index. Close removes what was unpacked for it.
type Source struct {
	image   v1.Image
	index   v1.ImageIndex
	cleanup func() error
}

// Close frees the source.
func (s *Source) Close() error {
	if s.cleanup == nil {
		return nil
	}
	return s.cleanup()
}

// Digest is the digest that the pushed reference will have.
func (s *Source) Digest() (v1.Hash, error) {
	if s.index != nil {
		return s.index.Digest()
	}
	return s.image.Digest()
}

const howTo = "give an OCI layout (folder or tar) or the output of `docker save`"

// Open finds out what lies at path. scratch is a folder for unpacking tars.
func Open(path, scratch string) (*Source, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &api.Error{Code: api.NotFound, Message: "there is no " + path, Remedy: howTo}
	}
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: path + " cannot be read", Remedy: howTo, Err: err}
	}
	if info.IsDir() {
		return openLayout(path)
	}
	kind, err := tarKind(path)
	if err != nil {
		return nil, err
	}
	if kind == dockerArchive {
		img, err := tarball.ImageFromPath(path, nil)
		if err != nil {
			return nil, &api.Error{Code: api.Invalid, Message: path + " cannot be read as a docker-archive of one image", Remedy: "save one image at a time: `docker save IMAGE -o FILE`", Err: err}
		}
		return &Source{image: img}, nil
	}
	dir, err := os.MkdirTemp(scratch, "edgectl-push-")
	if err != nil {
		return nil, err
	}
	if err := unpack(path, dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s, err := openLayout(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s.cleanup = func() error { return os.RemoveAll(dir) }
	return s, nil
}

func openLayout(dir string) (*Source, error) {
	bad := func(err error) error {
		return &api.Error{Code: api.Invalid, Message: dir + " is not an OCI image layout", Remedy: howTo, Err: err}
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, bad(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, bad(err)
	}
	switch len(m.Manifests) {
	case 0:
		return nil, bad(errors.New("it holds no image"))
	case 1:
		d := m.Manifests[0]
		if d.MediaType.IsIndex() {
			inner, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, bad(err)
			}
			return &Source{index: inner}, nil
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			return nil, bad(err)
		}
		return &Source{image: img}, nil
	}
	// Several images: one for each platform, or the folder is a collection.
	seen := map[string]bool{}
	for _, d := range m.Manifests {
		if d.Platform == nil || seen[d.Platform.String()] {
			return nil, &api.Error{Code: api.Invalid, Message: dir + " holds several images", Remedy: "copy the one you mean into a layout of its own, e.g. `skopeo copy oci:DIR:TAG oci:NEW`"}
		}
		seen[d.Platform.String()] = true
	}
	return &Source{index: index}, nil
}

type archive int

const (
	ociArchive archive = iota
	dockerArchive
)

// tarKind reads a tar's names. Newer `docker save` writes both forms at once; its
// manifest.json then decides.
func tarKind(path string) (archive, error) {
	oci := false
	docker := false
	err := eachEntry(path, func(h *tar.Header, _ io.Reader) error {
		switch strings.TrimPrefix(h.Name, "./") {
		case "oci-layout":
			oci = true
		case "manifest.json":
			docker = true
		}
		return nil
	})
	switch {
	case err != nil:
		return 0, &api.Error{Code: api.Invalid, Message: path + " is not a tar", Remedy: howTo, Err: err}
	case docker:
		return dockerArchive, nil
	case oci:
		return ociArchive, nil
	}
	return 0, &api.Error{Code: api.Invalid, Message: path + " holds no image", Remedy: howTo}
}

const maxEntries = 100_000

func eachEntry(path string, on func(*tar.Header, io.Reader) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n > maxEntries {
			return errors.New("too many entries")
		}
		if err := on(h, r); err != nil {
			return err
		}
	}
}

// unpack writes the plain files of a layout's tar; anything else in it is skipped.
func unpack(path, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return eachEntry(path, func(h *tar.Header, r io.Reader) error {
		name := filepath.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(name) {
			return nil
		}
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r) // bounded by the tar, which lies on the same machine
		return errors.Join(err, f.Close())
	})
}

// Target is the core's registry.
type Target struct {
	Base      *url.URL
	Transport http.RoundTripper
	Token     string
	Agent     string
}

// Reference checks "repository:tag" for a target. Without a tag it is "latest".
func (t Target) Reference(ref string) (name.Reference, error) {
	options := []name.Option{name.WithDefaultTag("latest")}
	if t.Base.Scheme == "http" {
		options = append(options, name.Insecure)
	}
	first, _, found := strings.Cut(ref, "/")
	if found && strings.ContainsAny(first, ".:") || strings.Contains(ref, "@") {
		return nil, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%q names another registry or a digest", ref), Remedy: "write TENANT/NAME:TAG, e.g. default/web:1"}
	}
	r, err := name.ParseReference(t.Base.Host+"/"+ref, options...)
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%q is not an image name", ref), Remedy: "write TENANT/NAME:TAG, e.g. default/web:1", Err: err}
	}
	return r, nil
}

// Push sends a source; what the registry has is not sent again. progress is called
// with bytes done and bytes in all, from one goroutine; nil for none.
func Push(ctx context.Context, s *Source, t Target, ref string, progress func(done, total int64)) (digest string, err error) {
	r, err := t.Reference(ref)
	if err != nil {
		return "", err
	}
	options := []remote.Option{
		remote.WithContext(ctx), remote.WithTransport(t.Transport), remote.WithUserAgent(t.Agent), remote.WithJobs(4),
		remote.WithAuth(&authn.Basic{Username: "edgectl", Password: t.Token}),
	}
	hash, err := s.Digest()
	if err != nil {
		return "", &api.Error{Code: api.Invalid, Message: "the image cannot be read", Remedy: "save it anew", Err: err}
	}
	if progress != nil {
		updates, stop, done := make(chan v1.Update, 64), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			report(updates, stop, progress)
		}()
		defer func() { close(stop); <-done }()
		options = append(options, remote.WithProgress(updates))
	}
	if s.index != nil {
		err = remote.WriteIndex(r, s.index, options...)
	} else {
		err = remote.Write(r, s.image, options...)
	}
	if err != nil {
		return "", refused(err, t, ref)
	}
	return hash.String(), nil
}

// report passes updates on until the channel is closed, or stop is and nothing waits.
func report(updates <-chan v1.Update, stop <-chan struct{}, progress func(done, total int64)) {
	for {
		select {
		case u, ok := <-updates:
			if !ok {
				return
			}
			if u.Error == nil {
				progress(u.Complete, u.Total)
			}
		case <-stop:
			select {
			case u, ok := <-updates:
				if ok && u.Error == nil {
					progress(u.Complete, u.Total)
					continue
				}
			default:
			}
			return
		}
	}
}

// refused turns the registry's errors into ours.
func refused(err error, t Target, ref string) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	var te *transport.Error
	if !errors.As(err, &te) {
		return &api.Error{Code: api.Unavailable, Message: "the registry of " + t.Base.Host + " cannot be reached", Remedy: "try again; what was sent already is not sent twice", Err: err}
	}
	e := &api.Error{Code: api.Internal, Message: "the registry refused " + ref, Remedy: "try again", Err: err}
	switch te.StatusCode {
	case http.StatusUnauthorized:
		e.Code, e.Remedy = api.Unauthorized, "log in with `edgectl login`"
	case http.StatusForbidden:
		e.Code, e.Remedy = api.Forbidden, "push into a repository of your own tenant: TENANT/NAME:TAG"
	case http.StatusRequestEntityTooLarge, http.StatusInsufficientStorage:
		e.Code, e.Remedy = api.TooLarge, "make room on the core, or make the image smaller"
	case http.StatusBadRequest, http.StatusNotFound:
		e.Code, e.Remedy = api.Invalid, "write TENANT/NAME:TAG, e.g. default/web:1"
	}
	for _, d := range te.Errors {
		switch d.Code {
		case transport.DigestInvalidErrorCode, transport.BlobUploadInvalidErrorCode, transport.SizeInvalidErrorCode, transport.ManifestInvalidErrorCode:
			e.Code, e.Message, e.Remedy = api.Invalid, "what lies on this disk for "+ref+" is damaged: the registry refused it ("+string(d.Code)+")", "build or save it anew, or copy it once more"
			e.Err = nil // addresses of uploads tell nobody anything
		case transport.NameUnknownErrorCode:
			e.Code, e.Message, e.Remedy = api.NotFound, "the registry has no place for "+ref+": "+d.Message, "the first part of the name is a tenant: see `edgectl get tenants`"
			e.Err = nil
		}
	}
	return e
}
