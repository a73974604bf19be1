package update

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/update/guard"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/oci"
	"tributary.dev/tributary/pkg/release"
)

// Firmware is what the update asks of the boot variables, in slots. BootVariables (firmware.go) is it on a box.
type Firmware interface {
	// Usable is nil where variables can be written.
	Usable() error
	// Order is the firmware's order of the two slots; Next what it starts once, "" for none.
	Order() ([]Slot, error)
	Next() (Slot, error)
	SetNext(Slot) error
	ClearNext() error
	// SetOrder puts that slot first and the other second.
	SetOrder(first Slot) error
}

// Config is what a Manager is made of.
type Config struct {
	State  string // the file, /state/update.json
	Work   string // folder for what is fetched; it may be emptied at any time
	Anchor string // root of release keys in the image
	Kept   string // the newest root that was accepted, /state/release-root.json

	Running  Slot
	RootHash string
	Version  string
	Counter  uint64
	Arch     string
	Profile  string
	BootID   string

	Flash     *Flash
	Firmware  Firmware
	Artifacts oci.Upstream
	// Bless takes the counter off the running slot's kernel image (mount.go).
	Bless func(Slot) error
	// Want is what the manifest names, nil for nothing; known is false before there is a manifest.
	Want func() (w *Want, known bool)
	// Health is how the box is now.
	Health func() Health
	// Floor is the security counter's, and Raise lifts it.
	Floor func() uint64
	Raise func(uint64) error
	// Open tells whether updates may be fetched and tried at this hour; Rate bounds the download in bytes a second, and
	// 0 or a nil function does not.
	Open func(time.Time) bool
	Rate func() int64
	// Past is a moment that is certainly over, whatever the clock says: by it signatures and roots end. Zero: they do not.
	Past   func() time.Time
	Reboot func(ctx context.Context, reason string) error
	// Room is told before the work that needs memory, and what it gives after it; nil does nothing.
	Room      func() (after func())
	Panic     string // what the kernel left behind in its last moments
	Now       func() time.Time
	Uptime    func() time.Duration
	Deadlines Deadlines
	Log       *slog.Logger
}

// Manager runs the update.
type Manager struct {
	cfg Config

	mu    sync.Mutex
	state State
	stamp stamp // of the file, as it was written or read last
	done  *Done
	root  *release.Trusted // as it was read last; nil: not yet
	// waits is what keeps the update from going on, since when, and how often it did in a row.
	waits struct {
		doing Do
		err   error
		since time.Time
		times int
	}
}

// New reads what was kept. A state that cannot be read is told in the log and begun anew.
func New(cfg Config) *Manager {
	s, err := Load(cfg.State)
	if err != nil {
		cfg.Log.Error("the update's state cannot be read; what runs is taken for good", "err", err)
	}
	if cfg.Flash.Scratch == "" {
		cfg.Flash.Scratch = cfg.Work
	}
	return &Manager{cfg: cfg, state: s, stamp: stampOf(cfg.State)}
}

// stamp tells one writing of the file from another: each makes it anew. A file that is not there has none.
type stamp struct {
	at   time.Time
	node uint64
}

func stampOf(file string) stamp {
	info, err := os.Stat(file)
	if err != nil {
		return stamp{}
	}
	s := stamp{at: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.node = st.Ino
	}
	return s
}

// reload takes over what someone else wrote into the state: process 1 a verdict, a person the wish to go back.
func (m *Manager) reload() {
	now := stampOf(m.cfg.State)
	if now == m.stamp {
		return
	}
	if now == (stamp{}) { // it is gone, and written anew from what is known
		m.stamp = now
		return
	}
	s, err := Load(m.cfg.State)
	if err != nil {
		m.cfg.Log.Error("the update's state was changed and cannot be read; it stays as it was known", "err", err)
	} else {
		m.mu.Lock()
		m.state = s
		m.mu.Unlock()
	}
	m.stamp = now
}

// State is how the update stands. From any goroutine.
func (m *Manager) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.clone()
}

// Running is the slot that the box runs from.
func (m *Manager) Running() Slot { return m.cfg.Running }

// The loop's pauses.
const (
	lookEvery = 5 * time.Second
	pauseMin  = 5 * time.Second
	pauseMost = 10 * time.Minute
	waitsTold = 3 // failures in a row before people hear of it
)

