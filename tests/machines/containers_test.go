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
	tools, err := workloadtest.Build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(tools.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		files = withFile(t, files, "tools/"+e.Name(), filepath.Join(tools.Dir, e.Name()))
	}
	return withPrograms(t, ctx, files, "tools", "containerd", "runc", "containerd-shim-runc-v2")
}

// withPrograms adds programs of the test machine to a folder of a guest, and their libraries.
func withPrograms(t *testing.T, ctx context.Context, files []initramfs.File, dir string, names ...string) []initramfs.File {
	t.Helper()
	for _, name := range names {
		from, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		files = withFile(t, files, dir+"/"+name, from)
		out, _ := exec.CommandContext(ctx, "ldd", from).Output() // a static one fails
		for word := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(word, "/") {
				files = withFile(t, files, strings.Replace("usr"+word, "usr/usr/", "usr/", 1), word)
			}
		}
	}
	return files
}

// withFile adds a file, unless there is one.
func withFile(t *testing.T, files []initramfs.File, path, from string) []initramfs.File {
	t.Helper()
	if slices.ContainsFunc(files, func(f initramfs.File) bool { return f.Path == path }) {
		return files
	}
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	return append(files, initramfs.File{Path: path, Mode: 0o755, Data: data})
}
