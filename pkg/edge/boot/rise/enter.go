package rise

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tell leaves what was found out for what comes after: /run is carried over.
func (r *rise) tell() error {
	if err := os.MkdirAll("/run/tributary", 0o755); err != nil {
		return err
	}
	steps, err := json.Marshal(r.steps)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"slot":        r.disk.Slot() + "\n",
		"disk":        r.disk.Name + "\n",
		"initrd.json": string(steps) + "\n",
	} {
		if err := os.WriteFile("/run/tributary/"+name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := keepExtras(); err != nil {
		say("%v", err) // STATE is then opened by its other token, or not: its step tells
	}
	return nil
}

// extras are what the stub of the unified kernel image put beside the initramfs
// (systemd-stub(7)): the release's signatures over the PCRs, by which STATE's key unseals.
var extras = []string{"tpm2-pcr-signature.json", "tpm2-pcr-public-key.pem"}

const maxExtra = 16 << 10

// keepExtras carries them over; an image without them has STATE's key sealed otherwise.
func keepExtras() error {
	for _, name := range extras {
		text, err := os.ReadFile("/.extra/" + name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil && len(text) > maxExtra {
			err = fmt.Errorf("%s has %d bytes, more than %d", name, len(text), maxExtra)
		}
		if err == nil {
			err = os.WriteFile("/run/tributary/"+name, text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// enter leaves the initramfs for good: the mounts move over, the memory of the initramfs is
// given back, and the root is this program's from then on. No other takes its place: one that
// did would be read, verified and started once more, and be the same but for these few files.
func (r *rise) enter() error {
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := unix.Mount(dir, sysroot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", dir, err)
		}
	}
	if err := os.Chdir(sysroot); err != nil {
		return err
	}
	clear("/")
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	os.Clearenv() // the kernel put words of its command line there
	for name, value := range map[string]string{"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "TERM": "linux"} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	if kmsg != nil {
		_ = kmsg.Close()
	}
	return nil
}

// clear removes what lies on the initramfs itself, to free its memory, and nothing that is
// mounted on it. What cannot be removed stays: it costs memory only.
func clear(dir string) {
	var here unix.Stat_t
	if unix.Lstat(dir, &here) != nil {
		return
	}
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		p := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil || st.Dev != here.Dev {
			continue
		}
		if e.IsDir() {
			clear(p)
		}
		_ = os.Remove(p)
	}
}

// uptime is in seconds since the kernel started.
func uptime() float64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return float64(ts.Nano()/1e6) / 1e3
}

// log goes through the kernel's own ring, which writes it to every console, keeps it for
// whoever asks later, and for pstore when the kernel dies.
var kmsg *os.File

func openLog() {
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		kmsg = f
	}
}

func say(format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	if kmsg != nil {
		fmt.Fprintf(kmsg, "<4>edged: %s\n", text)
		return
	}
	os.Stdout.WriteString("edged: " + text + "\n")
}

func consoles() []string {
	b, err := os.ReadFile("/sys/class/tty/console/active")
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "?"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func megabytes(n int64) string { return strconv.FormatInt(n>>20, 10) + " MiB" }
