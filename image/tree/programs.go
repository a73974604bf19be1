package tree

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// program is one Go program of the image and how it is built.
type program struct {
	name    string // as in Config.Programs; cni/ marks plugins
	pkg     string
	tags    string
	ldflags string
	arch    string // build so for this architecture only; a later entry of the name wins
}

const (
	ours       = "tributary.dev/tributary/cmd/"
	cniPlugins = "github.com/containernetworking/plugins/plugins/"
	ctrd       = "github.com/containerd/containerd/v2/"

	// noTrace leaves out grpc's debug pages, which keep the linker from dropping unused methods.
	noTrace = "grpcnotrace"
	// runtimeOnly leaves out of containerd what no box uses: Kubernetes and snapshotters that need other tools.
	runtimeOnly = noTrace + ",no_cri,no_btrfs,no_zfs,no_devmapper"
)

var programs = []program{
	{name: "edged", pkg: ours + "edged", tags: noTrace},
	{name: "edged-boot", pkg: ours + "edged-boot"},
	{name: "edged-console", pkg: ours + "edged-console"},
	{name: "edged-onboard", pkg: ours + "edged-onboard"},
	{name: "edged-log", pkg: ours + "edged-log"},
	{name: "edged-shim", pkg: ours + "edged-shim"},
	{name: "edged-init", pkg: ours + "edged-init"},
	{name: "edged-log", pkg: ours + "edged-log", ldflags: "-E main.bare", arch: "amd64"}, // starts without Go's runtime
	{name: "containerd", pkg: ctrd + "cmd/containerd", tags: runtimeOnly},
	{name: "containerd-shim-runc-v2", pkg: ctrd + "cmd/containerd-shim-runc-v2", tags: runtimeOnly},
	{name: "cni/bridge", pkg: cniPlugins + "main/bridge"},
	{name: "cni/loopback", pkg: cniPlugins + "main/loopback"},
	{name: "cni/host-local", pkg: cniPlugins + "ipam/host-local"},
	{name: "cni/portmap", pkg: cniPlugins + "meta/portmap"},
	{name: "cni/firewall", pkg: cniPlugins + "meta/firewall"},
}

// Names lists the programs that an image needs, edged-boot among them.
func Names() []string {
	var out []string
	for _, p := range programs {
		if !slices.Contains(out, p.name) {
			out = append(out, p.name)
		}
	}
	slices.Sort(out)
	return out
}

// BuildPrograms builds them all for an architecture into dir and returns the files by name, as Config.Programs takes
// them. The bytes depend on the sources, the version and Go's version alone: no paths, times or build identifiers.
func BuildPrograms(ctx context.Context, root, arch, version, dir string) (map[string]string, error) {
	out := map[string]string{}
	for _, p := range programs {
		if p.arch != "" && p.arch != arch {
			continue
		}
		file := filepath.Join(dir, filepath.FromSlash(p.name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return nil, err
		}
		flags := "-s -w -buildid="
		if strings.HasPrefix(p.pkg, ours) {
			flags += " -X main.version=" + version
		}
		if p.ldflags != "" {
			flags += " " + p.ldflags
		}
		abs, err := filepath.Abs(file)
		if err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-tags", p.tags, "-ldflags", flags, "-o", abs, p.pkg)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOEXPERIMENT=")
		if text, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building %s for %s: %w\n%s", p.name, arch, err, text)
		}
		out[p.name] = file
	}
	return out, nil
}