// Run updates until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	pause, last := pauseMin, Nothing
	m.look()
	m.cfg.Log.Info("the update stands", "phase", m.State().Phase, "slot", m.cfg.Running)
	for ctx.Err() == nil {
		do, err := m.turn(ctx)
		wait := time.Duration(0)
		again := do == last
		last = do
		m.note(do, err)
		switch {
		case err != nil:
			m.cfg.Log.Warn("the update waits", "doing", do, "for", pause, "err", err)
			wait = pause
			pause = min(2*pause, pauseMost)
		case do == Nothing:
			wait, pause = lookEvery, pauseMin
		case again: // it was done, and is to be done again: never at full speed
			wait = pauseMin
		default:
			pause = pauseMin
		}
		if wait == 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

// note counts what fails again and again.
func (m *Manager) note(do Do, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil && (do != Nothing || m.state.Phase == Idle):
		m.waits.times = 0 // something went well
	case err != nil:
		if m.waits.times == 0 {
			m.waits.since = m.cfg.Now()
		}
		m.waits.doing, m.waits.err = do, err
		m.waits.times++
	}
}

// turn observes, decides, keeps, and does one thing.
func (m *Manager) turn(ctx context.Context) (Do, error) {
	m.reload()
	f, err := m.facts()
	if err != nil {
		return Nothing, err
	}
	before := m.State()
	s, do := Step(before, f, m.cfg.Deadlines)
	if changed(before, s) {
		switch fresh, err := m.keep(s); {
		case err != nil:
			return do, err // nothing is done that is not on the disk
		case !fresh:
			return Nothing, nil // it is decided anew, by what somebody else wrote
		}
		for _, e := range s.History[min(len(before.History), len(s.History)):] {
			m.cfg.Log.Info("update", "version", e.Version, "slot", e.Slot, "what", e.What)
		}
		if s.Phase != before.Phase { // on the disk by now
			m.cfg.Log.Info("the update goes on", "phase", s.Phase, "from", before.Phase)
		}
	}
	m.mu.Lock()
	m.state = s
	m.mu.Unlock()
	if do == Nothing {
		return do, nil
	}
	done := &Done{Do: do}
	done.Err = m.perform(ctx, do, s, done)
	if ctx.Err() != nil {
		return do, nil
	}
	if errors.Is(done.Err, release.ErrClosed) { // nothing went wrong
		m.cfg.Log.Info("the download goes on in the next update hours")
		return Nothing, nil
	}
	m.mu.Lock()
	m.done = done
	m.mu.Unlock()
	if done.Last {
		return do, nil // Step hears of it at once
	}
	return do, done.Err
}

// keep writes the state, unless somebody else has since it was read.
func (m *Manager) keep(s State) (fresh bool, err error) {
	defer guard.Hold(m.cfg.State)()
	if stampOf(m.cfg.State) != m.stamp { // somebody else wrote it since
		return false, nil
	}
	if err := Save(m.cfg.State, s); err != nil {
		return true, err
	}
	m.stamp = stampOf(m.cfg.State)
	return true, nil
}

func changed(a, b State) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 != nil || err2 != nil || !bytes.Equal(x, y)
}

func (m *Manager) facts() (Facts, error) {
	c := &m.cfg
	f := Facts{Now: c.Now(), Uptime: c.Uptime(), Boot: c.BootID, Running: c.Running, Root: c.RootHash, Version: c.Version, Counter: c.Counter,
		Arch: c.Arch, Profile: c.Profile, Floor: c.Floor(), Panic: c.Panic, Open: c.Open(c.Now()), Health: c.Health()}
	m.mu.Lock()
	f.Done = m.done
	m.mu.Unlock()
	want, known := c.Want()
	if f.Want = want; !known { // an unknown manifest withdraws nothing
		if t := m.State().Target; t != nil {
			f.Want = &Want{Repo: t.Repo, Digest: t.Digest, Attempt: t.Attempt}
		}
	}
	phase := m.State().Phase
	if phase != Idle { // each variable that is read is a call into the firmware: none on a box at rest
		f.Variables = c.Firmware.Usable() == nil
	}
	if f.Variables {
		var err error
		if f.Order, err = c.Firmware.Order(); err != nil {
			return f, err
		}
		if f.Next, err = c.Firmware.Next(); err != nil {
			return f, err
		}
	}
	switch phase { // an ESP is read only where it tells something
	case Armed, Trial, Confirming, Returned:
		if e, err := c.Flash.LookESP(c.Running.Other()); err == nil {
			f.Entered = e.Tried > 0
		}
		if e, err := c.Flash.LookESP(c.Running); err == nil {
			f.Blessed = !e.Counted
		}
	}
	return f, nil
}

