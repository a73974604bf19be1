package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/wait"
)

// A token that nobody can use: as a flag it ends edged with a remedy; in a file it is
// shown by edged status, and what is in the file next is shown after it.
func TestBadToken(t *testing.T) {
	dir := t.TempDir()
	args := []string{"run", "--data", filepath.Join(dir, "d"), "--run", filepath.Join(dir, "r"), "--parent", "127.0.0.1:1,1"}
	var errs bytes.Buffer
	if code := dispatch(t.Context(), append(args, "--join-token", "tj1.cut"), io.Discard, &errs); code != 2 || !strings.Contains(errs.String(), "copy the whole token") {
		t.Errorf("exit %d: %s", code, errs.String())
	}
	errs.Reset()
	if code := dispatch(t.Context(), args, io.Discard, &errs); code != 2 || !strings.Contains(errs.String(), "--join-token-file") {
		t.Errorf("without a token: exit %d: %s", code, errs.String())
	}

	file := filepath.Join(dir, "token")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() { ended <- dispatch(ctx, append(args, "--join-token-file", file), io.Discard, io.Discard) }()
	says := func(want string) {
		t.Helper()
		var last string
		for deadline := time.Now().Add(wait.Limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			var out, errs bytes.Buffer
			dispatch(t.Context(), []string{"status", "--run", filepath.Join(dir, "r")}, &out, &errs)
			if last = out.String() + errs.String(); strings.Contains(last, "not-enrolled") && strings.Contains(last, want) {
				return
			}
		}
		t.Fatalf("edged status never says %q: %s", want, last)
	}
	says("put it into " + file)
	if err := os.WriteFile(file, []byte("tj1.cut\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	says("holds no join token")
	if err := os.WriteFile(file, []byte("tj1.a.b."+strings.Repeat("A", 43)), 0o600); err != nil {
		t.Fatal(err)
	}
	says("connection refused")
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("ended with %d", code)
	}
}
