// Package boot answers: what does the first process of the appliance do, in which order,
// and what then? The order is the list in Run. After it, process 1 keeps three kinds of
// children alive (containerd, the agent, the consoles), feeds the watchdog for as long as
// the agent is healthy, takes in orphans, and ends the box in good order.
//
// A crash of a child is a restart, never the kernel's panic; a panic in a step of this
// package is that step's error.
package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/boot/blk"
	"tributary.dev/tributary/pkg/edge/boot/cmdline"
	"tributary.dev/tributary/pkg/edge/boot/kmod"
	"tributary.dev/tributary/pkg/edge/boot/watchdog"
)

const diskWait = time.Minute

// Dir is where this boot tells about itself.
const Dir = "/run/tributary"

// Config is what the program brings along.
type Config struct {
	Version string
	// Watchdog runs since the initramfs; nil when there is none yet.
	Watchdog *watchdog.Device
	// TPM keeps STATE's key; nil on a program that knows none.
	TPM TPM
	// Network brings addresses onto the interfaces and keeps them until ctx ends. The
	// settings are nil when CONFIG holds none or is not fit.
	Network func(ctx context.Context, settings *api.NetworkSettings, say func(format string, args ...any)) error
	// Agent and Console are command lines of children, made from what is known; nil means
	// that there is nothing to start. why is shown.
	Agent   func(Facts) (argv []string, why string)
	Console func(tty string) (argv []string)
	// Recover is the command line of the child that asks the core for STATE's key, when the
	// TPM does not give it; the file holds a Recovery.
	Recover func(f Facts, file string) (argv []string)
	// Button takes a press of the power button for something else than switching the box off,
	// and tells whether it did; nil never does.
	Button func() bool
	// Judge makes the judge of a release on trial; nil for none.
	Judge func(Facts) Judge
}

// Judge decides in the agent's place, when that does not live. Where it says true the box starts anew, for that reason.
// It is called from several goroutines.
type Judge interface {
	AgentEnded(how string) (reason string, restart bool)
	Tick(uptime time.Duration) (reason string, restart bool)
}

// Facts are what the children's command lines depend on.
type Facts struct {
	Settings Settings
	Cmdline  cmdline.Line
	// Profile is the image's hardware profile; without a name there is none.
	Profile hwprofiles.Profile
	// TokenFile is where the join token lies, when there is one.
	TokenFile string
	// Parent is join.parent of CONFIG, now or when it was last there.
	Parent string
	Data   string // folder for what must outlive a reboot
}

type booter struct {
	cfg     Config
	cmdline cmdline.Line
	out     *consoles
	procs   *processes
	modules *kmod.Tree
	plugged bool // all drivers are being loaded, or are
	hosted  bool // a machine's host is answered
	disk    *blk.Disk
	dog     *watchdog.Device
	branch  string // of the cgroups, for the children; empty when there are none
	state   bool   // STATE is mounted
	data    bool   // DATA is mounted
	keys    keyring
	facts   Facts
	judge   Judge // nil for none

	mu       sync.Mutex
	report   Report
	warnings []api.Warning
	children []*child
	healthy  time.Duration // the uptime at which the agent last answered
	resets   int           // watchdog resets in a row for an unhealthy agent
	leave    chan request
}

// Run is the life of process 1. It does not return: it ends with the box.
func Run(cfg Config) {
	b := &booter{cfg: cfg, procs: newProcesses(), leave: make(chan request, 1), healthy: uptime(), out: &consoles{}}
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPWR)
	go b.listen(signals)

	err := climb(ctx, b.list(), uptime, b.stepDone)
	b.mu.Lock()
	b.report.Done = err == nil
	b.mu.Unlock()
	b.save()
	why := request{Do: doReboot}
	if err != nil {
		b.say("the box cannot start: %v; it starts anew in %v", err, failWait)
		select {
		case why = <-b.leave:
		case <-time.After(failWait):
			why.Reason = err.Error()
		}
	} else {
		b.say("up after %.1f s", uptime().Seconds())
		why = b.tend(ctx)
	}
	cancel()
	b.down(why)
}

