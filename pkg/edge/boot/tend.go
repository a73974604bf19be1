package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/boot/watchdog"
)

// openWatchdog takes the watchdog that runs since the initramfs.
func (b *booter) openWatchdog(context.Context) (err error) {
	if b.dog = b.cfg.Watchdog; b.dog != nil {
		return nil
	}
	if _, err := os.Stat(watchdog.Path); errors.Is(err, os.ErrNotExist) {
		return nil // a module may bring it; see loadModules
	}
	b.dog, err = watchdog.Open(watchdog.Path, b.cmdline.Seconds("tributary.watchdog", 60*time.Second, 10*time.Minute))
	return err
}

// retryWatchdog is for boxes whose initramfs had none: the kernel's own timer is better
// than nothing.
func (b *booter) retryWatchdog() {
	if _, err := os.Stat(watchdog.Path); err != nil {
		if err := b.modules.Load("softdog"); err != nil {
			b.say("%v", err)
		}
	}
	if err := b.openWatchdog(context.Background()); err != nil || b.dog == nil {
		b.warn(api.Warning{Name: "no-watchdog", Severity: api.Degraded, Message: "this box has no watchdog: a hang is not ended by itself", Remedy: "switch the watchdog on in the firmware, or name its driver in the profile"})
	}
}

func (b *booter) feed() {
	if b.dog != nil {
		if err := b.dog.Pet(); err != nil {
			b.say("%v", err)
		}
	}
}

// resetsFile counts resets by the watchdog for an agent that did not answer.
const resetsFile = stateDir + "/watchdog-resets"

// tend is the rest of the life of process 1: it feeds the watchdog while the agent
// deserves it, and waits for a reason to leave.
func (b *booter) tend(ctx context.Context) request {
	b.healthy = uptime()
	if text, err := readSome(resetsFile, 16); err == nil {
		_, _ = fmt.Sscan(string(text), &b.resets) // rubbish counts as none
	}
	every := 15 * time.Second
	if b.dog != nil {
		every = b.dog.Every()
	}
	beat, hour := time.NewTicker(every), time.NewTicker(time.Hour)
	defer beat.Stop()
	defer hour.Stop()
	answers := make(chan error, 1)
	asking := false
	for {
		select {
		case r := <-b.leave:
			return r
		case <-hour.C:
			b.saveClock()
		case err := <-answers:
			asking = false
			if err == nil {
				b.agentWell()
			}
		case <-beat.C:
			if b.judge != nil {
				if reason, restart := b.judge.Tick(uptime()); restart {
					return request{Do: doReboot, Reason: reason}
				}
			}
			if b.agentWanted() && !asking {
				asking = true
				go func() { answers <- askAgent(agentSocket) }()
			}
			if !b.agentWanted() || watchdog.Deserved(uptime()-b.healthy, b.resets) {
				b.feed()
				continue
			}
			return b.giveUp()
		}
	}
}

func (b *booter) agentWanted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.children {
		if c.name == "agent" {
			return true
		}
	}
	return false
}

func (b *booter) agentWell() {
	b.healthy = uptime()
	if b.resets != 0 {
		b.resets = 0
		_ = os.Remove(resetsFile) // counted once more at worst
	}
}

// giveUp ends a box whose agent has been ill for too long: in good order, with the
// watchdog behind it in case that hangs too.
func (b *booter) giveUp() request {
	if b.state {
		_ = os.WriteFile(resetsFile, fmt.Appendf(nil, "%d\n", b.resets+1), 0o600) // without it the next wait is no longer
	}
	return request{Do: doReboot, Reason: fmt.Sprintf("the agent has not answered for %v", watchdog.Hold(b.resets))}
}

// listen turns signals into their meaning for process 1.
func (b *booter) listen(signals <-chan os.Signal) {
	for s := range signals {
		switch s {
		case unix.SIGCHLD:
			b.procs.reap()
		case unix.SIGTERM, unix.SIGINT: // Ctrl-Alt-Del is SIGINT
			b.ask(request{Do: doReboot, Reason: "signal " + s.String()})
		case unix.SIGUSR1, unix.SIGUSR2, unix.SIGPWR:
			b.ask(request{Do: doPowerOff, Reason: "signal " + s.String()})
		}
	}
}

func (b *booter) ask(r request) {
	select {
	case b.leave <- r:
	default: // on its way down already
	}
}

func encodeWarnings(list []api.Warning) []byte {
	if list == nil {
		list = []api.Warning{}
	}
	out, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		return []byte("[]\n")
	}
	return append(out, '\n')
}

// Warnings reads what the boot under dir (Dir) warned of, for the agent to report. A box
// that did not boot by this package has none.
func Warnings(dir string) []api.Warning {
	text, err := readSome(dir+"/warnings.json", 256<<10)
	if err != nil {
		return nil
	}
	var list []api.Warning
	if err := json.Unmarshal(text, &list); err != nil {
		return []api.Warning{{Name: "boot-report-unreadable", Severity: api.Degraded, Message: strings.TrimSpace(err.Error()), Since: time.Now().Unix()}}
	}
	return list
}
