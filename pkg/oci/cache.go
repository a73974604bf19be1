package oci

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Config configures a Cache. Dir and Upstream are needed; the zero value of every
// other field means its default.
type Config struct {
	Dir      string
	Upstream Upstream
	Log      *slog.Logger

	// Bytes bounds the complete and arriving blobs. Default 80 % of the file system, or
	// Most where that is less; negative: bounded by KeepFree alone.
	Bytes, Most int64
	// KeepFree is what the cache leaves unused of its file system, so that the box's
	// records and state can still be written. Default 64 MiB.
	KeepFree int64
	// Platforms limits Prefetch to these; none means all that an index names.
	Platforms []Platform
	// OnDemand tells which media types Prefetch leaves to the first who asks for them; nil: none.
	OnDemand func(mediaType string) bool
	// Parallel bounds transfers from the parent at one time. Default 4.
	Parallel int
	// ChildWait is how long a request waits for its next byte from the parent before
	// it is answered 503 (or cut, when it has begun). Default 45 s.
	ChildWait time.Duration
	// Stall is how long a transfer from the parent may stand still. Default 30 s.
	Stall time.Duration
	// MinBackoff and MaxBackoff bound the jittered wait between attempts. Default
	// 500 ms and 30 s.
	MinBackoff, MaxBackoff time.Duration
	// Now is the clock; Free tells what the file system still takes, in bytes.
	Now  func() time.Time
	Free func() (int64, error)
}

// Counters count the bytes of artifacts (bodies only) since the cache was opened.
type Counters struct {
	FetchedBytes, Fetches uint64 // from the parent, failed transfers included
	ServedBytes, Serves   uint64 // to children
	Hits, Misses          uint64 // requests answered from the folder, and not
	PassedBytes           uint64 // sent through without being kept, for want of room
}

// Cache is a pull-through store of OCI content before one parent. It serves
// /v2/ to children by digest alone; what it lacks it fetches from its parent once,
// however many ask, and serves while it still arrives.
//
// Who may read what: a (repository, digest) pair is served when a manifest that was
// prefetched for this subtree names it, or when the parent serves that very pair to
// this relay. The pair is then remembered, so it is served while the parent is away.
//
// All methods are safe for concurrent use.
type Cache struct {
	cfg   Config
	shelf *shelf
	log   *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{} // one token for each transfer from the parent
	ahead  chan struct{} // one token for each thing that Prefetch waits for; one slot less, left to children
	wg     sync.WaitGroup

	mu       sync.Mutex
	flights  map[string]*flight
	failures map[string]failure // digest -> why it was refused a moment ago
	warnings map[string]api.Warning
	saving   bool // a write of the pins is due

	n struct {
		fetchedBytes, fetches, servedBytes, serves, hits, misses, passed atomic.Uint64
	}
}

// maxFlights bounds the digests that are waited for at one time; each holds a file.
const maxFlights = 256

type failure struct {
	err   error
	until time.Time
}

