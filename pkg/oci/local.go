package oci

import (
	"io"
	"net/http"
	"net/url"
	"sync"
)

// localUpstream serves a device from the cache in its own process.
type localUpstream struct{ c *Cache }

func (l localUpstream) Endpoint() (*url.URL, *http.Client, error) {
	return &url.URL{Scheme: "http", Host: "cache.localhost"}, &http.Client{Transport: handlerTransport{l.c}}, nil
}

// handlerTransport runs a handler in place of a network. A handler that aborts gives
// its reader io.ErrUnexpectedEOF, as a cut connection would.
type handlerTransport struct{ h http.Handler }

func (t handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	pr, pw := io.Pipe()
	w := &pipeWriter{header: http.Header{}, body: pw, ready: make(chan struct{})}
	w.res = &http.Response{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: pr, Request: r, ContentLength: -1}
	in := r.Clone(r.Context())
	in.RequestURI = r.URL.RequestURI()
	if in.Body == nil {
		in.Body = http.NoBody
	}
	go func() {
		defer func() {
			if p := recover(); p != nil {
				pw.CloseWithError(io.ErrUnexpectedEOF)
				w.WriteHeader(http.StatusBadGateway) // no effect once begun
				if p != http.ErrAbortHandler {
					panic(p)
				}
				return
			}
			w.WriteHeader(http.StatusOK)
			pw.Close()
		}()
		t.h.ServeHTTP(w, in)
	}()
	select {
	case <-w.ready:
		return w.res, nil
	case <-r.Context().Done():
		pr.CloseWithError(r.Context().Err())
		return nil, r.Context().Err()
	}
}

type pipeWriter struct {
	header http.Header
	body   *io.PipeWriter
	res    *http.Response
	once   sync.Once
	ready  chan struct{}
}

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.res.StatusCode, w.res.Status = status, http.StatusText(status)
		w.res.Header = w.header.Clone()
		if n, err := parseSize(w.header.Get("Content-Length")); err == nil {
			w.res.ContentLength = n
		}
		close(w.ready)
	})
}

func (w *pipeWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.res.Request.Method == http.MethodHead {
		return len(b), nil
	}
	return w.body.Write(b)
}
