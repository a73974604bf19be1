package oci

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// flight is one digest on its way from the parent. Readers follow its file while it
// grows; the last bytes stay hidden until the whole is verified.
type flight struct {
	t target

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever something below changes
	file    *os.File
	visible int64 // bytes that readers may see
	total   int64 // -1 until the parent told
	done    bool
	err     error
	crew    int    // who waits for it or reads from it
	moved   uint64 // grows with every sign of life
	starts  int    // how often the file began anew
}

// holdBack is how much of a blob's end is hidden until its digest is verified: what
// is smaller is never seen unverified at all.
const holdBack = 64 << 10

// syncEvery bounds what a power cut can tear of an arriving blob.
const syncEvery = 8 << 20

var (
	errCorrupt = errors.New("the parent sent other bytes than the digest names")
	errTorn    = errors.New("what an earlier transfer left was torn; it starts again")
)

func newFlight(t target) *flight { return &flight{t: t, changed: make(chan struct{}), total: -1} }

// landed is a flight that needs no flying: its digest is complete.
func landed(t target) *flight {
	f := newFlight(t)
	f.done, f.crew = true, 1
	return f
}

func (f *flight) update(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *flight) enter() { f.update(func() { f.crew++ }) }

func (f *flight) leave() {
	f.update(func() {
		f.crew--
		if f.crew == 0 && f.done && f.file != nil {
			f.file.Close()
			f.file = nil
		}
	})
}

func (f *flight) finish(err error) {
	f.update(func() {
		f.done, f.err = true, err
		if f.crew == 0 && f.file != nil {
			f.file.Close()
			f.file = nil
		}
	})
}

func (f *flight) wanted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crew > 0
}

// until waits for ready, which runs under the lock. It fails when the flight fails,
// when ctx ends, or with errWaited when no byte moved for the given time (0: no such
// bound).
func (f *flight) until(ctx context.Context, patience time.Duration, ready func() bool) error {
	var timer *time.Timer
	var expired <-chan time.Time
	if patience > 0 {
		timer = time.NewTimer(patience)
		defer timer.Stop()
		expired = timer.C
	}
	var moved uint64
	for first := true; ; first = false {
		f.mu.Lock()
		ok, done, err, changed := ready(), f.done, f.err, f.changed
		if timer != nil && !first && f.moved != moved {
			timer.Reset(patience)
		}
		moved = f.moved
		f.mu.Unlock()
		switch {
		case ok:
			return nil
		case done && err != nil:
			return err
		case done:
			return io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-expired:
			return errWaited
		}
	}
}

var errWaited = errors.New("nothing came from the parent in time")

// finished waits until the flight has ended, and returns its error.
func (f *flight) finished(ctx context.Context) error {
	return f.until(ctx, 0, func() bool { return f.done && f.err == nil })
}

// fly runs a flight to its end: attempts with backoff while somebody wants it.
func (c *Cache) fly(f *flight) {
	defer c.wg.Done()
	err := c.transfer(f)
	switch {
	case err == nil:
		c.landedFlight(f)
	default:
		if code := api.CodeOf(err); errors.Is(err, errCorrupt) || errors.Is(err, errNoSpace) || code == api.NotFound || code == api.Forbidden {
			c.refused(f.t, err)
		}
		c.mu.Lock()
		delete(c.flights, f.t.digest)
		c.mu.Unlock()
	}
	f.finish(err)
}

