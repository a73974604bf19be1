package link

import (
	"bytes"
	"maps"
	"slices"
	"sync"

	"tributary.dev/tributary/pkg/api"
)

// MemStore is a Store in memory that can lose what was not synced, like a disk under a
// power cut.
type MemStore struct {
	mu      sync.Mutex
	data    map[string]map[string][]byte
	pending [][]Op // committed without sync
}

// NewMemStore makes an empty store.
func NewMemStore() *MemStore { return &MemStore{data: map[string]map[string][]byte{}} }

func apply(data map[string]map[string][]byte, ops []Op) {
	for _, op := range ops {
		b := data[op.Bucket]
		switch {
		case op.Key == nil:
			delete(data, op.Bucket)
		case op.Value == nil:
			delete(b, string(op.Key))
		default:
			if b == nil {
				b = map[string][]byte{}
				data[op.Bucket] = b
			}
			b[string(op.Key)] = bytes.Clone(op.Value)
		}
	}
}

// Load implements Store.
func (s *MemStore) Load(bucket string, fn func(key, value []byte) error) error {
	s.mu.Lock()
	s.flush()
	b := maps.Clone(s.data[bucket])
	s.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(b)) {
		if err := fn([]byte(k), b[k]); err != nil {
			return err
		}
	}
	return nil
}

// Commit implements Store.
func (s *MemStore) Commit(ops []Op, sync bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, slices.Clone(ops))
	if sync {
		s.flush()
	}
	return nil
}

func (s *MemStore) flush() {
	for _, ops := range s.pending {
		apply(s.data, ops)
	}
	s.pending = nil
}

// Crash loses the commits that were not synced, except for the first keep of them.
func (s *MemStore) Crash(keep int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = s.pending[:min(keep, len(s.pending))]
	s.flush()
}

// StoredState reads a device's own reported state from its store, without tombstones.
// It is for tools and tests that look at a box that does not run.
func StoredState(s Store, id api.DeviceID) map[string][]byte {
	out := map[string][]byte{}
	_ = s.Load(bucketEntry, func(k, v []byte) error {
		var seq uint64
		if len(k) < 9 || !bytes.Equal(k[:8], id[:]) || readU64s(v, &seq) != nil {
			return nil
		}
		r := reader{b: bytes.Clone(v[8:])}
		if e := r.entry(seq); r.err == nil && !e.Deleted {
			out[e.Key] = e.Value
		}
		return nil
	})
	return out
}
