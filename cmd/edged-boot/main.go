// Edged-boot answers: what is process 1 of the appliance? It is edged's boot and
// supervision as a program of its own, a third of the size of the agent's: it lies in
// memory for as long as the box runs, and none of the agent's libraries can hurt it. It is
// the /init of the initramfs, in the signed kernel image, and stays when the root is there.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/edge/boot/rise"
	"tributary.dev/tributary/pkg/edge/recovery/presence"
	"tributary.dev/tributary/pkg/edge/uplink"
	"tributary.dev/tributary/pkg/link/names"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = "dev"

// settled is when what starting needed can be given back, and the collector begins to keep
// memory small: until then it would run a dozen times for a few megabytes.
const settled = time.Minute

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "edged-boot: the kernel starts this as /init of the initramfs; it is of no use elsewhere")
		os.Exit(2)
	}
	debug.SetGCPercent(200)
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	dog := rise.Up()
	// Process 1 is edged to whoever looks: this program is the part of it that never ends. The
	// name is the first thread's, on which this need not run any more.
	_ = os.WriteFile("/proc/self/comm", []byte("edged"), 0)
	time.AfterFunc(settled, func() {
		debug.SetGCPercent(25)
		debug.FreeOSMemory()
	})
	boot.Run(boot.Config{
		Version: version, Watchdog: dog,
		TPM:     newTPM(),
		Recover: recoverArgs,
		Network: func(ctx context.Context, s *api.NetworkSettings, say func(string, ...any)) error {
			return uplink.Keep(ctx, uplink.Keeping{Config: uplink.Config{Settings: s, Run: boot.Dir, Sys: "/sys", Say: say, Rank: rank()}, File: "/state/network.json",
				Online: func(ctx context.Context) bool { return online(ctx, "/run/edged/edged.sock") }})
		},
		Button:  func() bool { return presence.Pressed(boot.Dir, sinceBoot()) },
		Agent:   agentArgs,
		Judge:   judge,
		Console: consoleArgs,
	})
}

// rank is in which turn ports are asked for an address where nobody said how: by the roles
// that the image's profile gives them.
func rank() func(driver string) int {
	p, err := hwprofiles.Installed(os.DirFS("/"))
	if err != nil {
		return nil // no profile: one port is as good as another
	}
	return func(driver string) int {
		switch nic, _ := p.NIC(driver); nic.Role {
		case hwprofiles.Site:
			return 1
		case hwprofiles.Fronthaul:
			return uplink.Last
		}
		return 0
	}
}

// consoleArgs is the command line of the recovery console on a terminal, and, for no
// terminal, of the one on the box's sockets.
func consoleArgs(tty string) []string {
	const program = "/usr/bin/edged-console"
	if _, err := os.Stat(program); err != nil {
		return nil // an image without one
	}
	if tty == "" {
		return []string{program, "--serve"}
	}
	return []string{program, "--tty", "/dev/" + tty}
}

// agentArgs is the command line of the agent on the appliance.
func agentArgs(f boot.Facts) (argv []string, why string) {
	// Without a parent, or a token for it, the box looks for its owner by itself.
	argv = []string{"/usr/bin/edged", "run", "--data", f.Data, "--run", "/run/edged", "--find-owner"}
	if f.Parent != "" {
		parent, err := boot.ParentFlag(f.Parent)
		if err != nil {
			return nil, err.Error()
		}
		argv = append(argv, "--parent", parent)
	}
	if f.TokenFile != "" {
		argv = append(argv, "--join-token-file", f.TokenFile)
	}
	if f.Settings.Name != "" {
		argv = append(argv, "--name", f.Settings.Name)
	}
	if len(f.Settings.Labels) > 0 {
		var pairs []string
		for k, v := range f.Settings.Labels {
			pairs = append(pairs, k+"="+v)
		}
		slices.Sort(pairs)
		argv = append(argv, "--labels", strings.Join(pairs, ","))
	}
	argv = append(argv, "--proxy-file", boot.Dir+"/"+uplink.ProxyFile, "--uplinks", boot.Dir+"/"+names.File)
	if f.Settings.Relay {
		argv = append(argv, "--relay")
		if most := f.Profile.Relay.Cache; most > 0 {
			argv = append(argv, "--cache", strconv.FormatInt(most, 10))
		}
	}
	return argv, ""
}

// sinceBoot is the clock by which the console asks for the button.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
