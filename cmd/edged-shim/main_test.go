package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnnotation(t *testing.T) {
	for config, want := range map[string]string{
		`{"annotations":{"tributary.dev/warm-shim":"/run/t/shim/a"}}`:                     "/run/t/shim/a",
		`{"annotations":{"tributary.dev/warm-shim":""}}`:                                  "",
		`{"annotations":{"tributary.dev/warm-shim":"relative"}}`:                          "",
		`{"annotations":{"tributary.dev/warm-shim":"/a\u0026b"}}`:                         "",
		`{"annotations":{"tributary.dev/warm-shim":"/cut`:                                 "",
		`{"process":{"env":["X=\"tributary.dev/warm-shim\":\"/evil\""]}}`:                 "",
		`{"process":{"args":["\"tributary.dev/warm-shim\":\"/evil\""]},"annotations":{}}`: "",
		``: "",
	} {
		if got := annotation([]byte(config)); got != want {
			t.Errorf("%s: got %q, want %q", config, got, want)
		}
	}
}

func TestSocket(t *testing.T) {
	for answer, want := range map[string]string{
		"unix:///run/containerd/s/ab12":                                            "/run/containerd/s/ab12",
		`{"version":3,"address":"unix:///run/containerd/s/ab","protocol":"ttrpc"}`: "/run/containerd/s/ab",
		"unix:///run/s/a b":          "",
		"unix://":                    "",
		"unix://relative":            "",
		`{"address":"vsock://1:2"}`:  "",
		"panic: something went off":  "",
		"":                           "",
		"\x00unix:///run/containerd": "",
	} {
		if got := socket([]byte(answer)); got != want {
			t.Errorf("%q: got %q, want %q", answer, got, want)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"annotations":{"tributary.dev/warm-shim":"/run/t"}}`))
	f.Add([]byte("unix:///run/containerd/s/ab12"))
	f.Add([]byte(`{"address":"unix:///x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, path := range []string{annotation(b), socket(b)} {
			if path != "" && path[0] != '/' {
				t.Fatalf("%q is not a whole path", path)
			}
		}
	})
}

// TestStart plays containerd: the first start asks the real shim (a script here that
// counts its calls), the second repeats its answer, one after the shim's end asks again.
func TestStart(t *testing.T) {
	for name, answer := range map[string]string{"containerd 1": "unix://SOCK", "containerd 2": `{"version":3,"address":"unix://SOCK","protocol":"ttrpc"}`} {
		t.Run(name, func(t *testing.T) { playStart(t, answer) })
	}
}

func playStart(t *testing.T, answer string) {
	dir := t.TempDir()
	program := filepath.Join(dir, "edged-shim")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	answer = strings.ReplaceAll(answer, "SOCK", filepath.Join(dir, "s"))
	script := "#!/bin/sh\necho \"$@\" >>" + dir + "/calls\ncat >/dev/null\nprintf '%s' '" + answer + "'\n"
	config := `{"annotations":{"tributary.dev/warm-shim":"` + dir + `/note"}}`
	for path, text := range map[string]string{realShim: script, configFile: config} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	call := func(action string, calls int) {
		t.Helper()
		cmd := exec.Command(program, "-namespace", "n", "-id", "x", action)
		cmd.Dir, cmd.Env, cmd.Stdin = dir, []string{"PATH=" + dir + ":/usr/bin:/bin"}, strings.NewReader("options")
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != answer {
			t.Fatalf("%s: %q, %v", action, out, err)
		}
		made, _ := os.ReadFile(filepath.Join(dir, "calls"))
		if n := bytes.Count(made, []byte("\n")); n != calls {
			t.Fatalf("%s: the real shim was called %d times in all, want %d", action, n, calls)
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	call("start", 1)
	call("start", 1)
	written, _ := os.ReadFile(filepath.Join(dir, "address"))
	if want := map[bool]string{true: answer}[answer[0] != '{']; string(written) != want {
		t.Errorf("address file %q, want %q", written, want)
	}
	call("delete", 2)
	_ = l.Close()
	call("start", 3)
}

// TestStartFails passes the real shim's failure on and remembers nothing.
func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	script := filepath.Join(dir, realShim)
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if code := start(script, []string{script, "start"}, nil, filepath.Join(dir, "note")); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	if _, err := os.Stat(filepath.Join(dir, "note")); err == nil {
		t.Error("a failure was remembered")
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, realShim), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(dir, realShim)
	if got := find(realShim, []string{"x", "-publish-binary", dir + "/containerd", "start"}, []string{"PATH=/nowhere"}); got != want {
		t.Errorf("beside containerd: %q", got)
	}
	if got := find(realShim, nil, []string{"PATH=:relative:" + dir}); got != want {
		t.Errorf("in the PATH: %q", got)
	}
	if got := find(realShim, nil, nil); got != "" {
		t.Errorf("nowhere: %q", got)
	}
}