func (m *Manager) perform(ctx context.Context, do Do, s State, done *Done) error {
	c := &m.cfg
	other := c.Running.Other()
	switch do {
	case Check:
		return m.check(ctx, s, done)
	case Fetch:
		err := m.fetch(ctx, s)
		done.Last, done.Why = final(err), CauseFetch
		return err
	case Write:
		err := m.write(ctx, s)
		if errors.Is(err, ErrContent) {
			done.Last, done.Why = m.wrong(), CauseUnfit
		}
		return err
	case Verify:
		_, d, err := m.parts(ctx, s)
		if err != nil {
			return err
		}
		return c.Flash.Verify(other, d, s.Install)
	case Arm:
		err := c.Firmware.SetNext(other)
		done.Last, done.Why = err != nil, CauseFirmware
		return err
	case Disarm:
		return c.Firmware.ClearNext()
	case Bless:
		if err := c.Bless(c.Running); err != nil {
			return err
		}
		return c.Flash.Disk.Sync() // check: unmounting writes, and waits for no flush; the order changes next
	case Order:
		return c.Firmware.SetOrder(c.Running)
	case Raise:
		return c.Raise(s.Slots[c.Running].Counter)
	case Reboot:
		reason := "to try a release"
		if s.Verdict != nil {
			reason = s.Verdict.Reason
		}
		if err := c.Reboot(ctx, reason); err != nil {
			return err
		}
		<-ctx.Done()
	}
	return nil
}

func (m *Manager) trusted() (*release.Trusted, error) {
	var best *release.Trusted
	var errs []error
	for _, file := range []string{m.cfg.Anchor, m.cfg.Kept} {
		b, err := os.ReadFile(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		t, err := release.TrustRoot(b)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		} else if best == nil || t.Version() > best.Version() {
			best = t
		}
	}
	if best == nil {
		return nil, errors.Join(errs...)
	}
	return best, nil
}

// check fetches what says what the release is, and verifies it. What was verified is laid in the work folder.
func (m *Manager) check(ctx context.Context, s State, done *Done) error {
	t, err := m.trusted()
	if err != nil {
		done.Last, done.Why = true, CauseUnsigned
		return fmt.Errorf("this box trusts no release keys: %w", err)
	}
	p, err := release.Source{Up: m.cfg.Artifacts, Repo: s.Target.Repo}.Parts(ctx, s.Target.Digest)
	if err != nil {
		done.Last, done.Why = final(err), CauseFetch
		return err
	}
	next, d, err := t.Verify(p.Roots, p.Targets, p.Description, m.cfg.Past())
	if err != nil {
		done.Last, done.Why = true, CauseUnsigned
		return err
	}
	if next.Version() > t.Version() {
		if err := atomicfile.Write(m.cfg.Kept, next.Raw(), 0o600); err != nil {
			return err
		}
		m.look()
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := m.clean(s.Target.Digest); err != nil {
		return err
	}
	if err := atomicfile.Write(m.file("parts.json"), b, 0o600); err != nil {
		return err
	}
	done.Found = &Description{Release: Release{Digest: s.Target.Digest, Repo: s.Target.Repo, Version: d.Version, Counter: d.Counter, RootHash: d.RootHash},
		Arch: d.Arch, Profile: d.Profile, Fits: m.cfg.Flash.Fits(d)}
	return nil
}

// final tells whether trying again does not help.
func final(err error) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Code != api.Unavailable && e.Code != api.NotFound // a relay may get it yet
}

func (m *Manager) file(name string) string { return filepath.Join(m.cfg.Work, name) }

// clean empties the work folder when it is another release's.
func (m *Manager) clean(digest string) error {
	if b, err := os.ReadFile(m.file("of")); err == nil && string(b) == digest {
		return nil
	}
	if err := errors.Join(os.RemoveAll(m.cfg.Work), os.MkdirAll(m.cfg.Work, 0o700)); err != nil {
		return err
	}
	return atomicfile.Write(m.file("of"), []byte(digest), 0o600)
}

// staged reads what check laid down, and verifies it once more: the folder is on DATA, where more can go wrong.
func (m *Manager) staged(digest string) (*release.Parts, release.Description, error) {
	b, err := os.ReadFile(m.file("parts.json"))
	if err != nil {
		return nil, release.Description{}, err
	}
	var p release.Parts
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, release.Description{}, err
	}
	if oci.Digest(p.Manifest) != digest {
		return nil, release.Description{}, errors.New("what was fetched is another release")
	}
	t, err := m.trusted()
	if err != nil {
		return nil, release.Description{}, err
	}
	_, d, err := t.Verify(p.Roots, p.Targets, p.Description, time.Time{}) // what had not ended when the update began goes on (TUF 1.0.33, 5.2)
	return &p, d, err
}