// transfer is the whole life of a flight.
func (c *Cache) transfer(f *flight) error {
	file, sum, have, err := c.shelf.partial(f.t.digest, c.ctx.Err)
	if c.ctx.Err() != nil {
		return api.Errorf(api.Unavailable, "the relay is stopping")
	}
	if err != nil {
		return c.noRoom(f, err)
	}
	f.update(func() { f.file = file })
	load := &load{c: c, f: f, file: file, sum: sum, have: have, synced: have}
	resumed := have > 0
	if resumed && load.whole() && c.permit(c.ctx, f.t) == nil && load.verify() == nil {
		return nil // killed between the last byte and the rename
	}
	for n := 1; ; n++ {
		err := load.attempt()
		if err == nil {
			err = load.verify()
		}
		switch {
		case err == nil:
			c.clear(WarnNoRoom)
			c.clear(WarnDisk)
			c.clear(WarnCorrupt)
			return nil
		case errors.Is(err, errCorrupt) && resumed:
			c.shelf.discard(f.t.digest)
			c.log.Warn("partial artifact discarded", "digest", f.t.digest, "err", errTorn)
			return errTorn
		case errors.Is(err, errCorrupt):
			c.shelf.discard(f.t.digest)
			c.warn(WarnCorrupt, api.Critical, "the parent sent wrong bytes for %s of %s; nothing of it was kept", f.t.digest, f.t.repo)
			return &api.Error{Code: api.Unavailable, Message: "the parent sent wrong bytes for " + f.t.digest, Err: errCorrupt}
		case errors.Is(err, errNoSpace), errors.As(err, new(*diskError)):
			return c.noRoom(f, err)
		}
		var again *transient
		if !errors.As(err, &again) || c.ctx.Err() != nil || !f.wanted() {
			c.shelf.release(f.t.digest)
			if load.have == 0 {
				c.shelf.discard(f.t.digest)
			}
			return err
		}
		wait := max(backoff(n, c.cfg.MinBackoff, c.cfg.MaxBackoff, jitter), again.after)
		if load.moved {
			load.moved, n = false, 0
		}
		c.log.Debug("artifact transfer waits", "digest", f.t.digest, "have", load.have, "wait", wait, "err", err)
		if err := c.pause(f, wait); err != nil {
			c.shelf.release(f.t.digest)
			return err
		}
	}
}

// pause waits between attempts, and ends early when nobody wants the flight any more.
func (c *Cache) pause(f *flight, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(c.ctx, wait)
	defer cancel()
	_ = f.until(ctx, 0, func() bool { return f.crew == 0 })
	if c.ctx.Err() != nil {
		return api.Errorf(api.Unavailable, "the relay is stopping")
	}
	return nil
}

// noRoom gives up keeping a digest; whoever wants it gets it passed through.
func (c *Cache) noRoom(f *flight, err error) error {
	c.shelf.discard(f.t.digest)
	if errors.Is(err, errNoSpace) || errors.Is(err, syscall.ENOSPC) {
		c.warn(WarnNoRoom, api.Degraded, "no room to keep artifacts: they pass through to each child by itself; free space on %s or raise the cache's budget", c.cfg.Dir)
	} else {
		c.warn(WarnDisk, api.Degraded, "the artifact cache's disk fails, artifacts pass through to each child by itself: %v", err)
	}
	return errNoSpace
}

// diskError marks a failure of our own folder, as against the parent's.
type diskError struct{ error }

func (e *diskError) Unwrap() error { return e.error }

func onDisk(err error) error {
	if err == nil {
		return nil
	}
	return &diskError{err}
}

// load is the receiving end of a flight over all its attempts.
type load struct {
	c            *Cache
	f            *flight
	file         *os.File
	sum          hash.Hash
	have, synced int64
	moved        bool // the present attempt brought something
}

// attempt asks the parent once for what is missing, and reads until the end.
func (l *load) attempt() error {
	select {
	case l.c.slots <- struct{}{}:
		defer func() { <-l.c.slots }()
	case <-l.c.ctx.Done():
		return api.Errorf(api.Unavailable, "the relay is stopping")
	}
	if l.f.total >= 0 && l.have == l.f.total {
		return nil
	}
	ctx, cancel := context.WithCancel(l.c.ctx)
	defer cancel()
	stall := time.AfterFunc(l.c.cfg.Stall, cancel)
	defer stall.Stop()

	if l.f.t.kind == RouteManifest && l.have > 0 { // small, and registries serve no ranges of them
		if err := l.restart(); err != nil {
			return err
		}
	}
	header := http.Header{}
	if l.have > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(l.have, 10)+"-")
	}
	res, err := l.c.ask(ctx, http.MethodGet, l.f.t, header)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	l.c.n.fetches.Add(1)
	restart, total, err := resume(res.StatusCode, res.Header.Get("Content-Range"), l.have, res.ContentLength)
	if err != nil {
		if restart {
			return errors.Join(l.restart(), &transient{err: err})
		}
		return err
	}
	if restart {
		if err := l.restart(); err != nil {
			return err
		}
	}
	if err := l.admit(total); err != nil {
		return err
	}
	return l.receive(res.Body, stall)
}

