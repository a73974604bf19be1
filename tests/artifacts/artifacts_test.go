package artifacts

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/ca"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/oci"
	"tributary.dev/tributary/tests/images/debimage"
	"tributary.dev/tributary/tests/wait"
)

var quiet = slog.New(slog.DiscardHandler)

// oneToken is a registrar that knows one token.
type oneToken struct{}

func (oneToken) Enrol(_ context.Context, a ca.Application) (ca.Grant, error) {
	if a.TokenID != "t1" || a.Secret != "s3cret" {
		return ca.Grant{}, api.Errorf(api.Unauthorized, "unknown token")
	}
	return ca.Grant{Name: "box", Tenant: "default", Approved: true}, nil
}

func (oneToken) Renew(context.Context, ca.Application) (ca.Grant, error) {
	return ca.Grant{}, api.Errorf(api.Forbidden, "not here")
}

type tree struct {
	core     *Core
	upLink   *Link // core — top
	midLink  *Link // top — low
	top, low *Relay
	dir      string
}

// newTree is core, an aggregation relay, and an access relay below it.
func newTree(t *testing.T, rate int64) *tree {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tr := &tree{dir: t.TempDir()}
	var err error
	tr.core, err = NewCore(filepath.Join(tr.dir, "core"), func(mux *http.ServeMux, c *ca.CA) { mux.Handle(identity.EnrolPrefix, c.Handler(oneToken{}, quiet)) })
	must(err)
	t.Cleanup(func() { _ = tr.core.Close() })
	tr.upLink, err = NewLink(tr.core.Addr, rate)
	must(err)
	t.Cleanup(func() { _ = tr.upLink.Close() })
	_, err = tr.core.Device(filepath.Join(tr.dir, "top", "id"))
	must(err)
	tr.top, err = StartRelay(RelayConfig{Dir: filepath.Join(tr.dir, "top"), Listen: "127.0.0.1:0", Parent: tr.upLink.Addr, Peer: "core"}, quiet)
	must(err)
	t.Cleanup(func() { must(tr.top.Close()) })
	tr.midLink, err = NewLink(tr.top.Addr, rate)
	must(err)
	t.Cleanup(func() { _ = tr.midLink.Close() })
	_, err = tr.core.Device(filepath.Join(tr.dir, "low", "id"))
	must(err)
	tr.low, err = StartRelay(RelayConfig{Dir: filepath.Join(tr.dir, "low"), Listen: "127.0.0.1:0", Parent: tr.midLink.Addr}, quiet)
	must(err)
	t.Cleanup(func() { must(tr.low.Close()) })
	return tr
}

