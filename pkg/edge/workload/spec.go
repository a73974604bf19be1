package workload

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
)

// cgroupParent holds the cgroups of all containers, in v1 and v2 alike.
const cgroupParent = "/tributary"

// initTarget is where process 1 of a service with init: true is mounted: on the
// container's own /dev, so that nothing of it stays in the writable layer.
const initTarget = "/dev/init"

func cgroupPath(id string) string { return cgroupParent + "/" + id }

// blueprint is all that a runtime spec is made of.
type blueprint struct {
	ID      string
	App     string
	Service *api.Service
	Image   *imageInfo
	User    userInfo
	NetNS   string // path; empty for host network or none
	Shim    string // path where the answer of the app's shim is kept
	Mounts  []hostMount
	Held    []api.HeldDevice
	Rest    rest
}

// buildSpec makes the runtime spec (OCI runtime-spec 1.0). Less is given than
// containerd's default: no new privileges, the default seccomp profile, and the
// default capabilities, to which the service may add.
func buildSpec(ctx context.Context, b blueprint) (*specs.Spec, error) {
	s := b.Service
	args, err := argv(s, b.Image)
	if err != nil {
		return nil, err
	}
	c := &containers.Container{ID: b.ID}
	opts := []oci.SpecOpts{
		oci.WithoutRunMount,
		oci.WithProcessArgs(args...),
		oci.WithProcessCwd(firstOf(s.WorkingDir, b.Image.config.WorkingDir, "/")),
		oci.WithCgroup(cgroupPath(b.ID)),
		oci.WithDefaultUnixDevices,
		oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": shimGroup(b.App), "tributary.dev/warm-shim": b.Shim}),
		oci.WithAddedCapabilities(capNames(s.CapAdd)),
		oci.WithDroppedCapabilities(capNames(s.CapDrop)),
	}
	if slices.ContainsFunc(s.CapAdd, isAll) {
		opts = append(opts, oci.WithAllKnownCapabilities)
	}
	if slices.ContainsFunc(s.CapDrop, isAll) {
		opts = append(opts, oci.WithCapabilities(nil), oci.WithAddedCapabilities(capNames(s.CapAdd)))
	}
	for _, d := range s.Devices {
		opts = append(opts, withDevice(d))
	}
	spec, err := oci.GenerateSpec(ctx, nil, c, opts...)
	if err != nil {
		return nil, err
	}
	spec.Root.Readonly = s.ReadOnly
	spec.Process.Env = processEnv(s, b.Image)
	spec.Process.User = b.User.User
	spec.Process.NoNewPrivileges = true
	setLimits(spec, s)
	setNetwork(spec, b)
	if err := setMounts(spec, b); err != nil {
		return nil, err
	}
	if err := setDevices(ctx, c, spec, b.Held, b.Rest); err != nil {
		return nil, err
	}
	// Last, since the profile depends on the capabilities.
	if err := seccomp.WithDefaultProfile()(ctx, nil, c, spec); err != nil {
		return nil, err
	}
	spec.Linux.Seccomp.Architectures = architectures(b.Image.arch, spec.Linux.Seccomp.Architectures)
	return spec, nil
}

// architectures narrows the system calls of a container to those of its image's own
// architecture: the 32-bit entries of a 64-bit kernel are attack surface that a
// 64-bit image has no use for, and runc takes 25 ms to compile the rules for them
// (measured: 92 ms to start a container with all three of x86, 66 ms without).
func architectures(image string, all []specs.Arch) []specs.Arch {
	own := map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}[image]
	if slices.Contains(all, own) {
		return []specs.Arch{own}
	}
	return all
}

