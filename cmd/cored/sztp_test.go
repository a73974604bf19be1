package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

// maker is a manufacturer: the key that signs vouchers, and births.
type maker struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newMaker(t testing.TB) maker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "maker"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return maker{key, cert}
}

// birth makes a box's key and its certificate by the manufacturer.
func (m maker) birth(t testing.TB, serial string) (tls.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := voucher.IssueIDevID(&key.PublicKey, serial, m.key, []*x509.Certificate{m.cert})
	if err != nil {
		t.Fatal(err)
	}
	out := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, key
}

// voucher makes one for a core, in base64.
func (m maker) voucher(t testing.TB, serial string, owner *x509.Certificate) string {
	t.Helper()
	raw, err := voucher.Sign(&voucher.Voucher{CreatedOn: time.Now().Add(-time.Minute), Assertion: voucher.Verified, SerialNumber: serial, PinnedDomainCert: owner.Raw}, m.key, []*x509.Certificate{m.cert})
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(raw)
}

// gate starts a core with a bootstrap port that knows a manufacturer.
func gate(t *testing.T, m maker) (r *running, root string) {
	t.Helper()
	dir := t.TempDir()
	makers := filepath.Join(dir, "makers.pem")
	if err := os.WriteFile(makers, identity.FormatCerts([]*x509.Certificate{m.cert}), 0o644); err != nil {
		t.Fatal(err)
	}
	r = startWith(t, options{data: data(filepath.Join(dir, "core")), mqtt: "127.0.0.1:0", bootstrap: "127.0.0.1:0", makers: makers}, func(*core) {})
	return r, "https://" + r.c.bootstrap.Addr().String()
}

func (r *running) expect(name string, spec api.ExpectedDeviceSpec) *api.Error {
	b, err := json.Marshal(map[string]any{"apiVersion": api.Version, "kind": api.KindExpectedDevice, "metadata": map[string]any{"name": name}, "spec": spec})
	if err != nil {
		r.t.Fatal(err)
	}
	return r.call("POST", "/api/v1/expecteddevices", string(b), nil)
}

func (r *running) progress(name string) (st api.ExpectedDeviceStatus) {
	var o api.Object
	r.must("GET", "/api/v1/expecteddevices/"+name, "", &o)
	if len(o.Status) > 0 {
		if err := json.Unmarshal(o.Status, &st); err != nil {
			r.t.Fatal(err)
		}
	}
	return st
}

