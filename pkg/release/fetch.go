package release

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/oci"
)

// Source is where a release's parts come from: the parent's registry, or a relay's own cache.
type Source struct {
	Up   oci.Upstream
	Repo string
}

// Parts are a release as a box first gets it: all but the content.
type Parts struct {
	Manifest    []byte
	Description []byte
	Roots       [][]byte
	Targets     []byte
}

// Parts fetches what says what the release is. Digests are checked, signatures are not.
func (s Source) Parts(ctx context.Context, digest string) (*Parts, error) {
	if err := errors.Join(oci.CheckRepo(s.Repo), oci.CheckDigest(digest)); err != nil {
		return nil, err
	}
	raw, err := s.small(ctx, "manifests", digest, MaxMetadata)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	p := &Parts{Manifest: raw}
	if p.Description, err = s.small(ctx, "blobs", m.Config.Digest, MaxDescription); err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		if l.MediaType != TypeRoot && l.MediaType != TypeTargets {
			continue
		}
		if len(p.Roots) > maxRoots {
			return nil, api.Errorf(api.TooLarge, "more than %d roots", maxRoots)
		}
		b, err := s.small(ctx, "blobs", l.Digest, MaxMetadata)
		if err != nil {
			return nil, err
		}
		if l.MediaType == TypeRoot {
			p.Roots = append(p.Roots, b)
		} else {
			p.Targets = b
		}
	}
	return p, nil
}

// Travel says which blob a box with that content fetches: its digest and size, and whether it is a delta.
func (p *Parts) Travel(identity string) (digest string, size int64, isDelta bool, err error) {
	m, err := parseManifest(p.Manifest)
	if err != nil {
		return "", 0, false, err
	}
	d, isDelta, ok := m.travel(identity)
	if !ok || oci.CheckDigest(d.Digest) != nil || d.Size <= 0 || d.Size > MaxContent {
		return "", 0, false, api.Errorf(api.Invalid, "the release has no content")
	}
	return d.Digest, d.Size, isDelta, nil
}

// ask sends a request; from is where to begin.
func (s Source) ask(ctx context.Context, kind, digest string, from int64) (*http.Response, error) {
	base, client, err := s.Up.Endpoint()
	if err != nil {
		return nil, &api.Error{Code: api.Unavailable, Message: "there is no parent to fetch from", Err: err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("v2", s.Repo, kind, digest).String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", typeManifest+", */*")
	req.Header.Set("Accept-Encoding", "identity") // digests and ranges are of the plain bytes
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, &api.Error{Code: api.Unavailable, Message: "the parent's registry cannot be reached", Err: err}
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		return res, nil
	}
	res.Body.Close()
	if res.StatusCode == http.StatusNotFound {
		return nil, api.Errorf(api.NotFound, "the parent has no %s in %s", digest, s.Repo)
	}
	return nil, api.Errorf(api.Unavailable, "the parent answered %d to a request for %s", res.StatusCode, digest)
}

func (s Source) small(ctx context.Context, kind, digest string, most int64) ([]byte, error) {
	if err := oci.CheckDigest(digest); err != nil {
		return nil, err
	}
	res, err := s.ask(ctx, kind, digest, 0)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, most+1))
	switch {
	case err != nil:
		return nil, &api.Error{Code: api.Unavailable, Message: "the parent's answer broke off", Err: err}
	case int64(len(b)) > most:
		return nil, api.Errorf(api.TooLarge, "%s has more than %d bytes", digest, most)
	case digestOf(b) != digest:
		return nil, api.Errorf(api.Unavailable, "the parent sent wrong bytes for %s", digest)
	}
	return b, nil
}

// ErrClosed ends a download whose hours are over. It goes on from there in the next ones.
var ErrClosed = errors.New("the hours in which releases are fetched are over")

// Limits bound a download; they are asked before each piece of 64 KiB, so that a change counts at once. Nil functions do
// not bound. Rate is in bytes a second, 0 for any; where Open says false the download ends with ErrClosed.
type Limits struct {
	Rate func() int64
	Open func() bool
}

// Download brings a blob to a file. What an earlier attempt left there is kept and gone on with, at any byte; a whole
// file is only read. One attempt; Unavailable is worth another.
func (s Source) Download(ctx context.Context, digest string, size int64, path string, limits Limits) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	have, err := io.Copy(sum, io.LimitReader(f, size))
	if err != nil {
		return err
	}
	if have < size {
		if err := s.rest(ctx, f, sum, digest, have, size, limits); err != nil {
			return errors.Join(err, f.Sync())
		}
	}
	if "sha256:"+hex.EncodeToString(sum.Sum(nil)) != digest {
		return errors.Join(api.Errorf(api.Unavailable, "wrong bytes for %s: begun anew", digest), f.Truncate(0))
	}
	return f.Sync()
}

func (s Source) rest(ctx context.Context, f *os.File, sum io.Writer, digest string, have, size int64, limits Limits) error {
	res, err := s.ask(ctx, "blobs", digest, have)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	skip := int64(0)
	if have > 0 && res.StatusCode == http.StatusOK { // it knows no ranges
		skip = have
	}
	if _, err := io.CopyN(io.Discard, res.Body, skip); err != nil {
		return &api.Error{Code: api.Unavailable, Message: "the parent's answer broke off", Err: err}
	}
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		return err
	}
	const step = 64 << 10
	for have < size {
		if limits.Open != nil && !limits.Open() { // check: hours
			return ErrClosed
		}
		began := time.Now()
		n, err := io.CopyN(io.MultiWriter(f, sum), res.Body, min(step, size-have))
		have += n
		if err != nil {
			return &api.Error{Code: api.Unavailable, Message: fmt.Sprintf("the download broke off after %d of %d bytes; it goes on from there", have, size), Err: err}
		}
		rate := int64(0)
		if limits.Rate != nil {
			rate = limits.Rate()
		}
		if rate > 0 { // check: rate
			pause := time.NewTimer(time.Duration(n)*time.Second/time.Duration(rate) - time.Since(began))
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
				return ctx.Err()
			}
		}
	}
	return nil
}
