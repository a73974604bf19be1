package mqtt

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/tests/place"
	"tributary.dev/tributary/tests/wait"
)

// mosquitto is a real Mosquitto 2 with its dynamic-security plugin and a certificate of
// the core.
type mosquitto struct {
	dir, addr string
	cmd       *exec.Cmd
	log       bytes.Buffer
}

func startMosquitto(t *testing.T, pki *pki, core *identity.Identity) *mosquitto {
	t.Helper()
	if _, err := exec.LookPath("mosquitto"); err != nil {
		t.Skipf("needs mosquitto from Debian's package mosquitto: %v", err)
	}
	plugin := FindDynsec()
	if plugin == "" {
		t.Skip("needs mosquitto_dynamic_security.so from Debian's package mosquitto (version 2)")
	}
	m := &mosquitto{dir: t.TempDir(), addr: place.Left()}
	m.write(t, MosquittoRoot, identity.FormatCerts([]*x509.Certificate{pki.root}))
	m.certify(t, core)
	conf, err := MosquittoConfig{Dir: m.dir, Listen: m.addr, Plugin: plugin, User: "root"}.Conf()
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, MosquittoConf, append(conf, "log_type all\nlog_dest stdout\n"...))
	m.write(t, MosquittoDynsec, DynsecList())
	m.start(t)
	t.Cleanup(func() {
		m.stop()
		if t.Failed() {
			t.Log(m.log.String())
		}
	})
	return m
}

// certify gives the broker a certificate; it takes a new one when it is told to reload.
func (m *mosquitto) certify(t *testing.T, id *identity.Identity) {
	t.Helper()
	key, err := identity.FormatKey(id.Key)
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, MosquittoServer, append(key, identity.FormatCerts(id.Cert)...))
}

func (m *mosquitto) write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (m *mosquitto) start(t *testing.T) {
	t.Helper()
	m.cmd = exec.Command("mosquitto", "-c", filepath.Join(m.dir, MosquittoConf))
	m.cmd.Stdout, m.cmd.Stderr = &m.log, &m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait.Seen(t, "mosquitto listens", func() (any, bool) {
		c, err := net.Dial("tcp", m.addr)
		if err != nil {
			return err, false
		}
		return nil, c.Close() == nil
	})
}

func (m *mosquitto) stop() {
	m.cmd.Process.Kill()
	m.cmd.Wait()
}

type external struct {
	*External
	*events
	stop context.CancelFunc
}

func newExternal(t *testing.T, m *mosquitto, core *identity.Identity) *external {
	t.Helper()
	e := &external{events: newEvents()}
	e.External = NewExternal(ExternalConfig{Address: m.addr, TLS: identity.NewLive(core).ClientTLS(identity.CoreName), Backoff: quick, Log: logger(t)})
	e.stop = running(t, func(ctx context.Context) error { return e.External.Run(ctx, e.events) })
	return e
}

