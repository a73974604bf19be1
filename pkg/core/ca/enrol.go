package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// Registrar decides who may have a certificate. The core's server implements it. Both
// methods may be called from any goroutine, and again with the same content when a reply
// was lost on the way; errors are *api.Error, which reach the box.
type Registrar interface {
	// Enrol checks the token, uses it up, and creates the device. For a device id that
	// this token has enrolled before it succeeds again and uses nothing up. A retired
	// device is api.Forbidden, an unknown or spent token api.Unauthorized. The secret is
	// to be compared in constant time.
	Enrol(ctx context.Context, a Application) (Grant, error)
	// Renew is asked before a known device gets a new certificate; it keeps the seal key
	// of the application. Unknown and retired devices are api.Forbidden. An Application
	// has no token, but Issued and Tenant.
	Renew(ctx context.Context, a Application) (Grant, error)
}

// Application is a box that asks for a certificate. Its request has been decrypted, is
// fresh, and proves possession of the device key.
type Application struct {
	TokenID, Secret string
	Device          api.DeviceID
	// PublicKey and SealKey are in PKIX DER form, to keep with the device: the first
	// verifies its records, the second derives its state key and takes its secrets.
	PublicKey, SealKey []byte
	Name               string // wished for
	Hardware           api.Hardware
	Labels             map[string]string
	Relay              bool
	Addresses          []string
	// CSR, IDevID and BirthProof: see identity.EnrolRequest.
	CSR        []byte
	IDevID     [][]byte
	BirthProof []byte
	Remote     string // who asked last: the box, or the relay next to the core
	// Issued is when the certificate in hand began, and Tenant whom it names; Renew only.
	Issued time.Time
	Tenant string
}

// Grant is the registrar's yes.
type Grant struct {
	Name, Tenant string
	Labels       map[string]string
	Approved     bool
}

// maxLabels and maxAddresses bound what a box may say of itself.
const (
	maxLabels    = 64
	maxAddresses = 64
	maxText      = 1024
	// nonceLife is how long a request may be under way.
	nonceLife = 10 * time.Minute
	// maxBusy bounds the requests in work: each costs a few milliseconds of curve
	// arithmetic, and anyone may send one.
	maxBusy = 16
)

// Handler serves identity.EnrolPrefix. Relays pass requests to it unread; it trusts
// nothing of the connection.
func (c *CA) Handler(reg Registrar, log *slog.Logger) http.Handler {
	h := &handler{ca: c, reg: reg, log: log, busy: make(chan struct{}, maxBusy)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+identity.PathTrust, h.trust)
	mux.HandleFunc("POST "+identity.PathEnrol, h.limited(h.enrol))
	mux.HandleFunc("POST "+identity.PathRenew, h.limited(h.renew))
	return mux
}

type handler struct {
	ca   *CA
	reg  Registrar
	log  *slog.Logger
	busy chan struct{}
}

func (h *handler) trust(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/cbor")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set(identity.NonceHeader, base64.RawURLEncoding.EncodeToString(h.ca.nonces.make(h.ca.now())))
	w.Write(h.ca.Trust().Encode())
}

// limited turns requests away, rather than letting them queue, when too many are in work.
func (h *handler) limited(next func(http.ResponseWriter, *http.Request, []byte)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, identity.MaxEnrolBody))
		if err != nil {
			plain(w, api.Errorf(api.TooLarge, "request could not be read, or is larger than %d bytes", identity.MaxEnrolBody))
			return
		}
		select {
		case h.busy <- struct{}{}:
			defer func() { <-h.busy }()
		default:
			w.Header().Set("Retry-After", "5")
			plain(w, api.Errorf(api.Unavailable, "too many boxes enrol at this moment; try again in some seconds"))
			return
		}
		next(w, r, body)
	}
}

func (h *handler) enrol(w http.ResponseWriter, r *http.Request, body []byte) {
	var req identity.EnrolRequest
	h.serve(w, r, body, &req, func() (*identity.EnrolReply, error) {
		key, seal, err := identity.ParseCSR(req.CSR)
		if err != nil {
			return nil, &api.Error{Code: api.Invalid, Message: err.Error()}
		}
		if err := bounded(&req); err != nil {
			return nil, err
		}
		a, err := application(key, seal, r.RemoteAddr)
		if err != nil {
			return nil, err
		}
		a.TokenID, a.Secret, a.Name, a.Hardware = req.TokenID, req.Secret, req.Name, req.Hardware
		a.Labels, a.Relay, a.Addresses = req.Labels, req.Relay, req.Addresses
		a.CSR, a.IDevID, a.BirthProof = req.CSR, req.IDevID, req.BirthProof
		g, err := h.reg.Enrol(r.Context(), a)
		if err != nil {
			return nil, err
		}
		h.log.Info("device enrolled", "device", a.Device, "name", g.Name, "tenant", g.Tenant, "token", a.TokenID, "remote", a.Remote)
		return h.certify(key, seal, g)
	})
}

