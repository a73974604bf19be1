// Package web answers: what does a person see who opens the core in a browser?
//
// An app of static files, which `make web` builds into web/dist and which talks to the public
// API alone. Without them (go build needs no Node) one page says so, and what to do.
package web

import (
	"bytes"
	"crypto/rand"
	"embed"
	"io/fs"
	"net/http"
	"path"
	"strings"
)

//go:embed all:dist
var files embed.FS

// index is the app's page, in which mark stands for the nonce of one answer.
const (
	index = "index.html"
	mark  = "__NONCE__"
)

// missing is served when the app was not built in.
const missing = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Tributary</title><h1>The console is not in this cored</h1>
<p>It was built without. Run <code>make web</code> and build cored again, or use <code>edgectl</code>.</p></html>
`

// New is the handler of the console: its files, and its page for every other path, which the
// app reads on its own.
func New() http.Handler {
	dist, err := fs.Sub(files, "dist")
	if err != nil {
		panic(err) // the folder is in the build
	}
	return From(dist)
}

// Built reports whether the console is in this build.
func Built() bool { _, err := fs.Stat(files, "dist/"+index); return err == nil }

// From is New over files that may be others.
func From(dist fs.FS) http.Handler {
	page, err := fs.ReadFile(dist, index)
	if err != nil {
		page = nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nonce := rand.Text()
		protect(w.Header(), nonce)
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "the console is only read", http.StatusMethodNotAllowed)
			return
		}
		name := strings.TrimPrefix(path.Clean(r.URL.Path), "/")
		if page != nil && strings.HasPrefix(name, "assets/") {
			// Their names have a hash of what they hold.
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
			if _, err := fs.Stat(dist, name); err != nil {
				w.Header().Set("Cache-Control", "no-store")
			}
			http.ServeFileFS(w, r, dist, name)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if page == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(missing))
			return
		}
		_, _ = w.Write(bytes.ReplaceAll(page, []byte(mark), []byte(nonce)))
	})
}

// protect sets what a browser lets the page do: run the core's own scripts, and style itself
// by its own sheets or by those that carry the nonce (the terminal makes some).
func protect(h http.Header, nonce string) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-"+nonce+"'; img-src 'self'; font-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
}