// admit waits until the core has its session, then lets devices in.
func (e *external) admit(t *testing.T, ids ...api.DeviceID) {
	t.Helper()
	var err error
	wait.Seen(t, "the core has its session", func() (any, bool) {
		err = e.Admit(t.Context(), ids...)
		return err, !errors.Is(err, link.ErrDown)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMosquitto(t *testing.T) {
	pki := newPKI(t)
	core := pki.core(t)
	m := startMosquitto(t, pki, core)
	e := newExternal(t, m, core)
	dev, other, outsider := pki.device(t), pki.device(t), pki.device(t)
	if err := e.Retain(dev.ID(), []byte("manifest 1")); err != nil { // before the session is there
		t.Fatal(err)
	}
	e.admit(t, dev.ID(), other.ID())
	e.admit(t, dev.ID()) // repeated
	ref := api.ParentRef{Device: identity.CoreName, Address: m.addr}

	// Frames both ways, retained manifest, up and down.
	b := newBox(t, dev, ref)
	const coreUp = "up aaaaaaaaaaaaa"
	b.wait(t, coreUp)
	if err := b.Send([]byte("hello"), true); err != nil {
		t.Fatal(err)
	}
	up, down := fmt.Sprintf("up %s false", b.me), fmt.Sprintf("down %s", b.me)
	e.wait(t, up)
	e.wait(t, fmt.Sprintf("frame %s hello", b.me))
	if err := e.Send(b.me, []byte("answer"), true); err != nil {
		t.Fatal(err)
	}
	b.wait(t, "down-frame answer")
	if err := b.FetchRetained(); err != nil {
		t.Fatal(err)
	}
	b.wait(t, "retained manifest 1")
	big := bytes.Repeat([]byte{7}, link.MaxFrame)
	if err := errors.Join(b.Send(big, true), e.Send(b.me, big, true)); err != nil {
		t.Fatal(err)
	}
	e.wait(t, fmt.Sprintf("frame %s %d bytes", b.me, len(big)))
	b.wait(t, fmt.Sprintf("down-frame %d bytes", len(big)))

	// A session that ends is told by its last will.
	b.Reset("test")
	e.wait(t, down)
	b.until(t, "up again", func() bool { return b.count(coreUp) == 2 })
	b.Send([]byte("again"), false)
	e.until(t, "up again", func() bool { return e.count(up) == 2 })
	e.Kick(b.me, "test")
	b.until(t, "kicked and back", func() bool { return b.count(coreUp) == 3 })

	// One device speaks for itself alone, whatever it calls itself.
	aclHolds(t, pki, m.addr, other, dev.ID())
	if n := e.count(fmt.Sprintf("frame %s forged", dev.ID())); n != 0 {
		t.Fatal("a frame under another device's name")
	}
	// Who is not admitted, or dismissed, has no session.
	out := newBox(t, outsider, ref)
	if err := e.Dismiss(t.Context(), other.ID()); err != nil {
		t.Fatal(err)
	}
	gone := newBox(t, other, ref)
	in := newBox(t, dev, ref) // takes over: by then the others have had their chance too
	in.wait(t, coreUp)
	if len(out.all()) != 0 || len(gone.all()) != 0 {
		t.Fatalf("%q %q", out.all(), gone.all())
	}
}

// The broker forgets everything it held, its access list included; the core makes it good.
func TestMosquittoRestart(t *testing.T) {
	pki := newPKI(t)
	core := pki.core(t)
	m := startMosquitto(t, pki, core)
	e := newExternal(t, m, core)
	dev := pki.device(t)
	e.admit(t, dev.ID())
	if err := e.Retain(dev.ID(), []byte("kept")); err != nil {
		t.Fatal(err)
	}
	b := newBox(t, dev, api.ParentRef{Device: identity.CoreName, Address: m.addr})
	b.wait(t, "up aaaaaaaaaaaaa")
	b.Send([]byte("one"), true)
	e.wait(t, fmt.Sprintf("frame %s one", b.me))
	m.stop()
	e.wait(t, fmt.Sprintf("down %s", b.me))
	b.wait(t, "down")
	if err := e.Send(b.me, []byte("x"), false); err != link.ErrDown {
		t.Fatalf("without a broker: %v", err)
	}
	// What `mosquitto_ctrl dynsec init` makes: the core may administer and nothing else.
	os.Remove(filepath.Join(m.dir, MosquittoDynsec))
	if out, err := exec.Command("mosquitto_ctrl", "dynsec", "init", filepath.Join(m.dir, MosquittoDynsec), identity.CoreName, "unused").CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_ctrl: %v %s", err, out)
	}
	m.start(t)
	b.until(t, "up again", func() bool { return b.count("up aaaaaaaaaaaaa") >= 2 })
	b.Send([]byte("two"), true)
	e.wait(t, fmt.Sprintf("frame %s two", b.me))
	b.until(t, "the manifest", func() bool {
		b.FetchRetained() // the core may not have put it back yet
		return b.count("retained kept") > 0
	})
}

// The core goes away and comes back while the broker and the children stay: they are
// greeted, and whoever was let in or put out meanwhile is so now.
func TestMosquittoOutlivesTheCore(t *testing.T) {
	pki := newPKI(t)
	core := pki.core(t)
	m := startMosquitto(t, pki, core)
	e := newExternal(t, m, core)
	stays, leaves, comes := pki.device(t), pki.device(t), pki.device(t)
	e.admit(t, stays.ID(), leaves.ID())
	ref := api.ParentRef{Device: identity.CoreName, Address: m.addr}
	b, out := newBox(t, stays, ref), newBox(t, leaves, ref)
	b.wait(t, "up aaaaaaaaaaaaa")
	out.wait(t, "up aaaaaaaaaaaaa")
	e.stop()
	e.until(t, "the core is away", func() bool { return e.Send(stays.ID(), []byte("x"), false) == link.ErrDown })
	if err := e.Dismiss(t.Context(), leaves.ID()); err != link.ErrDown {
		t.Fatalf("dismissed without a core: %v", err)
	}
	again := newExternal(t, m, core)
	for _, id := range []api.DeviceID{stays.ID(), comes.ID()} {
		if err := again.Admit(t.Context(), id); err != nil && err != link.ErrDown {
			t.Fatal(err)
		}
	}
	b.wait(t, fmt.Sprintf("down-frame %s", link.GreetFrame()))
	if b.count("down") != 0 {
		t.Error("a child's session ended with the core's")
	}
	out.wait(t, "down")
	in := newBox(t, comes, ref)
	in.wait(t, "up aaaaaaaaaaaaa")
	b.Send([]byte("still here"), true)
	again.wait(t, fmt.Sprintf("frame %s still here", b.me))
	if n := out.count("up aaaaaaaaaaaaa"); n != 1 {
		t.Errorf("the dismissed device came in %d times", n)
	}
}

// A renewed certificate is served after SIGHUP; who is connected stays so.
func TestMosquittoReload(t *testing.T) {
	pki := newPKI(t)
	core := pki.core(t)
	m := startMosquitto(t, pki, core)
	e := newExternal(t, m, core)
	dev := pki.device(t)
	e.admit(t, dev.ID())
	b := newBox(t, dev, api.ParentRef{Device: identity.CoreName, Address: m.addr})
	b.wait(t, "up aaaaaaaaaaaaa")
	if e.Expires().Unix() != core.Cert[0].NotAfter.Unix() {
		t.Errorf("the broker's certificate ends %s", e.Expires())
	}
	renewed := pki.core(t)
	m.certify(t, renewed)
	if err := m.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	trust := identity.NewLive(core).ClientTLS(identity.CoreName)
	b.until(t, "the renewed certificate", func() bool {
		c, err := tls.Dial("tcp", m.addr, trust)
		if err != nil {
			return false
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Equal(renewed.Cert[0])
	})
	if b.count("down") != 0 {
		t.Error("a session was lost")
	}
}

// Whom the broker lets in takes several answers to tell; what differs is mended.
func TestMosquittoKnowsMany(t *testing.T) {
	pki := newPKI(t)
	core := pki.core(t)
	m := startMosquitto(t, pki, core)
	ids := make([]api.DeviceID, dynsecPage+10)
	for i := range ids {
		binary.BigEndian.PutUint64(ids[i][:], uint64(i+1))
	}
	m.stop()
	m.write(t, MosquittoDynsec, DynsecList(ids[5:]...))
	m.start(t)
	e := newExternal(t, m, core)
	e.Admit(t.Context(), ids[:len(ids)-5]...) // at once, or when the session is there
	e.until(t, "five come, five go", func() bool {
		b, _ := os.ReadFile(filepath.Join(m.dir, MosquittoDynsec))
		has := func(id api.DeviceID) bool { return bytes.Contains(b, []byte(`"`+id.String()+`"`)) }
		return has(ids[0]) && has(ids[4]) && !has(ids[len(ids)-5]) && !has(ids[len(ids)-1]) && has(ids[5]) && has(ids[len(ids)-6])
	})
}

func TestMosquittoConf(t *testing.T) {
	good := MosquittoConfig{Dir: "/etc/x", Listen: "[::1]:8883", Plugin: "/p.so", User: "mosquitto"}
	b, err := good.Conf()
	if err != nil || !bytes.Contains(b, []byte("\nlistener 8883 ::1\n")) || !bytes.Contains(b, []byte("\ncertfile /etc/x/tls.pem\n")) {
		t.Errorf("%v\n%s", err, b)
	}
	for what, change := range map[string]func(*MosquittoConfig){
		"no port":      func(c *MosquittoConfig) { c.Listen = "host" },
		"a line break": func(c *MosquittoConfig) { c.Dir = "/x\nallow_anonymous true" },
	} {
		bad := good
		change(&bad)
		if _, err := bad.Conf(); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}
