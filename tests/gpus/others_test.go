//go:build cgo

package gpus

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// seen is what a container says of a slice: the numbers of its device files and no other, that
// its cgroup lets them be opened (there is no driver: the kernel says ENXIO, not EPERM), the
// variables, and the library, which nobody may write to.
const seen = `cd /dev && /bin/busybox stat -c '%n %t %T' nvidia[!-]* nvidia-uvm* nvidia-caps/*; (: <nvidia0) 2>&1; echo "$CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES"; /bin/busybox cat /usr/lib64/libcuda.so.1; (: >>/usr/lib64/libcuda.so.1) 2>&1; true`

// program is one that reads the files for CDI. Its arguments run a command in a container made of
// a folder, with a device or, where that is empty, without.
type program struct {
	name string
	find func(t *testing.T, s *site) string
	args func(s *site, device, root string) []string
}

var programs = []program{
	{"podman", installed("podman"), func(s *site, device, root string) []string {
		// A root whose own limits are lower than what podman gives by itself may run it too.
		return append([]string{"--root", s.file("podman/root"), "--runroot", s.file("podman/run"), "--tmpdir", s.file("podman/tmp"), "--storage-driver", "vfs", "--runtime", "runc",
			"run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}, option(device, "--rootfs", root)...)
	}},
	{"ctr", newCtr, func(s *site, device, root string) []string {
		return append([]string{"--address", filepath.Join(s.box.Run(), "containerd.sock"), "--namespace", "others", "run", "--rm"}, option(device, "--rootfs", root, "others")...)
	}},
	{"nerdctl", installed("nerdctl"), func(s *site, device, root string) []string { // no package of Debian 12
		return append([]string{"--address", filepath.Join(s.box.Run(), "containerd.sock"), "--namespace", "others", "--data-root", s.file("nerdctl"), "--cgroup-manager", "cgroupfs",
			"run", "--rm", "--network", "none"}, option(device, "--rootfs", root)...)
	}},
}

func option(device string, rest ...string) []string {
	if device == "" {
		return rest
	}
	return append([]string{"--device", device}, rest...)
}

func installed(name string) func(*testing.T, *site) string {
	return func(t *testing.T, _ *site) string {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("%s is not on this machine: the files for CDI are tried with those that are", name)
		}
		return path
	}
}

// newCtr builds ctr of the release of containerd that is in images: Debian 12's knows no CDI.
func newCtr(t *testing.T, s *site) string {
	path := s.file("ctr")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/containerd/containerd/v2/cmd/ctr")
	cmd.Dir, cmd.Env = s.Root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// others has every program on the box that reads the files for CDI give a container of its own
// the slice that an app holds: that one sees what the app's container sees.
func (s *site) others(app string) {
	s.Helper()
	want := s.in(app, "/bin/busybox", "sh", "-c", seen)
	device := s.named(app)
	root := s.folder()
	defer os.Remove("/run/cdi") // where the files are mounted; a folder with somebody's own files stays
	for _, p := range programs {
		s.Run(p.name, func(t *testing.T) {
			path := p.find(t, s)
			run := func(device string) string {
				argv := append([]string{path}, p.args(s, device, root)...)
				out, err := s.aside(t.Context(), append(argv, "/bin/busybox", "sh", "-c", seen)...)
				if device != "" && !strings.Contains(out, "nvidia0") {
					t.Errorf("%v", err)
				}
				return out
			}
			if got := run(device); got != want {
				t.Errorf("a container of %s with %s sees\n%s\nand that of the app\n%s", p.name, device, got, want)
			}
			if got := run(""); strings.Contains(got, "nvidia0 f1") || strings.Contains(got, "a library") {
				t.Errorf("a container of %s without a device sees\n%s", p.name, got)
			}
		})
	}
}

// named is what others call the only device that is held.
func (s *site) named(app string) string {
	s.Helper()
	var spec struct {
		Kind    string
		Devices []struct{ Name string }
	}
	raw, err := os.ReadFile(s.file("cdi/tributary.dev-gpu.json"))
	if err = errors.Join(err, json.Unmarshal(raw, &spec)); err != nil || spec.Kind != "tributary.dev/gpu" || len(spec.Devices) != 1 {
		s.Fatalf("the file for CDI of what %s holds: %v, %s", app, err, raw)
	}
	return spec.Kind + "=" + spec.Devices[0].Name
}

// folder is a root filesystem with one program, such as every image of the tests has it.
func (s *site) folder() string {
	s.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		s.Fatalf("needs busybox-static: run tests/install-deps vm: %v", err)
	}
	s.write("root/bin/busybox", string(busybox), 0o755)
	for _, dir := range []string{"dev", "etc", "proc", "run", "sys", "tmp"} {
		if err := os.MkdirAll(s.file("root/"+dir), 0o755); err != nil {
			s.Fatal(err)
		}
	}
	return s.file("root")
}

// aside runs a program with the box's files for CDI where it looks for them, in namespaces of
// mounts and processes that end with it. Podman keeps what it would keep in /dev/shm in a file.
func (s *site) aside(ctx context.Context, argv ...string) (string, error) {
	s.write("containers.conf", "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nlock_type = \"file\"\n", 0o644)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	const script = `mkdir -p /run/cdi && mount --bind "$0" /run/cdi && "$@"` // no exec: the shell takes in what ends
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, s.file("cdi")}, argv...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+s.file("containers.conf"))
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = errors.New(strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}
