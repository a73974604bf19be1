package workload

import (
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/pattern"
)

// plainly says in plain words why a container could not be made or started, where the
// runtime's text is known; the detail follows. What is not known stays as it is.
func plainly(err error) string {
	text := strings.TrimSpace(err.Error())
	for _, k := range knownFaults {
		if at := k.form.Regexp().FindStringSubmatchIndex(text); at != nil {
			words := string(k.form.Regexp().ExpandString(nil, k.words, text, at))
			return rlimitNames(words) + " [" + detail(text) + "]"
		}
	}
	return text
}

// knownFaults are texts of runc 1.0 to 1.3 (libcontainer: init_linux.go,
// standard_init_linux.go, rootfs_linux.go) and of Go's os/exec.
var knownFaults = []struct {
	form  *pattern.Pattern
	words string
}{
	{pattern.New(`exec: "([^"]*)": (?:executable file not found in \$PATH|stat [^:]*: no such file or directory)`),
		`the image has no program "$1"; look at command and entrypoint`},
	{pattern.New(`exec:? "?(/[^": ]*)"?: no such file or directory`),
		`the image has no program "$1", or not the interpreter or loader that it names; look at command, entrypoint and the image's architecture`},
	{pattern.New(`exec: "([^"]*)": (?:stat [^:]*: )?(?:permission denied|is a directory)`),
		`"$1" in the image is not a program that its user may run; look at command, entrypoint and user`},
	{pattern.New(`exec:? "?(/[^": ]*)"?: permission denied`),
		`"$1" in the image is not a program that its user may run; look at command, entrypoint and user`},
	{pattern.New(`exec "?(/[^": ]*)"?: exec format error`),
		`"$1" in the image is not a program for this device; look at the image's architecture`},
	{pattern.New(`exec format error`),
		`the image's program is not one for this device; look at the image's architecture`},
	{pattern.New(`error setting rlimit type (\d+): (?:operation not permitted|invalid argument)`),
		`the device does not allow the ulimit rlimit-$1 that is asked for; ask for less, or raise the limit of containerd there`},
	{pattern.New(`chdir to cwd \("([^"]*)"\).*: permission denied`),
		`the container's user may not enter its working folder "$1"; look at working_dir and user`},
	{pattern.New(`error mounting "[^"]*" to rootfs at "([^"]*)".*(?:not a directory|is a directory)`),
		`"$1" cannot be mounted: one side is a file and the other a folder; look at the mount's target and what the image has there`},
	{pattern.New(`error mounting "[^"]*" to rootfs at "([^"]*)".*read-only file system`),
		`"$1" cannot be mounted: the folder that it lies in is read-only; make the mount point part of the image`},
	{pattern.New(`(?:lstat|stat|open) (/dev/[^:]*): no such file or directory`),
		`the device has no $1; look at devices`},
	{pattern.New(`failed to write "[^"]*" to "?/proc/sys/([^":]*)`),
		`the device's kernel does not take the sysctl $1; look at sysctls`},
}

// detail is what stands innermost: the runtime wraps its errors from the outside.
func detail(text string) string {
	for _, mark := range []string{"runc create failed: ", "OCI runtime create failed: ", "OCI runtime start failed: "} {
		if i := strings.LastIndex(text, mark); i >= 0 {
			text = text[i+len(mark):]
		}
	}
	return strings.TrimSuffix(strings.TrimPrefix(text, "unable to start container process: "), ": unknown")
}

var rlimitNumber = pattern.New(`rlimit-(\d+)`)

// rlimitNames puts the names of Compose in the place of the kernel's numbers
// (asm-generic/resource.h).
func rlimitNames(text string) string {
	names := []string{"cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"}
	return rlimitNumber.Regexp().ReplaceAllStringFunc(text, func(s string) string {
		n, err := strconv.Atoi(strings.TrimPrefix(s, "rlimit-"))
		if err != nil || n < 0 || n >= len(names) {
			return s
		}
		return names[n]
	})
}
