package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/meter"
	"tributary.dev/tributary/pkg/edge/workload"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/link/stream"
)

// authority gives real identities to a core and a device.
type authority struct {
	t      *testing.T
	key    *ecdsa.PrivateKey
	signer *ecdsa.PrivateKey
	trust  *identity.Trust
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, key: key(t), signer: key(t), trust: &identity.Trust{}}
	a.trust.Root = a.cert(&a.key.PublicKey, "root", "")
	for role, to := range map[string]*[]*x509.Certificate{identity.RoleIssuer: &a.trust.Issuers, identity.RoleSigner: &a.trust.Signers} {
		*to = []*x509.Certificate{a.cert(&a.signer.PublicKey, role, role)}
	}
	a.trust.Sealing = a.cert(&key(t).PublicKey, "sealing", identity.RoleSealing)
	return a
}

func (a *authority) cert(pub *ecdsa.PublicKey, cn, role string) *x509.Certificate {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	parent := a.trust.Root
	if role == "" {
		tmpl.IsCA, tmpl.KeyUsage, parent = true, x509.KeyUsageCertSign, tmpl
	} else {
		ext, err := identity.RoleExtension(role)
		if err != nil {
			a.t.Fatal(err)
		}
		tmpl.ExtraExtensions = []pkix.Extension{ext}
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

func (a *authority) identity(role string) *identity.Identity {
	k := key(a.t)
	cn := identity.CoreName
	if role == identity.RoleDevice {
		cn = identity.KeyID(&k.PublicKey).String()
	}
	return &identity.Identity{Key: k, Seal: key(a.t), Trust: a.trust, Cert: []*x509.Certificate{a.cert(&k.PublicKey, cn, role)}}
}

// shell is a runtime whose exec is a small program of its own, and whose one port echoes.
type shell struct {
	*workRecorder
	echo string
}

func (s *shell) Exec(ctx context.Context, r workload.ExecRequest) (int, error) {
	if r.App != "shop" {
		return 0, &api.Error{Code: api.NotFound, Message: "no such app", Remedy: "look again"}
	}
	in, err := io.ReadAll(r.Stdin)
	if err != nil {
		return 0, err
	}
	size := <-r.Resize
	fmt.Fprintf(r.Stdout, "%s %s %dx%d", strings.Join(r.Argv, " "), in, size.Width, size.Height)
	fmt.Fprint(r.Stderr, "warn")
	return 3, nil
}

func (s *shell) Logs(ctx context.Context, app, service string, follow bool, tail int, w io.Writer) error {
	fmt.Fprintf(w, "%s/%s %v %d", app, service, follow, tail)
	if follow {
		<-ctx.Done() // until the person goes away
	}
	return nil
}

func (s *shell) Dial(ctx context.Context, app, service string, port int) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", s.echo)
}

func (s *shell) Status() []api.AppStatus {
	return []api.AppStatus{{Name: "shop", State: api.Running, Services: []api.ServiceStatus{{Name: "web", State: api.Running}}}}
}

func (s *shell) Targets() []meter.Target {
	return []meter.Target{{ID: "1", App: "shop", Service: "web", Started: time.Unix(1, 0)}}
}

// reach is a core with a hub and a device that answers it.
type reach struct {
	*bench
	hub *stream.Hub
	dev api.DeviceID
	// console is where the device looks for its recovery console.
	console string
	// lines is where it looks for the consoles of cards.
	lines string
}

func newReach(t *testing.T, tune ...func(*stream.HubConfig)) *reach {
	auth := newAuthority(t)
	core := auth.identity(identity.RoleCore)
	b := newBench(t)
	b.id = auth.identity(identity.RoleDevice)
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	dir, err := os.MkdirTemp("", "con") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &reach{bench: b, dev: b.id.ID(), console: filepath.Join(dir, "sock"), lines: filepath.Join(dir, "dev")}
	conf := stream.HubConfig{Identity: core, Signer: auth.signer, Log: slog.New(slog.DiscardHandler), Wait: 2 * time.Minute,
		Send: func(_ api.DeviceID, raw []byte) error { b.agent.command(raw); return nil }}
	for _, change := range tune {
		change(&conf)
	}
	r.hub = stream.NewHub(conf)
	l, err := tls.Listen("tcp", "127.0.0.1:0", core.ServerTLS())
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: r.hub, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	b.tune = func(c *Config) {
		c.Console, c.Lines = r.console, r.lines
		c.Workload = &shell{b.work, echo.Addr().String()}
		c.Stream = func() (*url.URL, *tls.Config, error) {
			return &url.URL{Scheme: "https", Host: l.Addr().String()}, b.id.ClientTLS(""), nil
		}
	}
	b.start()
	return r
}

func (r *reach) do(c stream.Command, l stream.Local) (int, error) {
	c.Actor = "ann"
	conn, err := r.hub.Open(r.t.Context(), r.dev, c)
	if err != nil {
		r.t.Fatal(err)
	}
	return stream.Run(r.t.Context(), conn, l)
}

// audit lists the audit records as "name subject actor".
func (r *reach) audit() (out []string) {
	_, last, _, _ := r.spool.Range()
	for at := uint64(1); at <= last; at++ {
		list, err := r.spool.Read(at, 1)
		if err != nil || len(list) == 0 {
			r.t.Fatal(err)
		}
		if e, err := record.DecodeEvent(list[0].Payload); err == nil && list[0].Kind == api.RecordAudit {
			out = append(out, e.Name+" "+e.Subject+" "+e.Actor)
		}
	}
	return out
}

func TestExecIsAnsweredAndAudited(t *testing.T) {
	r := newReach(t)
	var out, errs bytes.Buffer
	code, err := r.do(stream.Command{Verb: stream.Exec, App: "shop", Service: "web", Argv: []string{"cat", "-n"}, TTY: true, Size: stream.Size{Columns: 80, Rows: 24}},
		stream.Local{Stdin: strings.NewReader("typed"), Stdout: &out, Stderr: &errs})
	if code != 3 || err != nil || out.String() != "cat -n typed 80x24" || errs.String() != "warn" {
		t.Fatalf("exit %d, %v, %q, %q", code, err, out.String(), errs.String())
	}
	// The person has the answer before the device has written that the stream is closed.
	want := "exec.opened shop/web ann,exec.closed shop/web ann"
	r.wait("audit records", func() bool { return strings.Join(r.audit(), ",") == want })
	if _, err := r.do(stream.Command{Verb: stream.Exec, App: "other", Argv: []string{"x"}}, stream.Local{}); api.CodeOf(err) != api.NotFound {
		t.Errorf("an unknown app: %v", err)
	}
	want += ",exec.opened other ann,exec.closed other ann"
	r.wait("audit records", func() bool { return strings.Join(r.audit(), ",") == want })
}

func TestFollowedLogsEndWithThePerson(t *testing.T) {
	r := newReach(t)
	conn, err := r.hub.Open(t.Context(), r.dev, stream.Command{Verb: stream.Logs, App: "shop", Service: "web", Follow: true, Tail: 7})
	if err != nil {
		t.Fatal(err)
	}
	f, err := conn.Read()
	if err != nil || string(f.Payload) != "shop/web true 7" {
		t.Fatalf("%q, %v", f.Payload, err)
	}
	conn.Close()
	r.wait("the device lets go", func() bool { return len(r.audit()) == 2 })
}

func TestForwardCarriesAConnection(t *testing.T) {
	r := newReach(t)
	sent := bytes.Repeat([]byte("ping"), 100_000)
	var out bytes.Buffer
	code, err := r.do(stream.Command{Verb: stream.Forward, App: "shop", Service: "web", Port: 80}, stream.Local{Stdin: bytes.NewReader(sent), Stdout: &out})
	if code != 0 || err != nil || !bytes.Equal(out.Bytes(), sent) {
		t.Fatalf("exit %d, %v, %d of %d bytes", code, err, out.Len(), len(sent))
	}
}

// The recovery console is a program beside the agent: the person's terminal reaches it with
// its size, and one that cannot draw with none.
func TestConsoleIsCarried(t *testing.T) {
	r := newReach(t)
	if _, err := r.do(stream.Command{Verb: stream.Console}, stream.Local{Stdout: io.Discard}); api.CodeOf(err) != api.Unavailable {
		t.Errorf("a box without a console: %v", err)
	}
	l, err := net.Listen("unix", r.console)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				conn := stream.NewConn(c, stream.Idle)
				in := conn.Input()
				size := <-in.Resize
				typed := make([]byte, 4)
				_, err := io.ReadFull(in.Stdin, typed)
				fmt.Fprintf(conn.Writer(stream.Stdout), "%dx%d %s %v", size.Columns, size.Rows, typed, err)
				_ = conn.Finish(0, nil, stream.FinishGrace)
			}()
		}
	}()
	for _, c := range []struct {
		tty  bool
		want string
	}{{true, "80x24 keys <nil>"}, {false, "0x0 keys <nil>"}} {
		var out bytes.Buffer
		code, err := r.do(stream.Command{Verb: stream.Console, TTY: c.tty, Size: stream.Size{Columns: 80, Rows: 24}}, stream.Local{Stdin: strings.NewReader("keys"), Stdout: &out})
		if code != 0 || err != nil || out.String() != c.want {
			t.Errorf("exit %d, %v: %q, not %q", code, err, out.String(), c.want)
		}
	}
	if got := r.audit(); len(got) < 3 || got[0] != "console.opened  ann" {
		t.Errorf("%q", got)
	}
}

