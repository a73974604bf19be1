package pool

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// The driver's libraries are those of its extension, by the names that CUDA asks for; a link
// that leads out of it is not followed.
func TestMounts(t *testing.T) {
	root := t.TempDir()
	f := Files{Libraries: root, System: root}
	dir := "usr/lib/" + triplets[runtime.GOARCH] + "/nvidia/current/"
	b := &box{t: t, root: root}
	b.write(dir+"libcuda.so.535.261.03", "")
	b.write(dir+"libnvidia-ptxjitcompiler.so.535.261.03", "")
	b.write("usr/lib/nvidia/current/nvidia-smi", "")
	if err := os.Symlink("/etc/passwd", filepath.Join(root, dir+"libnvidia-ml.so.535.261.03")); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range f.Mounts() {
		got[m.ContainerPath] = strings.TrimPrefix(m.HostPath, root+"/")
	}
	for _, to := range []string{"/usr/lib/" + triplets[runtime.GOARCH], "/usr/lib64"} {
		for _, name := range []string{"libcuda.so.1", "libcuda.so.535.261.03"} {
			if got[to+"/"+name] != dir+"libcuda.so.535.261.03" {
				t.Errorf("%s/%s is %q", to, name, got[to+"/"+name])
			}
		}
	}
	if len(got) != 9 || got["/usr/bin/nvidia-smi"] == "" {
		t.Errorf("mounted are %v", got)
	}
}

// Device files that nobody made are made, by the kernel's numbers of the drivers.
func TestNodesAreMade(t *testing.T) {
	root := t.TempDir()
	f := Files{Libraries: root, System: root}
	b := &box{t: t, root: root}
	b.write("proc/devices", "Character devices:\n  1 mem\n195 nvidia\n195 nvidia-modeset\n234 nvidia-caps\n")
	for path, want := range map[string][2]uint32{"/dev/nvidia3": {195, 3}, "/dev/nvidiactl": {195, 255}, "/dev/nvidia-caps/nvidia-cap12": {234, 12}} {
		if major, minor, err := f.number(path); err != nil || major != want[0] || minor != want[1] {
			t.Errorf("%s is %d:%d, %v", path, major, minor, err)
		}
	}
	for _, path := range []string{"/dev/nvidia-uvm", "/dev/dri/renderD128", "/dev/nvidiax"} {
		if _, err := f.Nodes([]string{path}); err == nil {
			t.Errorf("%s is made, and there is no driver of it", path)
		}
	}
	if nodes, err := f.Nodes([]string{"/dev/nvidia-uvm-tools"}); err != nil || len(nodes) > 0 {
		t.Errorf("what nothing needs is missed: %v, %v", nodes, err)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root to make device files")
	}
	nodes, err := f.Nodes([]string{"/dev/nvidia3"})
	if err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(nodes[0].HostPath, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFCHR || st.Rdev != 195<<8|3 {
		t.Errorf("%+v is %o, %x, %v", nodes[0], st.Mode, st.Rdev, err)
	}
}
