package mqtt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
)

// mosquitto is a real Mosquitto 2 with its dynamic-security plugin, the core's
// certificate, and nothing else prepared than `mosquitto_ctrl dynsec init`.
type mosquitto struct {
	dir, addr string
	cmd       *exec.Cmd
	log       bytes.Buffer
}

func startMosquitto(t *testing.T, pki *pki, core *identity.Identity) *mosquitto {
	t.Helper()
	for _, need := range []string{"mosquitto", "mosquitto_ctrl"} {
		if _, err := exec.LookPath(need); err != nil {
			t.Skipf("needs %s from Debian's package mosquitto: %v", need, err)
		}
	}
	plugins, _ := filepath.Glob("/usr/lib/*/mosquitto_dynamic_security.so")
	if len(plugins) == 0 {
		t.Skip("needs mosquitto_dynamic_security.so from Debian's package mosquitto (version 2)")
	}
	m := &mosquitto{dir: t.TempDir()}
	ln := listen(t)
	m.addr = ln.Addr().String()
	ln.Close()
	_, port, _ := net.SplitHostPort(m.addr)
	key, err := identity.FormatKey(core.Key)
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, "root.crt", identity.FormatCerts(append(core.Trust.Issuers[:0:0], pki.root)))
	m.write(t, "tls.pem", append(key, identity.FormatCerts(core.Cert)...))
	m.write(t, "mosquitto.conf", []byte(strings.NewReplacer("DIR", m.dir, "PORT", port, "PLUGIN", plugins[0]).Replace(`
per_listener_settings false
plugin PLUGIN
plugin_opt_config_file DIR/dynsec.json
listener PORT 127.0.0.1
cafile DIR/root.crt
certfile DIR/tls.pem
keyfile DIR/tls.pem
require_certificate true
use_identity_as_username true
use_username_as_clientid true
max_packet_size 1400000
persistence false
set_tcp_nodelay true
user root
log_type all
log_dest stdout
`)))
	if out, err := exec.Command("mosquitto_ctrl", "dynsec", "init", filepath.Join(m.dir, "dynsec.json"), identity.CoreName, "unused").CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_ctrl: %v %s", err, out)
	}
	m.start(t)
	t.Cleanup(func() {
		m.stop()
		if t.Failed() {
			t.Log(m.log.String())
		}
	})
	return m
}

func (m *mosquitto) write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (m *mosquitto) start(t *testing.T) {
	t.Helper()
	m.cmd = exec.Command("mosquitto", "-c", filepath.Join(m.dir, "mosquitto.conf"))
	m.cmd.Stdout, m.cmd.Stderr = &m.log, &m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := net.Dial("tcp", m.addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			m.stop()
			t.Fatalf("mosquitto does not listen: %v\n%s", err, m.log.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (m *mosquitto) stop() {
	m.cmd.Process.Kill()
	m.cmd.Wait()
}

type external struct {
	*External
	*events
}

func newExternal(t *testing.T, m *mosquitto, core *identity.Identity) *external {
	t.Helper()
	e := &external{events: newEvents()}
	e.External = NewExternal(ExternalConfig{Address: m.addr, TLS: identity.NewLive(core).ClientTLS(identity.CoreName), Backoff: quick, Log: logger(t)})
	running(t, func(ctx context.Context) error { return e.External.Run(ctx, e.events) })
	return e
}

// admit waits until the core has its session, then lets devices in.
func (e *external) admit(t *testing.T, ids ...api.DeviceID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		err := e.Admit(ctx, ids...)
		if err == nil {
			return
		}
		if !errors.Is(err, link.ErrDown) || ctx.Err() != nil {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
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
	fresh, err := os.ReadFile(filepath.Join(m.dir, "dynsec.json"))
	if err != nil {
		t.Fatal(err)
	}
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
	m.write(t, "dynsec.json", fresh)
	m.start(t)
	b.until(t, "up again", func() bool { return b.count("up aaaaaaaaaaaaa") >= 2 })
	b.Send([]byte("two"), true)
	e.wait(t, fmt.Sprintf("frame %s two", b.me))
	b.until(t, "the manifest", func() bool {
		b.FetchRetained() // the core may not have put it back yet
		return b.count("retained kept") > 0
	})
}
