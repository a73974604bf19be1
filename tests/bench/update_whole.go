package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/build"
	"tributary.dev/tributary/pkg/edge/update"
	"tributary.dev/tributary/pkg/release"
)

// wholeBefore is the kernel of the image that is updated, as rootfs/packages.lock would name it; the other image has the
// lock's. The two are a point release of Linux apart, Debian's newest two.
const wholeBefore = "linux-image-6.12.94+deb12-cloud-amd64 6.12.94-1~bpo12+1 amd64 e40503d5decd91477d4110ad5ed280187ab150d52282e088d3abb2455c0c0d15 33926448 " +
	"debian pool/main/l/linux-signed-amd64/linux-image-6.12.94+deb12-cloud-amd64_6.12.94-1~bpo12+1_amd64.deb linux-signed-amd64"

// wholeSet is the part of the lock with the kernel's line.
var wholeSet = regexp.MustCompile(`(?m)(^\[amd64 kernel-cloud\]\n)(linux-image-[0-9]\S*) .*$`)

// benchWhole measures an update between two whole images of the profile vm, which differ in their kernel, and what memory
// a box needs to write it.
func benchWhole(ctx context.Context) ([]Figure, error) {
	cache, dir, err := updateFolders()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	lock, err := os.ReadFile(filepath.Join("rootfs", "packages.lock"))
	if err != nil {
		return nil, err
	}
	m := wholeSet.FindSubmatch(lock)
	if m == nil {
		return nil, errors.New("the lock has no kernel for clouds")
	}
	before := filepath.Join(dir, "before.lock")
	if err := os.WriteFile(before, wholeSet.ReplaceAll(lock, []byte("${1}"+wholeBefore)), 0o644); err != nil {
		return nil, err
	}
	profile, err := hwprofiles.Load("vm")
	if err != nil {
		return nil, err
	}
	old, new := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	at := time.Unix(1_800_000_000, 0)
	for _, c := range []build.Config{{Out: old, Lock: before, Version: "1.0"}, {Out: new, Version: "1.1", Previous: []string{filepath.Join(old, build.BundleFile)}}} {
		c.Root, c.Profile, c.Counter, c.Time, c.Quick, c.Bundle, c.Keys = ".", profile, 1, at, true, true, filepath.Join(cache, "keys")
		if _, err := build.Build(ctx, c); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Out, err)
		}
	}
	bundle, err := readBundle(filepath.Join(new, build.BundleFile))
	if err != nil {
		return nil, err
	}
	if len(bundle.Deltas) != 1 {
		return nil, fmt.Errorf("%d deltas between the images", len(bundle.Deltas))
	}
	var share []byte
	for _, patch := range bundle.Deltas {
		share = patch
	}
	var whole [2]string
	for i, image := range []string{old, new} {
		if whole[i], err = joined(image); err != nil {
			return nil, err
		}
	}
	peers, err := peersOf(ctx, dir, whole)
	if err != nil {
		return nil, err
	}
	applied, err := applyApart(ctx, dir, old, bundle.Description, share)
	if err != nil {
		return nil, err
	}
	f := atMost("update/image", peers.percent(int64(len(share))), "% of the image", 2.5, 1.5).against(peers.percent(peers.xdelta))
	f.Note = fmt.Sprintf("two images of %.1f MB, %s to %s; the peer is xdelta3", float64(peers.size)/1e6, strings.Fields(wholeBefore)[0], m[2])
	c := atMost("update/image-casync", peers.percent(int64(len(share))), "% of the image", 2.5, 1.5).against(peers.percent(peers.chunks))
	c.Note = "the peer is casync, chunks of 64 KiB"
	memory := atMost("update/image-memory", float64(applied.Peak)/1e6, "MB", 128, 112)
	memory.Note = "most of a process that does nothing but write the slot as edged does; what edged itself has is added on a box"
	return []Figure{f, c, memory, plain("update/image-plain", peers.percent(int64(len(bundle.Plain))), "% of the image"), plain("update/image-apply", applied.Seconds, "s")}, nil
}

