// Package onboard answers: what does the core tell a box that asks whose it is?
//
// It is the bootstrap server of RFC 8572: two operations of RESTCONF (RFC 8040) over
// TLS, in which the box shows the certificate of its birth (IDevID). A box that is
// expected is told where to attach, signed by the owner's certificate, with the voucher
// of its manufacturer or the proof that a person read its pairing code. Nothing in the
// answer is secret, and nobody needs to trust this server for it. The same port serves
// EST (RFC 7030) to those who speak that.
package onboard

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// Owner is by whom the core signs what it tells boxes.
type Owner struct {
	Key crypto.Signer
	// Chain has the owner certificate of Key first, Root left out.
	Chain []*x509.Certificate
	Root  *x509.Certificate
}

// Config is what a Server is given; everything is needed.
type Config struct {
	// Find reads the ExpectedDevice of a serial number; nil without error when there is none.
	Find func(ctx context.Context, serial string) (*api.Object, error)
	// Awaited lists the boxes with a voucher that may come by way of a relay, by serial number; ok is false
	// where by, who asks for it, is neither that relay nor known to stand above it.
	Awaited func(by, relay api.DeviceID) (list []Awaited, ok bool)
	// Note keeps a report of an expected box.
	Note func(ctx context.Context, expected *api.Object, id api.DeviceID, p voucher.Progress) error
	// Waiting is told once of a box that is not expected.
	Waiting func(ctx context.Context, b Box)
	Owner   func() Owner
	// Makers are the manufacturers whose birth certificates count.
	Makers []*x509.Certificate
	// First is what a box that is expected would run at once, in the JSON of its items, and
	// what that names; nil: boxes are told nothing of the kind.
	First func(expected *api.Object, spec *api.ExpectedDeviceSpec) (json.RawMessage, []identity.AheadRef)
	// Boot is the system that an expected box must run first; nil for any. It is asked for
	// boxes whose spec names one.
	Boot func(ctx context.Context, expected *api.Object, spec *api.ExpectedDeviceSpec) (*voucher.BootImage, error)
	// Parents is where boxes attach, best first.
	Parents []api.ParentRef
	EST     Enroller
	Now     func() time.Time
	Log     *slog.Logger
}

// Box is one that asks whose it is.
type Box struct {
	ID     api.DeviceID
	Serial string
	// Hint tells by which pairing code it may be let in (voucher.Hint); empty where the box
	// shows none.
	Hint string
}

// Server is the handler of the bootstrap port, whose TLS must ask for a client
// certificate of anyone (tls.RequestClientCert) and verify none.
type Server struct {
	cfg Config
	mux *http.ServeMux

	mu      sync.Mutex
	waiting map[api.DeviceID]waiting
}

type waiting struct {
	Box
	last time.Time
}

// maxWaiting bounds the boxes that are told of.
const maxWaiting = 256

// New makes a server.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux(), waiting: map[api.DeviceID]waiting{}}
	s.mux.HandleFunc(voucher.PathData, s.operation(s.data))
	s.mux.HandleFunc(voucher.PathProgress, s.operation(s.progress))
	s.mux.HandleFunc("GET /.well-known/host-meta", hostMeta)
	s.estRoutes()
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, "invalid-value", "there is no "+r.URL.Path)
	})
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

type attachKey struct{}

