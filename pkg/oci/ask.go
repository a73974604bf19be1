package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// transient wraps what may go away by itself; after is what the other side asked to
// wait.
type transient struct {
	err   error
	after time.Duration
}

func (t *transient) Error() string { return t.err.Error() }
func (t *transient) Unwrap() error { return t.err }

// acceptManifests is what a registry may answer to a manifest request.
const acceptManifests = TypeManifest + ", " + TypeIndex + ", " + TypeDockerManifest + ", " + TypeDockerIndex

// ask sends one request to the parent. It returns answers 200, 206 and 416; all else
// is an error: *transient when worth a retry, *api.Error when final.
func ask(ctx context.Context, up Upstream, method string, t target, header http.Header) (*http.Response, error) {
	base, client, err := up.Endpoint()
	if err != nil {
		return nil, &transient{err: fmt.Errorf("no parent to ask: %w", err)}
	}
	req, err := http.NewRequestWithContext(ctx, method, base.JoinPath(t.path()).String(), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Accept-Encoding", "identity") // digests and ranges are of the plain bytes
	if t.kind == RouteManifest {
		req.Header.Set("Accept", acceptManifests)
	}
	// A redirect could lead a request with our certificate anywhere inside the
	// network; parents have no need of one.
	direct := *client
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	res, err := direct.Do(req)
	if err != nil {
		return nil, &transient{err: err}
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		return res, nil
	}
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10) // lets the connection be used again
	res.Body.Close()
	return nil, classify(res.StatusCode, res.Header.Get("Retry-After"), t)
}

// classify turns a refusing status into an error.
func classify(status int, retryAfter string, t target) error {
	switch {
	case status == http.StatusNotFound:
		return &api.Error{Code: api.NotFound, Message: fmt.Sprintf("the parent has no %s in %s", t.digest, t.repo), Remedy: "push it to the core's registry, or correct the digest"}
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return &api.Error{Code: api.Forbidden, Message: fmt.Sprintf("the parent refuses %s of %s", t.digest, t.repo)}
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status >= 500 && status != http.StatusNotImplemented:
		seconds, _ := strconv.Atoi(retryAfter)
		return &transient{err: fmt.Errorf("the parent answered %d", status), after: time.Duration(min(max(seconds, 0), 60)) * time.Second}
	}
	return api.Errorf(api.Unavailable, "the parent answered %d to a request for %s", status, t.digest)
}

// ask is ask with the cache's upstream.
func (c *Cache) ask(ctx context.Context, method string, t target, header http.Header) (*http.Response, error) {
	return ask(ctx, c.cfg.Upstream, method, t, header)
}

// head asks the parent whether it serves the target to us, and how large it is.
func (c *Cache) head(ctx context.Context, t target) (size int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ChildWait)
	defer cancel()
	for n := 1; ; n++ {
		res, err := c.ask(ctx, http.MethodHead, t, nil)
		if err == nil {
			res.Body.Close()
			return res.ContentLength, nil
		}
		var again *transient
		if !errors.As(err, &again) {
			return 0, err
		}
		timer := time.NewTimer(max(backoff(n, c.cfg.MinBackoff, c.cfg.MaxBackoff, jitter), again.after))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return 0, errors.Join(errWaited, err)
		case <-c.ctx.Done():
			timer.Stop()
			return 0, errors.Join(errWaited, err)
		}
	}
}

// Pull fetches one manifest or blob of at most max bytes in one attempt and verifies
// it. Nothing unverified is returned.
func pull(ctx context.Context, up Upstream, t target, max int64) ([]byte, error) {
	res, err := ask(ctx, up, http.MethodGet, t, nil)
	if err != nil {
		return nil, outward(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, api.Errorf(api.Unavailable, "the parent answered %d to a request for %s", res.StatusCode, t.digest)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, max+1))
	switch {
	case err != nil:
		return nil, outward(&transient{err: err})
	case int64(len(b)) > max:
		return nil, api.Errorf(api.TooLarge, "%s has more than %d bytes", t.digest, max)
	case Digest(b) != t.digest:
		return nil, &api.Error{Code: api.Unavailable, Message: "the parent sent wrong bytes for " + t.digest, Err: errCorrupt}
	}
	return b, nil
}

// outward gives every error of this package a code for its callers.
func outward(err error) error {
	var coded *api.Error
	if err == nil || errors.As(err, &coded) {
		return err
	}
	return &api.Error{Code: api.Unavailable, Message: "the parent's registry cannot be reached", Remedy: "it is tried again by itself", Err: err}
}

// PullArtifact fetches a one-layer artifact (an app bundle) by the digest of its
// manifest, from whatever the upstream is now, and returns the layer's bytes: at most
// max, every byte verified. One attempt; an error of code Unavailable is worth
// another, NotFound and Invalid are not.
func PullArtifact(ctx context.Context, up Upstream, repo, digest string, max int64) ([]byte, error) {
	if err := errors.Join(CheckRepo(repo), CheckDigest(digest)); err != nil {
		return nil, err
	}
	raw, err := pull(ctx, up, target{RouteManifest, repo, digest, -1}, MaxManifest)
	if err != nil {
		return nil, err
	}
	content, err := ParseContent(raw)
	if err != nil {
		return nil, err
	}
	if content.Index() || len(content.Layers) != 1 {
		return nil, api.Errorf(api.Invalid, "%s@%s is not an artifact of one layer", repo, digest)
	}
	layer := content.Layers[0]
	if layer.Size > max {
		return nil, api.Errorf(api.TooLarge, "%s@%s has %d bytes; at most %d are read", repo, digest, layer.Size, max)
	}
	return pull(ctx, up, target{RouteBlob, repo, layer.Digest, layer.Size}, max)
}
