package artifacts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"time"

	"tributary.dev/tributary/pkg/oci"
)

// Child pulls images as a container runtime does: manifest, then blobs side by side,
// each verified, and each resumed by range when its connection breaks. It keeps
// nothing.
type Child struct{ Parent oci.Upstream }

// errFinal marks an answer that no retry mends.
type errFinal struct{ error }

// Pull brings an image and returns the bytes of its parts.
func (c Child) Pull(ctx context.Context, ref oci.Ref) (int64, error) {
	var raw bytesBuffer
	total, err := c.blob(ctx, oci.Route{Kind: oci.RouteManifest, Repo: ref.Repo, Reference: ref.Digest}, &raw)
	if err != nil {
		return total, err
	}
	content, err := oci.ParseContent(raw)
	if err != nil {
		return total, err
	}
	type part struct {
		n   int64
		err error
	}
	parts := content.Children()
	done := make(chan part, len(parts))
	slots := make(chan struct{}, 3) // as containerd's default
	for _, d := range parts {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			n, err := c.blob(ctx, oci.Route{Kind: oci.RouteBlob, Repo: ref.Repo, Reference: d.Digest}, io.Discard)
			done <- part{n, err}
		}()
	}
	var errs []error
	for range parts {
		p := <-done
		total += p.n
		errs = append(errs, p.err)
	}
	return total, errors.Join(errs...)
}

type bytesBuffer []byte

func (b *bytesBuffer) Write(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }

// blob fetches until all is here and verified, however often the parent goes away.
func (c Child) blob(ctx context.Context, r oci.Route, w io.Writer) (int64, error) {
	sum := sha256.New()
	var have int64
	for {
		whole, err := c.attempt(ctx, r, &have, sum, w)
		var final errFinal
		switch {
		case whole:
			if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != r.Reference {
				return have, fmt.Errorf("%s arrived as %s", r.Reference, got)
			}
			return have, nil
		case errors.As(err, &final), ctx.Err() != nil:
			return have, errors.Join(err, ctx.Err())
		}
		timer := time.NewTimer(100 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

func (c Child) attempt(ctx context.Context, r oci.Route, have *int64, sum hash.Hash, w io.Writer) (whole bool, err error) {
	base, client, err := c.Parent.Endpoint()
	if err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath(r.Path()).String(), nil)
	if err != nil {
		return false, errFinal{err}
	}
	if *have > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(*have, 10)+"-")
	}
	res, err := client.Do(req)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
	case http.StatusServiceUnavailable, http.StatusBadGateway:
		return false, errors.New(res.Status)
	default:
		return false, errFinal{fmt.Errorf("%s: %s", r.Path(), res.Status)}
	}
	if *have > 0 && res.StatusCode == http.StatusOK {
		return false, errFinal{errors.New("the parent serves no ranges")}
	}
	n, err := io.Copy(io.MultiWriter(w, sum), res.Body)
	*have += n
	return err == nil, err
}
