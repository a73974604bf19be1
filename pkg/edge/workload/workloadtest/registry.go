package workloadtest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
)

// Registry is an OCI registry in memory, on loopback. It is an upstream.
type Registry struct {
	server *httptest.Server
	// Requests counts what was asked of it.
	Requests func() int
}

// NewRegistry starts a registry; Close ends it.
func NewRegistry() *Registry {
	n := make(chan int, 1)
	n <- 0
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n <- <-n + 1
		inner.ServeHTTP(w, r)
	}))
	return &Registry{server: server, Requests: func() int { v := <-n; n <- v; return v }}
}

// Close ends the registry.
func (r *Registry) Close() { r.server.Close() }

// Endpoint implements the upstream of pkg/oci.
func (r *Registry) Endpoint() (*url.URL, *http.Client, error) {
	u, err := url.Parse(r.server.URL)
	return u, r.server.Client(), err
}

// File is one file of an image.
type File struct {
	Path     string
	Data     []byte
	Mode     int64
	UID, GID int
	Dir      bool
}

// Image describes an image to push.
type Image struct {
	Repo   string
	Files  []File
	Upper  []File // of a second layer, if any
	Config v1.Config
}

// Push builds the image and returns its reference, "repo@sha256:…".
func (r *Registry) Push(im Image) (string, error) {
	var layers []v1.Layer
	for i, files := range [][]File{im.Files, im.Upper} {
		if i > 0 && len(files) == 0 {
			continue
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			var b bytes.Buffer
			err := writeTar(&b, files)
			return io.NopCloser(&b), err
		})
		if err != nil {
			return "", err
		}
		layers = append(layers, layer)
	}
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return "", err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	file.Architecture, file.OS, file.Config = runtime.GOARCH, "linux", im.Config
	if img, err = mutate.ConfigFile(img, file); err != nil {
		return "", err
	}
	if err := r.upload(im.Repo, img, layers); err != nil {
		return "", err
	}
	sum, err := img.Digest()
	return im.Repo + "@" + sum.String(), err
}

// upload sends the blobs and then the manifest (OCI distribution-spec).
func (r *Registry) upload(repo string, img v1.Image, layers []v1.Layer) error {
	var blobs [][]byte
	for _, layer := range layers {
		body, err := layer.Compressed()
		if err != nil {
			return err
		}
		blob, err := io.ReadAll(body)
		if err != nil {
			return err
		}
		blobs = append(blobs, blob)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	mediaType, err := img.MediaType()
	if err != nil {
		return err
	}
	for _, b := range append(blobs, config) {
		if err := r.send("POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest.FromBytes(b).String(), "application/octet-stream", b); err != nil {
			return err
		}
	}
	return r.send("PUT", "/v2/"+repo+"/manifests/"+digest.FromBytes(manifest).String(), string(mediaType), manifest)
}

func (r *Registry) send(method, path, mediaType string, body []byte) error {
	req, err := http.NewRequest(method, r.server.URL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := r.server.Client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return nil
}

func writeTar(w io.Writer, files []File) error {
	t := tar.NewWriter(w)
	seen := map[string]bool{}
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "." && dir != "/" && !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
				return err
			}
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: f.Mode, Size: int64(len(f.Data)), Uid: f.UID, Gid: f.GID}
		if f.Dir {
			h.Typeflag, h.Name = tar.TypeDir, f.Path+"/"
			seen[f.Path] = true
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(f.Data); err != nil {
			return err
		}
	}
	return t.Close()
}

// Tools are the helper programs of this module, built.
type Tools struct {
	Dir       string
	CNIBin    string
	LogHelper string
	App       string // the small server of workloadtest/app
}

// Build makes the tools in dir with the go command.
func Build(dir string) (Tools, error) {
	t := Tools{Dir: dir, CNIBin: dir, LogHelper: filepath.Join(dir, "edged-log"), App: filepath.Join(dir, "app")}
	const cni = "github.com/containernetworking/plugins/plugins/"
	logFlags := "-s -w"
	if runtime.GOARCH == "amd64" {
		logFlags += " -E main.bare" // as make build does
	}
	if err := goBuild(dir, logFlags, "tributary.dev/tributary/cmd/edged-log"); err != nil {
		return t, err
	}
	return t, goBuild(dir, "-s -w", "tributary.dev/tributary/cmd/edged-shim", "tributary.dev/tributary/cmd/edged-init", "tributary.dev/tributary/pkg/edge/workload/workloadtest/app",
		cni+"main/bridge", cni+"ipam/host-local", cni+"meta/portmap")
}

func goBuild(dir, flags string, packages ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-ldflags=" + flags, "-o", dir + "/"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// AppImage is an image that holds the small server at /app, a passwd with the user
// "web" (1000:1000), and /data owned by it.
func (t Tools) AppImage(repo string, config v1.Config) (Image, error) {
	app, err := os.ReadFile(t.App)
	if err != nil {
		return Image{}, err
	}
	if config.Entrypoint == nil {
		config.Entrypoint = []string{"/app"}
	}
	return Image{Repo: repo, Config: config, Files: []File{
		{Path: "app", Data: app, Mode: 0o755},
		{Path: "etc/passwd", Data: []byte("root:x:0:0:root:/:/app\nweb:x:1000:1000:web:/:/app\n"), Mode: 0o644},
		{Path: "etc/group", Data: []byte("root:x:0:\nweb:x:1000:\nextra:x:2000:web\n"), Mode: 0o644},
		{Path: "tmp", Mode: 0o1777, Dir: true},
		{Path: "data", Mode: 0o750, UID: 1000, GID: 1000, Dir: true},
		{Path: "data/seed", Data: []byte("from the image"), Mode: 0o640, UID: 1000, GID: 1000},
	}}, nil
}

// Fixed is an upstream at one address.
type Fixed string

// Endpoint implements the upstream of pkg/oci.
func (f Fixed) Endpoint() (*url.URL, *http.Client, error) {
	u, err := url.Parse(string(f))
	return u, http.DefaultClient, err
}
