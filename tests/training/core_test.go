package training

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
	"tributary.dev/tributary/tests/lab"
)

// core is a cored that trains in a containerd of its own.
type core struct {
	lab.Admin
	t    *testing.T
	http *http.Transport
	auth authn.Authenticator
}

func startCore(t *testing.T) *core {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a core and a containerd: not in the short form")
	}
	if why := workloadtest.Missing(); why != "" {
		t.Skip(why)
	}
	bin := cmp.Or(os.Getenv("TRIBUTARY_BIN"), "../../bin")
	if _, err := os.Stat(filepath.Join(bin, "cored")); err != nil {
		t.Skip("needs the programs: run make build")
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	d, err := workloadtest.NewDaemon(filepath.Join(t.TempDir(), "containerd"))
	if err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = d.Start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Kill)
	dir := t.TempDir()
	c := &core{t: t, Admin: lab.Admin{Program: filepath.Join(bin, "edgectl"), Server: "https://127.0.0.1:8443", Data: filepath.Join(dir, "core"), Home: dir}}
	cmd := exec.Command(filepath.Join(bin, "cored"), "run", "--data", c.Data, "--listen-https", "127.0.0.1:8443", "--listen-mqtt", "127.0.0.1:8883", "--names", "127.0.0.1", "--mdns=false",
		"--train-containerd", d.Socket, "--train-cpus", "2", "--train-memory", "3GiB")
	cmd.Stdout, cmd.Stderr = testLog{t}, testLog{t}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := <-done; err != nil {
			t.Error("cored: ", err)
		}
	})
	eventually(t, time.Minute, "the core answers", func() error {
		_, err := c.Edgectl(t.Context(), "", "get", "tenants")
		return err
	})
	root, err := os.ReadFile(filepath.Join(c.Data, "ca", "root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(c.Data, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	c.http, c.auth = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, &authn.Basic{Username: "me", Password: strings.TrimSpace(string(token))}
	return c
}

func (c *core) edgectl(stdin string, args ...string) string {
	c.t.Helper()
	out, err := c.Edgectl(c.t.Context(), stdin, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *core) options() []remote.Option {
	return []remote.Option{remote.WithContext(c.t.Context()), remote.WithTransport(c.http), remote.WithAuth(c.auth)}
}

func (c *core) push(ref string, img v1.Image) {
	c.t.Helper()
	to, err := name.ParseReference("127.0.0.1:8443/" + ref)
	if err == nil {
		err = remote.Write(to, img, c.options()...)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *core) job(name string) (s api.TrainingJobStatus) {
	c.t.Helper()
	var o api.Object
	if err := c.GetJSON(c.t.Context(), &o, "get", "training", name); err != nil {
		c.t.Fatal(err)
	}
	if o.Status != nil {
		if err := json.Unmarshal(o.Status, &s); err != nil {
			c.t.Fatal(err)
		}
	}
	return s
}

// TestCore: a person pushes image and data, applies a job, follows it, ends it early and lets it go on, and pulls the model,
// whose manifest names all that it was made of.
func TestCore(t *testing.T) {
	c := startCore(t)
	s := newShelf()
	c.push("platform/trainer:latest", s.image(t, "platform/trainer:latest"))
	data, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{Layer: static.NewLayer([]byte("device,time,cpu\n"), "text/csv"), Annotations: map[string]string{"org.opencontainers.image.title": "kpis.csv"}})
	if err != nil {
		t.Fatal(err)
	}
	c.push("default/kpis:1", data)
	const job = "apiVersion: tributary/v1\nkind: TrainingJob\nmetadata: {name: %s}\nspec: {trainer: autoencoder, data: 'kpis:1', parameters: {steps: '%d'}, model: anomalies}\n"
	c.edgectl(fmt.Sprintf(job, "usual", 300), "apply", "-f", "-")
	until := func(what string, ok func(api.TrainingJobStatus) bool) (s api.TrainingJobStatus) {
		t.Helper()
		eventually(t, time.Minute, what, func() error {
			if s = c.job("usual"); !ok(s) {
				return fmt.Errorf("it is %+v", s)
			}
			return nil
		})
		return s
	}
	until("it trains", func(s api.TrainingJobStatus) bool { return s.Step > 0 && s.Loss != nil })
	if out := c.edgectl("", "get", "training"); !strings.Contains(out, "/300") || !strings.Contains(out, "Running") {
		t.Errorf("edgectl get training:\n%s", out)
	}
	if out := c.edgectl("", "training", "logs", "usual"); !strings.Contains(out, "torch.distributed.run") {
		t.Errorf("its logs: %q", out)
	}
	c.edgectl("", "training", "suspend", "usual")
	until("it is suspended", phase(api.TrainingSuspended))
	c.edgectl("", "training", "resume", "usual")
	st := until("it succeeds", phase(api.TrainingSucceeded))
	if _, err := c.Edgectl(t.Context(), fmt.Sprintf(job, "usual", 301), "apply", "-f", "-"); err == nil || !strings.Contains(err.Error(), "stays as it is") {
		t.Errorf("another training under the same name: %v", err)
	}
	ref, err := name.ParseReference("127.0.0.1:8443/" + st.Model)
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Get(ref, c.options()...)
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		ArtifactType string
		Layers       []struct {
			MediaType   string
			Annotations map[string]string
		}
	}
	if err := json.Unmarshal(got.Manifest, &m); err != nil || m.ArtifactType != "application/vnd.cncf.model.manifest.v1+json" || len(m.Layers) != 3 {
		t.Fatalf("the model: %v %s", err, got.Manifest)
	}
	files := map[string]string{}
	for _, l := range m.Layers {
		files[l.Annotations["org.cncf.model.filepath"]] = l.MediaType
	}
	if files["model.onnx"] != "application/vnd.cncf.model.weight.v1.raw" {
		t.Errorf("the model's files: %v", files)
	}
	c.edgectl(fmt.Sprintf(job, "endless", 1_000_000), "apply", "-f", "-")
	eventually(t, time.Minute, "another trains", func() error {
		if s := c.job("endless"); s.Step == 0 {
			return fmt.Errorf("it is %+v", s)
		}
		return nil
	})
	c.edgectl("", "delete", "training", "endless")
	eventually(t, time.Minute, "nothing is left of a deleted job", func() error {
		left, err := os.ReadDir(filepath.Join(c.Data, "training"))
		if err != nil || len(left) > 0 {
			return fmt.Errorf("left is %v, %w", left, err)
		}
		return nil
	})
}