// More connections than the core opens to a device are all carried at once; where the
// device has no room for one, it says so itself.
func TestForwardOfManyConnections(t *testing.T) {
	r := newReach(t, func(c *stream.HubConfig) { c.PerDevice = 2 * maxStreams })
	if maxStreams < stream.PerDevice {
		t.Fatal("the core opens more than the device carries")
	}
	forward := stream.Command{Verb: stream.Forward, App: "shop", Service: "web", Port: 80}
	opened := make(chan *stream.Conn, maxStreams)
	for range maxStreams {
		go func() {
			conn, err := r.hub.Open(t.Context(), r.dev, forward)
			if err != nil {
				t.Error(err)
			}
			opened <- conn
		}()
	}
	var open []*stream.Conn
	for range maxStreams {
		if conn := <-opened; conn != nil {
			defer conn.Close()
			open = append(open, conn)
		}
	}
	for _, conn := range open {
		if err := conn.Write(stream.Stdin, []byte("ping")); err != nil {
			t.Fatal(err)
		}
		if f, err := conn.Read(); err != nil || string(f.Payload) != "ping" {
			t.Fatalf("%q, %v", f.Payload, err)
		}
	}
	if _, err := r.do(forward, stream.Local{Stdin: strings.NewReader(""), Stdout: io.Discard}); api.CodeOf(err) != api.Unavailable || !strings.Contains(err.Error(), "too many streams") {
		t.Errorf("one more: %v", err)
	}
}

