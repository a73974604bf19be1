package workload

import (
	"errors"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

func TestFaultsInPlainWords(t *testing.T) {
	const shim = `failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: `
	for text, want := range map[string]string{
		shim + `exec: "/bin/busybox": stat /bin/busybox: no such file or directory: unknown`:                                                                             `the image has no program "/bin/busybox"; look at command and entrypoint [exec: "/bin/busybox": stat /bin/busybox: no such file or directory]`,
		shim + `error during container init: exec: "serve": executable file not found in $PATH: unknown`:                                                                 `the image has no program "serve"`,
		`exec /entry.sh: no such file or directory: unknown`:                                                                                                             `or not the interpreter`,
		shim + `exec: "/etc": permission denied: unknown`:                                                                                                                `"/etc" in the image is not a program that its user may run`,
		`exec /app: exec format error`:                                                                                                                                   `"/app" in the image is not a program for this device`,
		shim + `error during container init: error setting rlimits for ready process: error setting rlimit type 8: operation not permitted: unknown`:                     `does not allow the ulimit`,
		shim + `error setting rlimit type 8: operation not permitted: unknown`:                                                                                           `does not allow the ulimit memlock that is asked for`,
		shim + `error during container init: error mounting "/run/x" to rootfs at "/etc/passwd": mount src=/run/x: not a directory: Are you trying to mount a directory`: `"/etc/passwd" cannot be mounted: one side is a file`,
		`lstat /dev/ttyUSB0: no such file or directory`:                                                                                                                  `the device has no /dev/ttyUSB0`,
		"something else": "something else",
	} {
		if got := plainly(errors.New(text)); !strings.Contains(got, want) {
			t.Errorf("%s\nbecame %s\nwant   %s", text, got, want)
		}
	}
}

// The texts come from the real runtime, too.
func TestFaultsOfTheRuntimeInPlainWords(t *testing.T) {
	d := newDevice(t)
	d.begin()
	app := d.app("web",
		api.Service{Name: "none", Entrypoint: []string{"/bin/busybox"}},
		api.Service{Name: "path", Entrypoint: []string{"busybox"}},
		api.Service{Name: "folder", Entrypoint: []string{"/etc"}},
		api.Service{Name: "device", Devices: []string{"/dev/no-such-thing"}},
		api.Service{Name: "mount", Mounts: []api.Mount{{Kind: api.MountBind, Source: "x", Target: "/etc/passwd"}}},
		api.Service{Name: "files", Ulimits: []api.Ulimit{{Name: "nofile", Soft: 1 << 40, Hard: 1 << 40}}},
	)
	for i := range app.Bundle.Services {
		app.Bundle.Services[i].NetworkMode = "none"
	}
	d.m.Set([]App{app})
	for service, want := range map[string]string{
		"none": `the image has no program "/bin/busybox"`, "path": `the image has no program "busybox"`, "folder": `"/etc" in the image is not a program`,
		"device": "the device has no /dev/no-such-thing", "mount": `"/etc/passwd" cannot be mounted`, "files": "does not allow the ulimit nofile",
	} {
		var got string
		d.wait(service+" fails", func() bool {
			got = d.service("web", service).Message
			return d.service("web", service).State == api.Backoff
		})
		if !strings.HasPrefix(got, want) && !strings.Contains(got, want) {
			t.Errorf("%s: %s", service, got)
		}
		t.Log(got)
	}
}
