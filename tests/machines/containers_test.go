package machines

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
)

// withContainers adds what makes containers, to what a guest starts from: the test machine's own containerd and runc
// with their libraries, and our programs beside them in /tools. A file that is there already stays.
func withContainers(t *testing.T, ctx context.Context, files []initramfs.File) []initramfs.File {
	t.Helper()
	if why := workloadtest.Missing(); why != "" {
		t.Skip(why)
	}
	add := func(path, from string) {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(files, func(f initramfs.File) bool { return f.Path == path }) {
			files = append(files, initramfs.File{Path: path, Mode: 0o755, Data: data})
		}
	}
	tools, err := workloadtest.Build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(tools.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		add("tools/"+e.Name(), filepath.Join(tools.Dir, e.Name()))
	}
	for _, name := range []string{"containerd", "runc", "containerd-shim-runc-v2"} {
		from, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		add("tools/"+name, from)
		out, _ := exec.CommandContext(ctx, "ldd", from).Output() // a static one fails
		for word := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(word, "/") {
				add(strings.Replace("usr"+word, "usr/usr/", "usr/", 1), word)
			}
		}
	}
	return files
}
