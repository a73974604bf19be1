package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// WriteError answers in the form of the distribution spec's error section: code is
// one of its codes (BLOB_UNKNOWN, UNSUPPORTED, …).
func WriteError(w http.ResponseWriter, status int, code, message string) {
	type one struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	b, _ := json.Marshal(map[string][]one{"errors": {{code, message}}}) // strings only: cannot fail
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	h.Del("Docker-Content-Digest")
	h.Del("Etag")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// ServeHTTP serves /v2/ to children: GET and HEAD of manifests and blobs, by digest.
func (c *Cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	route, err := ParseRequest(r)
	switch {
	case err != nil && api.CodeOf(err) == api.NotFound:
		WriteError(w, http.StatusNotFound, "UNSUPPORTED", err.Error())
		return
	case err != nil:
		WriteError(w, http.StatusBadRequest, "NAME_INVALID", err.Error())
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		WriteError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "a relay's registry is read-only; push to the core")
		return
	}
	switch route.Kind {
	case RouteBase:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("{}"))
	case RouteManifest, RouteBlob:
		if !route.ByDigest() {
			WriteError(w, http.StatusBadRequest, "UNSUPPORTED", "a relay serves by digest only; the core resolves tags: ask for "+route.Repo+"@sha256:…")
			return
		}
		c.n.serves.Add(1)
		t := target{route.Kind, route.Repo, route.Reference, -1}
		if err := c.serve(w, r, t); err != nil {
			c.refuse(w, t, err)
		}
	default:
		WriteError(w, http.StatusNotFound, "UNSUPPORTED", "a relay serves manifests and blobs by digest, nothing else")
	}
}

// refuse answers for an error that came before the first byte.
func (c *Cache) refuse(w http.ResponseWriter, t target, err error) {
	unknown := "BLOB_UNKNOWN"
	if t.kind == RouteManifest {
		unknown = "MANIFEST_UNKNOWN"
	}
	switch {
	case errors.Is(err, context.Canceled): // the child went away
		panic(http.ErrAbortHandler)
	case errors.Is(err, errCorrupt):
		WriteError(w, http.StatusBadGateway, "DIGEST_INVALID", "the parent sent wrong bytes for "+t.digest)
	case api.CodeOf(err) == api.NotFound, api.CodeOf(err) == api.Forbidden:
		WriteError(w, http.StatusNotFound, unknown, err.Error())
	case api.CodeOf(err) == api.TooLarge:
		WriteError(w, http.StatusRequestEntityTooLarge, "SIZE_INVALID", err.Error())
	default:
		c.log.Debug("artifact not served", "repo", t.repo, "digest", t.digest, "err", err)
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		WriteError(w, http.StatusServiceUnavailable, "UNAVAILABLE", "the parent cannot be reached; try again")
	}
}

// retryAfter is what a child is asked to wait, in seconds.
const retryAfter = 5

// serve answers one request. The error is nil once the first byte was promised.
func (c *Cache) serve(w http.ResponseWriter, r *http.Request, t target) error {
	for try := 0; ; try++ {
		err := c.fromShelf(w, r, t)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if r.Method == http.MethodHead && t.kind == RouteBlob {
			return c.headThrough(w, r, t)
		}
		err = c.fromFlight(w, r, t)
		switch {
		case errors.Is(err, errNoSpace):
			return c.through(w, r, t)
		case errors.Is(err, errAgain) && try < 3:
			continue
		}
		return err
	}
}

var errAgain = errors.New("look again")

// fromShelf serves what is complete.
func (c *Cache) fromShelf(w http.ResponseWriter, r *http.Request, t target) error {
	f, size, err := c.shelf.open(t.digest)
	if err != nil {
		return fs.ErrNotExist
	}
	defer f.Close()
	if err := c.permit(r.Context(), t); err != nil {
		return err
	}
	c.n.hits.Add(1)
	kind := "application/octet-stream"
	if t.kind == RouteManifest {
		if size > MaxManifest {
			return api.Errorf(api.NotFound, "%s is no manifest", t.digest)
		}
		raw, err := io.ReadAll(io.LimitReader(f, size))
		if err != nil {
			return err
		}
		content, err := ParseContent(raw)
		if err != nil {
			return api.Errorf(api.NotFound, "%s is no manifest", t.digest)
		}
		c.send(w, r, t, content.MediaType, bytes.NewReader(raw))
		return nil
	}
	c.send(w, r, t, kind, f)
	return nil
}

// fromFlight serves what is still arriving: manifests when complete, blobs byte by
// byte.
func (c *Cache) fromFlight(w http.ResponseWriter, r *http.Request, t target) error {
	f, err := c.join(r.Context(), t)
	if err != nil {
		return err
	}
	defer f.leave()
	err = f.until(r.Context(), c.cfg.ChildWait, func() bool {
		return f.done && f.err == nil || t.kind == RouteBlob && f.total >= 0 && f.visible > 0
	})
	if err != nil {
		if again(f, t, err) {
			return errAgain
		}
		return err
	}
	if f.landed() {
		return errAgain // complete now: the shelf serves it
	}
	// A child that reads no more must not keep a transfer wanted for ever.
	rc := http.NewResponseController(w)
	defer func() { _ = rc.SetWriteDeadline(time.Time{}) }() // not supported in process
	body := &follower{rc: rc, ctx: r.Context(), f: f, patience: c.cfg.ChildWait, starts: f.begun()}
	c.send(w, r, t, "application/octet-stream", body)
	if body.err != nil {
		c.log.Info("child cut", "digest", t.digest, "err", body.err)
		panic(http.ErrAbortHandler) // the child must not take what it has for the whole
	}
	return nil
}