// way says what of the release travels to this box: a delta, unless one could not be applied, or led to a kernel image
// that this box cannot pack.
func (m *Manager) way(p *release.Parts, d release.Description) (digest string, size int64, isDelta bool, err error) {
	identity, err := m.cfg.Flash.Identity(m.cfg.Running, m.cfg.RootHash)
	if err != nil {
		m.cfg.Log.Warn("what runs cannot be read as content; the whole release is fetched", "err", err)
	}
	if _, err := os.Stat(m.file("whole")); err == nil {
		identity = ""
	}
	if err := d.Packs(); err != nil && identity != "" {
		m.cfg.Log.Warn("the whole release is fetched", "err", err)
		identity = ""
	}
	return p.Travel(identity)
}

// parts gives what Check laid aside. The work folder may be emptied at any time: then it is fetched and verified again.
func (m *Manager) parts(ctx context.Context, s State) (*release.Parts, release.Description, error) {
	if p, d, err := m.staged(s.Target.Digest); err == nil {
		return p, d, nil
	}
	if err := m.check(ctx, s, &Done{}); err != nil {
		return nil, release.Description{}, err
	}
	return m.staged(s.Target.Digest)
}

func (m *Manager) fetch(ctx context.Context, s State) error {
	p, d, err := m.parts(ctx, s)
	if err != nil {
		return err
	}
	digest, size, isDelta, err := m.way(p, d)
	if err != nil {
		return err
	}
	m.cfg.Log.Info("fetching a release", "version", s.Target.Version, "bytes", size, "delta", isDelta)
	limits := release.Limits{Rate: m.cfg.Rate}
	if s.By == "" {
		limits.Open = func() bool { return m.cfg.Open(m.cfg.Now()) }
	}
	return release.Source{Up: m.cfg.Artifacts, Repo: s.Target.Repo}.Download(ctx, digest, size, m.file("content"), limits)
}

func (m *Manager) write(ctx context.Context, s State) error {
	p, d, err := m.parts(ctx, s)
	if err != nil {
		return err
	}
	_, size, isDelta, err := m.way(p, d)
	if err != nil {
		return err
	}
	if info, err := os.Stat(m.file("content")); err != nil || info.Size() != size {
		if err := m.fetch(ctx, s); err != nil {
			return err
		}
	}
	f, err := os.Open(m.file("content"))
	if err != nil {
		return err
	}
	defer f.Close()
	if m.cfg.Room != nil {
		defer m.cfg.Room()()
	}
	if isDelta {
		return m.writeDelta(io.LimitReader(f, size), d, s.Install)
	}
	return m.cfg.Flash.Write(m.cfg.Running.Other(), d.Whole(), s.Install, func(w io.Writer) error {
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
		defer z.Close()
		slot := &sink{w: w}
		_, err = io.Copy(slot, io.LimitReader(z, d.Whole().Content.Size+1))
		if err != nil && slot.err == nil {
			return fmt.Errorf("%w: %w", ErrContent, err)
		}
		return err
	})
}

// maxWindow is how far back the packing of a whole release may refer: so much memory it takes.
const maxWindow = 16 << 20

// writeDelta writes what a delta makes of what runs.
func (m *Manager) writeDelta(f io.Reader, d release.Description, install uint64) error {
	patch, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	err = m.cfg.Flash.WriteDelta(m.cfg.Running, d, install, patch)
	if errors.Is(err, ErrDelta) {
		return m.wholeNow(err)
	}
	return err
}

// wholeNow: what this slot has is not what the delta was made from, or the delta is wrong. The next attempt fetches the whole release.
func (m *Manager) wholeNow(why error) error {
	err := errors.Join(os.Remove(m.file("content")), atomicfile.Write(m.file("whole"), nil, 0o600))
	return errors.Join(fmt.Errorf("the release is fetched whole next: %v", why), err)
}

// wrong hears that what was fetched is not what the release says, and tells whether that is the end. The disk may have lost
// what it held: it is fetched once more.
func (m *Manager) wrong() (last bool) {
	if _, err := os.Stat(m.file("again")); err == nil { // check: fetched twice
		return true
	}
	if err := errors.Join(atomicfile.Write(m.file("again"), nil, 0o600), os.Remove(m.file("content"))); err != nil {
		m.cfg.Log.Warn("wrong content of a release stays", "err", err)
	}
	return false
}
