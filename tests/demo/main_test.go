package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The shell that the demo offers has what a person needs, whatever the folders are called.
func TestShellScript(t *testing.T) {
	root := filepath.Join(t.TempDir(), "it's a $folder")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "shell")
	script := shellScript(root, root+"/bin", root+"/core", []string{"EDGECTL_SERVER=https://127.0.0.1:8443", "EDGECTL_TOKEN=t", "HOME=/nowhere"}, []string{"env", "IN=core"})
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "sh", "-c", `echo "$IN $EDGECTL_SERVER $EDGECTL_TOKEN $DATA $HOME $PWD ${PATH%%:*}"`)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/home/ann"}
	out, err := cmd.Output()
	if want := "core https://127.0.0.1:8443 t " + root + "/core /home/ann " + root + " " + root + "/bin\n"; err != nil || string(out) != want {
		t.Errorf("%v\n got %q\nwant %q", err, out, want)
	}
}
