package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// lasting has every layer on the disk before containerd notes that it is there. containerd
// itself writes down that a layer is unpacked and leaves its files to the kernel, which may
// take half a minute: after a power cut in between, files of the image are empty for good.
type lasting struct{ containerd.DiffService }

// connect makes a client whose layers last.
func connect(socket string, opts ...containerd.Opt) (*containerd.Client, error) {
	l := &lasting{}
	client, err := containerd.New(socket, append(opts, containerd.WithServices(containerd.WithDiffService(l)))...)
	if err != nil {
		return nil, err
	}
	conn, ok := client.Conn().(grpc.ClientConnInterface)
	if !ok {
		return nil, errors.Join(fmt.Errorf("containerd is reached by a %T, not by gRPC", client.Conn()), client.Close())
	}
	l.DiffService = containerd.NewDiffServiceFromClient(diffapi.NewDiffClient(conn))
	return client, nil
}

// Apply unpacks a layer, and returns when it is on the disk.
func (l *lasting) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	applied, err := l.DiffService.Apply(ctx, desc, mounts, opts...)
	if err != nil {
		return applied, err
	}
	dir := writtenAt(mounts)
	if err := syncFS(dir); err != nil {
		return applied, fmt.Errorf("layer %s in %q: %w", desc.Digest, dir, err)
	}
	return applied, nil
}

// writtenAt is the folder that is written by way of a snapshot's mounts: an overlay's upper
// one, or what is bound.
func writtenAt(mounts []mount.Mount) string {
	if len(mounts) == 0 {
		return ""
	}
	last := mounts[len(mounts)-1]
	for _, o := range last.Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			return dir
		}
	}
	return last.Source
}

// syncFS writes out the file system that holds dir (syncfs(2)).
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// syncDir has the names in dir on the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
