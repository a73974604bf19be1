package relay

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/oci"
)

// store is what the prefetch loop needs of the cache.
type store interface {
	Pinned() []oci.Ref
	Prefetch(ctx context.Context, refs []oci.Ref) error
}

// prefetcher keeps the cache filled with all that is pinned.
type prefetcher struct {
	cache store
	retry time.Duration
	now   func() time.Time
	log   *slog.Logger
	woken chan struct{}

	mu   sync.Mutex
	done map[oci.Ref]bool      // complete since the process began
	last map[oci.Ref]time.Time // when it failed for good
}

func newPrefetcher(cache store, retry time.Duration, now func() time.Time, log *slog.Logger) *prefetcher {
	return &prefetcher{cache: cache, retry: retry, now: now, log: log, woken: make(chan struct{}, 1), done: map[oci.Ref]bool{}, last: map[oci.Ref]time.Time{}}
}

// wake makes the loop look at the pins again.
func (p *prefetcher) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

// run starts one fetch for each pinned ref that is not complete. A fetch waits by
// itself for a parent that is away; other failures are tried again after retry.
func (p *prefetcher) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running := map[oci.Ref]context.CancelFunc{}
	ended := make(chan oci.Ref)
	again := time.NewTicker(p.retry)
	defer again.Stop()
	for {
		pinned := p.cache.Pinned()
		for _, ref := range p.missing(pinned) {
			if running[ref] != nil {
				continue
			}
			one, stop := context.WithCancel(ctx)
			running[ref] = stop
			wg.Go(func() {
				p.one(one, ref)
				select {
				case ended <- ref:
				case <-ctx.Done():
				}
			})
		}
		wanted := map[oci.Ref]bool{}
		for _, ref := range pinned {
			wanted[ref] = true
		}
		for ref, stop := range running {
			if !wanted[ref] {
				stop() // no manifest names it any more
			}
		}
		select {
		case ref := <-ended:
			running[ref]()
			delete(running, ref)
		case <-p.woken:
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// missing lists the pinned refs that are to be fetched now, and forgets what is
// pinned no more.
func (p *prefetcher) missing(pinned []oci.Ref) (out []oci.Ref) {
	p.mu.Lock()
	defer p.mu.Unlock()
	done, last := map[oci.Ref]bool{}, map[oci.Ref]time.Time{}
	for _, ref := range pinned {
		if p.done[ref] {
			done[ref] = true
			continue
		}
		if at, failed := p.last[ref]; failed {
			last[ref] = at
			if p.now().Sub(at) < p.retry {
				continue
			}
		}
		out = append(out, ref)
	}
	p.done, p.last = done, last
	return out
}

func (p *prefetcher) one(ctx context.Context, ref oci.Ref) {
	err := p.cache.Prefetch(ctx, []oci.Ref{ref})
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.done[ref] = true
		p.log.Debug("artifact ready for children", "repo", ref.Repo, "digest", ref.Digest)
		return
	}
	if _, told := p.last[ref]; !told {
		level := slog.LevelWarn
		if api.CodeOf(err) == api.Unavailable {
			level = slog.LevelInfo
		}
		p.log.Log(ctx, level, "artifact not fetched ahead; tried again later", "repo", ref.Repo, "digest", ref.Digest, "err", err)
	}
	p.last[ref] = p.now()
}
