package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/prometheus/client_golang/prometheus"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/oci"
	"tributary.dev/tributary/tests/wait"
)

// running is a whole cored in this process.
type running struct {
	t     *testing.T
	c     *core
	url   string
	token string
	http  *http.Client
	stop  func()
}

func start(t *testing.T, dir string) *running {
	t.Helper()
	return startWith(t, options{data: data(dir), mqtt: "127.0.0.1:0"}, func(*core) {})
}

// startWith starts a core; before is called when it is put together and does not run yet.
func startWith(t *testing.T, o0 options, before func(*core)) *running {
	t.Helper()
	o := &o0
	o.https, o.names = "127.0.0.1:0", []string{"127.0.0.1"}
	c := &core{o: o, log: slog.New(slog.NewTextHandler(t.Output(), nil)), metrics: prometheus.NewRegistry()}
	ctx, cancel := context.WithCancel(context.Background())
	if err := c.open(ctx); err != nil {
		t.Fatal(err)
	}
	before(c)
	done := make(chan error, 1)
	go func() { done <- c.serve(ctx) }()
	token, err := os.ReadFile(o.data.adminToken())
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(o.data.path("ca/root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(root) {
		t.Fatal("root.crt is no certificate")
	}
	r := &running{t: t, c: c, url: "https://" + c.https.Addr().String(), token: strings.TrimSpace(string(token)),
		http: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}}
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		r.http.CloseIdleConnections()
		cancel()
		if err := wait.For(t, "cored's end", done); err != nil && ctx.Err() == nil {
			t.Error("cored ended: ", err)
		}
		for i := len(c.closers) - 1; i >= 0; i-- {
			if err := c.closers[i](); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(r.stop)
	return r
}

func (r *running) call(method, path, body string, out any) *api.Error {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode >= 400 {
		e := &api.Error{}
		if err := json.Unmarshal(b, e); err != nil {
			r.t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, b)
		}
		return e
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			r.t.Fatalf("%s %s: %s: %v", method, path, b, err)
		}
	}
	return nil
}

func (r *running) must(method, path, body string, out any) {
	r.t.Helper()
	if e := r.call(method, path, body, out); e != nil {
		r.t.Fatalf("%s %s: %v", method, path, e)
	}
}

// enrol lets a box in, as edged would.
func (r *running) enrol(token, boxName string) *identity.Identity {
	r.t.Helper()
	return r.enrolAs(token, boxName, false)
}

