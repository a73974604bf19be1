// Package web answers: what does a person see who opens the core in a browser?
//
// One page, read-only and live: the tree of devices with their health and apps, the
// fleets, the last events. It is rendered here, and rendered again and sent over
// server-sent events when something changes; the script in the browser only puts the
// new piece in place. It knows nothing of the core but what Source gives.
package web

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"time"

	"tributary.dev/tributary/pkg/api"
)

//go:embed page.html static
var files embed.FS

// Source is where the page gets what it shows.
type Source interface {
	// List returns the objects of a kind, of all tenants, that are for whoever looks.
	List(ctx context.Context, kind string) ([]*api.Object, error)
	// Events returns the newest events, newest first.
	Events(ctx context.Context, limit int) ([]Event, error)
	// Changes gives a value whenever something changed, till ctx ends. It may fold many
	// changes into one, and may close early: the reader starts over.
	Changes(ctx context.Context) <-chan struct{}
}

// Event is one event with the name of its device.
type Event struct {
	Device string
	api.Event
}

// Config is what the console is given; what does not say otherwise is needed.
type Config struct {
	Source Source
	// Inventory tells what a device is made of; nil where it has not told. It may itself be
	// nil: then no such page is there.
	Inventory func(ctx context.Context, tenant, name string) (*api.Inventory, error)
	// Who tells whose request it is, by the cookie that Login set. The context goes with all
	// that is read for them: what they may not see is not in it.
	Who func(*http.Request) (ctx context.Context, name string, err error)
	// Check tells whether a token is good.
	Check func(ctx context.Context, token string) error
	// Cookie is the name of the cookie that carries the token.
	Cookie  string
	Version string
	Now     func() time.Time
	Log     *slog.Logger
}

// Console is the http.Handler of the page and what belongs to it.
type Console struct {
	cfg  Config
	mux  *http.ServeMux
	tmpl *template.Template
}

// New makes the console.
func New(cfg Config) (*Console, error) {
	tmpl, err := template.New("").ParseFS(files, "page.html")
	if err != nil {
		return nil, err
	}
	c := &Console{cfg: cfg, mux: http.NewServeMux(), tmpl: tmpl}
	c.mux.HandleFunc("GET /{$}", c.page)
	c.mux.HandleFunc("GET /console/live", c.live)
	c.mux.HandleFunc("GET /console/devices/{tenant}/{name}", c.device)
	c.mux.HandleFunc("GET /console/login", func(w http.ResponseWriter, _ *http.Request) { c.render(w, http.StatusOK, "login", nil) })
	c.mux.HandleFunc("POST /console/login", c.login)
	c.mux.HandleFunc("POST /console/logout", c.logout)
	c.mux.HandleFunc("GET /console/static/{file}", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFileFS(w, r, files, "static/"+r.PathValue("file"))
	})
	return c, nil
}

// ServeHTTP implements http.Handler.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	c.mux.ServeHTTP(w, r)
}

func (c *Console) render(w http.ResponseWriter, code int, name string, data any) {
	var b bytes.Buffer
	if err := c.tmpl.ExecuteTemplate(&b, name, data); err != nil {
		c.cfg.Log.Error("the console page cannot be rendered", "page", name, "err", err)
		http.Error(w, "the page cannot be rendered", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(b.Bytes())
}

// shell is the data of the whole page.
type shell struct {
	Who, Version string
	View         *view
}

func (c *Console) page(w http.ResponseWriter, r *http.Request) {
	ctx, who, err := c.cfg.Who(r)
	if err != nil {
		http.Redirect(w, r, "/console/login", http.StatusSeeOther)
		return
	}
	v, err := c.view(ctx)
	if err != nil {
		c.cfg.Log.Error("the console cannot read the core", "err", err)
		http.Error(w, "the core cannot be read just now; try again", http.StatusServiceUnavailable)
		return
	}
	c.render(w, http.StatusOK, "page", shell{Who: who, Version: c.cfg.Version, View: v})
}

// maxToken bounds a posted form.
const maxToken = 4096

func (c *Console) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxToken)
	token := r.PostFormValue("token")
	if err := c.cfg.Check(r.Context(), token); err != nil {
		c.render(w, http.StatusUnauthorized, "login", "This token is not known, or has expired.")
		return
	}
	// The cookie ends with the browser's session; the server keeps nothing of it.
	http.SetCookie(w, &http.Cookie{Name: c.cfg.Cookie, Value: token, Path: "/", HttpOnly: true, Secure: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (c *Console) logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: c.cfg.Cookie, Path: "/", MaxAge: -1, HttpOnly: true, Secure: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/console/login", http.StatusSeeOther)
}

// How often the picture is drawn again: not more often than settle after a change, and
// every refresh because times grow old.
const (
	settle  = 400 * time.Millisecond
	refresh = 20 * time.Second
)

// live sends the view anew whenever it looks different, and ends with the event "login"
// once the session is no longer good.
func (c *Console) live(w http.ResponseWriter, r *http.Request) {
	ctx, _, err := c.cfg.Who(r)
	if err != nil {
		http.Error(w, "log in first", http.StatusUnauthorized)
		return
	}
	if r.Method == http.MethodHead {
		return // the page asks whether it may still look
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	_ = out.SetWriteDeadline(time.Time{}) // a stream lasts
	changes := c.cfg.Source.Changes(r.Context())
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	var last []byte
	for {
		b, err := c.fragment(ctx)
		if err != nil {
			c.cfg.Log.Warn("the console cannot read the core", "err", err)
			return
		}
		if bytes.Equal(b, last) {
			_, err = w.Write([]byte(": same\n\n"))
		} else {
			_, err = fmt.Fprintf(w, "event: view\ndata: %s\n\n", b)
		}
		if err != nil || out.Flush() != nil {
			return
		}
		last = b
		if !wait(ctx, changes, tick.C) {
			return
		}
		if ctx, _, err = c.cfg.Who(r); err != nil { // the token was revoked, or has expired
			if _, err = w.Write([]byte("event: login\ndata: {}\n\n")); err == nil {
				_ = out.Flush()
			}
			return
		}
	}
}

// wait returns when there is something to draw; false when the reader left.
func wait(ctx context.Context, changes <-chan struct{}, tick <-chan time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-tick:
		return true
	case _, ok := <-changes:
		if !ok {
			return false // the browser connects again
		}
	}
	timer := time.NewTimer(settle)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// fragment is the live part of the page as one JSON string, so that it has no line break.
func (c *Console) fragment(ctx context.Context) ([]byte, error) {
	v, err := c.view(ctx)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := c.tmpl.ExecuteTemplate(&b, "view", v); err != nil {
		return nil, err
	}
	return json.Marshal(b.String())
}
