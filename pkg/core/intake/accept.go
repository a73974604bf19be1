package intake

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
)

// position is how far a device's records are counted.
type position struct {
	epoch, acked uint64
	hash         record.Hash
	known        bool // hash is known; it is not after a batch that could not be read
	safe         uint64
}

// recentBatches is how many of a device's last batches are remembered to know a repeat
// without asking the disk or the signature.
const recentBatches = 4

// boundary is the end of a counted batch.
type boundary struct {
	first, last uint64
	prev, end   record.Hash
	sum         [16]byte // of the batch's bytes
}

// finding is what became of one batch: the verdict, and what is to be written.
type finding struct {
	link.BatchResult
	records []record.Record // to be counted
	rows    []decoded       // the same, decoded
	runs    []run           // the usage among them
	prev    record.Hash     // chain value before the batch
	raw     []byte          // the batch as it was signed
	epoch   uint64
	first   uint64
	last    uint64
	end     record.Hash
	aside   []byte // to be set aside
}

// AcceptBatches implements link.CoreStore: it verifies batches on all processors, each
// device's in order, and meanwhile writes those that follow in one transaction.
func (s *Store) AcceptBatches(in []link.BatchIn) (out []link.BatchResult, err error) {
	ctx := s.work()
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.settled(ctx, func() error {
		out, err = s.acceptBatches(ctx, in)
		return err
	})
	return out, err
}

func (s *Store) acceptBatches(ctx context.Context, in []link.BatchIn) ([]link.BatchResult, error) {
	now := s.cfg.Now().UnixMilli()
	written := make(map[service]int64)
	ex := s.examine(ctx, in)
	defer ex.wait() // they read what the next call changes
	touched := make(map[api.DeviceID]*device)
	err := s.inTx(ctx, func(tx *database.Tx) error {
		clear(written)
		clear(touched)
		if err := s.confirm(ctx, tx, slices.Collect(maps.Keys(ex.devices))); err != nil {
			return err
		}
		w := newLedgerWriter(ctx, s, tx, written)
		numbers := make(map[api.DeviceID]*device)
		for i := range in {
			<-ex.done[i]
			f := &ex.findings[i]
			if !f.writes() {
				continue
			}
			d, err := s.touch(ctx, tx, numbers, in[i].Device)
			if err != nil {
				return err
			}
			if err := w.write(d.dev, f, now); err != nil {
				return fmt.Errorf("records %d to %d of device %s: %w", f.first, f.last, d.id, err)
			}
		}
		for id, d := range numbers {
			touched[id] = ex.devices[id]
			touched[id].dev = d.dev
		}
		return w.finish(touched, now)
	})
	if err != nil {
		return nil, err
	}
	s.keep(touched)
	for id := range touched {
		delete(s.seen, id)
	}
	if len(s.services) > 1<<16 {
		clear(s.services)
	}
	for k, v := range written {
		s.services[k] = v
	}
	out := make([]link.BatchResult, len(in))
	for i := range ex.findings {
		out[i] = ex.findings[i].BatchResult
		if d := s.devices[in[i].Device]; d != nil {
			out[i].Position = s.positionOf(d)
		}
	}
	return out, nil
}

// Position implements link.CoreStore.
func (s *Store) Position(id api.DeviceID) (link.Position, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fresh(context.Background()); err != nil {
		return link.Position{}, err
	}
	if err := s.reread(context.Background(), id); err != nil {
		return link.Position{}, err
	}
	if d := s.devices[id]; d != nil {
		return s.positionOf(d), nil
	}
	return link.Position{}, nil
}

func (s *Store) positionOf(d *device) link.Position {
	p := link.Position{SpoolEpoch: d.epoch, Acked: d.acked, Hash: d.hash, Safe: d.acked}
	if s.keeping.Load() {
		p.Safe = min(d.safe, d.acked)
	}
	return p
}

// examination is the judging of one call's batches, which goes on while those judged
// are written. Nothing of a device may be read before all is done.
type examination struct {
	findings []finding
	done     []chan struct{} // closed when the finding is there
	devices  map[api.DeviceID]*device
	workers  sync.WaitGroup
}

func (e *examination) wait() { e.workers.Wait() }