func (r *running) enrolAs(token, boxName string, relay bool) *identity.Identity {
	r.t.Helper()
	parsed, err := identity.ParseJoinToken(token)
	if err != nil {
		r.t.Fatal(err)
	}
	key, seal, err := identity.LoadOrCreateKeys(r.t.TempDir())
	if err != nil {
		r.t.Fatal(err)
	}
	id, _, err := identity.Enrol(r.t.Context(), identity.EnrolConfig{ParentURL: r.url, Token: parsed, Key: key, Seal: seal, Name: boxName, Relay: relay,
		Hardware: api.Hardware{Arch: "amd64"}, Labels: map[string]string{api.Reserved + "arch": "amd64"}})
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// push makes an image and pushes it with an ordinary client.
func (r *running) push(ref string) {
	r.t.Helper()
	img, err := random.Image(2048, 2)
	if err != nil {
		r.t.Fatal(err)
	}
	tag, err := name.NewTag(strings.TrimPrefix(r.url, "https://") + "/" + ref)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := remote.Write(tag, img, remote.WithTransport(r.http.Transport), remote.WithAuth(&authn.Basic{Username: "token", Password: r.token})); err != nil {
		r.t.Fatal(err)
	}
}

// manifest waits for a device's manifest that meets a condition.
func (r *running) manifest(id api.DeviceID, ok func(*manifest.Manifest) bool) *manifest.Signed {
	r.t.Helper()
	var last *manifest.Signed
	wait.Seen(r.t, "there is such a manifest", func() (any, bool) {
		_ = r.c.store.EachManifest(r.t.Context(), func(m *store.ManifestRecord) error {
			if m.Device == id {
				s, err := manifest.Open(m.Raw, r.c.ca.Trust())
				if err != nil {
					r.t.Fatal(err)
				}
				last = s
			}
			return nil
		})
		return last, last != nil && ok(&last.Manifest)
	})
	return last
}

const tokenDoc = `{"apiVersion":"tributary/v1","kind":"JoinToken","metadata":{"name":"field"},"spec":{"labels":{"role":"field"},"autoApprove":true}}`

const appDocs = `
apiVersion: tributary/v1
kind: App
metadata: {name: web}
spec:
  compose: |
    services:
      web:
        image: web:v1
        restart: always
        ports: ["8080:80"]
        secrets: [password]
    secrets:
      password: {external: true}
---
apiVersion: tributary/v1
kind: Secret
metadata: {name: password}
spec: {data: {value: canary-5e1}}
---
apiVersion: tributary/v1
kind: Fleet
metadata: {name: field}
spec:
  selector: {matchLabels: {role: field}}
  apps: [web]
`

func TestFromApplyToManifestAndBack(t *testing.T) {
	files := func(*testing.T) string { return "" }
	t.Run("files", func(t *testing.T) { fromApplyToManifestAndBack(t, files, files) })
	t.Run("postgres", func(t *testing.T) {
		fromApplyToManifestAndBack(t, func(t *testing.T) string { return databasetest.Postgres(t) }, files)
	})
}

// fromApplyToManifestAndBack runs a core whose database is at a place, and restores its
// backups there and at another.
func fromApplyToManifestAndBack(t *testing.T, place, another func(*testing.T) string) {
	dir := filepath.Join(t.TempDir(), "core")
	r := startWith(t, options{data: data(dir), database: place(t), mqtt: "127.0.0.1:0"}, func(*core) {})
	if _, err := (data(dir)).lock(); api.CodeOf(err) != api.Unavailable {
		t.Fatalf("a second cored on the folder: %v", err)
	}
	var minted api.Object
	r.must("POST", "/api/v1/jointokens", tokenDoc, &minted)
	var status api.JoinTokenStatus
	if err := json.Unmarshal(minted.Status, &status); err != nil || status.Token == "" {
		t.Fatalf("%s %v", minted.Status, err)
	}
	box := r.enrol(status.Token, "box")
	r.must("GET", "/api/v1/jointokens/field", "", &minted)
	if string(minted.Status) != `{"used":1}` {
		t.Errorf("the token after one use: %s", minted.Status)
	}

	if e := r.call("POST", "/api/v1/apply", appDocs, nil); e == nil || e.Code != api.Invalid && e.Code != api.NotFound || !strings.Contains(e.Error(), "web:v1") {
		t.Fatalf("an app whose image is missing: %v", e)
	}
	for _, repo := range []string{"nosuchtenant/new", "x"} {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", r.url+"/v2/"+repo+"/blobs/uploads/", nil)
		req.SetBasicAuth("token", r.token)
		resp, err := r.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		told, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 404 || !bytes.Contains(told, []byte("; ")) {
			t.Errorf("a push to %s: %d %s", repo, resp.StatusCode, told)
		}
	}
	r.push("default/web:v1")
	r.must("POST", "/api/v1/apply", appDocs, nil)
	has := func(m *manifest.Manifest) bool { return len(m.AppNames()) == 1 }
	signed := r.manifest(box.ID(), has)
	refs := signed.Manifest.Items["app/web"].Refs
	if len(refs) != 2 || refs[1].Repo != "default/web" || refs[1].Size == 0 {
		t.Fatalf("refs %+v", refs)
	}
	secret := signed.Manifest.Items["secret/password"]
	plain, err := identity.Open(box.Seal, identity.SealInfo{Device: box.ID(), Name: "password", Generation: secret.Gen}, secret.Body)
	if err != nil || !bytes.Contains(plain, []byte("canary-5e1")) {
		t.Fatalf("%q %v", plain, err)
	}

	// The device pulls what its manifest names, by its certificate, and nothing by tag.
	device := &http.Client{Transport: &http.Transport{TLSClientConfig: box.ClientTLS(identity.CoreName)}}
	get := func(path string) int {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", r.url+path, nil)
		req.Header.Set("Accept", "*/*, "+oci.TypeManifest)
		resp, err := device.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for path, want := range map[string]int{"/v2/default/web/manifests/" + refs[1].Digest: 200, "/v2/default/apps/web/manifests/" + refs[0].Digest: 200,
		"/v2/default/web/manifests/v1": 403, "/api/v1/devices": 401} {
		if got := get(path); got != want {
			t.Errorf("device gets %s: %d, want %d", path, got, want)
		}
	}

	// A second app on the same port is refused, by name.
	r.push("default/other:v1")
	clash := strings.NewReplacer("name: web", "name: other", "web:v1", "other:v1", "apps: [web]", "apps: [web, other]").Replace(appDocs)
	if e := r.call("POST", "/api/v1/apply", clash, nil); e == nil || !strings.Contains(e.Error(), "8080") {
		t.Errorf("two apps on port 8080: %v", e)
	}
	if e := r.call("GET", "/api/v1/apps/other", "", nil); e == nil || e.Code != api.NotFound {
		t.Errorf("half of a refused apply was written: %v", e)
	}

	backupAndRestore(t, r, dir, box, []string{place(t), another(t)})
}

func backupAndRestore(t *testing.T, r *running, dir string, box *identity.Identity, places []string) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "backup.age")
	if _, err := makeBackup(t.Context(), data(dir), file, []age.Recipient{key.Recipient()}, false); err != nil {
		t.Fatal(err)
	}
	r.stop()
	if _, err := makeBackup(t.Context(), data(dir), file+"2", []age.Recipient{key.Recipient()}, true); err != nil {
		t.Fatal("with the core stopped: ", err)
	}
	before := r.c.epoch
	for i, f := range []string{file, file + "2"} {
		elsewhere := filepath.Join(t.TempDir(), "core")
		if _, epoch, err := restoreBackup(t.Context(), data(elsewhere), places[i], f, []age.Identity{key}); err != nil || epoch <= before {
			t.Fatalf("epoch %d after %d, %v", epoch, before, err)
		}
		if _, _, err := restoreBackup(t.Context(), data(elsewhere), places[i], f, []age.Identity{key}); api.CodeOf(err) != api.Conflict {
			t.Fatalf("restored over a core: %v", err)
		}
		r2 := start(t, elsewhere)
		if r2.token != r.token || r2.c.epoch <= before {
			t.Fatalf("epoch %d after %d", r2.c.epoch, before)
		}
		signed := r2.manifest(box.ID(), func(m *manifest.Manifest) bool { return m.Epoch == r2.c.epoch })
		if len(signed.Manifest.AppNames()) == 0 {
			t.Fatalf("after the restore the device has no app: %+v", signed.Manifest)
		}
		ref := signed.Manifest.Items["app/web"].Refs[0]
		if _, err := r2.c.registry.Bundle(t.Context(), ref.Repo, ref.Digest); err != nil {
			t.Errorf("the app's bundle after restore %d: %v", i, err)
		}
		if !r2.c.roster.Active(box.ID()) {
			t.Error("the restored core does not know the device")
		}
		r2.stop()
	}
}

