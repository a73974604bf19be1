package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/onboard"
)

// findOwner lets a box without a membership, a parent and a token find whose it is. A
// program of its own does that and enrols: what it takes is of no use to a member.
func (b *box) findOwner(ctx context.Context) error {
	if !b.o.findOwner {
		return nil
	}
	enrolled, err := exists(filepath.Join(b.o.data, "identity", "device.pem"))
	if err != nil {
		return err
	}
	if !enrolled && !b.hasInvitation() {
		first, end := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.runFirst(first)
		}()
		err := b.searchOwner(ctx)
		end()
		<-done
		if err != nil {
			return err
		}
	}
	if err := onboard.DropFirst(b.o.data); err != nil {
		return err
	}
	owner, err := onboard.LoadOwner(b.o.data)
	if err != nil {
		return err
	}
	if owner != nil { // after what a person named, if anything
		b.o.parents = append(b.o.parents, owner.Parents...)
		b.first.Store(owner.Release)
	}
	if len(b.o.parents) == 0 {
		return &api.Error{Code: api.Invalid, Message: "this box is a member and nobody says where it attaches", Remedy: "pass --parent"}
	}
	return nil
}

// hasInvitation tells whether a person named a parent and a token: that goes first.
func (b *box) hasInvitation() bool {
	_, err := b.o.joinToken()
	return err == nil && len(b.o.parents) > 0
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// The pauses between two lives of the program that finds the owner.
const (
	finderPause    = time.Second
	maxFinderPause = time.Minute
)

// searchOwner runs the program until it has found the owner, or a person brought a token.
func (b *box) searchOwner(ctx context.Context) error {
	defer b.waiting.Store(nil)
	for pause := finderPause; ; pause = min(2*pause, maxFinderPause) {
		err := b.runFinder(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil || b.hasInvitation() {
			return nil
		}
		b.log.Warn("the owner is not found", "err", err, "again", pause)
		b.waiting.Store(&api.Warning{Name: "no-owner", Severity: api.Critical, Since: b.clock.Now().Unix(), Message: err.Error()})
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}

// runFinder is one life of the program, whose words are shown as why the box waits.
func (b *box) runFinder(ctx context.Context) error {
	argv := strings.Fields(b.o.finder)
	if len(argv) == 0 {
		return &api.Error{Code: api.Invalid, Field: "--find-owner-with", Message: "names no program"}
	}
	argv = append(argv, "--data", b.o.data, "--name", b.o.name)
	if floor := b.clock.Floor(); !floor.IsZero() {
		argv = append(argv, "--floor", strconv.FormatInt(floor.Unix(), 10))
	}
	if b.o.relay {
		argv = append(argv, "--relay")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = b.errs
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	// It ends with edged, however edged ends. The kernel counts the thread that started it as
	// its parent (prctl(2), PR_SET_PDEATHSIG), so that thread must stay.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("the program that finds the owner does not start: %w", err)
	}
	defer b.watchInvitation(cancel)()
	b.hear(out)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s, which finds the owner, ended (%w); the log tells why", filepath.Base(argv[0]), err)
	}
	return nil
}

// maxWord bounds one line of the program.
const maxWord = 64 << 10

// hear takes the program's words until it ends.
func (b *box) hear(out io.Reader) {
	in := bufio.NewScanner(out)
	in.Buffer(nil, maxWord)
	for in.Scan() {
		var w api.Warning
		if json.Unmarshal(in.Bytes(), &w) == nil && w.Name != "" {
			w = b.firstWarning(w)
			b.waiting.Store(&w)
		}
	}
}

// watchInvitation ends the search once a token lies in its file: a person goes first.
func (b *box) watchInvitation(found func()) (stop func()) {
	done := make(chan struct{})
	if b.o.tokenFile != "" && len(b.o.parents) > 0 {
		go func() {
			tick := time.NewTicker(2 * time.Second)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
					if b.hasInvitation() {
						found()
						return
					}
				}
			}
		}()
	}
	return func() { close(done) }
}
