package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
)

// Files is where NVIDIA's driver is on this box.
type Files struct {
	// Libraries is the root below which its libraries and programs lie: the extension of the
	// release that has them, or "/".
	Libraries string
	// System is the root of /dev and /proc: "/".
	System string
}

// FindFiles is where they are: in the extension where it is mounted.
func FindFiles() Files {
	const extension = "/run/extensions/nvidia"
	if _, err := os.Stat(extension); err == nil {
		return Files{Libraries: extension, System: "/"}
	}
	return Files{Libraries: "/", System: "/"}
}

// libraries are those of the driver that CUDA in a container loads, which must be of the
// driver's own version, so that images do not bring them (nvidia-container-toolkit mounts
// the same for the capabilities compute and utility).
var libraries = []string{"libcuda.so", "libnvidia-ml.so", "libnvidia-ptxjitcompiler.so", "libnvidia-nvvm.so", "libnvidia-gpucomp.so", "libcudadebugger.so", "libnvidia-cfg.so", "libnvidia-opencl.so"}

// programs are what people run in a container to look at a card.
var programs = []string{"usr/bin/nvidia-smi", "usr/lib/nvidia/current/nvidia-smi"}

// triplets are the folders of libraries by architecture, where Debian and Ubuntu have them.
var triplets = map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}

// Mounts are the driver's libraries in a container: where Debian's loader looks, and where
// Red Hat's does, each by the name that CUDA asks for and by its own.
func (f Files) Mounts() (out []api.DeviceBind) {
	triplet := triplets[runtime.GOARCH]
	from := []string{"usr/lib/" + triplet + "/nvidia/current", "usr/lib/" + triplet, "usr/lib64", "usr/lib"}
	to := []string{"/usr/lib/" + triplet, "/usr/lib64"}
	for _, name := range libraries {
		host, version := f.library(from, name)
		if host == "" {
			continue
		}
		for _, dir := range to {
			for _, n := range slices.Compact([]string{name + ".1", name + version}) {
				out = append(out, bind(host, dir+"/"+n))
			}
		}
	}
	for _, name := range programs {
		if host := filepath.Join(f.Libraries, name); regular(host) {
			return append(out, bind(host, "/usr/bin/nvidia-smi"))
		}
	}
	return out
}

func bind(host, container string) api.DeviceBind {
	return api.DeviceBind{HostPath: host, ContainerPath: container, Options: []string{"rbind", "rprivate", "nosuid", "nodev", "ro"}}
}

// Folders are those of the libraries, for a program of the box's own that loads them.
func (f Files) Folders() (out []string) {
	triplet := triplets[runtime.GOARCH]
	for _, dir := range []string{"usr/lib/" + triplet + "/nvidia/current", "usr/lib/" + triplet, "usr/lib64"} {
		out = append(out, filepath.Join(f.Libraries, dir))
	}
	return out
}

// library finds a library by its full version ("libcuda.so.535.261.03"): links may be
// absolute, and would lead out of the extension.
func (f Files) library(dirs []string, name string) (host, version string) {
	for _, dir := range dirs {
		found, _ := filepath.Glob(filepath.Join(f.Libraries, dir, name+".[0-9]*.[0-9]*")) // a pattern of ours has no fault
		for _, path := range found {
			if regular(path) {
				return path, strings.TrimPrefix(filepath.Base(path), name)
			}
		}
	}
	return "", ""
}

func regular(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}

// Program is where a program of the driver's is; empty when it is not there.
func (f Files) Program(name string) string {
	for _, dir := range []string{"usr/bin", "usr/sbin"} {
		if path := filepath.Join(f.Libraries, dir, name); exists(path) {
			return path
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// maxFact bounds what is read of a file of the driver's.
const maxFact = 64 << 10

func (f Files) read(path string) (string, error) {
	file, err := os.Open(filepath.Join(f.System, path))
	if err != nil {
		return "", err
	}
	defer file.Close()
	buf := make([]byte, maxFact)
	n, err := file.Read(buf) // files of /proc are read in one
	return string(buf[:max(n, 0)]), err
}

// Minor is the number of the capability file of a slice: "DeviceFileMinor: 21" in the file
// of its path below /proc/driver/nvidia/capabilities (MIG user guide, "Device nodes and
// capabilities").
func (f Files) Minor(path string) (int, error) {
	text, err := f.read("proc/driver/nvidia/capabilities/" + path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "DeviceFileMinor:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("%s names no number", path)
}

// optional are device files that nothing but tools need.
var optional = map[string]bool{"/dev/nvidia-uvm-tools": true}

// Nodes are device files in a container. Those of NVIDIA's that are not there yet are made:
// its driver leaves that to a program that an image of ours does not have.
func (f Files) Nodes(paths []string) (out []api.DeviceNode, err error) {
	for _, path := range paths {
		host := filepath.Join(f.System, path)
		if !exists(host) {
			if err := f.make(path, host); err != nil {
				if optional[path] {
					continue
				}
				return nil, err
			}
		}
		n := api.DeviceNode{Path: path, Permissions: "rw"}
		if host != path {
			n.HostPath = host
		}
		out = append(out, n)
	}
	return out, nil
}

func (f Files) make(path, host string) error {
	major, minor, err := f.number(path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(host), 0o755); err != nil {
		return err
	}
	// Who may open it is decided by the cgroup of each container.
	err = unix.Mknod(host, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor)))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making %s: %w", host, err)
	}
	return os.Chmod(host, 0o666)
}

// number is a device file's, by the kernel's list of drivers (/proc/devices).
func (f Files) number(path string) (major, minor uint32, err error) {
	name := filepath.Base(path)
	drivers := []string{"nvidia", "nvidia-frontend"}
	switch rest, card := strings.CutPrefix(name, "nvidia"); {
	case strings.HasPrefix(name, "nvidia-cap"):
		drivers = []string{"nvidia-caps"}
		minor, err = digits(strings.TrimPrefix(name, "nvidia-cap"))
	case name == "nvidia-uvm":
		drivers = []string{"nvidia-uvm"}
	case name == "nvidia-uvm-tools":
		drivers, minor = []string{"nvidia-uvm"}, 1
	case name == "nvidiactl":
		minor = 255
	case card && rest != "":
		minor, err = digits(rest)
	default:
		err = errors.New("its driver made none")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%s is not there: %w", path, err)
	}
	text, err := f.read("proc/devices")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(text) {
		if word := strings.Fields(line); len(word) == 2 && slices.Contains(drivers, word[1]) {
			if n, err := digits(word[0]); err == nil {
				return n, minor, nil
			}
		}
	}
	return 0, 0, &api.Error{Code: api.Unavailable, Message: fmt.Sprintf("%s is not there, and no driver %s is loaded", path, drivers[0]), Remedy: "install the release with the extension nvidia; its modules are loaded by the hardware profile's gpu.drivers"}
}

func digits(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 20)
	return uint32(n), err
}
