package onboard

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"mime"
	"net/http"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// Enroller is the certificate authority behind EST. The signature of a request was
// checked: whoever asks has its key, and the key of the certificate that the handshake
// showed.
type Enroller interface {
	CACerts() []*x509.Certificate
	// Enrol gives an expected box its LDevID, for the key of its birth or another.
	Enrol(ctx context.Context, csr *x509.CertificateRequest, idevid []*x509.Certificate) ([]*x509.Certificate, error)
	// Renew gives a box another for the one that it shows, for the same key.
	Renew(ctx context.Context, csr *x509.CertificateRequest, ldevid *x509.Certificate) ([]*x509.Certificate, error)
}

const (
	estPrefix = "/.well-known/est/"
	certsOnly = "application/pkcs7-mime; smime-type=certs-only"
)

func (s *Server) estRoutes() {
	s.mux.HandleFunc("GET "+estPrefix+"cacerts", func(w http.ResponseWriter, _ *http.Request) { writeCerts(w, s.cfg.EST.CACerts()) })
	// No attributes are asked for (RFC 7030 section 4.5.2).
	s.mux.HandleFunc("GET "+estPrefix+"csrattrs", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	s.mux.HandleFunc("POST "+estPrefix+"simpleenroll", s.est(func(r *http.Request, csr *x509.CertificateRequest) ([]*x509.Certificate, error) {
		return s.cfg.EST.Enrol(r.Context(), csr, r.TLS.PeerCertificates)
	}))
	s.mux.HandleFunc("POST "+estPrefix+"simplereenroll", s.est(func(r *http.Request, csr *x509.CertificateRequest) ([]*x509.Certificate, error) {
		return s.cfg.EST.Renew(r.Context(), csr, r.TLS.PeerCertificates[0])
	}))
}

// est reads a request of RFC 7030 section 4.2.1.
func (s *Server) est(do func(*http.Request, *x509.CertificateRequest) ([]*x509.Certificate, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		certs, err := s.certify(w, r, do)
		if err != nil {
			s.cfg.Log.Info("EST refused", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
			w.Header().Set("Content-Type", "application/json")
			code := api.CodeOf(err)
			w.WriteHeader(code.HTTPStatus())
			_ = json.NewEncoder(w).Encode(map[string]string{"code": string(code), "message": err.Error()})
			return
		}
		writeCerts(w, certs)
	}
}

func (s *Server) certify(w http.ResponseWriter, r *http.Request, do func(*http.Request, *x509.CertificateRequest) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, api.Errorf(api.Unauthorized, "no client certificate")
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/pkcs10" {
		return nil, api.Errorf(api.Invalid, "a request is application/pkcs10")
	}
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, voucher.MaxRequest))
	if err != nil {
		return nil, api.Errorf(api.TooLarge, "the request cannot be read, or is too long")
	}
	der, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields(text), nil)))
	if err != nil {
		return nil, api.Errorf(api.Invalid, "the request is not base64")
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: "the request cannot be read: " + err.Error()}
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: "the request is not signed by its own key: " + err.Error()}
	}
	return do(r, csr)
}

func writeCerts(w http.ResponseWriter, certs []*x509.Certificate) {
	der, err := voucher.OwnerCertificate(certs) // certs-only CMS too
	if err != nil {
		http.Error(w, "no certificates", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", certsOnly)
	w.Header().Set("Content-Transfer-Encoding", "base64")
	enc := base64.NewEncoder(base64.StdEncoding, w)
	_, _ = enc.Write(der)
	_ = enc.Close()
}