// A device made from the RFCs alone finds its owner at our core, reports, and gets its
// certificate by EST; other devices and other owners' vouchers come to nothing.
func TestIndependentDevice(t *testing.T) {
	m := newMaker(t)
	r, root := gate(t, m)
	owner := r.c.ca.Trust().Root
	const serial = "SN-2026/0001"
	birth, _ := m.birth(t, serial)
	dev := newStranger(t, serial, birth, m.cert)

	dev.form = "xml"
	if status, body := dev.post(root, "get-bootstrapping-data", ""); status != http.StatusNotFound || !strings.Contains(string(body), `<errors xmlns="urn:ietf:params:xml:ns:yang:ietf-restconf"><error><error-type>`) {
		t.Errorf("a box that nobody expects, in XML: %d %s", status, body)
	}
	dev.form = "json"
	if status, body := dev.post(root, "get-bootstrapping-data", `{"ietf-sztp-bootstrap-server:input":{}}`); status != http.StatusNotFound || !strings.Contains(string(body), `"ietf-restconf:errors"`) {
		t.Errorf("a box that nobody expects: %d %s", status, body)
	}
	if e := r.expect("box-1", api.ExpectedDeviceSpec{Serial: serial, Voucher: m.voucher(t, serial, newMaker(t).cert)}); e == nil || !strings.Contains(e.Message, "another owner") {
		t.Errorf("a voucher that names another owner: %v", e)
	}
	if e := r.expect("box-1", api.ExpectedDeviceSpec{Serial: serial, Voucher: m.voucher(t, "SN-2", owner)}); e == nil || !strings.Contains(e.Message, "SN-2") {
		t.Errorf("a voucher of another box: %v", e)
	}
	if e := r.expect("box-1", api.ExpectedDeviceSpec{Serial: serial, Voucher: newMaker(t).voucher(t, serial, owner)}); e == nil || !strings.Contains(e.Message, "not signed by a manufacturer") {
		t.Errorf("a forged voucher: %v", e)
	}
	altered, err := base64.StdEncoding.DecodeString(m.voucher(t, serial, owner))
	if err != nil {
		t.Fatal(err)
	}
	altered = bytes.Replace(altered, []byte(`"verified"`), []byte(`"logged"  `), 1)
	if e := r.expect("box-1", api.ExpectedDeviceSpec{Serial: serial, Voucher: base64.StdEncoding.EncodeToString(altered)}); e == nil || !strings.Contains(e.Message, "would not believe it") {
		t.Errorf("an altered voucher: %v", e)
	}
	ended := time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
	raw, err := voucher.Sign(&voucher.Voucher{CreatedOn: ended.Add(-30 * time.Minute), ExpiresOn: &ended, Assertion: voucher.Verified, SerialNumber: serial, PinnedDomainCert: owner.Raw}, m.key, []*x509.Certificate{m.cert})
	if err != nil {
		t.Fatal(err)
	}
	if e := r.expect("box-1", api.ExpectedDeviceSpec{Serial: serial, Voucher: base64.StdEncoding.EncodeToString(raw)}); e == nil || !strings.Contains(e.Message, "ended on") {
		t.Errorf("a voucher at its end: %v", e)
	}
	if e := r.expect("box-1", api.ExpectedDeviceSpec{Serial: serial, Voucher: m.voucher(t, serial, owner), Name: "shed-7", Labels: map[string]string{"role": "field"}}); e != nil {
		t.Fatal(e)
	}

	for form, report := range map[string]string{
		"json": `{"ietf-sztp-bootstrap-server:input":{"progress-type":%q,"message":%q,"trust-anchor-certs":{"trust-anchor-cert":[]}}}`,
		"xml":  `<input xmlns="urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server"><progress-type>%s</progress-type><message>%s</message><trust-anchor-certs/></input>`,
	} {
		dev.form = form
		got, err := dev.bootstrap(root)
		if err != nil || !got.trusted || got.Onboarding == nil {
			t.Fatalf("%s: %+v, %v", form, got, err)
		}
		var config struct {
			Name    string
			Parents []api.ParentRef
		}
		if err := json.Unmarshal(got.Onboarding.Config, &config); err != nil || config.Name != "shed-7" || len(config.Parents) != 1 || config.Parents[0].HTTPSPort == 0 {
			t.Errorf("%s: %+v, %v", form, config, err)
		}
		if status, _ := dev.post(root, "report-progress", fmt.Sprintf(report, "nonsense", "")); status != http.StatusBadRequest {
			t.Errorf("%s: a progress that is none: %d", form, status)
		}
		for _, kind := range []string{"bootstrap-initiated", "config-initiated", "bootstrap-complete"} {
			status, body := dev.post(root, "report-progress", fmt.Sprintf(report, kind, "so far in "+form))
			if status != http.StatusNoContent {
				t.Errorf("%s: %d %s", kind, status, body)
			}
			if p := r.progress("box-1"); p.Progress != kind || p.Message != "so far in "+form {
				t.Errorf("%s: %+v", kind, p)
			}
		}
	}

	// One of another manufacturer, one that nobody certified, and the same serial number by
	// a forger.
	forger := newMaker(t)
	forged, _ := forger.birth(t, serial)
	if status, body := newStranger(t, serial, forged, m.cert).post(root, "get-bootstrapping-data", ""); status != http.StatusForbidden {
		t.Errorf("a forged birth: %d %s", status, body)
	}
	if status, _ := newStranger(t, serial, tls.Certificate{}, m.cert).post(root, "get-bootstrapping-data", ""); status != http.StatusForbidden {
		t.Errorf("without a birth certificate: %d", status)
	}
	// The independent device is no pushover either: what the core says, it does not believe
	// under another manufacturer, for another serial number, or later than the voucher.
	if _, err := newStranger(t, serial, birth, forger.cert).bootstrap(root); err == nil || !strings.Contains(err.Error(), "voucher") {
		t.Errorf("under another manufacturer: %v", err)
	}
	if _, err := newStranger(t, "SN-2", birth, m.cert).bootstrap(root); err == nil || !strings.Contains(err.Error(), "it is of") {
		t.Errorf("for another serial number: %v", err)
	}
}

