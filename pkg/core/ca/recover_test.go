package ca

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// recoverer answers with what it was asked.
type recoverer struct {
	mu    sync.Mutex
	nonce [32]byte
	last  identity.RecoverRequest
	err   error
}

func (r *recoverer) Recover(_ context.Context, nonce [32]byte, q *identity.RecoverRequest) (*identity.RecoverReply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nonce, r.last = nonce, *q
	return &identity.RecoverReply{Blob: []byte("canary-blob"), Secret: []byte("s")}, r.err
}

// TestRecoverThroughRelay: the question and the answer pass a relay unread, the nonce that the TPM
// signs is the core's and fresh, and one that was seen on the way cannot be played again later.
func TestRecoverThroughRelay(t *testing.T) {
	c := newClock()
	authority, to := openCA(t, t.TempDir(), c), &recoverer{}
	mux := http.NewServeMux()
	mux.Handle("/", authority.Handler(&registrar{}, slog.New(slog.DiscardHandler)))
	mux.Handle("POST "+identity.PathRecover, authority.RecoverHandler(to, slog.New(slog.DiscardHandler)))
	core := httptest.NewServer(mux)
	t.Cleanup(core.Close)
	up, err := url.Parse(core.URL)
	if err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	var body []byte
	proxy := httputil.NewSingleHostReverseProxy(up)
	proxy.ModifyResponse = func(r *http.Response) error {
		b, err := io.ReadAll(r.Body)
		if r.Request.URL.Path == identity.PathRecover {
			seen.Write(b)
		}
		r.Body = nopCloser{bytes.NewReader(b)}
		return err
	}
	relay := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			var b bytes.Buffer
			if _, err := b.ReadFrom(r.Body); err != nil {
				t.Error(err)
			}
			body = b.Bytes()
			seen.Write(body)
			r.Body = nopCloser{bytes.NewReader(body)}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(relay.Close)

	var signed [32]byte
	cfg := identity.RecoverConfig{ParentURL: relay.URL, Root: authority.Fingerprint(), Device: api.DeviceID{7}, Reason: "canary-reason",
		Evidence: func(_ context.Context, nonce [32]byte) ([]byte, error) {
			signed = nonce
			return []byte("canary-evidence"), nil
		}}
	reply, err := identity.Recover(t.Context(), cfg)
	if err != nil || string(reply.Blob) != "canary-blob" {
		t.Fatalf("%+v, %v", reply, err)
	}
	if to.last.Device != cfg.Device || to.last.Reason != cfg.Reason || string(to.last.Evidence) != "canary-evidence" || to.nonce != signed {
		t.Errorf("%+v", to.last)
	}
	if bytes.Contains(seen.Bytes(), []byte("canary")) {
		t.Error("the relay read something")
	}
	old := bytes.Clone(body)

	// Another root's word is not taken.
	cfg.Root[0] ^= 1
	if _, err := identity.Recover(t.Context(), cfg); err == nil {
		t.Error("another core is believed")
	}
	cfg.Root[0] ^= 1
	to.err = api.Errorf(api.Forbidden, "no")
	if _, err := identity.Recover(t.Context(), cfg); api.CodeOf(err) != api.Forbidden {
		t.Errorf("refused: %v", err)
	}
	to.err = nil

	// The first request once more, an hour later.
	c.add(time.Hour)
	to.last = identity.RecoverRequest{}
	resp, err := http.Post(core.URL+identity.PathRecover, identity.SealedType, bytes.NewReader(old))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode < 400 || to.last.Evidence != nil {
		t.Errorf("an old request is served: %d", resp.StatusCode)
	}
}

type nopCloser struct{ *bytes.Reader }

func (nopCloser) Close() error { return nil }

func FuzzRecoverHandler(f *testing.F) {
	authority, err := Open(f.TempDir(), Options{})
	if err != nil {
		f.Fatal(err)
	}
	h := authority.RecoverHandler(&recoverer{}, slog.New(slog.DiscardHandler))
	f.Add([]byte{})
	f.Add([]byte{0x85, 1, 0x40, 0x40, 0x40, 0x40})
	f.Fuzz(func(t *testing.T, body []byte) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, identity.PathRecover, bytes.NewReader(body)))
		if w.Code < 400 || w.Code >= 500 {
			t.Fatalf("status %d", w.Code)
		}
	})
}