func TestTokenCommand(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir)
	var out bytes.Buffer
	cmd := root()
	cmd.SetArgs([]string{"token", "create", "--data", dir, "--role", "viewer", "--name", "guest"})
	cmd.SetOut(&out)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.token = strings.TrimSpace(out.String())
	var who struct{ Name, Role string }
	r.must("GET", "/api/v1/whoami", "", &who)
	if who.Name != "guest" || who.Role != "viewer" {
		t.Fatalf("%+v", who)
	}
	if e := r.call("POST", "/api/v1/jointokens", tokenDoc, nil); e == nil || e.Code != api.Forbidden {
		t.Fatalf("a viewer made a join token: %v", e)
	}
	out.Reset()
	cmd = root()
	cmd.SetArgs([]string{"token", "list", "--data", dir})
	cmd.SetOut(&out)
	id := strings.Split(r.token, ".")
	if err := cmd.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), id[1]+"  ") || strings.Contains(out.String(), id[2]) {
		t.Fatalf("%s %v", out.String(), err)
	}
	cmd = root()
	cmd.SetArgs([]string{"token", "create", "--data", t.TempDir()})
	if err := cmd.ExecuteContext(t.Context()); api.CodeOf(err) != api.NotFound {
		t.Fatalf("no core there: %v", err)
	}
}
