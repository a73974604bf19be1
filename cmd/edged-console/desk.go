package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"rsc.io/qr"

	"tributary.dev/tributary/pkg/edge/recovery"
	"tributary.dev/tributary/pkg/edge/recovery/owner"
	"tributary.dev/tributary/pkg/edge/recovery/presence"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/identity/unlock"
)

// desk is the lock of the shell for one person at one console.
type desk struct {
	box    owner.Box
	limits unlock.Limits
	uptime func() time.Duration
	note   func(owner.Entry)
	where  string
	shell  []string
	// press waits for a person at the box, where the profile takes that for an answer.
	press func(ctx context.Context, say func(string)) error

	mu   sync.Mutex
	lock *unlock.Lock
	open string // the challenge that was answered last
}

// Look implements recovery.Desk.
func (d *desk) Look() (s recovery.Shell) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Button = d.press != nil
	if d.lock == nil {
		return s
	}
	c, left, ok := d.lock.Standing()
	if !ok {
		return s
	}
	s = recovery.Shell{Button: s.Button, Challenge: c.String(), ID: c.ID(), Left: left, Device: c.Device.String()}
	if !c.Proven {
		s.Device += " (the state is closed)"
	}
	// Capitals and digits alone are the code's denser form.
	if code, err := qr.Encode(strings.ReplaceAll(s.Challenge, "-", ""), qr.L); err == nil {
		s.Code = modules(code)
	}
	return s
}

func modules(code *qr.Code) [][]bool {
	out := make([][]bool, code.Size)
	for y := range out {
		out[y] = make([]bool, code.Size)
		for x := range out[y] {
			out[y][x] = code.Black(x, y)
		}
	}
	return out
}

// Ask implements recovery.Desk.
func (d *desk) Ask(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	o, err := d.box.Find()
	if err != nil {
		return err
	}
	d.lock = unlock.NewLock(unlock.LockConfig{Owner: o.Key, Device: o.Device, Proven: o.Proven, Limits: d.limits, Now: d.uptime, Rand: rand.Reader})
	c, err := d.lock.Ask()
	if err == nil {
		d.tell("challenge", c.ID(), "")
	}
	return err
}

// Try implements recovery.Desk.
func (d *desk) Try(_ context.Context, answer string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock == nil {
		return unlock.ErrNone
	}
	before, _, _ := d.lock.Standing()
	c, err := d.lock.Try(answer)
	switch {
	case err == nil:
		d.open = c.ID()
	case !errors.Is(err, unlock.ErrTyped):
		d.tell("refused", before.ID(), err.Error())
	}
	return err
}

// Press implements recovery.Desk.
func (d *desk) Press(ctx context.Context, say func(string)) error {
	if d.press == nil {
		return errors.New("this box takes no button for an answer")
	}
	if err := d.press(ctx, say); err != nil { // without the lock: it takes minutes
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = ""
	d.tell("pressed", "", "the power button was pressed, which opens the shell by this box's profile")
	return nil
}

func (d *desk) tell(what, challenge, message string) {
	d.note(owner.Entry{What: what, Challenge: challenge, Where: d.where, Message: message})
}

// bootTime is the time since the box started, its sleep included. Nobody can set it.
func bootTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// limitFile keeps what is remembered of wrong answers where all consoles of the box see it,
// until it starts anew.
type limitFile string

// Load implements unlock.Limits.
func (f limitFile) Load() (l unlock.Limit, err error) {
	b, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &l)
	}
	return l, err
}

// Save implements unlock.Limits.
func (f limitFile) Save(l unlock.Limit) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return atomicfile.Write(string(f), b, 0o600)
}

// remote: who comes by the sockets does not stand before the box, whatever button is pressed.
func remote(where string) bool { return where == bySocket || where == byVsock }

// newDesk is the desk of a person who comes by where. Below a root that is not the box's own
// all lies in files there.
func newDesk(root, run, state, data, where string) *desk {
	box := owner.Appliance(run, filepath.Join(data, "edged/identity"))
	if root != "" {
		box.Outside, box.Anchor = owner.File(filepath.Join(root, "config/OWNER.KEY")), owner.Variable{Dir: filepath.Join(root, "efivars"), Name: "TributaryOwner"}
	}
	argv := []string{"/usr/bin/busybox", "ash"} // the one shell of the appliance
	if root != "" {
		argv = []string{"/bin/sh"}
	}
	var press func(context.Context, func(string)) error
	rules, err := presence.ReadRules(filepath.Join("/", root, "usr/lib/tributary/profile.json"))
	if window, ok := rules.ByButton(); err == nil && ok && !remote(where) {
		press = func(ctx context.Context, say func(string)) error {
			say(fmt.Sprintf("Press the box's power button within %v. It does not switch the box off now.", window))
			return presence.Ask(ctx, run, window, bootTime)
		}
	}
	return &desk{box: box, press: press, shell: argv, limits: limitFile(filepath.Join(run, "unlock-limit.json")), uptime: bootTime, where: where, note: func(e owner.Entry) {
		e.Time = time.Now().UTC()
		_ = owner.Note(e, state, run) // the core knows of the answer that it gave in any case
	}}
}