// examine judges batches against copies of their devices. Batches of one device are
// judged in order by one worker; devices are shared out among the processors.
func (s *Store) examine(ctx context.Context, in []link.BatchIn) *examination {
	e := &examination{findings: make([]finding, len(in)), done: make([]chan struct{}, len(in)), devices: make(map[api.DeviceID]*device)}
	byDevice := make(map[api.DeviceID][]int)
	var order []api.DeviceID
	for i := range in {
		e.done[i] = make(chan struct{})
		id := in[i].Device
		if e.devices[id] == nil {
			if old := s.devices[id]; old != nil {
				e.devices[id] = old.clone()
			} else {
				e.devices[id] = &device{id: id}
			}
			order = append(order, id)
		}
		byDevice[id] = append(byDevice[id], i)
	}
	work := make(chan api.DeviceID, len(order))
	for _, id := range order {
		work <- id
	}
	close(work)
	for range min(len(order), runtime.GOMAXPROCS(0)) {
		e.workers.Go(func() {
			for id := range work {
				d := e.devices[id]
				for _, i := range byDevice[id] {
					f := judge(d, &in[i], func(from, to uint64) (boundary, bool) { return s.boundary(ctx, d, from, to) })
					if f.Verdict == link.Accepted || f.Verdict == link.Poison {
						d.advance(&f, in[i].Raw)
						f.raw = in[i].Raw
					}
					f.decode()
					e.findings[i] = f
					close(e.done[i])
				}
			}
		})
	}
	return e
}

// writes reports whether the finding changes the ledger.
func (f *finding) writes() bool {
	return f.Verdict == link.Accepted || f.Verdict == link.Poison || f.aside != nil
}

func (d *device) advance(f *finding, raw []byte) {
	b := boundary{first: f.first, last: f.last, prev: d.hash, end: f.end, sum: sumOf(raw)}
	if d.epoch != f.epoch {
		d.recent = [recentBatches]boundary{}
		b.prev = record.Hash{}
	}
	d.epoch, d.acked, d.hash, d.known = f.epoch, f.last, f.end, f.Verdict == link.Accepted
	if d.known && f.first != 0 {
		copy(d.recent[1:], d.recent[:])
		d.recent[0] = b
	}
}

func sumOf(raw []byte) (s [16]byte) {
	h := sha256.Sum256(raw)
	copy(s[:], h[:])
	return s
}

// boundary finds where a counted batch ended between two numbers.
func (s *Store) boundary(ctx context.Context, d *device, from, to uint64) (boundary, bool) {
	var last int64
	var hash []byte
	err := s.db.QueryRowContext(ctx, sqlBoundary, d.dev, int64(d.epoch), int64(from), int64(to)).Scan(&last, &hash)
	if err != nil {
		return boundary{}, false
	}
	b := boundary{last: uint64(last)}
	copy(b.end[:], hash)
	return b, true
}

// judge decides about one batch, given how far its device is counted. lookup finds a
// place between two numbers, both included, where the chain value is known.
func judge(d *device, in *link.BatchIn, lookup func(from, to uint64) (boundary, bool)) finding {
	h, err := record.Peek(in.Raw)
	if err != nil {
		return verdict(link.Refused, "%v", err)
	}
	verify := record.Of(in.Key)
	switch {
	case h.Epoch < d.epoch:
		return verdict(link.Gap, "spool epoch %d is over; it is %d now", h.Epoch, d.epoch)
	case h.Epoch > d.epoch:
		return judgeNewEpoch(d, in, h, verify)
	case h.First > d.acked+1:
		return verdict(link.Gap, "records after %d are counted, these begin at %d", d.acked, h.First)
	case h.First == d.acked+1:
		return judgeNext(d, in, h, verify)
	}
	return judgeOverlap(d, in, h, verify, lookup)
}

func verdict(v link.Verdict, format string, args ...any) finding {
	f := finding{}
	f.Verdict = v
	if format != "" {
		f.Detail = fmt.Sprintf(format, args...)
	}
	return f
}

// judgeNewEpoch takes the first batch of a spool epoch. Its numbers may begin anywhere,
// but nothing may stand before it, unless the device says that it is lost.
func judgeNewEpoch(d *device, in *link.BatchIn, h record.Header, verify record.Verifier) finding {
	b, end, err := record.Open(verify, in.Raw, d.id, record.Hash{})
	if f, bad := unreadable(in, h, err); bad {
		return f
	}
	if !b.Prev.IsZero() && b.Records[0].Kind != record.Lost {
		return verdict(link.Gap, "record %d is not the first of its spool epoch", h.First)
	}
	return accept(b, b.Records, end)
}

