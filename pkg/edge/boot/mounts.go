package boot

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/edge/boot/nvram"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// mounts makes the usual folders of a running Linux; the initramfs may have brought some.
func (b *booter) mounts(context.Context) error {
	const tight = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
		data                 string
		must                 Must
	}{
		{"proc", "/proc", "proc", tight, "", must},
		{"sysfs", "/sys", "sysfs", tight, "", must},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", must},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=25%", must},
		{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=25%", must},
		{"tmpfs", "/var", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=10%", must},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666", logOn},
		{"tmpfs", "/dev/shm", "tmpfs", tight, "mode=1777", logOn},
		{"mqueue", "/dev/mqueue", "mqueue", tight, "", logOn},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", tight, "nsdelegate,memory_recursiveprot", must},
		{"securityfs", "/sys/kernel/security", "securityfs", tight, "", logOn},
	} {
		if nvram.Mounted(m.target) {
			continue
		}
		_ = os.MkdirAll(m.target, 0o755) // the root is read-only; what should be there is
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) && bool(m.must) {
			return fmt.Errorf("%s: %w", m.target, err)
		}
	}
	for _, dir := range []string{Dir, b.run("log"), filepath.Dir(agentSocket), "/var/lib", "/var/log", "/run/lock"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// What a mount of the root becomes is seen by containers' namespaces, as everywhere.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// showFirmware mounts what the firmware keeps, now that nobody waits for an answer. Who wants
// it earlier does the same.
func (b *booter) showFirmware(context.Context) error {
	return errors.Join(nvram.Variables(), nvram.Dumps())
}

// kernelSettings are those that differ from the kernel's own choice.
func (b *booter) kernelSettings(context.Context) error {
	// Three fingers reach process 1 as SIGINT instead of cutting the power at once.
	errs := []error{unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)}
	for name, value := range map[string]string{
		"kernel/kptr_restrict":             "2",
		"kernel/dmesg_restrict":            "1",
		"kernel/unprivileged_bpf_disabled": "1",
		"kernel/sysrq":                     "0",
		"fs/protected_hardlinks":           "1",
		"fs/protected_symlinks":            "1",
		"fs/inotify/max_user_instances":    "1024",
		"fs/inotify/max_user_watches":      "65536",
		"vm/max_map_count":                 "262144",
	} {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value+"\n"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

const cgroupRoot = "/sys/fs/cgroup"

// cgroups turns the controllers on and gives the appliance's own programs a branch of their
// own, apart from the apps'.
func (b *booter) cgroups(context.Context) error {
	have, err := os.ReadFile(cgroupRoot + "/cgroup.controllers")
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range []string{cgroupRoot, cgroupRoot + "/system"} {
		errs = append(errs, os.MkdirAll(dir, 0o755))
		errs = append(errs, control(dir, strings.Fields(string(have))))
	}
	b.branch = cgroupRoot + "/system"
	return errors.Join(errs...)
}

// control turns controllers on below dir: all at once, since the kernel sets all groups anew for
// each word, and where it does not take one of them each by itself.
func control(dir string, controllers []string) error {
	turn := func(names ...string) error {
		return os.WriteFile(dir+"/cgroup.subtree_control", []byte("+"+strings.Join(names, " +")), 0)
	}
	if len(controllers) == 0 || turn(controllers...) == nil {
		return nil
	}
	var errs []error
	for _, c := range controllers {
		if err := turn(c); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c, err))
		}
	}
	return errors.Join(errs...)
}

// raiseClock keeps time from going back: it is never before the build, nor before what was
// last saved.
func (b *booter) raiseClock(context.Context) error {
	var saved, built time.Time
	if st, err := os.Stat(clockFile); err == nil {
		saved = st.ModTime()
	}
	if text, err := os.ReadFile("/usr/lib/tributary/build-time"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
			built = time.Unix(n, 0)
		}
	}
	floor := clockFloor(time.Now(), built, saved)
	if floor.IsZero() {
		return nil
	}
	b.say("the clock stood at %s, before %s: set", time.Now().UTC().Format(time.RFC3339), floor.UTC().Format(time.RFC3339))
	tv := unix.NsecToTimeval(floor.UnixNano())
	return unix.Settimeofday(&tv)
}

const clockFile = stateDir + "/clock"

// maxSavedAhead bounds what a damaged file can do to the clock: twenty years.
const maxSavedAhead = 20 * 365 * 24 * time.Hour

// clockFloor is the time to set, or zero when the clock may stay.
func clockFloor(now, built, saved time.Time) time.Time {
	floor := built
	if saved.After(floor) && (built.IsZero() || saved.Sub(built) < maxSavedAhead) {
		floor = saved
	}
	if now.Before(floor) {
		return floor
	}
	return time.Time{}
}

func (b *booter) saveClock() {
	if b.state {
		_ = os.WriteFile(clockFile, nil, 0o600)
		_ = os.Chtimes(clockFile, time.Time{}, time.Now()) // the next hour tries again
	}
}

// machineID is made once and kept in STATE; a box without STATE has one for this boot.
func (b *booter) machineID(context.Context) error {
	const kept = stateDir + "/machine-id"
	var id string
	if text, err := os.ReadFile(kept); b.state && err == nil && validID(strings.TrimSpace(string(text))) {
		id = strings.TrimSpace(string(text))
	} else {
		raw := make([]byte, 16)
		if _, err := rand.Read(raw); err != nil {
			return err
		}
		raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80 // a UUID of version 4, as machine-id(5) asks
		id = hex.EncodeToString(raw)
		if b.state {
			if err := atomicfile.Write(kept, []byte(id+"\n"), 0o644); err != nil {
				return err
			}
		}
	}
	if err := os.WriteFile(b.run("machine-id"), []byte(id+"\n"), 0o444); err != nil {
		return err
	}
	return unix.Mount(b.run("machine-id"), "/etc/machine-id", "", unix.MS_BIND, "")
}

func validID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 16 && strings.ToLower(s) == s
}

func (b *booter) hostname(context.Context) error {
	name := b.facts.Settings.Name
	if name == "" {
		id, err := os.ReadFile(b.run("machine-id"))
		if err != nil || len(id) < 8 {
			id = []byte("unknown0")
		}
		name = "tributary-" + string(id[:8])
	}
	return unix.Sethostname([]byte(name))
}

// zram makes compressed swap in memory of tributary.zram= MiB.
func (b *booter) zram(context.Context) error {
	mib, err := strconv.ParseInt(b.cmdline["tributary.zram"], 10, 32)
	if err != nil || mib <= 0 {
		return nil
	}
	if b.modules != nil {
		if err := b.modules.Load("zram"); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/sys/block/zram0/disksize", []byte(strconv.FormatInt(mib<<20, 10)), 0); err != nil {
		return err
	}
	f, err := os.OpenFile("/dev/zram0", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	page := os.Getpagesize()
	head := make([]byte, page) // mkswap(8)'s header: version 1, last page, and the magic at the page's end
	binary.NativeEndian.PutUint32(head[1024:], 1)
	binary.NativeEndian.PutUint32(head[1028:], uint32(mib<<20/int64(page)-1))
	copy(head[page-10:], "SWAPSPACE2")
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	node := []byte("/dev/zram0\x00")
	const preferred = 0x8000 | 100 // SWAP_FLAG_PREFER
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(&node[0])), preferred, 0); errno != 0 {
		return fmt.Errorf("swapon: %w", errno)
	}
	return nil
}