func (h *handler) renew(w http.ResponseWriter, r *http.Request, body []byte) {
	var req identity.RenewRequest
	h.serve(w, r, body, &req, func() (*identity.EnrolReply, error) {
		key, seal, err := identity.ParseCSR(req.CSR)
		if err != nil {
			return nil, &api.Error{Code: api.Invalid, Message: err.Error()}
		}
		cert, err := h.ca.certified(req.Cert, key)
		if err != nil {
			return nil, &api.Error{Code: api.Forbidden, Message: err.Error(), Remedy: "enrol again with a join token"}
		}
		a, err := application(key, seal, r.RemoteAddr)
		if err != nil {
			return nil, err
		}
		self := identity.EnrolRequest{Name: req.Name, Labels: req.Labels, Relay: req.Relay, Addresses: req.Addresses}
		if req.Hardware != nil {
			self.Hardware = *req.Hardware
		}
		if err := bounded(&self); err != nil {
			return nil, err
		}
		a.Name, a.Hardware, a.Labels, a.Relay, a.Addresses = self.Name, self.Hardware, self.Labels, self.Relay, self.Addresses
		if a.Issued = cert.NotBefore; len(cert.Subject.Organization) == 1 {
			a.Tenant = cert.Subject.Organization[0]
		}
		g, err := h.reg.Renew(r.Context(), a)
		if err != nil {
			return nil, err
		}
		h.log.Info("device renewed its certificate", "device", a.Device, "name", g.Name, "remote", a.Remote)
		return h.certify(key, seal, g)
	})
}

// certified checks that this core once gave a certificate for the key; it may have
// expired.
func (c *CA) certified(der []byte, key *ecdsa.PublicKey) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	_, role, err := c.Trust().VerifyChain([]*x509.Certificate{cert}, x509.ExtKeyUsageClientAuth, c.now())
	if err != nil && !errors.Is(err, identity.ErrExpired) {
		return nil, err
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key) || role != identity.RoleDevice {
		return nil, errors.New("the certificate in hand is not of the key that asks")
	}
	return cert, nil
}

func (h *handler) certify(key, seal *ecdsa.PublicKey, g Grant) (*identity.EnrolReply, error) {
	chain, err := h.ca.IssueDevice(key, seal, g.Tenant)
	if err != nil {
		return nil, err
	}
	reply := &identity.EnrolReply{Trust: h.ca.Trust().Encode(), Name: g.Name, Tenant: g.Tenant, Labels: g.Labels,
		Approved: g.Approved, Time: h.ca.now().Unix()}
	for _, c := range chain {
		reply.Chain = append(reply.Chain, c.Raw)
	}
	return reply, nil
}

// serve opens the request into v, checks its freshness, and seals what decide answers,
// refusals included: a relay learns from the status alone how it went.
func (h *handler) serve(w http.ResponseWriter, r *http.Request, body []byte, v any, decide func() (*identity.EnrolReply, error)) {
	nonce, seal, err := identity.OpenRequest(h.ca.SealingKeys(), r.URL.Path, body, v)
	if err != nil {
		plain(w, &api.Error{Code: api.Invalid, Message: "request could not be opened: " + err.Error()})
		return
	}
	var reply *identity.EnrolReply
	if !h.ca.nonces.valid(nonce, h.ca.now()) {
		err = api.Errorf(api.Conflict, "the request is too old or was made before the core restarted; try again")
	} else {
		reply, err = decide()
	}
	status := http.StatusOK
	if err != nil {
		e := refusal(err)
		if e.Code == api.Internal {
			h.log.Error("enrolment failed", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
		} else {
			h.log.Warn("enrolment refused", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
		}
		status = e.Code.HTTPStatus()
		reply = &identity.EnrolReply{Error: &identity.EnrolError{Code: e.Code, Message: e.Message, Remedy: e.Remedy}}
	}
	sealed, err := seal(reply)
	if err != nil {
		plain(w, api.Errorf(api.Internal, "reply could not be sealed"))
		return
	}
	w.Header().Set("Content-Type", identity.SealedType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(sealed)
}

func application(key, seal *ecdsa.PublicKey, remote string) (Application, error) {
	pub, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return Application{}, err
	}
	sealPub, err := x509.MarshalPKIXPublicKey(seal)
	return Application{Device: api.NewDeviceID(pub), PublicKey: pub, SealKey: sealPub, Remote: remote}, err
}

func bounded(r *identity.EnrolRequest) error {
	long := func(ss ...string) bool {
		for _, s := range ss {
			if len(s) > maxText {
				return true
			}
		}
		return false
	}
	for k, v := range r.Labels {
		if long(k, v) {
			return api.Errorf(api.Invalid, "a label is longer than %d characters", maxText)
		}
	}
	if len(r.Labels) > maxLabels || len(r.Addresses) > maxAddresses || len(r.Hardware.NICs) > maxAddresses ||
		long(r.Addresses...) || long(r.TokenID, r.Secret, r.Name) {
		return api.Errorf(api.Invalid, "the box says more of itself than %d labels, %d addresses, %d network cards, or text longer than %d characters", maxLabels, maxAddresses, maxAddresses, maxText)
	}
	return nil
}

// refusal is what a stranger may read of an error.
func refusal(err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	return api.Errorf(api.Internal, "the core could not answer; its log tells why")
}

func plain(w http.ResponseWriter, e *api.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Code.HTTPStatus())
	json.NewEncoder(w).Encode(e)
}

// nonces are times that this process vouches for by a MAC: no state, no growth, and a
// restart ends them all.
type nonces struct{ key [32]byte }

func (n *nonces) make(now time.Time) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(now.Unix()))
	return append(b, n.mac(b)...)
}

func (n *nonces) valid(nonce []byte, now time.Time) bool {
	if len(nonce) != 8+16 || !hmac.Equal(nonce[8:], n.mac(nonce[:8])) {
		return false
	}
	age := now.Unix() - int64(binary.BigEndian.Uint64(nonce))
	return age >= -60 && age <= int64(nonceLife/time.Second)
}

func (n *nonces) mac(b []byte) []byte {
	m := hmac.New(sha256.New, n.key[:])
	m.Write(b)
	return m.Sum(nil)[:16]
}