// judgeNext takes a batch that begins where the count ends.
func judgeNext(d *device, in *link.BatchIn, h record.Header, verify record.Verifier) finding {
	b, end, err := record.Open(verify, in.Raw, d.id, d.hash)
	if f, bad := unreadable(in, h, err); bad {
		return f
	}
	if h.Explicit && d.known && b.Prev != d.hash {
		return fork(in, "record %d follows another record %d than the one counted", h.First, d.acked)
	}
	if !h.Explicit && !d.known {
		return verdict(link.Gap, "what came before record %d could not be read; send it with its chain value", h.First)
	}
	return accept(b, b.Records, end)
}

// judgeOverlap takes a batch of which some records are counted: a repeat, perhaps cut
// at other borders, or a fork.
func judgeOverlap(d *device, in *link.BatchIn, h record.Header, verify record.Verifier, lookup func(from, to uint64) (boundary, bool)) finding {
	prev, prevKnown := record.Hash{}, false
	sum := sumOf(in.Raw)
	for _, r := range d.recent {
		if r.last != 0 && r.first == h.First {
			if r.sum == sum {
				return verdict(link.Duplicate, "")
			}
			prev, prevKnown = r.prev, true
		}
	}
	if !h.Explicit && !prevKnown {
		if b, ok := lookup(h.First-1, h.First-1); ok {
			prev, prevKnown = b.end, true
		} else if h.Last <= d.acked {
			return verdict(link.Duplicate, "counted; not checked again")
		} else {
			return verdict(link.Gap, "records to %d are counted, and the chain before %d is not known", d.acked, h.First)
		}
	}
	b, end, err := record.Open(verify, in.Raw, d.id, prev)
	if f, bad := unreadable(in, h, err); bad {
		if f.Verdict == link.Poison {
			return verdict(link.Duplicate, "counted as unreadable")
		}
		return f
	}
	// Compare the chains at the furthest number where both are known.
	at, want, known := d.acked, d.hash, d.known
	if h.Last < d.acked {
		place, ok := lookup(h.First, h.Last)
		for _, r := range d.recent {
			if r.last >= h.First && r.last <= h.Last {
				place, ok = r, true
				break
			}
		}
		at, want, known = place.last, place.end, ok
	}
	chain := b.Prev
	for i := range b.Records {
		r := &b.Records[i]
		chain = chain.Next(*r)
		if r.Seq <= at && r.Last > at {
			if known {
				return fork(in, "record %d to %d crosses %d, which is counted", r.Seq, r.Last, at)
			}
			break
		}
		if r.Last != at {
			continue
		}
		if known && chain != want {
			return fork(in, "record %d is another one than the one counted", at)
		}
		if at == d.acked && i+1 < len(b.Records) {
			return accept(b, b.Records[i+1:], end)
		}
		break
	}
	return verdict(link.Duplicate, "")
}

// unreadable turns the error of record.Open into a verdict.
func unreadable(in *link.BatchIn, h record.Header, err error) (finding, bool) {
	var poison *record.PoisonError
	switch {
	case err == nil:
		return finding{}, false
	case errors.As(err, &poison):
		f := verdict(link.Poison, "%v", err)
		f.epoch, f.first, f.last, f.aside = h.Epoch, h.First, h.Last, in.Raw
		return f, true
	case errors.Is(err, record.ErrSignature) && !h.Explicit:
		// Signed over another chain value perhaps: only a retry can tell.
		return verdict(link.Gap, "records %d to %d do not verify after what is counted", h.First, h.Last), true
	}
	return verdict(link.Refused, "%v", err), true
}

func fork(in *link.BatchIn, format string, args ...any) finding {
	f := verdict(link.Fork, format, args...)
	f.aside = bytes.Clone(in.Raw)
	return f
}

func accept(b *record.Batch, rs []record.Record, end record.Hash) finding {
	f := verdict(link.Accepted, "")
	f.records, f.epoch, f.first, f.last, f.end, f.prev = rs, b.Epoch, rs[0].Seq, b.Last, end, b.Prev
	return f
}