func (f *flight) begun() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts
}

func (f *flight) landed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.done
}

// send serves content with ranges and validators.
func (c *Cache) send(w http.ResponseWriter, r *http.Request, t target, mediaType string, body io.ReadSeeker) {
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Docker-Content-Digest", t.digest)
	h.Set("Etag", `"`+t.digest+`"`)
	counted := &counter{ResponseWriter: w, n: &c.n.servedBytes}
	http.ServeContent(counted, r, "", time.Time{}, body)
}

// counter counts a body's bytes; ReadFrom keeps the kernel's sendfile path.
type counter struct {
	http.ResponseWriter
	n interface{ Add(uint64) uint64 }
}

func (w *counter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.n.Add(uint64(n))
	return n, err
}

func (w *counter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(w.ResponseWriter, r)
	w.n.Add(uint64(n))
	return n, err
}

// follower reads a growing file, waiting for bytes that have not come yet.
type follower struct {
	rc       *http.ResponseController
	ctx      context.Context
	f        *flight
	patience time.Duration
	pos      int64
	starts   int   // of the flight when reading began
	err      error // why the body ended early
}

func (b *follower) Seek(offset int64, whence int) (int64, error) {
	b.f.mu.Lock()
	total := b.f.total
	b.f.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += b.pos
	case io.SeekEnd:
		offset += total
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	b.pos = offset
	return offset, nil
}

func (b *follower) Read(p []byte) (int, error) {
	var visible int64
	var ended, anew bool
	err := b.f.until(b.ctx, b.patience, func() bool {
		visible, ended, anew = b.f.visible, b.pos >= b.f.total, b.starts != b.f.starts
		return ended || anew || visible > b.pos
	})
	if anew {
		err = errTorn
	}
	switch {
	case err != nil:
		b.err = err
		return 0, err
	case ended:
		return 0, io.EOF
	}
	_ = b.rc.SetWriteDeadline(time.Now().Add(b.patience + time.Minute))
	n, err := b.f.file.ReadAt(p[:min(int64(len(p)), visible-b.pos)], b.pos)
	b.pos += int64(n)
	if n > 0 {
		return n, nil
	}
	if err == nil || err == io.EOF { // the file shrank: a restarted transfer
		err = io.ErrUnexpectedEOF
	}
	b.err = err
	return 0, err
}

// headThrough answers HEAD of a blob that is not here from the parent's answer, so
// that a question does not become a transfer.
func (c *Cache) headThrough(w http.ResponseWriter, r *http.Request, t target) error {
	size, err := c.head(r.Context(), t)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", t.digest)
	if size >= 0 {
		h.Set("Content-Length", strconv.FormatInt(size, 10))
	}
	h.Set("Accept-Ranges", "bytes")
	w.WriteHeader(http.StatusOK)
	return nil
}

// through sends the parent's answer on without keeping it: all that is left when
// there is no room. Whole bodies are verified, and cut before their end when wrong;
// of a range the child alone can verify the sum.
func (c *Cache) through(w http.ResponseWriter, r *http.Request, t target) error {
	header := http.Header{}
	if v := r.Header.Get("Range"); v != "" && t.kind == RouteBlob {
		header.Set("Range", v)
	}
	res, err := c.ask(r.Context(), r.Method, t, header)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	h := w.Header()
	for _, k := range []string{"Content-Type", "Content-Length", "Content-Range", "Accept-Ranges"} {
		if v := res.Header.Get(k); v != "" {
			h.Set(k, v)
		}
	}
	if res.StatusCode == http.StatusOK {
		h.Set("Docker-Content-Digest", t.digest)
	}
	w.WriteHeader(res.StatusCode)
	if r.Method == http.MethodHead {
		return nil
	}
	var body io.Reader = res.Body
	if res.StatusCode == http.StatusOK {
		body = newVerifier(res.Body, t.digest)
	}
	n, err := io.Copy(w, body)
	c.n.passed.Add(uint64(n))
	c.n.fetchedBytes.Add(uint64(n))
	c.n.servedBytes.Add(uint64(n))
	if err != nil {
		if errors.Is(err, errCorrupt) {
			c.warn(WarnCorrupt, api.Critical, "the parent sent wrong bytes for %s of %s", t.digest, t.repo)
		}
		panic(http.ErrAbortHandler)
	}
	return nil
}

// Upstream is the cache as its own device sees it: requests run in this process, so
// a relay's own apps and its children share one copy.
func (c *Cache) Upstream() Upstream { return localUpstream{c} }