// Passed answers what a relay passes on (identity.Greeting). The caller has checked that by
// is a relay of this core.
func (s *Server) Passed(w http.ResponseWriter, r *http.Request, by api.DeviceID) {
	var q identity.Greeting
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, identity.MaxGreeting)).Decode(&q); err != nil {
		fail(w, http.StatusBadRequest, "malformed-message", "no greeting")
		return
	}
	op := strings.TrimPrefix(r.URL.Path, identity.GreetPrefix)
	if op == identity.GreetExpected {
		s.ahead(w, r.WithContext(context.WithValue(r.Context(), attachKey{}, q.Attach)), q, by)
		return
	}
	state := &tls.ConnectionState{}
	for _, der := range q.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil || len(state.PeerCertificates) == 8 {
			fail(w, http.StatusBadRequest, "malformed-message", "the box's certificates cannot be read")
			return
		}
		state.PeerCertificates = append(state.PeerCertificates, c)
	}
	ctx := context.WithValue(r.Context(), attachKey{}, q.Attach)
	inner, err := http.NewRequestWithContext(ctx, http.MethodPost, "/restconf/operations/ietf-sztp-bootstrap-server:"+op, bytes.NewReader(q.Input))
	if err != nil {
		fail(w, http.StatusBadRequest, "malformed-message", "no operation")
		return
	}
	inner.TLS, inner.RemoteAddr = state, r.RemoteAddr
	inner.Header.Set("Content-Type", cmp.Or(q.Kind, voucher.MediaType))
	inner.Header.Set("Accept", q.Accept)
	inner.Header.Set(voucher.HintHeader, q.Hint)
	s.mux.ServeHTTP(w, inner)
}

// maxAttach bounds the addresses of a relay that a box is told.
const maxAttach = 8

// parents is where a box attaches: at the relay by which it asks, if it does, else here.
func (s *Server) parents(ctx context.Context) []api.ParentRef {
	attach, _ := ctx.Value(attachKey{}).([]api.ParentRef)
	return append(attach[:min(len(attach), maxAttach):min(len(attach), maxAttach)], s.cfg.Parents...)
}

// hostMeta tells where RESTCONF begins (RFC 8040 section 3.1).
func hostMeta(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/xrd+xml")
	_, _ = io.WriteString(w, xml.Header+`<XRD xmlns="http://docs.oasis-open.org/ns/xri/xrd-1.0"><Link rel="restconf" href="/restconf"/></XRD>`+"\n")
}

// caller is a box whose key the handshake proved.
type caller struct {
	serial string
	id     api.DeviceID
	chain  []*x509.Certificate
	hint   string
}

func (s *Server) caller(r *http.Request) (caller, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return caller{}, errors.New("the box shows no certificate of its birth (IDevID)")
	}
	chain := r.TLS.PeerCertificates
	serial, err := voucher.Serial(chain, s.cfg.Makers)
	if err != nil {
		return caller{}, err
	}
	c := caller{serial: serial, id: api.NewDeviceID(chain[0].RawSubjectPublicKeyInfo), chain: chain}
	if c.hint = r.Header.Get(voucher.HintHeader); len(c.hint) > 16 {
		c.hint = ""
	}
	return c, nil
}

// refusal is an error as RFC 8040 section 7 has it.
type refusal struct {
	status       int
	tag, message string
}

func (e *refusal) Error() string { return e.message }

// operation does for all operations what RESTCONF asks of them.
func (s *Server) operation(do func(context.Context, caller, input) (*voucher.Answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		in := input{form: formOf(r.Header.Get("Content-Type"))}
		form, acceptable := accepted(r.Header.Get("Accept"), in.form)
		fail := func(w http.ResponseWriter, status int, tag, message string) { failAs(w, form, status, tag, message) }
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", "POST")
			fail(w, http.StatusMethodNotAllowed, "operation-not-supported", "an operation is called by POST")
			return
		}
		if !acceptable {
			fail(w, http.StatusNotAcceptable, "invalid-value", "answers are "+voucher.MediaType+" or "+voucher.MediaTypeXML)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, voucher.MaxRequest))
		if err != nil {
			fail(w, http.StatusRequestEntityTooLarge, "too-big", "the request cannot be read, or is too long")
			return
		}
		if in.body = body; len(body) > 0 && in.form == "" {
			fail(w, http.StatusUnsupportedMediaType, "operation-not-supported", "requests are "+voucher.MediaType+" or "+voucher.MediaTypeXML)
			return
		}
		c, err := s.caller(r)
		if err != nil {
			s.cfg.Log.Info("a box was turned away", "remote", r.RemoteAddr, "err", err)
			fail(w, http.StatusForbidden, "access-denied", err.Error())
			return
		}
		out, err := do(r.Context(), c, in)
		var no *refusal
		switch {
		case errors.As(err, &no):
			fail(w, no.status, no.tag, no.message)
		case err != nil:
			s.cfg.Log.Error("a box could not be answered", "serial", c.serial, "remote", r.RemoteAddr, "err", err)
			fail(w, http.StatusInternalServerError, "operation-failed", "the core could not answer; its log tells why")
		case out == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			b, err := write(form, out)
			if err != nil {
				fail(w, http.StatusInternalServerError, "operation-failed", "the answer could not be written")
				return
			}
			w.Header().Set("Content-Type", form)
			_, _ = w.Write(b)
		}
	}
}