// joined is an image as it lies in a slot, in one file: kernel image, boot manager, root.
func joined(image string) (string, error) {
	out, err := os.Create(image + ".whole")
	if err != nil {
		return "", err
	}
	for _, part := range []string{build.UKIFile, build.ManagerFile, build.RootFile} {
		b, err := os.ReadFile(filepath.Join(image, part))
		if err == nil {
			_, err = out.Write(b)
		}
		if err != nil {
			return "", errors.Join(err, out.Close())
		}
	}
	return out.Name(), out.Close()
}

// applyWhole is the variable under which this program writes a slot, and nothing else.
const applyWhole = "TRIBUTARY_BENCH_APPLY"

// application is what a box does with a delta, and what it took.
type application struct {
	Disk, Description, Patch, Scratch string `json:",omitempty"`
	Peak                              int64  // bytes
	Seconds                           float64
}

// applyApart writes the other slot of a disk by a delta, in a process of its own.
func applyApart(ctx context.Context, dir, image string, description, patch []byte) (a application, err error) {
	a = application{Disk: filepath.Join(dir, "disk"), Description: filepath.Join(dir, "release.json"), Patch: filepath.Join(dir, "delta"), Scratch: dir}
	err = errors.Join(quiet(ctx, "cp", "--sparse=always", filepath.Join(image, build.RawFile), a.Disk), os.WriteFile(a.Description, description, 0o644), os.WriteFile(a.Patch, patch, 0o644))
	if err != nil {
		return a, err
	}
	self, err := os.Executable()
	if err != nil {
		return a, err
	}
	order, err := json.Marshal(a)
	if err != nil {
		return a, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env, cmd.Stderr = append(os.Environ(), applyWhole+"="+string(order)), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return a, fmt.Errorf("writing the slot: %w", err)
	}
	return a, json.Unmarshal(out, &a)
}

// runApply is that process.
func runApply(order string) error {
	var a application
	if err := json.Unmarshal([]byte(order), &a); err != nil {
		return err
	}
	debug.SetMemoryLimit(update.Memory)
	disk, err := os.OpenFile(a.Disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	info, err := disk.Stat()
	if err != nil {
		return err
	}
	raw, err1 := os.ReadFile(a.Description)
	patch, err2 := os.ReadFile(a.Patch)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	d, err := release.ParseDescription(raw)
	if err != nil {
		return err
	}
	flash, began := &update.Flash{Disk: disk, Size: info.Size(), Arch: d.Arch, Scratch: a.Scratch}, time.Now()
	if err := flash.WriteDelta("a", d, 2, patch); err != nil {
		return err
	}
	took := time.Since(began)
	peak, err := peakMemory()
	if err != nil {
		return err
	}
	if err := flash.Verify("b", d, 2); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(application{Peak: peak, Seconds: took.Seconds()})
}

// peakMemory is the most that was in RAM at once, in bytes.
func peakMemory() (int64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("the kernel does not tell VmHWM")
}

// peers is what others make of two images.
type peers struct{ size, xdelta, chunks int64 }

func (p peers) percent(n int64) float64 { return float64(n) / float64(cmp.Or(p.size, 1)) * 100 }

func peersOf(ctx context.Context, dir string, whole [2]string) (p peers, err error) {
	info, err := os.Stat(whole[1])
	if err != nil {
		return p, err
	}
	p.size = info.Size()
	if p.xdelta, err = sizeOf(ctx, filepath.Join(dir, "x"), "xdelta3", "-e", "-f", "-9", "-S", "lzma", "-B", fmt.Sprint(1<<28), "-s", whole[0], whole[1], filepath.Join(dir, "x")); err != nil {
		return p, err
	}
	p.chunks, err = casyncBytes(ctx, dir, whole)
	return p, err
}
