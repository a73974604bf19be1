package train

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// trainers is where the image has its trainers.
const trainers = "/usr/lib/tributary"

// command starts the ranks by PyTorch's elastic launcher (torch.distributed.run). Its rendezvous is on
// the loopback. Without --redirects and --tee the launcher of 1.13 fails on Python 3.11.
func command(o Order) []string {
	args := []string{"python3", "-m", "torch.distributed.run", "--redirects", "1", "--tee", "1", "--log_dir", "/work/logs",
		"--nnodes", "1", "--nproc_per_node", strconv.Itoa(o.Spec.Ranks), "--max_restarts", strconv.Itoa(o.Spec.MaxRestarts),
		"--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:29400", "--rdzv_id", o.UID}
	if o.Spec.Trainer != "" {
		return append(args, path.Join(trainers, o.Spec.Trainer+".py"))
	}
	return append(args, o.Spec.Command...)
}

// spec is the runtime spec of a job: no network but its own loopback, no capability, no new privileges,
// the default seccomp profile, a root that is read alone, and hard limits.
func (l *Local) spec(o Order, img containerd.Image) []oci.SpecOpts {
	dir := l.dir(o.UID)
	bind := func(from, to string, options ...string) specs.Mount {
		return specs.Mount{Type: "bind", Source: filepath.Join(dir, from), Destination: to, Options: append([]string{"rbind", "nosuid", "nodev"}, options...)}
	}
	n := needs(&o.Spec)
	period := uint64(100_000)
	quota := int64(n.CPUs * float64(period))
	return []oci.SpecOpts{
		oci.WithImageConfig(img), oci.WithProcessArgs(command(o)...), oci.WithHostname("trainer"), oci.WithUserID(user), withGroup(user),
		oci.WithCapabilities(nil), oci.WithNoNewPrivileges, oci.WithRootFSReadonly(), oci.WithCgroup("/tributary-train/" + o.UID),
		oci.WithEnv([]string{"GLOO_SOCKET_IFNAME=lo", "OMP_NUM_THREADS=1"}),
		oci.WithMounts([]specs.Mount{
			bind("job", "/job", "ro", "noexec"), bind("data", "/data", "ro", "noexec"), bind("work", "/work", "rw", "noexec"), bind("job/hosts", "/etc/hosts", "ro", "noexec"),
			{Type: "tmpfs", Source: "tmpfs", Destination: "/tmp", Options: []string{"nosuid", "nodev", "mode=1777", "size=256m"}},
		}),
		func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
			pids := int64(256 * o.Spec.Ranks)
			s.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &n.MemoryBytes}
			s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
			// One file of what it writes is bounded, so that no job fills the core's disk by accident.
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 4096, Hard: 4096}, {Type: "RLIMIT_FSIZE", Soft: maxResult, Hard: maxResult}, {Type: "RLIMIT_CORE"}}
			return nil
		},
		seccomp.WithDefaultProfile(),
	}
}

func withGroup(gid uint32) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		s.Process.User.GID, s.Process.User.AdditionalGids = gid, nil
		return nil
	}
}

// use reads the processor time of a job, and whether the kernel ended one of its processes for want of
// memory. What is over has no counters any more.
func use(ctx context.Context, task containerd.Task) (micros int64, killed bool) {
	m, err := task.Metrics(ctx)
	if err != nil {
		return 0, false
	}
	v, err := typeurl.UnmarshalAny(m.Data)
	if err != nil {
		return 0, false
	}
	switch s := v.(type) {
	case *cgroup2.Metrics:
		return int64(s.GetCPU().GetUsageUsec()), s.GetMemoryEvents().GetOomKill() > 0
	case *cgroup1.Metrics:
		return int64(s.GetCPU().GetUsage().GetTotal() / 1000), s.GetMemoryOomControl().GetOomKill() > 0
	}
	return 0, false
}

// image has containerd hold an image of the core's registry.
func (l *Local) image(ctx context.Context, pinned string) (containerd.Image, error) {
	if img, err := l.client.GetImage(ctx, pinned); err == nil {
		if ok, err := img.IsUnpacked(ctx, l.cfg.Snapshotter); err == nil && ok {
			return img, nil
		}
	}
	l.cfg.Log.Info("fetching the trainer's image", "image", pinned)
	img, err := l.client.Pull(ctx, pinned, containerd.WithResolver(resolver{l.cfg.Images}), containerd.WithPullSnapshotter(l.cfg.Snapshotter), containerd.WithPullUnpack,
		containerd.WithPlatform(platforms.DefaultString()))
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", pinned, err)
	}
	return img, nil
}

// resolver lets containerd read the core's registry without a network and without a password.
type resolver struct{ from Content }

func (r resolver) Resolve(ctx context.Context, ref string) (string, ocispec.Descriptor, error) {
	repo, dgst, _ := strings.Cut(ref, "@")
	body, size, mediaType, err := r.from.Open(ctx, repo, dgst)
	if err != nil {
		return "", ocispec.Descriptor{}, err
	}
	return ref, ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(dgst), Size: size}, body.Close()
}

func (r resolver) Fetcher(_ context.Context, ref string) (remotes.Fetcher, error) {
	repo, _, _ := strings.Cut(ref, "@")
	return remotes.FetcherFunc(func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		body, _, _, err := r.from.Open(ctx, repo, d.Digest.String())
		return body, err
	}), nil
}

func (r resolver) Pusher(context.Context, string) (remotes.Pusher, error) {
	return nil, fmt.Errorf("jobs push nothing")
}

// readManifest reads a manifest of at most 4 MiB.
func readManifest(ctx context.Context, from Content, repo, dgst string) (*ocispec.Manifest, error) {
	body, _, _, err := from.Open(ctx, repo, dgst)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, 4<<20))
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(raw).String() != dgst {
		return nil, fmt.Errorf("%s@%s is damaged", repo, dgst)
	}
	m := new(ocispec.Manifest)
	return m, json.Unmarshal(raw, m)
}

// copyBlob writes a blob to a file, and checks it on the way.
func copyBlob(ctx context.Context, from Content, repo string, d ocispec.Descriptor, file string) error {
	body, _, _, err := from.Open(ctx, repo, d.Digest.String())
	if err != nil {
		return err
	}
	defer body.Close()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := d.Digest.Validate(); err != nil {
		return err
	}
	v := d.Digest.Verifier()
	n, err := io.Copy(io.MultiWriter(f, v), io.LimitReader(body, d.Size+1))
	if err == nil && (n != d.Size || !v.Verified()) {
		err = fmt.Errorf("%s@%s is damaged", repo, d.Digest)
	}
	return err
}