// expected finds the ExpectedDevice of a caller.
func (s *Server) expected(ctx context.Context, c caller) (*api.Object, *api.ExpectedDeviceSpec, error) {
	o, err := s.cfg.Find(ctx, c.serial)
	if err != nil {
		return nil, nil, err
	}
	if o == nil {
		s.tell(ctx, c)
		return nil, nil, &refusal{http.StatusNotFound, "invalid-value", "the device " + c.serial + " is not expected here"}
	}
	var spec api.ExpectedDeviceSpec
	return o, &spec, json.Unmarshal(o.Spec, &spec)
}

// forgotten is how long a box is remembered that asks no more.
const forgotten = time.Hour

func (s *Server) tell(ctx context.Context, c caller) {
	now := s.cfg.Now()
	s.mu.Lock()
	for id, w := range s.waiting {
		if now.Sub(w.last) > forgotten {
			delete(s.waiting, id)
		}
	}
	w, known := s.waiting[c.id]
	if known = known && w.Hint == c.hint || len(s.waiting) >= maxWaiting; !known {
		w.Box = Box{c.id, c.serial, c.hint}
	}
	if w.last = now; w.ID == c.id {
		s.waiting[c.id] = w
	}
	s.mu.Unlock()
	if !known {
		s.cfg.Waiting(ctx, w.Box)
	}
}

// ByCode finds the boxes that wait and show a pairing code. Two are no accident: the code
// is one box's own.
func (s *Server) ByCode(code string) (out []Box) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.waiting {
		if w.Hint != "" && w.Hint == voucher.Hint(code, w.ID) {
			out = append(out, w.Box)
		}
	}
	return out
}

// data is get-bootstrapping-data.
func (s *Server) data(ctx context.Context, c caller, in input) (*voucher.Answer, error) {
	var ask voucher.Ask
	if err := in.read(&ask); err != nil {
		return nil, &refusal{http.StatusBadRequest, "malformed-message", "the input cannot be read: " + err.Error()}
	}
	o, spec, err := s.expected(ctx, c)
	if err != nil {
		return nil, err
	}
	return s.answer(ctx, c.id, o, spec, s.parents(ctx), nil)
}

// Answer is what a box is told. It holds no secret and may lie on a stick or in a relay's
// cache.
func (s *Server) Answer(ctx context.Context, id api.DeviceID, expected *api.Object, spec *api.ExpectedDeviceSpec) (*voucher.Answer, error) {
	return s.answer(ctx, id, expected, spec, s.cfg.Parents, nil)
}

// beginning is what a box runs until it is a member (sztp.First). It is of one box, which
// the rest of an answer is by the voucher beside it alone.
type beginning struct {
	Serial string          `json:"serial"`
	Made   int64           `json:"made"` // Unix seconds
	Items  json.RawMessage `json:"items,omitempty"`
}