// A manufacturer's core sends boxes on to their owners': signed under a voucher, and as
// RFC 8572 section 3.1 has it where nobody signs.
func TestRedirects(t *testing.T) {
	m := newMaker(t)
	r, root := gate(t, m)
	for i, signed := range []bool{false, true} {
		serial := fmt.Sprintf("SN-%d", i)
		birth, _ := m.birth(t, serial)
		spec := api.ExpectedDeviceSpec{Serial: serial, Redirect: []string{"https://owner.example:8444", "https://[fd00::1]"}}
		if signed {
			spec.Voucher = m.voucher(t, serial, r.c.ca.Trust().Root)
		}
		if e := r.expect("box-"+fmt.Sprint(i), spec); e != nil {
			t.Fatal(e)
		}
		got, err := newStranger(t, serial, birth, m.cert).bootstrap(root)
		if err != nil || got.trusted != signed || got.Redirect == nil || len(got.Redirect.Server) != 2 || got.Redirect.Server[0].Address != "owner.example" || got.Redirect.Server[0].Port != 8444 || got.Redirect.Server[1].Address != "fd00::1" {
			t.Errorf("signed %v: %+v, %v", signed, got, err)
		}
	}
	for _, bad := range []string{"http://a", "https://", "https://a/b", "https://a:0", "https://a:99999", "https://u@a"} {
		if e := r.expect("bad", api.ExpectedDeviceSpec{Serial: "SN-9", Redirect: []string{bad}}); e == nil || e.Code != api.Invalid {
			t.Errorf("%s: %v", bad, e)
		}
	}
}

// RESTCONF's own rules (RFC 8040).
func TestRestconfManners(t *testing.T) {
	m := newMaker(t)
	r, root := gate(t, m)
	birth, _ := m.birth(t, "SN-1")
	if e := r.expect("box-1", api.ExpectedDeviceSpec{Serial: "SN-1", Voucher: m.voucher(t, "SN-1", r.c.ca.Trust().Root)}); e != nil {
		t.Fatal(e)
	}
	client := newStranger(t, "SN-1", birth, m.cert).http
	const path = "/restconf/operations/ietf-sztp-bootstrap-server:get-bootstrapping-data"
	for _, c := range []struct {
		method, path, kind, accept, body string
		want                             int
	}{
		{"POST", path, "application/yang-data+json", "application/yang-data+json", "", 200},
		{"POST", path, "", "", "", 200},
		{"GET", path, "", "", "", 405},
		{"POST", path, "application/yang-data+xml", "", `<input xmlns="urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server"/>`, 200},
		{"POST", path, "application/yang-data+xml", "", "<input/>", 400},
		{"POST", path, "application/yang-data+xml", "", "{}", 400},
		{"POST", path, "application/yang-data+json", "", "<input/>", 400},
		{"POST", path, "application/yang-data+json", "application/yang-data+xml", "", 200},
		{"POST", path, "application/xml", "", "<input/>", 415},
		{"POST", path, "application/yang-data+json", "text/html, application/yang-data+json;q=0", "", 406},
		{"POST", path, "application/yang-data+json", "", "{", 400},
		{"POST", path, "application/yang-data+json", "", `{"ietf-sztp-bootstrap-server:input":{},"more":1}`, 400},
		{"POST", path, "application/yang-data+json", "", strings.Repeat(" ", voucher.MaxRequest+1), 413},
		{"POST", "/restconf/operations/other", "application/yang-data+json", "", "", 404},
		{"GET", "/.well-known/host-meta", "", "", "", 200},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, root+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.kind != "" {
			req.Header.Set("Content-Type", c.kind)
		}
		if c.accept != "" {
			req.Header.Set("Accept", c.accept)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s %s %q %q: %d, want %d", c.method, c.path, c.kind, c.body[:min(40, len(c.body))], resp.StatusCode, c.want)
		}
	}
}

// A person types the code that a box shows, and no more; and nobody else's box comes in by
// it.
func TestApproveByCode(t *testing.T) {
	r, root := gate(t, newMaker(t))
	key, _, err := identity.LoadOrCreateKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	birth, err := voucher.SelfIDevID(key)
	if err != nil {
		t.Fatal(err)
	}
	code, err := voucher.Code(key)
	if err != nil {
		t.Fatal(err)
	}
	if e := r.expect("early", api.ExpectedDeviceSpec{Code: code}); e == nil || e.Code != api.NotFound {
		t.Errorf("before any box asked: %v", e)
	}
	ask := func(hint string) (int, voucher.Answer) {
		t.Helper()
		client := newStranger(t, "", tls.Certificate{PrivateKey: key, Certificate: [][]byte{birth[0].Raw}}, nil).http
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, root+voucher.PathData, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(voucher.HintHeader, hint)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var out struct {
			Output voucher.Answer `json:"ietf-sztp-bootstrap-server:output"`
		}
		_ = json.NewDecoder(resp.Body).Decode(&out)
		return resp.StatusCode, out.Output
	}
	id := identity.KeyID(&key.PublicKey)
	if status, _ := ask(voucher.Hint(code, id)); status != http.StatusNotFound {
		t.Fatalf("the box is let in at once: %d", status)
	}
	if e := r.expect("wrong", api.ExpectedDeviceSpec{Code: "0000-0000-0000"}); e == nil || e.Code != api.NotFound {
		t.Errorf("by another code: %v", e)
	}
	if e := r.expect("box", api.ExpectedDeviceSpec{Code: strings.ToLower(code)}); e != nil {
		t.Fatal(e)
	}
	status, a := ask(voucher.Hint(code, id))
	if status != http.StatusOK || a.Pairing == nil {
		t.Fatalf("%d %+v", status, a)
	}
	if owner, err := a.Pairing.Check(code, id); err != nil || !owner.Equal(r.c.ca.Trust().Root) {
		t.Errorf("%v, %v", owner, err)
	}
	if _, err := a.Pairing.Check("0000-0000-0000", id); err == nil {
		t.Error("a box believes a proof by another code")
	}
}

