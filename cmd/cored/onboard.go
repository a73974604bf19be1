package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/ca"
	"tributary.dev/tributary/pkg/core/onboard"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/dnssd"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// The events of boxes on their way in.
const (
	eventWaiting  = "device.waiting"  // it asks whose it is, and is not expected
	eventProgress = "device.progress" // its subject is the kind of report
)

// manufacturers reads the certificates of those whose births count, from a PEM file; by
// default one in the data folder, which need not be there.
func (o *options) manufacturers() ([]*x509.Certificate, error) {
	path, must := o.makers, true
	if path == "" {
		path, must = o.data.path("manufacturers.pem"), false
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	certs, err := identity.ParseCerts(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

// openBootstrap opens the port at which boxes ask whose they are.
func (c *core) openBootstrap(context.Context) (err error) {
	if c.makers, err = c.o.manufacturers(); err != nil || c.o.bootstrap == "" {
		return err
	}
	if c.bootstrap, err = net.Listen("tcp", c.o.bootstrap); err != nil {
		return err
	}
	parents, err := c.whereToAttach()
	if err != nil {
		return err
	}
	c.greeter = onboard.New(onboard.Config{
		Find: c.expected, Awaited: c.awaited, Note: c.noteProgress, Waiting: c.noteWaiting, Owner: c.owner, Makers: c.makers, Parents: parents, First: c.first, Boot: c.bootImage,
		EST: est{c}, Now: time.Now, Log: c.log,
	})
	return nil
}

// bootstrapAddress is where boxes ask whose they are; empty: nowhere.
func (c *core) bootstrapAddress() string {
	if c.bootstrap == nil {
		return ""
	}
	return c.bootstrap.Addr().String()
}

// first is what a box would run that comes while nobody reaches the core.
func (c *core) first(o *api.Object, spec *api.ExpectedDeviceSpec) (json.RawMessage, []identity.AheadRef) {
	items := c.fleet.First(o.Metadata.Tenant, spec.Labels)
	raw, err := json.Marshal(items)
	if err != nil || len(items) == 0 {
		return nil, nil
	}
	var refs []identity.AheadRef
	for _, i := range items {
		for _, r := range i.Refs {
			refs = append(refs, identity.AheadRef{Repo: r.Repo, Digest: r.Digest, Size: r.Size})
		}
	}
	return raw, refs
}

// awaited lists the boxes that may come by way of a relay.
func (c *core) awaited(by, relay api.DeviceID) (out []onboard.Awaited, ok bool) {
	if !c.fleet.Leads(by, relay) {
		return nil, false
	}
	for _, a := range c.fleet.AwaitedAt(relay) {
		out = append(out, onboard.Awaited{Serial: a.Serial, Tag: a.Tag})
	}
	return out, true
}

// bootImage is a Release as RFC 8572 writes it: where its OCI manifest lies, by whose digest
// a box knows it. That it is a release, boxes find out by its own signatures.
func (c *core) bootImage(ctx context.Context, o *api.Object, spec *api.ExpectedDeviceSpec) (*voucher.BootImage, error) {
	r, err := c.store.Get(ctx, api.Key{Tenant: o.Metadata.Tenant, Kind: api.KindRelease, Name: spec.Release})
	if err != nil {
		return nil, err
	}
	artifact, err := firstSystem(r)
	if err != nil {
		return nil, err
	}
	parents, err := c.whereToAttach()
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(parents[0].Address)
	if err != nil {
		return nil, err
	}
	return voucher.ReleaseImage(net.JoinHostPort(host, strconv.Itoa(parents[0].HTTPSPort)), spec.Release, artifact)
}

// firstSystem is what a box runs first of a Release: of a box that is expected nobody knows the profile.
func firstSystem(r *api.Object) (artifact string, err error) {
	var spec api.ReleaseSpec
	if err := json.Unmarshal(r.Spec, &spec); err != nil {
		return "", err
	}
	artifact, ok := spec.Only()
	if !ok {
		err = &api.Error{Code: api.Invalid, Field: "spec.release", Message: "Release " + r.Metadata.Name + " has systems for several profiles, and that of an expected box is not known yet", Remedy: "name a Release with the one system that the box is to run first"}
	}
	return artifact, err
}

// whereToAttach is what boxes are told: what the flags say, else this core, by the first of
// its names that another machine can use.
func (c *core) whereToAttach() (out []api.ParentRef, err error) {
	for _, text := range c.o.attach {
		p, err := api.ParseParent(text)
		if err != nil {
			return nil, &api.Error{Code: api.Invalid, Field: "--attach", Message: fmt.Sprintf("%q: %v", text, err), Remedy: "write host[:mqtt-port[,https-port]]"}
		}
		p.Device = identity.CoreName
		out = append(out, p)
	}
	if len(out) > 0 {
		return out, nil
	}
	host := c.o.names[0]
	for _, n := range c.o.names {
		if ip := net.ParseIP(n); n != "localhost" && (ip == nil || !ip.IsLoopback()) {
			host = n
			break
		}
	}
	_, mqtt, err := net.SplitHostPort(c.mqttAddress())
	if err != nil {
		mqtt = "8883"
	}
	_, https, _ := net.SplitHostPort(c.https.Addr().String()) // a listener's address always has a port
	port, _ := strconv.Atoi(https)
	return []api.ParentRef{{Device: identity.CoreName, Address: net.JoinHostPort(host, mqtt), HTTPSPort: port}}, nil
}

// serveBootstrap answers boxes on their way in (RFC 8572, RFC 7030).
func (c *core) serveBootstrap(ctx context.Context) error {
	if c.bootstrap == nil {
		return nil
	}
	srv := &http.Server{Handler: c.greeter, BaseContext: func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug)}
	conf := c.live.ServerTLSOptional()
	// Boxes show the certificate of their birth, whose chain the handler judges.
	conf.ClientAuth, conf.VerifyConnection, conf.MinVersion = tls.RequestClientCert, nil, tls.VersionTLS12
	if addr, ok := c.bootstrap.Addr().(*net.TCPAddr); ok && c.o.mdns && !addr.IP.IsLoopback() {
		fp := c.ca.Fingerprint()
		go dnssd.Announce(ctx, fmt.Sprintf("core-%x", fp[:4]), addr, func(err error) {
			c.log.Warn("boxes of this site do not hear of the core by mDNS", "err", err)
		})
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(tls.NewListener(c.bootstrap, conf)) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.Join(srv.Close(), ctx.Err())
	}
}

func (c *core) owner() onboard.Owner {
	key, _ := c.ca.Signer()
	trust := c.ca.Trust()
	return onboard.Owner{Key: key, Chain: trust.Signers[:1], Root: trust.Root}
}

func (c *core) allExpected(ctx context.Context) ([]*api.Object, error) {
	list, _, _, err := c.store.List(ctx, store.Query{Kind: api.KindExpectedDevice})
	return list, err
}

// claims remembers which objects have claimed a serial number, so that one box is found
// among thousands without reading all. It may name objects that were never written or are
// gone: who looks reads them.
type claims struct {
	mu    sync.Mutex
	known map[string]map[api.Key]bool // nil until it is needed
}

// of lists the objects that may expect the box of a serial number.
func (k *claims) of(serial string, load func() ([]*api.Object, error)) (out []api.Key, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fill(load); err != nil {
		return nil, err
	}
	for key := range k.known[serial] {
		out = append(out, key)
	}
	return out, nil
}

// add notes a claim that is about to be written.
func (k *claims) add(serial string, key api.Key, load func() ([]*api.Object, error)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fill(load); err != nil {
		return err
	}
	k.note(serial, key)
	return nil
}

func (k *claims) note(serial string, key api.Key) {
	if k.known[serial] == nil {
		k.known[serial] = map[api.Key]bool{}
	}
	k.known[serial][key] = true
}

func (k *claims) fill(load func() ([]*api.Object, error)) error {
	if k.known != nil {
		return nil
	}
	list, err := load()
	if err != nil {
		return err
	}
	k.known = map[string]map[api.Key]bool{}
	for _, o := range list {
		var spec api.ExpectedDeviceSpec
		if err := json.Unmarshal(o.Spec, &spec); err != nil {
			k.known = nil
			return err
		}
		k.note(spec.Serial, o.Key())
	}
	return nil
}

// expected finds the ExpectedDevice of a serial number, in whatever tenant.
func (c *core) expected(ctx context.Context, serial string) (*api.Object, error) {
	keys, err := c.claims.of(serial, func() ([]*api.Object, error) { return c.allExpected(ctx) })
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		o, err := c.store.Get(ctx, key)
		if api.CodeOf(err) == api.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		var spec api.ExpectedDeviceSpec
		if err := json.Unmarshal(o.Spec, &spec); err != nil {
			return nil, err
		}
		if spec.Serial == serial {
			return o, nil
		}
	}
	return nil, nil
}

// admitExpected refuses what would lead no box here, and a second claim to a box.
func (c *core) admitExpected(ctx context.Context, ch server.Change) (server.Decision, error) {
	var spec api.ExpectedDeviceSpec
	if err := json.Unmarshal(ch.New.Spec, &spec); err != nil {
		return server.Decision{}, err
	}
	if spec.Serial == "" {
		if err := c.whoShows(&spec); err != nil {
			return server.Decision{}, err
		}
		raw, err := json.Marshal(spec)
		if err != nil {
			return server.Decision{}, err
		}
		ch.New.Spec = raw
	}
	var old api.ExpectedDeviceSpec
	if ch.Old != nil {
		if err := json.Unmarshal(ch.Old.Spec, &old); err != nil {
			return server.Decision{}, err
		}
	}
	if err := onboard.CheckExpected(&spec, old.Voucher, c.ca.Trust().Root, c.makers, time.Now()); err != nil {
		return server.Decision{}, err
	}
	if key := (api.Key{Tenant: ch.New.Metadata.Tenant, Kind: api.KindRelease, Name: spec.Release}); spec.Release != "" && ch.With[key] == nil {
		r, err := c.store.Get(ctx, key)
		if api.CodeOf(err) == api.NotFound && err != nil {
			err = &api.Error{Code: api.Invalid, Field: "spec.release", Message: "there is no Release " + spec.Release, Remedy: "see `edgectl get releases`"}
		}
		if err == nil {
			_, err = firstSystem(r)
		}
		if err != nil {
			return server.Decision{}, err
		}
	}
	if err := c.claims.add(spec.Serial, ch.New.Key(), func() ([]*api.Object, error) { return c.allExpected(ctx) }); err != nil {
		return server.Decision{}, err
	}
	other, err := c.expected(ctx, spec.Serial)
	if err == nil && other != nil && other.Key() != ch.New.Key() {
		err = &api.Error{Code: api.Conflict, Field: "spec.serial", Message: "the device " + spec.Serial + " is expected already, as another object", Remedy: "change or delete that one"}
	}
	return server.Decision{}, err
}

// stickData answers a person who writes a stick for a box: what the box would be told. It
// is nothing secret, and of use with a voucher alone.
func (c *core) stickData(w http.ResponseWriter, r *http.Request) {
	answer, err := c.signedData(r.Context(), r.URL.Query().Get("serial"))
	if err != nil {
		var e *api.Error
		if !errors.As(err, &e) {
			c.log.Error("no signed data for a stick", "err", err)
			e = &api.Error{Code: api.Internal, Message: "the core could not make the data; its log tells why"}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(e.Code.HTTPStatus())
		_ = json.NewEncoder(w).Encode(e) // the reader has gone when this fails
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

// greetings answers boxes that ask by way of a relay, to whom the bootstrap port need not
// be open.
func (c *core) greetings(w http.ResponseWriter, r *http.Request) {
	if r.TLS == nil {
		http.Error(w, "TLS is needed", http.StatusUnauthorized)
		return
	}
	id, role, err := identity.PeerID(*r.TLS)
	if err != nil || role != identity.RoleDevice || !c.roster.Active(id) {
		http.Error(w, "a relay's certificate is needed", http.StatusForbidden)
		return
	}
	relay, err := c.serves(r.Context(), id)
	if err != nil {
		c.log.Error("who passes on what boxes ask cannot be looked up", "device", id, "err", err)
		http.Error(w, "the core could not answer; its log tells why", http.StatusServiceUnavailable)
		return
	}
	if !relay { // check: a relay
		http.Error(w, "a relay's certificate is needed", http.StatusForbidden)
		return
	}
	if c.greeter == nil {
		http.Error(w, errNoGreeter.Error(), http.StatusServiceUnavailable)
		return
	}
	c.greeter.Passed(w, r, id)
}

// serves tells whether a device is a relay. One is believed whose box it heard: any other that was taken over could ask in
// the name of whichever box waits, and have the proof of its pairing code to guess that by.
func (c *core) serves(ctx context.Context, id api.DeviceID) (bool, error) {
	key, ok := c.roster.ObjectOf(id)
	if !ok { // nobody that is known
		return false, nil
	}
	o, err := c.store.Get(ctx, key)
	if err != nil {
		return false, err
	}
	var st api.DeviceStatus
	if len(o.Status) > 0 {
		err = json.Unmarshal(o.Status, &st)
	}
	return st.Relay, err
}

func (c *core) signedData(ctx context.Context, serial string) (*voucher.Answer, error) {
	if c.greeter == nil {
		return nil, errNoGreeter
	}
	o, err := c.expected(ctx, serial)
	if err == nil && o != nil {
		if _, err = c.server.Get(ctx, access.Onboard, o.Key()); err != nil && api.CodeOf(err) == api.NotFound {
			o, err = nil, nil // another's
		}
	}
	if err != nil {
		return nil, err
	}
	if o == nil {
		return nil, &api.Error{Code: api.NotFound, Message: "the device " + serial + " is not expected", Remedy: "edgectl device expect " + serial + " --voucher FILE"}
	}
	var spec api.ExpectedDeviceSpec
	if err := json.Unmarshal(o.Spec, &spec); err != nil {
		return nil, err
	}
	if spec.Voucher == "" {
		return nil, &api.Error{Code: api.Invalid, Message: "nothing on a stick would make the device " + serial + " believe this core", Remedy: "it takes a voucher: edgectl device expect " + serial + " --voucher FILE --again"}
	}
	spec.Code = "" // the proof of a code belongs to the box alone
	return c.greeter.Answer(ctx, api.DeviceID{}, o, &spec)
}

var errNoGreeter = &api.Error{Code: api.Unavailable, Message: "boxes do not ask this core whose they are", Remedy: "start cored with --listen-bootstrap :8444"}

// whoShows fills in the serial number of the box that waits and shows a code.
func (c *core) whoShows(spec *api.ExpectedDeviceSpec) error {
	code, err := voucher.ReadCode(spec.Code)
	if err != nil {
		return err
	}
	if c.greeter == nil {
		return errNoGreeter
	}
	switch list := c.greeter.ByCode(code); len(list) {
	case 0:
		return &api.Error{Code: api.NotFound, Field: "spec.code", Message: "no box that waits shows the pairing code " + code,
			Remedy: "compare it with the box's console; a box asks again within a minute once it reaches this core"}
	case 1:
		spec.Serial = list[0].Serial
		return nil
	default:
		return &api.Error{Code: api.Conflict, Field: "spec.code", Message: "several boxes claim the pairing code " + code + ": one of them is no honest one",
			Remedy: "give the serial number that the console shows: edgectl device expect SERIAL --code " + code}
	}
}

// noteProgress keeps what a box reports: in its expectation, and as an event.
func (c *core) noteProgress(ctx context.Context, o *api.Object, id api.DeviceID, p voucher.Progress) error {
	var st api.ExpectedDeviceStatus
	if len(o.Status) > 0 {
		if err := json.Unmarshal(o.Status, &st); err != nil {
			return err
		}
	}
	st.Progress, st.Message, st.At = p.Type, p.Message, time.Now().Unix()
	if err := c.store.PutStatus(ctx, o.Key(), st); err != nil {
		return err
	}
	c.log.Info("a box on its way in", "device", id, "expected", o.Metadata.Name, "progress", p.Type, "message", p.Message)
	return c.store.AppendEvents(ctx, []store.DeviceEvent{{Device: id, Label: o.Metadata.Name,
		Event: api.Event{Time: time.Now().UnixMilli(), Name: eventProgress, Subject: p.Type, Message: p.Message}}})
}

func (c *core) noteWaiting(ctx context.Context, b onboard.Box) {
	remedy := "edgectl device expect " + b.Serial + " --voucher FILE"
	if b.Hint != "" {
		remedy = "edgectl device approve CODE, as its console shows it"
	}
	c.log.Info("a box asks whose it is and is not expected", "device", b.ID, "serial", b.Serial, "remedy", remedy)
	err := c.store.AppendEvents(ctx, []store.DeviceEvent{{Device: b.ID, Label: b.Serial,
		Event: api.Event{Time: time.Now().UnixMilli(), Name: eventWaiting, Message: "the box " + b.Serial + " asks whose it is and is not expected; let it in: " + remedy}}})
	if err != nil {
		c.log.Warn("an event is lost", "err", err)
	}
}

// enrolExpected lets a box in by its own key.
func (c *core) enrolExpected(ctx context.Context, a ca.Application) (ca.Grant, error) {
	serial, err := onboard.Proved(a.IDevID, a.CSR, a.BirthProof, a.Device, c.makers)
	if err != nil {
		return ca.Grant{}, err
	}
	g, err := c.roster.EnrolExpected(ctx, applicant(a), func() (*api.Object, error) { return c.expected(ctx, serial) })
	return ca.Grant(g), err
}

// est is the certificate authority as EST sees it.
type est struct{ c *core }

// CACerts implements onboard.Enroller.
func (e est) CACerts() []*x509.Certificate {
	t := e.c.ca.Trust()
	return append([]*x509.Certificate{t.Root}, t.Issuers...)
}

// Enrol implements onboard.Enroller.
func (e est) Enrol(ctx context.Context, csr *x509.CertificateRequest, idevid []*x509.Certificate) ([]*x509.Certificate, error) {
	serial, err := voucher.Serial(idevid, e.c.makers)
	if err != nil {
		return nil, &api.Error{Code: api.Forbidden, Message: err.Error()}
	}
	if own := bytes.Equal(csr.RawSubjectPublicKeyInfo, idevid[0].RawSubjectPublicKeyInfo); !own && serial == api.NewDeviceID(idevid[0].RawSubjectPublicKeyInfo).String() {
		return nil, &api.Error{Code: api.Forbidden, Message: "a box that no manufacturer certified is its own key, and the request is of another"}
	}
	return e.issue(csr, func(a ca.Application) (ca.Grant, error) {
		g, err := e.c.roster.EnrolExpected(ctx, applicant(a), func() (*api.Object, error) { return e.c.expected(ctx, serial) })
		if err == nil && g.Approved {
			err = e.c.admit(ctx, a.Device)
		}
		return ca.Grant(g), err
	})
}

// Renew implements onboard.Enroller.
func (e est) Renew(ctx context.Context, csr *x509.CertificateRequest, old *x509.Certificate) ([]*x509.Certificate, error) {
	_, role, err := e.c.ca.Trust().VerifyChain([]*x509.Certificate{old}, x509.ExtKeyUsageClientAuth, time.Now())
	if err != nil && !errors.Is(err, identity.ErrExpired) || role != identity.RoleDevice {
		return nil, &api.Error{Code: api.Forbidden, Message: "the certificate shown is not a device's of this core", Err: err}
	}
	if !bytes.Equal(csr.RawSubjectPublicKeyInfo, old.RawSubjectPublicKeyInfo) {
		return nil, &api.Error{Code: api.Forbidden, Message: "the request is of another key than the certificate shown: a device is its key, and keeps it"}
	}
	return e.issue(csr, func(a ca.Application) (ca.Grant, error) { return registrar(e).Renew(ctx, a) })
}

func (e est) issue(csr *x509.CertificateRequest, grant func(ca.Application) (ca.Grant, error)) ([]*x509.Certificate, error) {
	key, seal, err := identity.StockCSR(csr)
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: err.Error()}
	}
	sealPub, err := x509.MarshalPKIXPublicKey(seal)
	if err != nil {
		return nil, err
	}
	g, err := grant(ca.Application{Device: api.NewDeviceID(csr.RawSubjectPublicKeyInfo), PublicKey: csr.RawSubjectPublicKeyInfo, SealKey: sealPub})
	if err != nil {
		return nil, err
	}
	return e.c.ca.IssueDevice(key, seal, g.Tenant)
}
