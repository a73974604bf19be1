package realtime

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Machine is what is written to: the files of this machine, or of a test.
type Machine interface {
	fs.FS
	// Write replaces what a file says. An interrupt that the kernel lets nobody move fails.
	Write(path, value string) error
	// Boot names the start of the machine: what was found before it stands no more.
	Boot() string
}

// Store keeps values under keys, on disk before Put returns; an empty value removes.
type Store interface {
	Load(bucket string, fn func(key, value []byte) error) error
	Put(bucket, key string, value []byte) error
}

const (
	bucket  = "realtime"
	keyBoot = "boot"
	prefix  = "found/" // the path follows
)

// Keeper keeps a machine as the profile asks. Its methods may be called from any goroutine.
type Keeper struct {
	machine Machine
	store   Store
	wish    Wish
	now     func() time.Time
	log     *slog.Logger

	mu       sync.Mutex
	found    map[string]string
	stuck    map[string]bool // that the kernel lets nobody write
	warnings []api.Warning
}

// New reads what an earlier run found, and has put back nothing yet.
func New(machine Machine, store Store, wish Wish, now func() time.Time, log *slog.Logger) (*Keeper, error) {
	k := &Keeper{machine: machine, store: store, wish: wish, now: now, log: log, found: map[string]string{}, stuck: map[string]bool{}}
	boot := ""
	err := store.Load(bucket, func(key, value []byte) error {
		if string(key) == keyBoot {
			boot = string(value)
		} else if path, ok := strings.CutPrefix(string(key), prefix); ok {
			k.found[path] = string(value)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if boot == machine.Boot() {
		return k, nil
	}
	// The machine started anew, and with it all that was found. The new name comes last: if
	// this is cut off it is done again.
	for _, path := range slices.Sorted(maps.Keys(k.found)) {
		if err := store.Put(bucket, prefix+path, nil); err != nil {
			return nil, err
		}
	}
	clear(k.found)
	return k, store.Put(bucket, keyBoot, []byte(machine.Boot()))
}

// Apply brings the machine to where the profile wants it, as far as it goes, or back to
// what was found where the profile wants nothing. It may be repeated.
func (k *Keeper) Apply() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := Look(k.machine)
	if k.idle(s) {
		k.warnings = nil
		return k.release()
	}
	writes := slices.DeleteFunc(Plan(s, k.wish), func(w Write) bool { return k.stuck[w.Path] })
	for _, w := range writes { // all before the first write: one may change what another finds
		if _, known := k.found[w.Path]; !known {
			if err := k.store.Put(bucket, prefix+w.Path, []byte(w.Found)); err != nil {
				return err // without a note it is not written
			}
			k.found[w.Path] = w.Found
		}
	}
	for _, w := range writes {
		if err := k.machine.Write(w.Path, w.Value); err != nil {
			k.stuck[w.Path] = true // asked again after the next start: the kernel pins it
			if !errors.Is(err, fs.ErrNotExist) {
				k.log.Debug("not settled for real-time work", "file", w.Path, "value", w.Value, "err", err)
			}
		}
	}
	k.note(Findings(Look(k.machine), k.wish))
	return nil
}

// idle tells that the profile asks for nothing: no processors are kept free, for whom
// there would be something to do.
func (k *Keeper) idle(s *State) bool {
	return len(s.Isolated) == 0 && k.wish.Isolate == "" && !k.wish.RealTime && len(k.wish.Pages) == 0
}

// note keeps since when each finding stands.
func (k *Keeper) note(list []api.Warning) {
	for i := range list {
		list[i].Since = k.now().Unix()
		for _, old := range k.warnings {
			if old.Name == list[i].Name {
				list[i].Since = old.Since
			}
		}
	}
	k.warnings = list
}

// release puts back what was found. What is gone needs nothing.
func (k *Keeper) release() error {
	var errs []error
	// Backward: a processor's governor comes before its preference, which the governor performance lets nobody set.
	for _, path := range slices.Backward(slices.Sorted(maps.Keys(k.found))) {
		if err := k.machine.Write(path, k.found[path]); err != nil && !errors.Is(err, fs.ErrNotExist) && !k.stuck[path] {
			k.log.Warn("what was found is not put back", "file", path, "value", k.found[path], "err", err)
		}
		if err := k.store.Put(bucket, prefix+path, nil); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(k.found, path)
	}
	return errors.Join(errs...)
}

// Release puts the machine back as it was found.
func (k *Keeper) Release() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.release()
}

// Warnings tells what the profile asks for and is not so.
func (k *Keeper) Warnings() []api.Warning {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.warnings)
}

// every is how often interrupts are looked at that came without a word.
const every = 30 * time.Second

// Run applies at once, whenever there is news of hardware, and every 30 s, until ctx ends.
// The machine stays as it is then: edged starts again.
//
// Reads: /proc/irq, /sys of processors, nodes and work queues, the profile. Writes: the same
// files; what it found, in state; warnings.
func (k *Keeper) Run(ctx context.Context, news <-chan struct{}) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := k.Apply(); err != nil {
			k.log.Warn("the box is not wholly settled for real-time work", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-news:
		}
	}
}

// PagesOf reads a profile's size, "2M" or "1G".
func PagesOf(size string, count int64, node *int) (Pages, bool) {
	n, err := strconv.ParseInt(strings.TrimRight(size, "KMG"), 10, 64)
	if err != nil || n < 1 {
		return Pages{}, false
	}
	switch {
	case strings.HasSuffix(size, "G"):
		n <<= 20
	case strings.HasSuffix(size, "M"):
		n <<= 10
	}
	p := Pages{SizeKiB: n, Node: -1, Count: count}
	if node != nil {
		p.Node = *node
	}
	return p, true
}
