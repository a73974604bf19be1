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

// Enroller is the certificate authority behind EST. A request is in DER, and is of the
// key that the handshake proved.
type Enroller interface {
	CACerts() []*x509.Certificate
	// Enrol gives an expected box its LDevID.
	Enrol(ctx context.Context, csr []byte, idevid []*x509.Certificate) ([]*x509.Certificate, error)
	// Renew gives a box another for the one that it shows.
	Renew(ctx context.Context, csr []byte, ldevid *x509.Certificate) ([]*x509.Certificate, error)
}

const (
	estPrefix = "/.well-known/est/"
	certsOnly = "application/pkcs7-mime; smime-type=certs-only"
)

func (s *Server) estRoutes() {
	s.mux.HandleFunc("GET "+estPrefix+"cacerts", func(w http.ResponseWriter, _ *http.Request) { writeCerts(w, s.cfg.EST.CACerts()) })
	s.mux.HandleFunc("POST "+estPrefix+"simpleenroll", s.est(func(r *http.Request, csr []byte) ([]*x509.Certificate, error) {
		return s.cfg.EST.Enrol(r.Context(), csr, r.TLS.PeerCertificates)
	}))
	s.mux.HandleFunc("POST "+estPrefix+"simplereenroll", s.est(func(r *http.Request, csr []byte) ([]*x509.Certificate, error) {
		return s.cfg.EST.Renew(r.Context(), csr, r.TLS.PeerCertificates[0])
	}))
}

// est reads a request of RFC 7030 section 4.2.1 and checks that it is of the key that
// asks.
func (s *Server) est(do func(*http.Request, []byte) ([]*x509.Certificate, error)) http.HandlerFunc {
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

func (s *Server) certify(w http.ResponseWriter, r *http.Request, do func(*http.Request, []byte) ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
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
	if !bytes.Equal(csr.RawSubjectPublicKeyInfo, r.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo) {
		return nil, api.Errorf(api.Forbidden, "the request is of another key than the certificate shown")
	}
	return do(r, der)
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