// failWait leaves time to read what failed.
const failWait = 20 * time.Second

// list is boot, from top to bottom. What is not a must may fail: the box then comes up with
// less and says so, since a box that a person can talk to can be mended.
func (b *booter) list() []step {
	return []step{
		{"mounts", must, b.mounts},
		{"console", logOn, b.openConsoles},
		{"cmdline", must, b.readCmdline},
		{"profile", logOn, b.readProfile},
		{"watchdog", logOn, b.openWatchdog},
		{"kernel", logOn, b.kernelSettings},
		{"cgroups", logOn, b.cgroups},
		{"control", logOn, b.serveControl},
		{"modules", logOn, b.loadModules},
		{"disk", logOn, b.findDisk},
		{"grow", logOn, b.growData},
		{"state", logOn, b.openState},
		{"clock", logOn, b.raiseClock},
		{"machine-id", logOn, b.machineID},
		{"data", logOn, b.openData},
		{"config", logOn, b.readConfig},
		{"limits", logOn, b.heedProfile},
		{"parent", logOn, b.keepParent},
		{"hostname", logOn, b.hostname},
		{"agent", logOn, b.startAgent},
		{"firmware", logOn, b.showFirmware},
		{"drivers", logOn, b.plugRest},
		{"zram", logOn, b.zram},
		{"network", logOn, b.network},
		{"extensions", logOn, b.extend},
		{"buttons", logOn, b.buttons},
		{"children", logOn, b.startChildren},
	}
}

func (b *booter) run(name string) string { return filepath.Join(Dir, name) }

func (b *booter) stepDone(s StepReport) {
	b.mu.Lock()
	b.report.Steps = append(b.report.Steps, s)
	b.mu.Unlock()
	b.out.print(s.line())
	b.feed()
	if s.Error != "" || b.agentWanted() { // before, nobody reads it
		b.save()
	}
}

// save writes what others read. Before /run is there, nothing can be written, and nobody
// reads.
func (b *booter) save() {
	b.mu.Lock()
	report := b.report.encode()
	warnings := encodeWarnings(b.warnings)
	b.mu.Unlock()
	for name, text := range map[string][]byte{"boot.json": report, "warnings.json": warnings} {
		if err := replace(b.run(name), text); err != nil && !errors.Is(err, os.ErrNotExist) {
			b.say("%s: %v", name, err)
		}
	}
}

// replace writes a file of /run as a whole.
func replace(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (b *booter) warn(w api.Warning) {
	w.Since = time.Now().Unix()
	b.mu.Lock()
	b.warnings = append(b.warnings, w)
	b.mu.Unlock()
	b.say("warning %s: %s", w.Name, w.Message)
	b.save()
}

func (b *booter) say(format string, args ...any) {
	b.out.print(fmt.Sprintf("%8.3f  ", uptime().Seconds()) + fmt.Sprintf(format, args...))
}

func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func (b *booter) readCmdline(context.Context) error {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	b.cmdline = cmdline.Parse(string(text))
	b.facts.Cmdline = b.cmdline
	b.report.Version, b.report.Profile = b.cfg.Version, b.cmdline["tributary.profile"]
	if text, err := os.ReadFile(b.run("initrd.json")); err == nil {
		_ = json.Unmarshal(text, &b.report.Initrd) // for people alone
	}
	if b.out.verbose = b.cmdline.Has("tributary.debug"); b.out.verbose {
		for _, s := range b.report.Initrd {
			b.out.print(s.line())
		}
		b.say("edged %s, %s", b.cfg.Version, strings.TrimSpace(string(text)))
	}
	return os.WriteFile(b.run("profile"), []byte(b.report.Profile+"\n"), 0o644)
}