// admit checks the announced size, makes room for it and tells the readers.
func (l *load) admit(total int64) error {
	t := l.f.t
	if t.kind == RouteManifest && total > MaxManifest {
		return api.Errorf(api.TooLarge, "manifest %s of %d bytes; at most %d are kept", t.digest, total, MaxManifest)
	}
	if total < 0 {
		return api.Errorf(api.Unavailable, "the parent does not tell the size of %s", t.digest)
	}
	if t.size >= 0 && t.size != total || l.f.total >= 0 && l.f.total != total {
		return fmt.Errorf("%w: %s is announced with another size", errCorrupt, t.digest)
	}
	if err := l.c.shelf.reserve(t.digest, total, l.have); err != nil {
		return err
	}
	if err := l.c.shelf.link(t.repo, t.digest); err != nil {
		return onDisk(err)
	}
	l.f.update(func() { l.f.total = total; l.f.visible = visible(l.have, total); l.f.moved++ })
	return nil
}

// receive appends the body to the partial.
func (l *load) receive(body io.Reader, stall *time.Timer) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			stall.Reset(l.c.cfg.Stall)
			l.c.n.fetchedBytes.Add(uint64(n))
			if l.have+int64(n) > l.f.total {
				return fmt.Errorf("%w: more bytes than announced", errCorrupt)
			}
			if _, err := l.file.WriteAt(buf[:n], l.have); err != nil {
				return onDisk(err)
			}
			l.sum.Write(buf[:n])
			l.have += int64(n)
			l.moved = true
			l.f.update(func() { l.f.visible = visible(l.have, l.f.total); l.f.moved++ })
			if l.have-l.synced >= syncEvery {
				if err := l.file.Sync(); err != nil {
					return onDisk(err)
				}
				l.synced = l.have
			}
		}
		switch {
		case err == io.EOF && l.have == l.f.total:
			return nil
		case err == io.EOF:
			return &transient{err: io.ErrUnexpectedEOF}
		case err != nil:
			return &transient{err: err}
		}
	}
}

// restart forgets what arrived. Readers that saw some of it are cut, for the new
// bytes may differ from those.
func (l *load) restart() error {
	l.sum.Reset()
	l.have, l.synced = 0, 0
	l.f.update(func() { l.f.visible = 0; l.f.starts++ })
	return onDisk(l.file.Truncate(0))
}

// whole reports whether the digest is over what arrived so far.
func (l *load) whole() bool { return fmt.Sprintf("sha256:%x", l.sum.Sum(nil)) == l.f.t.digest }

// verify hashes and commits. Only after it do readers see the last bytes.
func (l *load) verify() error {
	if !l.whole() {
		return errCorrupt
	}
	if err := l.c.shelf.commit(l.f.t.digest, l.file, l.have); err != nil {
		return onDisk(err)
	}
	l.f.update(func() { l.f.total, l.f.visible = l.have, l.have; l.f.moved++ })
	return nil
}

// visible is what readers may see of have verified-so-far bytes out of total.
func visible(have, total int64) int64 { return max(0, min(have, total-holdBack)) }

// resume decides what the answer to a ranged request means. have is what we hold;
// length is the answer's Content-Length, -1 when absent (RFC 9110, sections 14.4 and
// 15.3.7). restart: what we hold is of no use. total: size of the whole, -1 when the
// answer does not tell.
func resume(status int, contentRange string, have, length int64) (restart bool, total int64, err error) {
	switch status {
	case http.StatusOK:
		return have > 0, length, nil
	case http.StatusPartialContent:
		from, to, size, ok := parseContentRange(contentRange)
		if !ok || from != have || to != size-1 {
			return true, -1, fmt.Errorf("the parent answered with the range %s to a request from %d on", quote(contentRange), have)
		}
		return false, size, nil
	case http.StatusRequestedRangeNotSatisfiable:
		return true, -1, errors.New("the parent has less than we hold")
	}
	return false, -1, fmt.Errorf("unexpected status %d", status)
}

// parseContentRange reads "bytes from-to/size".
func parseContentRange(s string) (from, to, size int64, ok bool) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	span, sizeText, ok2 := strings.Cut(rest, "/")
	fromText, toText, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, false
	}
	var errs [3]error
	from, errs[0] = parseSize(fromText)
	to, errs[1] = parseSize(toText)
	size, errs[2] = parseSize(sizeText)
	return from, to, size, errors.Join(errs[:]...) == nil && from <= to && to < size
}

func parseSize(s string) (int64, error) {
	if s == "" || len(s) > 18 || strings.Trim(s, "0123456789") != "" {
		return 0, errors.New("not a size")
	}
	return strconv.ParseInt(s, 10, 64)
}