func (tr *tree) child(t *testing.T, name string) Child {
	t.Helper()
	id, err := tr.core.Device(filepath.Join(tr.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	p := NewParent(id, tr.low.Addr, "")
	t.Cleanup(p.Close)
	return Child{Parent: p}
}

func random(t *testing.T, size int64, layers int, seed uint64) v1.Image {
	t.Helper()
	img, err := debimage.Random("amd64", size, layers, seed)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestEachLinkCarriesEachDigestOnce(t *testing.T) {
	tr := newTree(t, 0)
	const size = 6 << 20
	ref, err := tr.core.Push(t.Context(), "default/app", random(t, size, 4, 1))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		kid := tr.child(t, name)
		wg.Go(func() {
			if n, err := kid.Pull(t.Context(), ref); err != nil || n < size {
				t.Errorf("child %s: %d bytes, %v", name, n, err)
			}
		})
	}
	wg.Wait()
	for name, l := range map[string]*Link{"core to aggregation": tr.upLink, "aggregation to access": tr.midLink} {
		up, down := l.Bytes()
		if total := float64(up + down); total > 1.05*size {
			t.Errorf("%s carried %.0f bytes for %d", name, total, size)
		}
	}
	// Another tag and another repository of the same content cost their names alone.
	_, before := tr.upLink.Bytes()
	again, err := tr.core.Push(t.Context(), "default/copy", random(t, size, 4, 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.child(t, "g").Pull(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if _, after := tr.upLink.Bytes(); after-before > 64<<10 {
		t.Errorf("the same content under another name cost %d bytes", after-before)
	}
}

func TestNamedArtifactsAreThereBeforeTheLinkGoes(t *testing.T) {
	tr := newTree(t, 0)
	ref, err := tr.core.Push(t.Context(), "default/app", random(t, 1<<20, 2, 2))
	if err != nil {
		t.Fatal(err)
	}
	bundle, _, err := tr.core.Registry.PutBundle(t.Context(), "default/demo", []byte(`{"version":1,"app":"demo"}`))
	if err != nil {
		t.Fatal(err)
	}
	refs := []oci.Ref{{Repo: "default/demo", Digest: bundle}, ref}
	tr.low.Server.Named(api.DeviceID{7}, refs)
	wait.Seen(t, "all parts are fetched ahead", func() (any, bool) {
		n, _ := tr.low.Cache.Size()
		return n, n >= 7 // 2 manifests, 2 configs, 3 layers
	})
	if err := tr.upLink.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tr.midLink.Close(); err != nil {
		t.Fatal(err)
	}
	kid := tr.child(t, "a")
	if _, err := kid.Pull(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	got, err := oci.PullArtifact(t.Context(), kid.Parent, "default/demo", bundle, 1<<20)
	if err != nil || !strings.Contains(string(got), "demo") {
		t.Fatalf("%s %v", got, err)
	}
}

func TestEnrolmentPassesThroughRelays(t *testing.T) {
	tr := newTree(t, 0)
	key, seal, err := identity.LoadOrCreateKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	conf := identity.EnrolConfig{ParentURL: "https://" + tr.low.Addr, Key: key, Seal: seal, Name: "box",
		Token: identity.JoinToken{ID: "t1", Secret: "s3cret", RootFP: tr.core.CA.Fingerprint()}}
	id, reply, err := identity.Enrol(t.Context(), conf)
	if err != nil || !reply.Approved {
		t.Fatalf("%+v %v", reply, err)
	}
	ref, err := tr.core.Push(t.Context(), "default/app", random(t, 1000, 1, 3))
	if err != nil {
		t.Fatal(err)
	}
	p := NewParent(id, tr.low.Addr, "")
	defer p.Close()
	if _, err := (Child{Parent: p}).Pull(t.Context(), ref); err != nil {
		t.Fatalf("the new box cannot pull: %v", err)
	}
	conf.Token.Secret = "wrong"
	if _, _, err := identity.Enrol(t.Context(), conf); api.CodeOf(err) != api.Unauthorized {
		t.Fatal(err)
	}
	// The core's refusals come through; a core out of reach is told as such.
	if err := tr.upLink.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := identity.Enrol(t.Context(), conf); api.CodeOf(err) != api.Unavailable {
		t.Fatal(err)
	}
}

func TestWhoMayAskARelay(t *testing.T) {
	tr := newTree(t, 0)
	id, err := tr.core.Device(filepath.Join(tr.dir, "child"))
	if err != nil {
		t.Fatal(err)
	}
	conf := id.ClientTLS("")
	known := &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
	anon := conf.Clone()
	anon.GetClientCertificate = nil
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: anon}}
	for _, v := range []struct {
		who    *http.Client
		method string
		path   string
		body   string
		status int
	}{
		{known, "GET", "/v2/", "", 200},
		{known, "GET", "/v2/default/app/manifests/latest", "", 400},
		{stranger, "GET", "/v2/", "", 401},
		{stranger, "GET", "/healthz", "", 200},
		{stranger, "GET", identity.PathTrust, "", 200},
		{stranger, "DELETE", identity.PathTrust, "", 404},
		{stranger, "POST", identity.PathEnrol, strings.Repeat("x", identity.MaxEnrolBody+1), 413},
		{stranger, "GET", "/api/v1/devices", "", 404},
	} {
		req, err := http.NewRequestWithContext(t.Context(), v.method, "https://"+tr.low.Addr+v.path, strings.NewReader(v.body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := v.who.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != v.status {
			t.Errorf("%s %s: %d %s, want %d", v.method, v.path, res.StatusCode, b, v.status)
		}
	}
	known.CloseIdleConnections()
	stranger.CloseIdleConnections()
}

// TestRelayKilledAgainAndAgain kills a relay's process at growing distances while
// children pull through it.
func TestRelayKilledAgainAndAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("several processes and 8 MB; not in short mode")
	}
	dir := t.TempDir()
	core, err := NewCore(filepath.Join(dir, "core"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	const size = 8 << 20
	ref, err := core.Push(t.Context(), "default/app", random(t, size, 3, 4))
	if err != nil {
		t.Fatal(err)
	}
	link, err := NewLink(core.Addr, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	if _, err := core.Device(filepath.Join(dir, "relay", "id")); err != nil {
		t.Fatal(err)
	}
	// One life to find a port that the others listen on again.
	conf := RelayConfig{Dir: filepath.Join(dir, "relay"), Listen: "127.0.0.1:0", Parent: link.Addr, Peer: "core"}
	first, err := StartRelay(conf, quiet)
	if err != nil {
		t.Fatal(err)
	}
	conf.Listen = first.Addr
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	var cmd *exec.Cmd
	start := func() {
		cmd = exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), relayEnv+"="+conf.Encode())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	kill := func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	start()
	defer func() { kill() }()
	done := make(chan error, 8)
	for range cap(done) {
		id, err := core.Device(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		p := NewParent(id, conf.Listen, "")
		t.Cleanup(p.Close)
		go func() { _, err := Child{Parent: p}.Pull(t.Context(), ref); done <- err }()
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for round := int64(1); round <= 3; round++ {
		for {
			if _, down := link.Bytes(); down >= round*size/4 {
				break
			}
			select {
			case <-tick.C:
			case <-t.Context().Done():
				t.Fatal("the link stands still")
			}
		}
		kill()
		start()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	// Three kills cost what was on the wire each time: its buffers, not its blobs.
	if up, down := link.Bytes(); up+down > size+4<<20 {
		t.Errorf("%d bytes crossed for %d", up+down, size)
	}
}

const relayEnv = "TRIBUTARY_TEST_RELAY"

// TestMain runs this program as the relay of TestRelayKilledAgainAndAgain when that
// started it.
func TestMain(m *testing.M) {
	config := os.Getenv(relayEnv)
	if config == "" {
		os.Exit(m.Run())
	}
	c, err := DecodeRelayConfig(config)
	if err == nil {
		var r *Relay
		if r, err = StartRelay(c, quiet); err == nil {
			err = r.Wait()
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
