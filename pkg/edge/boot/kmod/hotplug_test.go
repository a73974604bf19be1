package kmod

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

func TestAdded(t *testing.T) {
	for event, want := range map[string]string{
		"add@/devices/usb1/1-1:1.0\x00ACTION=add\x00SUBSYSTEM=usb\x00MODALIAS=usb:v46F4p0001\x00SEQNUM=7\x00": "usb:v46F4p0001",
		"add@/devices/usb1/1-1\x00MODALIAS=usb:v46F4":                                                         "usb:v46F4",
		"remove@/devices/usb1/1-1:1.0\x00MODALIAS=usb:v46F4\x00":                                              "",
		"change@/devices/x\x00MODALIAS=usb:v46F4\x00":                                                         "",
		"add@/devices/virtual/net/lo\x00ACTION=add\x00":                                                       "",
		"add@/devices/x": "",
		"libudev\x00\xfe\xed\xca\xfeMODALIAS=usb:v46F4": "",
		"": "",
	} {
		if got := added([]byte(event)); got != want {
			t.Errorf("%q: a device that says it is %q", event, got)
		}
	}
}

func FuzzAdded(f *testing.F) {
	f.Add([]byte("add@/devices/x\x00ACTION=add\x00MODALIAS=usb:v46F4\x00"))
	f.Fuzz(func(t *testing.T, event []byte) {
		if alias := added(event); strings.ContainsRune(alias, 0) {
			t.Errorf("%q", alias)
		}
	})
}

// device is one that says what it is, and the file by which the kernel is made to tell of it again.
func device(t *testing.T) (alias, trigger string) {
	t.Helper()
	_ = filepath.WalkDir("/sys/devices", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "modalias" {
			return nil
		}
		text, err := os.ReadFile(p)
		if name := strings.TrimSpace(string(text)); err == nil && name != "" && !strings.ContainsAny(name, "*?[\\ ") {
			alias, trigger = name, filepath.Join(filepath.Dir(p), "uevent")
			return fs.SkipAll
		}
		return nil
	})
	if alias == "" {
		t.Skip("needs a device that says what it is")
	}
	return alias, trigger
}

// A device that the kernel tells of gets its driver; one that a program tells of, in the
// kernel's words, does not.
func TestHotPlug(t *testing.T) {
	alias, trigger := device(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep":     "",
		"modules.builtin": "kernel/a/for-the-device.ko\nkernel/a/for-the-lie.ko\n", // nothing is really loaded
		"modules.alias":   "alias usb:lie for_the_lie\nalias " + alias + " for_the_device\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	news, err := Listen()
	if err != nil {
		t.Skipf("needs the kernel's events: %v", err)
	}
	if err := lie(t, news, "add@/devices/lie\x00ACTION=add\x00MODALIAS=usb:lie\x00"); err != nil {
		_ = news.Close()
		t.Skipf("needs to be root, for what programs may tell: %v", err)
	}
	if err := os.WriteFile(trigger, []byte("add"), 0); err != nil {
		_ = news.Close()
		t.Skipf("needs to be root, to have the kernel tell of %s: %v", trigger, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	loaded, ended := make(chan int, 16), make(chan error, 1)
	go func() {
		ended <- tree.HotPlug(ctx, news, "/nowhere", nil, func(n int, err error) {
			if err != nil {
				t.Error(err)
			}
			loaded <- n
		})
	}()
	if n := wait.For(t, "the device's driver is loaded", loaded); n != 1 || !tree.has("for_the_device") {
		t.Errorf("%d drivers were loaded", n)
	}
	cancel()
	if err := wait.For(t, "it ends", ended); err != nil {
		t.Error(err)
	}
	if tree.has("for_the_lie") {
		t.Error("a program's word is taken for the kernel's")
	}
}

func TestHotPlugChecks(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestHotPlug$", "hotplug.go")...)
}

// lie sends an event as a program can, to one listener.
func lie(t *testing.T, to *News, event string) error {
	t.Helper()
	raw, err := to.f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var at unix.Sockaddr
	if err := raw.Control(func(fd uintptr) { at, err = unix.Getsockname(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte(event), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: at.(*unix.SockaddrNetlink).Pid})
}