func (s *Server) answer(ctx context.Context, id api.DeviceID, expected *api.Object, spec *api.ExpectedDeviceSpec, parents []api.ParentRef, first *beginning) (*voucher.Answer, error) {
	owner := s.cfg.Owner()
	a := &voucher.Answer{Reporting: "verbose"}
	told := map[string]any{"parents": parents, "name": spec.Name}
	if first != nil {
		told["first"] = first
	}
	config, err := json.Marshal(told)
	if err != nil {
		return nil, err
	}
	conveyed := &voucher.Conveyed{Onboarding: &voucher.Onboarding{Handling: "merge", Config: config}}
	if spec.Release != "" && s.cfg.Boot != nil {
		if conveyed.Onboarding.BootImage, err = s.cfg.Boot(ctx, expected, spec); err != nil {
			return nil, err
		}
	}
	if len(spec.Redirect) > 0 {
		if conveyed, err = redirect(spec.Redirect); err != nil {
			return nil, err
		}
		if spec.Voucher == "" && spec.Code == "" {
			a.Conveyed, err = voucher.PlainConveyed(conveyed)
			return a, err
		}
	}
	if a.Conveyed, err = voucher.SignConveyed(conveyed, owner.Key, owner.Chain); err != nil {
		return nil, err
	}
	if a.OwnerCert, err = voucher.OwnerCertificate(owner.Chain); err != nil {
		return nil, err
	}
	if spec.Voucher != "" {
		if a.Voucher, err = base64.StdEncoding.DecodeString(spec.Voucher); err != nil {
			return nil, err
		}
	}
	if spec.Code != "" {
		code, err := voucher.ReadCode(spec.Code)
		if err != nil {
			return nil, err
		}
		a.Pairing = &voucher.Pairing{Root: owner.Root.Raw, Proof: voucher.Proof(code, owner.Root.Raw, id)}
	}
	return a, nil
}

// redirect names bootstrap servers by their roots, https://host:port.
func redirect(roots []string) (*voucher.Conveyed, error) {
	to := &voucher.Redirect{}
	for _, root := range roots {
		u, err := url.Parse(root)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
			return nil, &api.Error{Code: api.Invalid, Field: "spec.redirect", Message: fmt.Sprintf("%.80q is no bootstrap server", root), Remedy: "write https://host:port"}
		}
		s := voucher.Server{Address: u.Hostname()}
		if u.Port() != "" {
			port, err := strconv.ParseUint(u.Port(), 10, 16)
			if err != nil || port == 0 {
				return nil, &api.Error{Code: api.Invalid, Field: "spec.redirect", Message: fmt.Sprintf("%.80q has no port of TCP", root)}
			}
			s.Port = uint16(port)
		}
		to.Servers = append(to.Servers, s)
	}
	c := &voucher.Conveyed{Redirect: to}
	if err := c.Check(); err != nil {
		return nil, &api.Error{Code: api.Invalid, Field: "spec.redirect", Message: err.Error()}
	}
	return c, nil
}

// maxMessage bounds the words of a report that are kept.
const maxMessage = 1024

// progress is report-progress.
func (s *Server) progress(ctx context.Context, c caller, in input) (*voucher.Answer, error) {
	var p voucher.Progress
	if err := in.read(&p); err != nil {
		return nil, &refusal{http.StatusBadRequest, "malformed-message", "the input is no report of progress"}
	}
	if !slices.Contains(progressTypes, p.Type) {
		return nil, &refusal{http.StatusBadRequest, "invalid-value", fmt.Sprintf("%.64q is no type of progress", p.Type)}
	}
	if len(p.Message) > maxMessage {
		p.Message = strings.ToValidUTF8(p.Message[:maxMessage], "")
	}
	o, _, err := s.expected(ctx, c)
	if err != nil {
		return nil, err
	}
	return nil, s.cfg.Note(ctx, o, c.id, p)
}