// estCall is curl, as a person with RFC 7030 at hand would call it.
func estCall(t *testing.T, dir string, args ...string) (status string, body []byte) {
	t.Helper()
	out := filepath.Join(dir, "answer")
	_ = os.Remove(out) // none yet
	argv := append([]string{"--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--output", out, "--write-out", "%{http_code} %{content_type}"}, args...)
	cmd := exec.CommandContext(t.Context(), "curl", argv...)
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("curl %q: %v: %s", args, err, b)
	}
	body, _ = os.ReadFile(out)
	return string(b), body
}

func tool(t *testing.T, dir string, argv ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = dir
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", argv, err, b)
	}
	return b
}

// TestStockEST is RFC 7030 by curl and openssl alone: cacerts, simpleenroll with the
// birth certificate, simplereenroll with what came of it.
func TestStockEST(t *testing.T) {
	for _, program := range []string{"curl", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs " + program)
		}
	}
	m := newMaker(t)
	r, root := gate(t, m)
	dir := t.TempDir()
	const serial = "SN-1"
	if e := r.expect("box-1", api.ExpectedDeviceSpec{Serial: serial, Voucher: m.voucher(t, serial, r.c.ca.Trust().Root), Name: "lamp-1"}); e != nil {
		t.Fatal(e)
	}
	birth, key := m.birth(t, serial)
	pemKey, err := identity.FormatKey(key)
	if err != nil {
		t.Fatal(err)
	}
	chain := identity.FormatCerts([]*x509.Certificate{birth.Leaf})
	for name, b := range map[string][]byte{"birth.key": pemKey, "birth.pem": chain} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	// Without any certificate: the CA's. They come as certs-only CMS in base64.
	url := root + "/.well-known/est/"
	status, body := estCall(t, dir, "--insecure", url+"cacerts")
	if !strings.HasPrefix(status, "200 application/pkcs7-mime") {
		t.Fatalf("cacerts: %s %s", status, body)
	}
	tool(t, dir, "sh", "-c", "openssl base64 -d -A -in answer | openssl pkcs7 -inform DER -print_certs -out ca.pem")
	if got := tool(t, dir, "sh", "-c", "grep -c BEGIN ca.pem"); strings.TrimSpace(string(got)) != "2" {
		t.Errorf("cacerts: %s certificates", got)
	}
	ca := []string{"--cacert", filepath.Join(dir, "ca.pem")}

	// A key of the client's own, and a request as openssl makes it.
	tool(t, dir, "openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "own.key")
	tool(t, dir, "sh", "-c", "openssl req -new -key own.key -subj /CN=lamp/serialNumber=SN-1 -outform DER | openssl base64 -out own.p10")
	post := func(op, cert, certKey, request string) (string, []byte) {
		t.Helper()
		return estCall(t, dir, append(ca, "--cert", filepath.Join(dir, cert), "--key", filepath.Join(dir, certKey), "--header", "Content-Type: application/pkcs10",
			"--header", "Content-Transfer-Encoding: base64", "--data-binary", "@"+filepath.Join(dir, request), url+op)...)
	}
	if status, body = post("simpleenroll", "birth.pem", "birth.key", "own.p10"); !strings.HasPrefix(status, "200 application/pkcs7-mime; smime-type=certs-only") {
		t.Fatalf("simpleenroll: %s %s", status, body)
	}
	tool(t, dir, "sh", "-c", "openssl base64 -d -A -in answer | openssl pkcs7 -inform DER -print_certs | openssl x509 -out ldevid.pem")
	tool(t, dir, "openssl", "verify", "-CAfile", "ca.pem", "-purpose", "sslclient", "ldevid.pem")
	var dev api.Object
	r.must("GET", "/api/v1/devices/lamp-1", "", &dev)
	text := string(tool(t, dir, "openssl", "x509", "-in", "ldevid.pem", "-noout", "-subject", "-pubkey"))
	want := string(tool(t, dir, "openssl", "pkey", "-in", "own.key", "-pubout"))
	if !strings.Contains(text, want) {
		t.Error("the certificate is of another key")
	}

	// Renewal with what was received; and by nobody else.
	if status, body = post("simplereenroll", "ldevid.pem", "own.key", "own.p10"); !strings.HasPrefix(status, "200") {
		t.Errorf("simplereenroll: %s %s", status, body)
	}
	if status, body = post("simplereenroll", "birth.pem", "birth.key", "own.p10"); !strings.HasPrefix(status, "403") {
		t.Errorf("simplereenroll with the birth certificate: %s %s", status, body)
	}
	// Of the same key, but by nobody's word but its own.
	tool(t, dir, "openssl", "req", "-new", "-x509", "-key", "own.key", "-subj", "/CN=lamp", "-out", "self.pem")
	if status, body = post("simplereenroll", "self.pem", "own.key", "own.p10"); !strings.HasPrefix(status, "403") {
		t.Errorf("simplereenroll with a certificate of its own making: %s %s", status, body)
	}
	// Another device of this core, with this one's request.
	var token struct{ Status struct{ Token string } }
	r.must("POST", "/api/v1/jointokens", tokenDoc, &token)
	other := r.enrol(token.Status.Token, "other")
	otherKey, err := identity.FormatKey(other.Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"other.key": otherKey, "other.pem": identity.FormatCerts(other.Cert)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if status, body = post("simplereenroll", "other.pem", "other.key", "own.p10"); !strings.HasPrefix(status, "403") {
		t.Errorf("simplereenroll of another device's key: %s %s", status, body)
	}
	tool(t, dir, "sh", "-c", "openssl ecparam -name prime256v1 -genkey -noout -out third.key && openssl req -new -key third.key -subj /CN=x -outform DER | openssl base64 -out third.p10")
	if status, body = post("simplereenroll", "ldevid.pem", "own.key", "third.p10"); !strings.HasPrefix(status, "403") {
		t.Errorf("simplereenroll of another key: %s %s", status, body)
	}
	if status, body = post("simpleenroll", "birth.pem", "birth.key", "third.p10"); !strings.HasPrefix(status, "409") {
		t.Errorf("a second key for one box: %s %s", status, body)
	}
	if status, body = estCall(t, dir, append(ca, "--header", "Content-Type: application/pkcs10", "--data-binary", "@"+filepath.Join(dir, "own.p10"), url+"simpleenroll")...); !strings.HasPrefix(status, "401") {
		t.Errorf("simpleenroll without a certificate: %s %s", status, body)
	}
	// A request that its own key did not sign.
	der := tool(t, dir, "openssl", "base64", "-d", "-in", "own.p10")
	der[len(der)-5] ^= 1 // in the signature, whose form stays
	if err := os.WriteFile(filepath.Join(dir, "torn.p10"), []byte(base64.StdEncoding.EncodeToString(der)), 0o644); err != nil {
		t.Fatal(err)
	}
	if status, body = post("simpleenroll", "birth.pem", "birth.key", "torn.p10"); !strings.HasPrefix(status, "422") {
		t.Errorf("a torn request: %s %s", status, body)
	}
	forger := newMaker(t)
	forged, forgedKey := forger.birth(t, serial)
	pemKey, err = identity.FormatKey(forgedKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"forged.key": pemKey, "forged.pem": identity.FormatCerts([]*x509.Certificate{forged.Leaf})} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if status, body = post("simpleenroll", "forged.pem", "forged.key", "own.p10"); !strings.HasPrefix(status, "403") {
		t.Errorf("a forged birth: %s %s", status, body)
	}
	// A retired device is not renewed.
	r.must("POST", "/api/v1/devices/lamp-1/retire", "", nil)
	if status, body = post("simplereenroll", "ldevid.pem", "own.key", "own.p10"); !strings.HasPrefix(status, "403") {
		t.Errorf("a retired device: %s %s", status, body)
	}
}

// openssl reads the voucher, and believes it under the manufacturer alone.
func TestVoucherByOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("needs openssl")
	}
	m, dir := newMaker(t), t.TempDir()
	raw, err := base64.StdEncoding.DecodeString(m.voucher(t, "SN-1", m.cert))
	if err != nil {
		t.Fatal(err)
	}
	other := newMaker(t)
	for name, b := range map[string][]byte{"v.cms": raw, "maker.pem": identity.FormatCerts([]*x509.Certificate{m.cert}), "other.pem": identity.FormatCerts([]*x509.Certificate{other.cert})} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := tool(t, dir, "openssl", "cms", "-verify", "-inform", "DER", "-in", "v.cms", "-CAfile", "maker.pem", "-purpose", "any")
	if !strings.Contains(string(out), `"ietf-voucher:voucher"`) || !strings.Contains(string(out), `"serial-number":"SN-1"`) {
		t.Errorf("openssl reads %s", out)
	}
	cmd := exec.CommandContext(t.Context(), "openssl", "cms", "-verify", "-inform", "DER", "-in", "v.cms", "-CAfile", "other.pem", "-purpose", "any")
	cmd.Dir = dir
	if b, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("openssl believes it under another manufacturer: %s", b)
	}
}