func TestTopSamples(t *testing.T) {
	r := newReach(t)
	conn, err := r.hub.Open(t.Context(), r.dev, stream.Command{Verb: stream.Top, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f, err := conn.Read()
	var s stream.Sample
	if err != nil || json.Unmarshal(f.Payload, &s) != nil {
		t.Fatalf("%q, %v", f.Payload, err)
	}
	if len(s.Uses) != 1 || s.Uses[0].Service != "web" || s.Uses[0].MemoryBytes != 1<<20 || s.MemoryBytes == 0 {
		t.Errorf("got %+v", s)
	}
}

func TestForeignCommandsAreRefusedAndTold(t *testing.T) {
	r := newReach(t)
	c := stream.Command{Version: 1, Device: r.dev, Issued: time.Now().Unix(), Expires: time.Now().Add(time.Minute).Unix(), Verb: stream.Top}
	raw, err := c.Sign(key(t))
	if err != nil {
		t.Fatal(err)
	}
	r.agent.command(raw)
	r.wait("an event tells of it", func() bool {
		list, _ := r.spool.Read(1, 1)
		if len(list) == 0 {
			return false
		}
		e, err := record.DecodeEvent(list[0].Payload)
		return err == nil && e.Name == "command.refused"
	})
}

func TestRates(t *testing.T) {
	at := time.Unix(100, 0)
	target := meter.Target{ID: "1", App: "a", Service: "s"}
	before := map[string]reading{"1": {target, at, meter.Reading{CPUMicros: 1e6, RxBytes: 500}}}
	after := map[string]reading{"1": {target, at.Add(2 * time.Second), meter.Reading{CPUMicros: 2e6, RxBytes: 100, TxBytes: 4, MemoryBytes: 7}}}
	got := sample(before, after, []api.AppStatus{{Name: "a", Services: []api.ServiceStatus{{Name: "s", State: api.Running}, {Name: "gone"}}}})
	if u := got.Uses[0]; u.CPUs != 0.5 || u.RxPerSecond != 0 || u.TxPerSecond != 2 || u.MemoryBytes != 7 || len(got.Uses) != 2 {
		t.Errorf("got %+v", got)
	}
}