// Open opens or creates the cache in cfg.Dir. It contacts nobody. Close it to end
// its transfers; partial ones stay on disk and go on at the next Open.
func Open(cfg Config) (*Cache, error) {
	if cfg.Dir == "" || cfg.Upstream == nil {
		return nil, errors.New("artifact cache: a folder and an upstream are needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&cfg.ChildWait, 45*time.Second)
	def(&cfg.Stall, 30*time.Second)
	def(&cfg.MinBackoff, 500*time.Millisecond)
	def(&cfg.MaxBackoff, 30*time.Second)
	if cfg.Parallel <= 0 {
		cfg.Parallel = 4
	}
	if cfg.KeepFree == 0 {
		cfg.KeepFree = 64 << 20
	}
	shelf, err := openShelf(cfg.Dir, cfg.Now, cfg.Free)
	if err != nil {
		return nil, err
	}
	if cfg.Bytes == 0 {
		if cfg.Bytes, err = defaultBytes(cfg.Dir, cfg.Most); err != nil {
			return nil, err
		}
	}
	shelf.budget, shelf.keepFree = cfg.Bytes, cfg.KeepFree
	ctx, cancel := context.WithCancel(context.Background())
	return &Cache{cfg: cfg, shelf: shelf, log: cfg.Log, ctx: ctx, cancel: cancel, slots: make(chan struct{}, cfg.Parallel), ahead: make(chan struct{}, max(1, cfg.Parallel-1)),
		flights: map[string]*flight{}, failures: map[string]failure{}, warnings: map[string]api.Warning{}}, nil
}

// Close ends all transfers and waits for them. Requests still being served are cut.
func (c *Cache) Close() error {
	c.mu.Lock() // no flight begins between the two
	c.cancel()
	c.mu.Unlock()
	c.wg.Wait()
	return c.shelf.savePins()
}

// SetBudget changes the byte budget (0: the default) and evicts down to it.
func (c *Cache) SetBudget(bytes int64) {
	if bytes == 0 {
		if n, err := defaultBytes(c.cfg.Dir, c.cfg.Most); err == nil {
			bytes = n
		}
	}
	c.shelf.mu.Lock()
	c.shelf.budget = bytes
	c.shelf.mu.Unlock()
	c.shelf.shrink()
}

// Pin replaces the roots that owner needs (a device's id, say); they and all that
// they name are never evicted. No refs removes the owner. It returns at once: the pins
// reach the disk within a second, many in one write, and survive a restart. One lost
// to a power cut lets its artifact be evicted until its owner is pinned again.
func (c *Cache) Pin(owner string, refs []Ref) {
	if !c.shelf.pin(owner, refs) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.saving || c.ctx.Err() != nil {
		return
	}
	c.saving = true
	c.wg.Go(func() {
		timer := time.NewTimer(pinDelay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.ctx.Done(): // Close saves
			return
		}
		c.mu.Lock()
		c.saving = false
		c.mu.Unlock()
		if err := c.shelf.savePins(); err != nil {
			c.log.Warn("cannot keep what devices need", "err", err)
		}
	})
}

// pinDelay gathers pins for one write.
const pinDelay = 500 * time.Millisecond

// Pinned lists all pinned roots, each once.
func (c *Cache) Pinned() []Ref { return c.shelf.roots() }

// Size counts the complete blobs and their bytes.
func (c *Cache) Size() (blobs int, bytes int64) { return c.shelf.size() }

// Counters returns the byte counters.
func (c *Cache) Counters() Counters {
	return Counters{FetchedBytes: c.n.fetchedBytes.Load(), Fetches: c.n.fetches.Load(), ServedBytes: c.n.servedBytes.Load(), Serves: c.n.serves.Load(),
		Hits: c.n.hits.Load(), Misses: c.n.misses.Load(), PassedBytes: c.n.passed.Load()}
}

// The warnings a cache raises.
const (
	WarnNoRoom  = "artifact-cache-full" // the disk or the budget is used up by what must be kept
	WarnDisk    = "artifact-cache-disk" // the cache's folder cannot be written or read
	WarnCorrupt = "artifact-corrupt"    // the parent sent bytes that are not what their digest names
)

// Warnings lists what is wrong now, by name.
func (c *Cache) Warnings() []api.Warning {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]api.Warning, 0, len(c.warnings))
	for _, w := range c.warnings {
		out = append(out, w)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (c *Cache) warn(name string, severity api.Severity, format string, a ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.warnings[name]; known {
		return
	}
	w := api.Warning{Name: name, Severity: severity, Message: fmt.Sprintf(format, a...), Since: c.cfg.Now().Unix()}
	c.warnings[name] = w
	c.log.Warn(w.Message, "warning", name)
}

func (c *Cache) clear(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.warnings, name)
}

// target is one thing to have: a digest in a repository, asked for as a manifest or
// as a blob. size is what the naming descriptor told; -1 when nobody told.
type target struct {
	kind         RouteKind
	repo, digest string
	size         int64
}

func (t target) path() string { return Route{t.kind, t.repo, t.digest}.Path() }

// have waits until the target is complete on the shelf.
func (c *Cache) have(ctx context.Context, t target) error {
	for try := 0; ; try++ {
		if c.shelf.has(t.digest) {
			return c.permit(ctx, t)
		}
		f, err := c.join(ctx, t)
		if err != nil {
			return err
		}
		err = f.finished(ctx)
		f.leave()
		if err == nil || ctx.Err() != nil || try >= 2 || !again(f, t, err) {
			return err
		}
	}
}

// again reports whether a failed flight says nothing final about the target: its
// partial was torn, or it ran for another repository.
func again(f *flight, t target, err error) bool {
	return errors.Is(err, errTorn) || f.t.repo != t.repo && api.CodeOf(err) == api.NotFound
}

// join enters the flight of the target's digest, starting it when there is none. The
// caller leaves it when done.
func (c *Cache) join(ctx context.Context, t target) (*flight, error) {
	c.mu.Lock()
	f := c.flights[t.digest]
	if f == nil {
		if fail, ok := c.failures[t.digest+t.repo]; ok && c.cfg.Now().Before(fail.until) {
			c.mu.Unlock()
			return nil, fail.err
		}
		defer c.mu.Unlock()
		if c.ctx.Err() != nil {
			return nil, api.Errorf(api.Unavailable, "the relay is stopping")
		}
		if c.shelf.has(t.digest) { // it landed between the caller's look and this one
			return landed(t), nil
		}
		if len(c.flights) >= maxFlights {
			return nil, api.Errorf(api.Unavailable, "too much is asked for at once")
		}
		f = newFlight(t)
		f.enter()
		c.flights[t.digest] = f
		c.n.misses.Add(1)
		c.wg.Add(1)
		go c.fly(f)
		return f, nil
	}
	f.enter()
	c.mu.Unlock()
	if f.t.repo != t.repo { // it flies by another repository's right
		if err := c.permit(ctx, t); err != nil {
			f.leave()
			return nil, err
		}
	}
	return f, nil
}

// permit makes sure that the target's digest belongs to its repository, asking the
// parent where that is not known yet.
func (c *Cache) permit(ctx context.Context, t target) error {
	if c.shelf.linked(t.repo, t.digest) {
		return nil
	}
	if err := c.lately(t); err != nil {
		return err
	}
	if _, err := c.head(ctx, t); err != nil {
		if code := api.CodeOf(err); code == api.NotFound || code == api.Forbidden {
			c.refused(t, err)
		}
		return err
	}
	return c.shelf.link(t.repo, t.digest)
}

// lately is why the target was refused a moment ago, or nil.
func (c *Cache) lately(t target) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fail, ok := c.failures[t.digest+t.repo]; ok && c.cfg.Now().Before(fail.until) {
		return fail.err
	}
	return nil
}

// refused remembers for a moment why a target cannot be had, so that many children
// asking for it do not become many requests on the uplink.
func (c *Cache) refused(t target, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.failures) >= 1024 {
		clear(c.failures)
	}
	wait := 2 * time.Second
	if errors.Is(err, errCorrupt) || errors.Is(err, errNoSpace) {
		wait = 15 * time.Second
	}
	c.failures[t.digest+t.repo] = failure{err, c.cfg.Now().Add(wait)}
}

func (c *Cache) landedFlight(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.flights, f.t.digest)
	delete(c.failures, f.t.digest+f.t.repo)
}

// backoff is the jittered wait before attempt n (from 1): half to all of
// min·2^(n-1), at most max.
func backoff(n int, lo, hi time.Duration, random func(int64) int64) time.Duration {
	d := hi
	if n < 20 && lo<<(n-1) < hi {
		d = lo << (n - 1)
	}
	return d/2 + time.Duration(random(int64(d/2)+1))
}

var jitter = rand.Int64N

var _ http.Handler = (*Cache)(nil)