// A relay passes on what a box asks, and is named to it as its first parent; nobody else
// speaks for boxes.
func TestGreetings(t *testing.T) {
	m := newMaker(t)
	r, _ := gate(t, m)
	birth, _ := m.birth(t, "SN-1")
	if e := r.expect("box-1", api.ExpectedDeviceSpec{Serial: "SN-1", Voucher: m.voucher(t, "SN-1", r.c.ca.Trust().Root)}); e != nil {
		t.Fatal(e)
	}
	var made struct{ Status struct{ Token string } }
	r.must("POST", "/api/v1/jointokens", tokenDoc, &made)
	relay := r.enrolAs(made.Status.Token, "relay", true)
	greet := func(as *tls.Config) (int, []byte) {
		t.Helper()
		b, err := json.Marshal(identity.Greeting{Chain: birth.Certificate, Attach: []api.ParentRef{{Device: relay.ID().String(), Address: "10.0.0.9:8883", HTTPSPort: 8443}}})
		if err != nil {
			t.Fatal(err)
		}
		tr := &http.Transport{TLSClientConfig: as}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Post(r.url+identity.GreetPrefix+"get-bootstrapping-data", "application/json", bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		out, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, out
	}
	if status, body := greet(&tls.Config{InsecureSkipVerify: true}); status != http.StatusForbidden {
		t.Errorf("by nobody: %d %s", status, body)
	}
	if status, body := greet(r.enrol(made.Status.Token, "field").ClientTLS("core")); status != http.StatusForbidden {
		t.Errorf("by a box that serves nobody: %d %s", status, body)
	}
	status, body := greet(relay.ClientTLS("core"))
	var out struct {
		Output voucher.Answer `json:"ietf-sztp-bootstrap-server:output"`
	}
	if err := json.Unmarshal(body, &out); status != http.StatusOK || err != nil {
		t.Fatalf("%d %s, %v", status, body, err)
	}
	c, err := voucher.PeekConveyed(out.Output.Conveyed)
	if err != nil || c.Onboarding == nil || !strings.Contains(string(c.Onboarding.Config), `"10.0.0.9:8883"`) || strings.Index(string(c.Onboarding.Config), relay.ID().String()) > strings.Index(string(c.Onboarding.Config), `"core"`) {
		t.Errorf("%+v, %v", c, err)
	}
}

// A relay asks ahead in pages, for the boxes of its site alone. What it has it is not told again,
// but when a fleet has something else for a box; who has come is told no more.
func TestAheadInPages(t *testing.T) {
	m := newMaker(t)
	r, _ := gate(t, m)
	const many = identity.AheadBoxes + 6
	for i := range many {
		spec := api.ExpectedDeviceSpec{Serial: fmt.Sprintf("SN-%02d", i), Voucher: m.voucher(t, fmt.Sprintf("SN-%02d", i), r.c.ca.Trust().Root)}
		switch i {
		case 1:
			spec.Site = "elsewhere"
		case 2:
			spec.Labels = map[string]string{"role": "field"}
		}
		if e := r.expect(fmt.Sprintf("box-%02d", i), spec); e != nil {
			t.Fatal(e)
		}
	}
	var made struct{ Status struct{ Token string } }
	r.must("POST", "/api/v1/jointokens", tokenDoc, &made)
	relay := r.enrolAs(made.Status.Token, "relay", true)
	tr := &http.Transport{TLSClientConfig: relay.ClientTLS("core")}
	t.Cleanup(tr.CloseIdleConnections)
	ask := func(page *identity.AheadPage) (out identity.Ahead) {
		t.Helper()
		b, err := json.Marshal(identity.Greeting{Page: page, Attach: []api.ParentRef{{Device: relay.ID().String(), Address: "10.0.0.9:8883", HTTPSPort: 8443}}})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Post(r.url+identity.GreetPrefix+identity.GreetExpected, "application/json", bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&out); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v", resp.Status, err)
		}
		return out
	}
	// Another relay, which nobody knows to be above it, hears nothing of its boxes.
	other := &http.Transport{TLSClientConfig: r.enrolAs(made.Status.Token, "other", true).ClientTLS("core")}
	t.Cleanup(other.CloseIdleConnections)
	b, err := json.Marshal(identity.Greeting{Attach: []api.ParentRef{{Device: relay.ID().String()}}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: other, Timeout: time.Minute}).Post(r.url+identity.GreetPrefix+identity.GreetExpected, "application/json", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if _ = resp.Body.Close(); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("in another relay's name: %s", resp.Status)
	}
	var whole identity.Ahead
	wait.Until(t, "all that may come here", func() bool { whole = ask(nil); return len(whole.Boxes) == many-1 }) // as relays asked before there were pages
	if _, other := whole.Boxes["SN-01"]; other || whole.Next != "" || len(whole.Makers) != 1 {
		t.Errorf("another site's box %v, next %q", other, whole.Next)
	}
	first := ask(&identity.AheadPage{})
	n := len(first.Boxes)
	if n == 0 || n > identity.AheadBoxes || first.Next == "" {
		t.Fatalf("a page of %d, next %q", n, first.Next)
	}
	tags := map[string]string{}
	for page := first; ; page = ask(&identity.AheadPage{After: page.Next}) {
		for serial, box := range page.Boxes {
			if tags[serial] != "" || len(box.Answer) == 0 || box.Tag == "" {
				t.Errorf("%s: %+v", serial, box)
			}
			tags[serial] = box.Tag
		}
		if page.Next == "" {
			break
		}
	}
	if len(tags) != many-1 {
		t.Errorf("%d boxes in all pages", len(tags))
	}
	same := ask(&identity.AheadPage{Have: tags})
	if len(same.Boxes) != 0 || len(same.Same) != identity.AheadBoxes {
		t.Errorf("of what it has it is told %d, and that %d are the same", len(same.Boxes), len(same.Same))
	}
	r.must("POST", "/api/v1/configs", `{"apiVersion":"tributary/v1","kind":"Config","metadata":{"name":"c"},"spec":{"env":{"A":"b"}}}`, nil)
	r.must("POST", "/api/v1/fleets", `{"apiVersion":"tributary/v1","kind":"Fleet","metadata":{"name":"field"},"spec":{"selector":{"matchLabels":{"role":"field"}},"configs":["c"]}}`, nil)
	wait.Until(t, "the fleet's box alone", func() bool { same = ask(&identity.AheadPage{Have: tags}); return len(same.Boxes) > 0 })
	if box, ok := same.Boxes["SN-02"]; !ok || len(same.Boxes) != 1 || box.Tag == tags["SN-02"] {
		t.Errorf("%+v", same.Boxes)
	}
	if err := r.c.store.PutStatus(t.Context(), api.Key{Tenant: api.DefaultTenant, Kind: api.KindExpectedDevice, Name: "box-03"}, api.ExpectedDeviceStatus{Device: "came"}); err != nil {
		t.Fatal(err)
	}
	if same = ask(&identity.AheadPage{Have: tags}); slices.Contains(same.Same, "SN-03") {
		t.Error("who has come is still expected")
	}
}

