package workload

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestWrittenAt(t *testing.T) {
	for want, mounts := range map[string][]mount.Mount{
		"":         nil,
		"/s/1/fs":  {{Type: "bind", Source: "/s/1/fs", Options: []string{"rw", "rbind"}}},
		"/s/2/fs":  {{Type: "overlay", Source: "overlay", Options: []string{"index=off", "workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir=/s/1/fs"}}},
		"/last/fs": {{Type: "bind", Source: "/first"}, {Type: "overlay", Options: []string{"upperdir=/last/fs"}}},
	} {
		if got := writtenAt(mounts); got != want {
			t.Errorf("%+v is written at %q, want %q", mounts, got, want)
		}
	}
}

// unpacked is a differ that unpacks nothing.
type unpacked struct {
	containerd.DiffService
	err error
}

func (u unpacked) Apply(context.Context, ocispec.Descriptor, []mount.Mount, ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{Size: 7}, u.err
}

// A layer that cannot be brought to the disk is none.
func TestLayersLast(t *testing.T) {
	here := t.TempDir()
	for _, c := range []struct {
		dir  string
		fail error
		want error
	}{{here, nil, nil}, {filepath.Join(here, "gone"), nil, fs.ErrNotExist}, {here, context.Canceled, context.Canceled}} {
		got, err := (&lasting{unpacked{err: c.fail}}).Apply(t.Context(), ocispec.Descriptor{}, []mount.Mount{{Type: "bind", Source: c.dir}})
		if !errors.Is(err, c.want) || err == nil && got.Size != 7 {
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
	}
}