func shimGroup(app string) string { return "tributary-" + app }

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// argv applies Compose's rule: an entrypoint of the service clears the image's
// command.
func argv(s *api.Service, im *imageInfo) ([]string, error) {
	entry, cmd := im.config.Entrypoint, im.config.Cmd
	if s.Entrypoint != nil {
		entry, cmd = s.Entrypoint, nil
	}
	if s.Command != nil {
		cmd = s.Command
	}
	args := slices.Concat(entry, cmd)
	if len(args) == 0 {
		return nil, api.Errorf(api.Invalid, "neither the service nor its image names a command")
	}
	if s.Init {
		args = append([]string{initTarget}, args...)
	}
	return args, nil
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func processEnv(s *api.Service, im *imageInfo) []string {
	env := map[string]string{}
	for _, kv := range append([]string{defaultPath}, im.config.Env...) {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	env["HOSTNAME"] = hostname(s)
	maps.Copy(env, s.Env)
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

func hostname(s *api.Service) string { return firstOf(s.Hostname, s.Name) }

func isAll(c string) bool {
	return strings.EqualFold(strings.TrimPrefix(strings.ToUpper(c), "CAP_"), "ALL")
}

func capNames(in []string) []string {
	var out []string
	for _, c := range in {
		if !isAll(c) {
			out = append(out, "CAP_"+strings.TrimPrefix(strings.ToUpper(c), "CAP_"))
		}
	}
	return out
}

// withDevice reads host[:container[:rwm]].
func withDevice(d string) oci.SpecOpts {
	parts := strings.SplitN(d, ":", 3)
	host, inside, access := parts[0], parts[0], "rwm"
	if len(parts) > 1 && parts[1] != "" {
		inside = parts[1]
	}
	if len(parts) > 2 && parts[2] != "" {
		access = parts[2]
	}
	return oci.WithDevices(host, inside, access)
}

func setLimits(spec *specs.Spec, s *api.Service) {
	r := spec.Linux.Resources
	if s.Resources.CPUs > 0 {
		period := uint64(100_000)
		quota := max(int64(s.Resources.CPUs*float64(period)), 1000) // the kernel's least quota is 1 ms
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	if s.Resources.MemoryBytes > 0 || s.Resources.MemoryReservation > 0 {
		r.Memory = &specs.LinuxMemory{}
		if v := s.Resources.MemoryBytes; v > 0 {
			r.Memory.Limit = &v
		}
		if v := s.Resources.MemoryReservation; v > 0 {
			r.Memory.Reservation = &v
		}
	}
	if s.Resources.Pids > 0 {
		v := s.Resources.Pids
		r.Pids = &specs.LinuxPids{Limit: &v}
	}
	// A service without its own limit gets a file limit that servers can live with.
	files := fileLimit()
	spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: files, Hard: files}}
	for _, u := range s.Ulimits {
		name := "RLIMIT_" + strings.ToUpper(u.Name)
		spec.Process.Rlimits = slices.DeleteFunc(spec.Process.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == name })
		// -1 is "unlimited", which getrlimit(2) writes as the greatest number.
		spec.Process.Rlimits = append(spec.Process.Rlimits, specs.POSIXRlimit{Type: name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	if len(s.Sysctls) > 0 {
		spec.Linux.Sysctl = maps.Clone(s.Sysctls)
	}
}

// fileLimit is 65,536, or what this process itself may have where that is less.
func fileLimit() uint64 {
	const want = 65536
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return 1024
	}
	return min(want, own.Max)
}

func setNetwork(spec *specs.Spec, b blueprint) {
	ns := spec.Linux.Namespaces
	if b.Service.NetworkMode == "host" {
		ns = slices.DeleteFunc(ns, func(n specs.LinuxNamespace) bool {
			return n.Type == specs.NetworkNamespace || n.Type == specs.UTSNamespace
		})
		// A new sysfs needs a network namespace that the container owns.
		for i := range spec.Mounts {
			if spec.Mounts[i].Destination == "/sys" {
				spec.Mounts[i] = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
			}
		}
	} else {
		spec.Hostname = hostname(b.Service)
		for i := range ns {
			if ns[i].Type == specs.NetworkNamespace {
				ns[i].Path = b.NetNS
			}
		}
	}
	spec.Linux.Namespaces = ns
}

// setMounts adds what the service asks for: parents before what lies in them, be it in
// memory or on the disk.
func setMounts(spec *specs.Spec, b blueprint) error {
	var mounts []specs.Mount
	for _, t := range b.Service.Tmpfs {
		opts := []string{"nosuid", "nodev", "mode=1777"}
		if t.SizeBytes > 0 {
			opts = append(opts, fmt.Sprintf("size=%d", t.SizeBytes))
		}
		mounts = append(mounts, specs.Mount{Destination: t.Target, Type: "tmpfs", Source: "tmpfs", Options: opts})
	}
	for _, mt := range b.Mounts {
		if _, err := os.Lstat(mt.Source); err != nil {
			return err
		}
		opts := []string{"rbind", "rprivate", "nosuid", "nodev"}
		if mt.ReadOnly {
			opts = append(opts, "ro")
		}
		mounts = append(mounts, specs.Mount{Destination: mt.Target, Type: "bind", Source: mt.Source, Options: opts})
	}
	for _, mt := range mounts {
		if !filepath.IsAbs(mt.Destination) || filepath.Clean(mt.Destination) == "/" {
			return api.Errorf(api.Invalid, "mount target %q is not a path below /", mt.Destination)
		}
	}
	slices.SortStableFunc(mounts, func(x, y specs.Mount) int {
		return strings.Count(filepath.Clean(x.Destination), "/") - strings.Count(filepath.Clean(y.Destination), "/")
	})
	spec.Mounts = append(spec.Mounts, mounts...)
	return nil
}
