package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"tributary.dev/tributary/image/bundle"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/release"
	"tributary.dev/tributary/pkg/release/lz4k"
)

// The pair: one build of Debian's kernel on, without the documentation, which no image has.
var updatePair = [2]string{"linux-image-6.1.0-55-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64"}

// updateFolders are the folder of what is kept from bench to bench, and one for this bench. It says so when a tool is missing.
func updateFolders() (cache, dir string, err error) {
	for _, tool := range []string{"apt-get", "dpkg-deb", "mkfs.erofs", "xdelta3", "casync", "zstd"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", "", fmt.Errorf("needs %s", tool)
		}
	}
	if cache, err = filepath.Abs(filepath.Join(".cache", "bench")); err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", "", err
	}
	dir, err = os.MkdirTemp("", "bench-update-")
	return cache, dir, err
}

// benchUpdate measures what travels for a kernel's point update, against what others make of the same two images.
func benchUpdate(ctx context.Context) ([]Figure, error) {
	cache, dir, err := updateFolders()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var whole [2]string
	previous := []string{}
	var ours *bundle.Result
	for i, name := range updatePair {
		at := filepath.Join(dir, fmt.Sprint(i))
		if err := unpackKernel(ctx, cache, name, at); err != nil {
			return nil, err
		}
		whole[i] = at + ".erofs"
		if err := quiet(ctx, "mkfs.erofs", "-T0", "-U", "00000000-0000-0000-0000-000000000001", whole[i], at); err != nil {
			return nil, err
		}
		if ours, err = makeBundle(ctx, at, fmt.Sprintf("1.%d", i), previous); err != nil {
			return nil, err
		}
		previous = []string{at + ".tbu"}
	}
	share := ours.Deltas["1.0"]
	apply, err := applied(filepath.Join(dir, "0.tbu"), filepath.Join(dir, "1.tbu"))
	if err != nil {
		return nil, err
	}
	others, err := peersOf(ctx, dir, whole)
	if err != nil {
		return nil, err
	}
	patch, err := sizeOf(ctx, filepath.Join(dir, "z"), "zstd", "-q", "-f", "-19", "--long=31", "--patch-from="+whole[0], whole[1], "-o", filepath.Join(dir, "z"))
	if err != nil {
		return nil, err
	}
	f := atMost("update/kernel", others.percent(share), "% of the image", 2.5, 1.5).against(others.percent(others.xdelta))
	f.Note = fmt.Sprintf("%s to %s, an image of %.1f MB; the peer is xdelta3", updatePair[0], updatePair[1], float64(others.size)/1e6)
	c := atMost("update/kernel-casync", others.percent(share), "% of the image", 2.5, 1.5).against(others.percent(others.chunks))
	c.Note = "the peer is casync, chunks of 64 KiB"
	return []Figure{f, c, plain("update/zstd-patch-from", others.percent(patch), "% of the image"), plain("update/plain", others.percent(ours.Plain), "% of the image"),
		plain("update/apply", apply.Seconds(), "s")}, nil
}

func quiet(ctx context.Context, argv ...string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", argv[0], err, bytes.TrimSpace(out))
	}
	return nil
}

func sizeOf(ctx context.Context, file string, argv ...string) (int64, error) {
	if err := quiet(ctx, argv...); err != nil {
		return 0, err
	}
	info, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// unpackKernel fetches a package by the machine's own apt, once, and unpacks it without its documentation.
func unpackKernel(ctx context.Context, cache, name, at string) error {
	found, err := filepath.Glob(filepath.Join(cache, name+"_*.deb"))
	if err != nil {
		return err
	}
	if len(found) == 0 {
		cmd := exec.CommandContext(ctx, "apt-get", "download", name)
		cmd.Dir = cache
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("the mirror has no %s (any more?): %w: %s", name, err, bytes.TrimSpace(out))
		}
		if found, err = filepath.Glob(filepath.Join(cache, name+"_*.deb")); err != nil || len(found) == 0 {
			return errors.Join(err, fmt.Errorf("%s was not fetched", name))
		}
	}
	if err := quiet(ctx, "dpkg-deb", "-x", found[0], at); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(at, "usr"))
}

// makeBundle makes a release of an unpacked kernel package: its kernel with a repacked payload as kernel image, the
// rest as root.
func makeBundle(ctx context.Context, at, version string, previous []string) (*bundle.Result, error) {
	kernels, err := filepath.Glob(filepath.Join(at, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return nil, fmt.Errorf("%d kernels in the package: %w", len(kernels), errors.Join(err, fs.ErrNotExist))
	}
	kernel, err := os.ReadFile(kernels[0])
	if err != nil {
		return nil, err
	}
	kernel, repacked, err := lz4k.Repack(kernel)
	if err != nil || !repacked {
		return nil, fmt.Errorf("the kernel was not repacked: %w", errors.Join(err, errors.ErrUnsupported))
	}
	if err := os.Remove(kernels[0]); err != nil {
		return nil, err
	}
	root := at + ".root"
	if err := quiet(ctx, "mkfs.erofs", "-T0", "-U", "00000000-0000-0000-0000-000000000001", root, at); err != nil {
		return nil, err
	}
	f, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	tree, err := os.Create(at + ".verity")
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	hash, err := verity.Format(f, info.Size(), []byte("bench"), [16]byte{1}, tree)
	if err != nil {
		return nil, err
	}
	return bundle.Write(bundle.Config{Version: version, Arch: "amd64", Profile: "vm", Counter: 1, RootHash: hash, Root: root, Verity: at + ".verity", UKI: kernel,
		Manager: []byte("manager"), Expires: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), Previous: previous, Out: at + ".tbu"})
}

// applied makes the new content from the old and the delta, as a box does, and tells how long it took.
func applied(old, new string) (time.Duration, error) {
	from, err := readBundle(old)
	if err != nil {
		return 0, err
	}
	to, err := readBundle(new)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = release.Rehearse(from, to)
	return time.Since(began), err
}

func readBundle(file string) (*release.Bundle, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return release.ReadBundle(f)
}

// casyncBytes is what casync fetches: the index and the chunks that the old image does not have.
func casyncBytes(ctx context.Context, dir string, whole [2]string) (int64, error) {
	store := filepath.Join(dir, "store")
	var sizes [2]int64
	for i, image := range whole {
		index := filepath.Join(dir, fmt.Sprintf("%d.caibx", i))
		if err := quiet(ctx, "casync", "make", "--store="+store, index, image); err != nil {
			return 0, err
		}
		info, err := os.Stat(index)
		if err != nil {
			return 0, err
		}
		sizes[i] = info.Size()
		err = filepath.WalkDir(store, func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err == nil {
				sizes[i] += info.Size()
			}
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	first, err := os.Stat(filepath.Join(dir, "0.caibx"))
	if err != nil {
		return 0, err
	}
	return sizes[1] - (sizes[0] - first.Size()), nil
}
