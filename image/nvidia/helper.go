package nvidia

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/workshop"
)

// Helper is the program that speaks with NVIDIA's library.
const Helper = "gpud"

// helperRecipe is what runs inside the folder.
//
//go:embed helper.sh
var helperRecipe string

// HelperConfig says what to compile gpud with. It is the one program of ours that needs C.
type HelperConfig struct {
	Cache *deb.Cache
	With  []deb.Package // a C compiler and the C library's headers, with all they need
	Root  string        // the checkout
	Arch  string
	Keep  string // folder where what was compiled is kept; made if needed
	Log   *slog.Logger
}

// goAt is where Go lies on the machine that builds; its modules are shared with other builds.
type goAt struct{ version, root, modules string }

// CompileHelper gives gpud as a file. The same sources, lock and version of Go give the same bits.
// The packages must be in the cache.
func CompileHelper(ctx context.Context, c HelperConfig) (string, error) {
	if only := "amd64"; c.Arch != only || runtime.GOARCH != only {
		return "", fmt.Errorf("%s is compiled on amd64 for amd64 alone, not on %s for %s", Helper, runtime.GOARCH, c.Arch)
	}
	g, err := c.goAt(ctx)
	if err != nil {
		return "", err
	}
	digest, err := c.digest(ctx, g)
	if err != nil {
		return "", err
	}
	file := filepath.Join(c.Keep, digest, Helper)
	if whole(file) {
		return file, nil
	}
	if err := os.MkdirAll(c.Keep, 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(c.Keep, ".compile-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	at := time.Now()
	c.Log.Info("compiling " + Helper + "; a minute or more, and once for these sources")
	if err := workshop.Furnish(c.Cache, c.With, dir, helperRecipe, "go", "mod", "src", "cache"); err != nil {
		return "", err
	}
	// What this compiler made of Go's own library and of modules serves the next sources too.
	cache := filepath.Join(c.Keep, ".go-"+c.compiler(g)[:16])
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	binds := [][2]string{{g.root, "/go"}, {g.modules, "/mod"}, {c.Root, "/src"}, {cache, "/cache"}}
	if err := workshop.Enter(ctx, dir, Helper, binds, "JOBS="+fmt.Sprint(runtime.GOMAXPROCS(0))); err != nil {
		return "", err
	}
	data, err := os.ReadFile(filepath.Join(dir, "build", Helper))
	if err != nil {
		return "", err
	}
	if again, err := c.digest(ctx, g); err != nil || again != digest {
		return "", errors.Join(err, fmt.Errorf("the sources of %s changed while it was compiled: build again", Helper))
	}
	c.Log.Info("compiled", "seconds", fmt.Sprintf("%.0f", time.Since(at).Seconds()), "bytes", len(data))
	return file, keepWhole(file, data)
}

// goAt asks the Go that builds the other programs where it is.
func (c HelperConfig) goAt(ctx context.Context) (g goAt, err error) {
	out, err := c.goCommand(ctx, "env", "GOVERSION", "GOROOT", "GOMODCACHE")
	if err != nil {
		return g, err
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 3 {
		return g, fmt.Errorf("go env says %q", out)
	}
	return goAt{lines[0], lines[1], lines[2]}, nil
}

func (c HelperConfig) goCommand(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = c.Root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOOS=linux", "GOARCH="+c.Arch, "GOFLAGS=", "GOEXPERIMENT=")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w: %s", args[0], err, bytes.TrimSpace(errs.Bytes()))
	}
	return out, nil
}

// compiler names all that compiles: the recipe, the packages, and the version of Go.
func (c HelperConfig) compiler(g goAt) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n", helperRecipe, g.version, c.Arch)
	var with []string
	for _, p := range c.With {
		with = append(with, p.SHA256)
	}
	slices.Sort(with)
	fmt.Fprintln(h, slices.Compact(with))
	return hex.EncodeToString(h.Sum(nil))
}

// digest names the result by all that makes it: what compiles, and each source.
func (c HelperConfig) digest(ctx context.Context, g goAt) (string, error) {
	const each = `{{if not .Standard}}{{$d := .Dir}}{{$p := .ImportPath}}{{range .GoFiles}}{{$p}}|{{$d}}|{{.}}
{{end}}{{range .CgoFiles}}{{$p}}|{{$d}}|{{.}}
{{end}}{{range .CFiles}}{{$p}}|{{$d}}|{{.}}
{{end}}{{range .HFiles}}{{$p}}|{{$d}}|{{.}}
{{end}}{{range .SFiles}}{{$p}}|{{$d}}|{{.}}
{{end}}{{range .EmbedFiles}}{{$p}}|{{$d}}|{{.}}
{{end}}{{end}}`
	list, err := c.goCommand(ctx, "list", "-deps", "-f", each, "./cmd/"+Helper)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintln(h, c.compiler(g))
	for line := range strings.Lines(string(list)) {
		part := strings.Split(strings.TrimSpace(line), "|")
		if len(part) != 3 {
			continue
		}
		source, err := os.ReadFile(filepath.Join(part[1], part[2]))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s/%s %x\n", part[0], part[2], sha256.Sum256(source))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// whole tells whether a file that was kept is as it was.
func whole(file string) bool {
	data, err := os.ReadFile(file)
	sum, serr := os.ReadFile(file + ".sha256")
	return err == nil && serr == nil && string(sum) == fmt.Sprintf("%x", sha256.Sum256(data))
}

// keepWhole keeps a file with its digest. Whoever was first with the same has made the same.
func keepWhole(file string, data []byte) error {
	dir := filepath.Dir(file)
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".put-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	err = errors.Join(os.WriteFile(filepath.Join(tmp, filepath.Base(file)), data, 0o755),
		os.WriteFile(filepath.Join(tmp, filepath.Base(file)+".sha256"), fmt.Appendf(nil, "%x", sha256.Sum256(data)), 0o644), os.Chmod(tmp, 0o755))
	if err != nil {
		return err
	}
	if whole(file) {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // damaged, or another's
		return err
	}
	return os.Rename(tmp, dir)
}
