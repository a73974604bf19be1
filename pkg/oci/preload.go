package oci

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Preload puts a folder before an upstream: what it holds is not asked of the parent, and is there while no parent is.
// The folder holds one OCI image layout (image-spec, image-layout.md) for each repository, at the repository's name:
// FOLDER/default/web/blobs/sha256/…; a digest is served for the repository in whose folder it lies, and by no other
// name. Everyone who takes bytes by digest checks them, so a damaged folder is a folder that is not there. Where there
// is no folder the upstream is returned as it is.
func Preload(folder string, next Upstream) Upstream {
	if folder == "" {
		return next
	}
	if info, err := os.Stat(folder); err != nil || !info.IsDir() {
		return next
	}
	return preload{folder, next}
}

type preload struct {
	folder string
	next   Upstream
}

// Endpoint never fails: the folder answers without a parent too, and what it lacks then fails by the parent's absence.
func (p preload) Endpoint() (*url.URL, *http.Client, error) {
	base, client, err := p.next.Endpoint()
	if err != nil {
		return &url.URL{Scheme: "http", Host: "preload.localhost"}, &http.Client{Transport: preloadTransport{p.folder, absent{err}}}, nil
	}
	ours := http.Client{}
	if client != nil {
		ours = *client
	}
	next := ours.Transport
	if next == nil {
		next = http.DefaultTransport
	}
	ours.Transport = preloadTransport{p.folder, next}
	return base, &ours, nil
}

// absent is the parent that is not there.
type absent struct{ err error }

func (a absent) RoundTrip(*http.Request) (*http.Response, error) { return nil, a.err }

// preloadTransport answers from the folder what it can.
type preloadTransport struct {
	folder string
	next   http.RoundTripper
}

func (t preloadTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		if f, route := t.find(r.URL); f != nil {
			return handlerTransport{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer f.Close()
				serveFile(w, r, route, f)
			})}.RoundTrip(r)
		}
	}
	return t.next.RoundTrip(r)
}

// find opens the file that a request by digest names, if the folder has it whole.
func (t preloadTransport) find(u *url.URL) (*os.File, Route) {
	at := strings.Index(u.Path, "/v2/") // a parent may serve below a path
	if at < 0 || u.RawPath != "" {
		return nil, Route{}
	}
	route, err := ParsePath(u.Path[at:])
	if err != nil || (route.Kind != RouteManifest && route.Kind != RouteBlob) || !route.ByDigest() {
		return nil, Route{}
	}
	f, err := os.Open(filepath.Join(t.folder, filepath.FromSlash(route.Repo), "blobs", "sha256", strings.TrimPrefix(route.Reference, "sha256:")))
	if err != nil {
		return nil, Route{}
	}
	if route.Kind == RouteManifest {
		if _, err := readContent(f); err != nil {
			f.Close()
			return nil, Route{}
		}
	}
	return f, route
}

// readContent reads a manifest, and leaves the file at its start.
func readContent(f *os.File) (*Content, error) {
	raw, err := io.ReadAll(io.LimitReader(f, MaxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxManifest {
		return nil, errors.New("longer than a manifest may be")
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return ParseContent(raw)
}

func serveFile(w http.ResponseWriter, r *http.Request, route Route, f *os.File) {
	kind := "application/octet-stream"
	if route.Kind == RouteManifest {
		c, err := readContent(f)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		kind = c.MediaType
	}
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Docker-Content-Digest", route.Reference)
	h.Set("Etag", `"`+route.Reference+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
}