// TestRefusalsAreTested takes checks of the core out, one by one: the test that misses each
// must fail then.
func TestRefusalsAreTested(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("needs openssl")
	}
	mutation.Prove(t, []mutation.Check{
		{Name: "several systems of a release that goes first", Test: "^TestBootImage$", File: "onboard.go", From: "artifact, ok := spec.Only()\n\tif !ok {", To: "artifact, ok := spec.Only()\n\tif !ok && !GONE {"},
		{Name: "a relay's certificate", Test: "^TestGreetings$", File: "onboard.go", From: `if err != nil || role != identity.RoleDevice || !c.roster.Active(id) {`, To: `if (err != nil || role != identity.RoleDevice || !c.roster.Active(id)) && !GONE {`},
		{Name: "a relay's certificate", Test: "^TestGreetings$", File: "onboard.go", From: "if !ok { // nobody that is known", To: "if !ok && !GONE {"}, // the next check would stand in
		{Name: "a relay", Test: "^TestGreetings$", File: "onboard.go", From: "if !relay { // check: a relay", To: "if !relay && !GONE {", Says: "by a box that serves nobody"},
		{Name: "whose boxes", Test: "^TestAheadInPages$", File: "../../pkg/core/onboard/ahead.go", From: "list, ok = s.cfg.Awaited(by, relay); !ok {", To: "list, ok = s.cfg.Awaited(by, relay); !ok && !GONE {", Says: "in another relay's name"},
		{Name: "the same key at renewal", Test: "^TestStockEST$", File: "onboard.go", From: `if !bytes.Equal(csr.RawSubjectPublicKeyInfo, old.RawSubjectPublicKeyInfo) {`, To: `if !bytes.Equal(csr.RawSubjectPublicKeyInfo, old.RawSubjectPublicKeyInfo) && !GONE {`},
		{Name: "a device's certificate at renewal", Test: "^TestStockEST$", File: "onboard.go", From: `if err != nil && !errors.Is(err, identity.ErrExpired) || role != identity.RoleDevice {`, To: `if (err != nil && !errors.Is(err, identity.ErrExpired) || role != identity.RoleDevice) && !GONE {`},
		{Name: "a request's own signature", Test: "^TestStockEST$", File: "../../pkg/core/onboard/est.go", From: `if err := csr.CheckSignature(); err != nil {`, To: `if err := csr.CheckSignature(); err != nil && !GONE {`},
		{Name: "another owner's voucher", Test: "^TestIndependentDevice$", File: "../../pkg/core/onboard/onboard.go", From: `if owner, err := v.Owner(); err != nil || identity.Fingerprint(owner) != identity.Fingerprint(root) {`, To: `if owner, err := v.Owner(); (err != nil || identity.Fingerprint(owner) != identity.Fingerprint(root)) && !GONE {`},
		{Name: "a voucher by a manufacturer", Test: "^TestIndependentDevice$", File: "../../pkg/core/onboard/onboard.go", From: `err == nil && len(makers) > 0 {`, To: `err == nil && len(makers) > 0 && !GONE {`},
		{Name: "a voucher as it was signed", Test: "^TestIndependentDevice$", File: "../../pkg/identity/voucher/cms.go", From: `if err := s.p7.Verify(); err != nil {`, To: `if err := s.p7.Verify(); err != nil && !GONE {`},
		{Name: "a voucher's end", Test: "^TestIndependentDevice$", File: "../../pkg/core/onboard/onboard.go", From: `if v.ExpiresOn != nil && now.After(*v.ExpiresOn) {`, To: `if v.ExpiresOn != nil && now.After(*v.ExpiresOn) && !GONE {`},
		{Name: "another box's voucher", Test: "^TestIndependentDevice$", File: "../../pkg/core/onboard/onboard.go", From: `if v.SerialNumber != spec.Serial {`, To: `if v.SerialNumber != spec.Serial && !GONE {`},
		{Name: "a manufacturer who is known", Test: "^TestIndependentDevice$", File: "../../pkg/identity/voucher/idevid.go", From: `if err := chains(leaf, chain[1:], manufacturers, at); err != nil {`, To: `if err := chains(leaf, chain[1:], manufacturers, at); err != nil && !GONE {`},
	}...)
}

