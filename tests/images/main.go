// Command images answers: where do the demo's and the tests' OCI images come from?
//
// It makes them from Debian's packages, without docker, as one OCI layout each:
//
//	go run ./tests/images -out .cache/images
//
// for the machine's own architecture, or for those that -arch names, as one index each;
// and pushes them where -push names a registry and tenant. With -random it makes an
// image of incompressible layers of that many bytes instead.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"tributary.dev/tributary/tests/images/debimage"
)

// options are the command's flags.
type options struct {
	out, only, push, token, ca, arch string
	plain                            bool
	random                           int64
	layers                           int
	seed                             uint64
}

func main() {
	var o options
	flag.StringVar(&o.out, "out", ".cache/images", "folder; each image becomes an OCI layout below it")
	flag.StringVar(&o.only, "only", "", "make these images alone (comma between; default all: "+strings.Join(names(), ",")+")")
	flag.StringVar(&o.arch, "arch", "", "architectures, comma between (default: "+runtime.GOARCH+")")
	flag.StringVar(&o.push, "push", "", "push to host:port/tenant, tagged latest")
	flag.StringVar(&o.token, "token-file", "", "file with the token to push with")
	flag.StringVar(&o.ca, "ca", "", "file with the registry's root certificate (PEM)")
	flag.BoolVar(&o.plain, "plain-http", false, "push without TLS")
	flag.Int64Var(&o.random, "random", 0, "make the image \"random\" of so many bytes instead")
	flag.IntVar(&o.layers, "layers", 5, "layers of the random image")
	flag.Uint64Var(&o.seed, "seed", 1, "seed of the random image")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := produce(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func names() (list []string) {
	for _, r := range recipes() {
		list = append(list, r.name)
	}
	return list
}

func produce(ctx context.Context, o options) error {
	made := []string{"random"}
	if o.random > 0 {
		img, err := debimage.Random(runtime.GOARCH, o.random, o.layers, o.seed)
		if err != nil {
			return err
		}
		if err := write(filepath.Join(o.out, "random"), []v1.Image{img}); err != nil {
			return err
		}
	} else {
		var err error
		if made, err = fromDebian(ctx, o); err != nil {
			return err
		}
	}
	if o.push == "" {
		return nil
	}
	return push(ctx, o, made)
}

// fromDebian makes the images whose packages or recipes changed since they were made.
func fromDebian(ctx context.Context, o options) (made []string, err error) {
	var chosen []recipe
	for _, r := range recipes() {
		if o.only == "" || slices.Contains(strings.Split(o.only, ","), r.name) {
			chosen = append(chosen, r)
			made = append(made, r.name)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no image is called %s; there are %s", o.only, strings.Join(names(), ", "))
	}
	// The closure is that of all recipes, so that the shared layer is the same
	// whichever images are asked for.
	var packages []string
	for _, r := range recipes() {
		packages = append(packages, r.packages...)
	}
	packages = append(packages, "busybox-static")
	slices.Sort(packages)
	packages = slices.Compact(packages)
	var sources []source
	var all []debimage.Deb
	for _, arch := range o.arches() {
		s, err := offer(ctx, filepath.Join(o.out, ".debs"), arch, packages)
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
		all = append(all, s.offered...)
	}
	stamp := fingerprint(all)
	fresh := slices.DeleteFunc(slices.Clone(chosen), func(r recipe) bool {
		b, err := os.ReadFile(filepath.Join(o.out, r.name, ".stamp"))
		return err == nil && string(b) == stamp
	})
	if len(fresh) == 0 {
		return made, nil
	}
	images := map[string][]v1.Image{}
	for _, s := range sources {
		if err := s.make(ctx, images); err != nil {
			return nil, err
		}
	}
	for _, r := range fresh {
		dir := filepath.Join(o.out, r.name)
		if err := write(dir, images[r.name]); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, ".stamp"), []byte(stamp), 0o644); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// arches are what the images are made for.
func (o options) arches() []string {
	if o.arch == "" {
		return []string{runtime.GOARCH}
	}
	return strings.Split(o.arch, ",")
}

// source is the packages of one architecture.
type source struct {
	arch    string
	debs    debimage.Debs
	offered []debimage.Deb
}

func offer(ctx context.Context, dir, arch string, packages []string) (source, error) {
	s := source{arch: arch, debs: debimage.Debs{Dir: dir}}
	if arch != runtime.GOARCH {
		s.debs.Arch = arch
	}
	if err := s.debs.Update(ctx); err != nil {
		return s, err
	}
	closure, err := s.debs.Closure(ctx, packages)
	if err != nil {
		return s, err
	}
	s.offered, err = s.debs.Offered(ctx, closure)
	return s, err
}

// make adds the architecture's image of each recipe.
func (s source) make(ctx context.Context, images map[string][]v1.Image) error {
	if err := s.debs.Fetch(ctx, s.offered); err != nil {
		return err
	}
	tree, err := s.debs.Unpack(ctx, s.offered)
	if err != nil {
		return err
	}
	made, err := build(tree, s.arch)
	for name, img := range made {
		images[name] = append(images[name], img)
	}
	return err
}

// fingerprint names the packages and this program's recipes.
func fingerprint(offered []debimage.Deb) string {
	h := sha256.New()
	fmt.Fprintln(h, "3", nginxConf, applets) // count up when the way of building changes
	for _, d := range offered {
		fmt.Fprintln(h, d.File, d.SHA256)
	}
	for _, r := range recipes() {
		fmt.Fprintf(h, "%s %v %+v\n", r.name, r.packages, r.config)
	}
	return fmt.Sprintf("%x\n", h.Sum(nil))
}

// build makes all images: a base layer with what two or more programs share, a layer
// for each program, and its top layer.
func build(tree debimage.Tree, arch string) (map[string]v1.Image, error) {
	var trees []debimage.Tree
	list := recipes()
	for _, r := range list {
		t, err := tree.Programs(append([]string{"busybox-static"}, r.packages...)...)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", r.name, err)
		}
		if err := check(r.name, t, r.config); err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	// web-v2 is web with another top layer: it must not turn all of web into base.
	distinct := trees[:0:0]
	for i, r := range list {
		if r.name != "web-v2" {
			distinct = append(distinct, trees[i])
		}
	}
	base, _ := debimage.Shared(distinct...)
	skeleton(base)
	baseLayer, err := debimage.Layer(base)
	if err != nil {
		return nil, err
	}
	out := map[string]v1.Image{}
	for i, r := range list {
		own := debimage.Tree{}
		for path, f := range trees[i] {
			if _, shared := base[path]; !shared {
				own[path] = f
			}
		}
		if r.own != nil {
			r.own(own)
		}
		layer, err := debimage.Layer(own)
		if err != nil {
			return nil, err
		}
		layers := []v1.Layer{baseLayer, layer}
		if r.top != nil {
			top := debimage.Tree{}
			r.top(top)
			if layer, err = debimage.Layer(top); err != nil {
				return nil, err
			}
			layers = append(layers, layer)
		}
		if out[r.name], err = debimage.Image(arch, r.config, layers...); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// write replaces an OCI layout; several images are one for each architecture.
func write(dir string, images []v1.Image) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	for _, img := range images {
		conf, err := img.ConfigFile()
		if err != nil {
			return err
		}
		options := []layout.Option{layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"})}
		if len(images) > 1 {
			options = append(options, layout.WithPlatform(v1.Platform{OS: conf.OS, Architecture: conf.Architecture}))
		}
		if err := p.AppendImage(img, options...); err != nil {
			return err
		}
		if err := tell(dir, conf.Architecture, img); err != nil {
			return err
		}
	}
	return nil
}

// tell prints an image's size and digest.
func tell(dir, arch string, img v1.Image) error {
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	var total int64
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			return err
		}
		total += n
	}
	fmt.Printf("%s  %s, %d layers, %.1f MB, %s\n", dir, arch, len(layers), float64(total)/1e6, digest)
	return nil
}

// push sends layouts to a registry by the ordinary protocol.
func push(ctx context.Context, o options, made []string) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if o.ca != "" {
		pem, err := os.ReadFile(o.ca)
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s holds no certificate", o.ca)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	auth := authn.Anonymous
	if o.token != "" {
		token, err := os.ReadFile(o.token)
		if err != nil {
			return err
		}
		auth = &authn.Basic{Username: "token", Password: strings.TrimSpace(string(token))}
	}
	var parse []name.Option
	if o.plain {
		parse = append(parse, name.Insecure)
	}
	for _, image := range made {
		ref, err := name.ParseReference(o.push+"/"+image+":latest", parse...)
		if err != nil {
			return err
		}
		img, err := load(filepath.Join(o.out, image))
		if err != nil {
			return err
		}
		if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithAuth(auth), remote.WithTransport(transport)); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
		fmt.Println("pushed", ref)
	}
	return nil
}

// load opens the one image of a layout.
func load(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(m.Manifests) != 1 {
		return nil, errors.New(dir + " holds not exactly one image")
	}
	return index.Image(m.Manifests[0].Digest)
}
