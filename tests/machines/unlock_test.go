package machines

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"tributary.dev/tributary/tests/lab"
)

// probeApp runs vsockprobe in a container.
const probeApp = `apiVersion: tributary/v1
kind: App
metadata: {name: probe}
spec:
  compose: |
    services:
      main: {image: "default/probe:latest", restart: always, network_mode: host}
---
apiVersion: tributary/v1
kind: Fleet
metadata: {name: field}
spec:
  selector: {matchLabels: {role: field}}
  apps: [probe]
`

// probeImage makes an image with vsockprobe alone.
func probeImage(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	program := filepath.Join(dir, "vsockprobe")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./vsockprobe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	if err := w.WriteHeader(&tar.Header{Name: "vsockprobe", Mode: 0o755, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture, config.Config.Entrypoint = "linux", runtime.GOARCH, []string{"/vsockprobe"}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "image")
	p, err := layout.Write(out, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(image); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestUnlock opens a root shell on a machine by its serial line: somebody with the role
// rescuer has the core answer the challenge that the console shows, once, and the box has no
// network meanwhile. In the shell, and in a container before, the console's vsock port is
// tried as the machine's own programs can, while the machine's host reaches it. What happened
// is told to the core when the box is back.
func TestUnlock(t *testing.T) {
	disk := needImage(t, runtime.GOARCH)
	bin, err := filepath.Abs(cmp.Or(os.Getenv("TRIBUTARY_BIN"), filepath.Join(root, "bin")))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := New(Spec{Bin: bin, Images: filepath.Dir(filepath.Dir(disk)), Dir: t.TempDir(), Boxes: []BoxSpec{{Name: "box", Parent: "core", Role: "field", VSock: true}}, Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	closing(t, tree, "unlock.txt")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	edgectl := func(stdin string, args ...string) string {
		t.Helper()
		out, err := tree.Edgectl(ctx, stdin, args...)
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return out
	}
	if err := tree.StartCore(ctx); err != nil {
		t.Fatal(err)
	}
	if err := tree.Join(ctx); err != nil {
		t.Fatal(err)
	}
	edgectl("", "app", "push", probeImage(t), "default/probe:latest")
	edgectl(probeApp, "apply", "-f", "-")
	if err := tree.StartBoxes(ctx); err != nil {
		t.Fatal(err)
	}
	var said string
	err = lab.Until(ctx, "the container has tried", patience, func(ctx context.Context) (err error) {
		if said, err = tree.Edgectl(ctx, "", "logs", "box", "probe"); err == nil && !strings.Contains(said, "tried all") {
			err = fmt.Errorf("it has said %q", said)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a container hears of the console:\n%s", said)
	if strings.Contains(said, "HEARD") {
		t.Error("a container reaches the console")
	}

	m := tree.Machine("box")
	if bad := failures(m); len(bad) > 0 {
		t.Errorf("steps that failed:\n%s", strings.Join(bad, "\n"))
	}
	say := func(line, pattern string) []string {
		t.Helper()
		if err := m.Send(line); err != nil {
			t.Fatal(err)
		}
		found, err := m.Expect(ctx, pattern)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	say("\r", `s for the drawn screen: `)
	say("shell\r", `1  Show a challenge[\s\S]*go back: `)
	// The owner's key comes with the manifest, and is kept half a minute after that at last.
	var challenge string
	err = lab.Until(ctx, "a challenge is shown", patience/2, func(context.Context) error {
		page := say("1\r", `FAILED: [\s\S]*go back: |Have this answered:([\s\S]*)go back: `)
		if challenge = regexp.MustCompile(`([0-9A-Z]{4,5}\s+){15}`).FindString(page[1]); challenge == "" {
			return errors.New(flat(page[0]))
		}
		return nil
	})
	if err != nil {
		say("\r", `drawn screen: `)
		say("apps\r", `2  Read a log of the box[\s\S]*go back: `)
		t.Fatalf("%v; the agent says\n%s", err, say("2\ragent\r", `agent\]: [\s\S]*Done\.`)[0])
	}
	person := func(name, role string) string {
		t.Helper()
		out, err := exec.CommandContext(ctx, filepath.Join(bin, "cored"), "token", "create", "--data", tree.CoreDir(), "--name", name, "--role", role).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	if out, err := tree.Edgectl(ctx, challenge, "--token", person("vera", "viewer"), "device", "unlock", "box", "--challenge", "-"); err == nil {
		t.Errorf("a viewer is answered: %s", out)
	}
	if err := tree.Box("box").CutUplink(ctx); err != nil {
		t.Fatal(err)
	}
	rita := person("rita", "rescuer")
	answer := strings.TrimSpace(edgectl(challenge, "--token", rita, "device", "unlock", "box", "--challenge", "-"))
	if out, err := tree.Edgectl(ctx, challenge, "--token", rita, "device", "unlock", "box", "--challenge", "-"); err == nil {
		t.Errorf("the core answers twice: %s", out)
	}
	dialConsole(t, ctx, m).say(t, "\r", `drawn screen: `)
	say("1\r", `do not count: `)
	say(answer+"\r", `locks it again`)
	run := func(command string) string {
		t.Helper()
		return strings.TrimSpace(say(command+"; echo en\"\"ded\r", `(?s)en""ded(.*?)\r?\nended`)[1])
	}
	run("true") // after it the shell has said all that it says at first
	if got := run("echo $(id -u) $(tty)"); !strings.Contains(got, "0 /dev/pts/") {
		t.Errorf("the shell: %q", got)
	}
	run("modprobe vsock_loopback; P=$(find /run/containerd /data/containerd -name vsockprobe -type f | head -1)")
	run("$P listen 9050 & for i in $(seq 60); do $P dial 1 9050 | grep -q HEARD && break; sleep 1; done")
	for _, cid := range []string{"1", "3"} {
		if got := run("$P dial " + cid + " 9050"); !strings.Contains(got, "HEARD") {
			t.Errorf("the box does not reach itself over vsock as %s, so what follows proves nothing: %q", cid, got)
		}
	}
	for _, cid := range []string{"1", "2", "3"} { // itself, its host, and its own number
		got := run("$P dial " + cid + " 9040")
		t.Logf("the box's own root hears of the console by CID %s: %s", cid, got)
		if !strings.Contains(got, "silent, ") {
			t.Errorf("a program of the box reaches the console as %s: %q", cid, got)
		}
	}
	if got := run("grep -c 'vsock console refused' /run/tributary/log/console.log"); got == "0" || got == "" {
		t.Errorf("the console has refused nobody: %q", got)
	}
	// What left the shell's session ends with it too.
	run("setsid $P listen 9051 & true")
	greets := func(ctx context.Context) error {
		conn, err := m.DialVSock(ctx, 9051)
		if err == nil {
			conn.Close()
		}
		return err
	}
	if err := lab.Until(ctx, "what was started in the shell answers", patience, greets); err != nil {
		t.Error(err)
	}
	say("exit\r", `Locked\.[\s\S]*drawn screen: `)
	if greets(ctx) == nil {
		t.Error("what was started in the shell goes on behind the lock")
	}
	say("shell\r", `1  Show a challenge[\s\S]*go back: `)
	say("1\r", `Have this answered:[\s\S]*go back: `)
	say("1\r", `do not count: `)
	say(answer+"\r", `FAILED: that is not the answer[\s\S]*go back: `) // it was good once
	if events := edgectl("", "events", "box"); strings.Contains(events, "console.opened") || !strings.Contains(events, "device.unlock") || !strings.Contains(events, "rita") {
		t.Errorf("while the box has no network the core knows\n%s", events)
	}
	if err := tree.Box("box").HealUplink(ctx); err != nil {
		t.Fatal(err)
	}
	err = lab.Until(ctx, "the box tells of its shell", patience, func(ctx context.Context) error {
		events, err := tree.Edgectl(ctx, "", "events", "box")
		for _, want := range []string{"device.unlock", "console.challenge", "console.opened", "console.closed", "console.refused"} {
			if err == nil && !strings.Contains(events, want) {
				err = fmt.Errorf("no %s among\n%s", want, events)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// closing ends the tree with the test, and keeps what its machine "box" said.
func closing(t *testing.T, tree *Tree, capture string) {
	t.Cleanup(func() {
		if m := tree.Machine("box"); m != nil {
			if t.Failed() {
				t.Logf("the serial line:\n%s", m.Console.Tail(200))
			}
			keepCapture(t, capture, m.Console.String())
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
}

// keepCapture keeps what a machine showed for people to look at: in TRIBUTARY_CAPTURES, or
// build/captures.
func keepCapture(t *testing.T, name, text string) {
	t.Helper()
	dir := cmp.Or(os.Getenv("TRIBUTARY_CAPTURES"), filepath.Join(root, "build", "captures"))
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)); err != nil {
		t.Error(err)
	}
}