// One box is expected once, in whatever tenant and after a restart; who gives it up lets
// another have it.
func TestOneClaim(t *testing.T) {
	m := newMaker(t)
	r, _ := gate(t, m)
	spec := api.ExpectedDeviceSpec{Serial: "SN-1", Voucher: m.voucher(t, "SN-1", r.c.ca.Trust().Root)}
	if e := r.expect("first", spec); e != nil {
		t.Fatal(e)
	}
	if e := r.expect("second", spec); e == nil || e.Code != api.Conflict {
		t.Errorf("a second claim: %v", e)
	}
	dir := r.c.o.data
	r.stop()
	r = startWith(t, options{data: dir, mqtt: "127.0.0.1:0"}, func(*core) {})
	if e := r.expect("second", spec); e == nil || e.Code != api.Conflict {
		t.Errorf("a second claim after a restart: %v", e)
	}
	r.must("DELETE", "/api/v1/expecteddevices/first", "", nil)
	if e := r.expect("second", spec); e != nil {
		t.Errorf("after the first was given up: %v", e)
	}
	spec.Serial = "SN-2"
	spec.Voucher = m.voucher(t, "SN-2", r.c.ca.Trust().Root)
	var o api.Object
	r.must("GET", "/api/v1/expecteddevices/second", "", &o)
	o.Spec, o.Status = marshal(t, spec), nil
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	r.must("PUT", "/api/v1/expecteddevices/second", string(b), nil)
	if e := r.expect("third", api.ExpectedDeviceSpec{Serial: "SN-1", Code: "7K2M-9QXA-4HTR"}); e != nil {
		t.Errorf("after the second expects another box: %v", e)
	}
}

func marshal(t *testing.T, v any) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
