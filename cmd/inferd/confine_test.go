package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// probe has this test's program try, as inferd would, and say what it can.
const probe = "INFERD_PROBE"

func TestMain(m *testing.M) {
	dir := os.Getenv(probe)
	if dir == "" {
		os.Exit(m.Run())
	}
	if os.Getenv("INFERD_FREE") == "" {
		if err := confine([]string{filepath.Join(dir, "library")}, []string{filepath.Join(dir, "models")}); err != nil {
			fmt.Println("not confined:", err)
			os.Exit(0)
		}
	}
	can := func(what string, err error) {
		if err == nil {
			fmt.Println("can", what)
		}
	}
	_, err := os.ReadFile(filepath.Join(dir, "library"))
	can("read the library", err)
	can("write a model", os.WriteFile(filepath.Join(dir, "models", "m"), []byte("x"), 0o600))
	can("write the library", os.WriteFile(filepath.Join(dir, "library"), []byte("x"), 0o600))
	_, err = os.ReadFile(filepath.Join(dir, "secret"))
	can("read a secret", err)
	_, err = os.ReadDir(dir)
	can("list the folder above", err)
	c, err := net.Dial("tcp", os.Getenv("INFERD_TCP"))
	can("dial", err)
	if err == nil {
		c.Close()
	}
	can("run a shell", exec.Command("/bin/sh", "-c", "cat "+filepath.Join(dir, "secret")).Run())
	os.Exit(0)
}

func tries(t *testing.T, more ...string) []string {
	dir := t.TempDir()
	for _, name := range []string{"library", "secret"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "models"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), probe+"="+dir, "INFERD_TCP="+l.Addr().String()), more...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func TestConfine(t *testing.T) {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	got := tries(t)
	if errno != 0 {
		if want := []string{"not confined: " + errUnconfined.Error()}; !slices.Equal(got, want) {
			t.Errorf("without Landlock it says %q, want %q", got, want)
		}
		return
	}
	want := []string{"can read the library", "can write a model"}
	if abi < 4 {
		want = append(want, "can dial") // Landlock forbids TCP from version 4
	}
	if !slices.Equal(got, want) {
		t.Errorf("confined, it says %q, want %q", got, want)
	}
}

// TestUnconfined: what TestConfine sees forbidden is not forbidden to begin with.
func TestUnconfined(t *testing.T) {
	want := []string{"can read the library", "can write a model", "can write the library", "can read a secret", "can list the folder above", "can dial", "can run a shell"}
	if got := tries(t, "INFERD_FREE=1"); !slices.Equal(got, want) {
		t.Errorf("free, it says %q, want %q", got, want)
	}
}

func TestRunTells(t *testing.T) {
	if err := run(t.Context(), options{library: "/nonexistent.so"}, nil); err == nil || errors.Is(err, errUnconfined) {
		t.Errorf("without the library: %v", err)
	}
}