// progressTypes are those of RFC 8572 section 7.3.
var progressTypes = []string{
	"bootstrap-initiated", "bootstrap-warning", "bootstrap-error", "bootstrap-complete", "informational",
	"parsing-initiated", "parsing-warning", "parsing-error", "parsing-complete",
	"boot-image-initiated", "boot-image-warning", "boot-image-error", "boot-image-mismatch", "boot-image-installed-rebooting", "boot-image-complete",
	"pre-script-initiated", "pre-script-warning", "pre-script-error", "pre-script-complete",
	"config-initiated", "config-warning", "config-error", "config-complete",
	"post-script-initiated", "post-script-warning", "post-script-error", "post-script-complete",
}

// Proved reads whose birth a chain of certificates tells, and that it vouches for the
// request of a device.
func Proved(ders [][]byte, csr, proof []byte, device api.DeviceID, makers []*x509.Certificate) (serial string, err error) {
	if len(ders) == 0 {
		return device.String(), nil // a device without a manufacturer's is its own word
	}
	if len(ders) > 8 {
		return "", api.Errorf(api.Invalid, "a birth certificate of %d certificates", len(ders))
	}
	var chain []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return "", &api.Error{Code: api.Invalid, Message: "the birth certificate cannot be read", Err: err}
		}
		chain = append(chain, c)
	}
	if err := identity.CheckBirth(chain[0], csr, proof); err != nil {
		return "", &api.Error{Code: api.Forbidden, Message: err.Error()}
	}
	if serial, err = voucher.Serial(chain, makers); err != nil {
		return "", &api.Error{Code: api.Forbidden, Message: err.Error()}
	}
	return serial, nil
}

// CheckExpected finds what an ExpectedDevice may not say: a voucher that the box would refuse,
// being of another device, of another owner than this core, altered, at its end, or by none of
// the makers, if any are known. A voucher that was taken before, old, is not judged anew.
func CheckExpected(spec *api.ExpectedDeviceSpec, old string, root *x509.Certificate, makers []*x509.Certificate, now time.Time) error {
	if spec.Code != "" {
		if _, err := voucher.ReadCode(spec.Code); err != nil {
			return err
		}
	}
	if len(spec.Redirect) > 0 {
		if _, err := redirect(spec.Redirect); err != nil {
			return err
		}
	}
	if spec.Voucher == "" {
		return nil
	}
	raw, err := base64.StdEncoding.DecodeString(spec.Voucher)
	if err != nil {
		return &api.Error{Code: api.Invalid, Field: "spec.voucher", Message: "not base64", Err: err}
	}
	v, err := voucher.Peek(raw)
	if err != nil {
		return &api.Error{Code: api.Invalid, Field: "spec.voucher", Message: err.Error()}
	}
	if v.SerialNumber != spec.Serial {
		return &api.Error{Code: api.Invalid, Field: "spec.voucher", Message: "the voucher is of the device " + v.SerialNumber + ", not " + spec.Serial}
	}
	if owner, err := v.Owner(); err != nil || identity.Fingerprint(owner) != identity.Fingerprint(root) {
		return &api.Error{Code: api.Invalid, Field: "spec.voucher", Message: "the voucher names another owner than this core", Remedy: "have the manufacturer issue it for this core's ca/root.crt"}
	}
	if spec.Voucher == old {
		return nil
	}
	if _, err = voucher.Intact(raw); err == nil && len(makers) > 0 {
		_, err = voucher.Open(raw, makers)
	}
	if err != nil {
		return &api.Error{Code: api.Invalid, Field: "spec.voucher", Message: "the box would not believe it: " + err.Error(), Remedy: "get the voucher from the manufacturer anew; of whom it takes vouchers, cored is told by --manufacturers"}
	}
	if v.ExpiresOn != nil && now.After(*v.ExpiresOn) {
		return &api.Error{Code: api.Invalid, Field: "spec.voucher", Message: "the voucher ended on " + v.ExpiresOn.UTC().Format(time.RFC3339), Remedy: "have the manufacturer issue another"}
	}
	return nil
}
