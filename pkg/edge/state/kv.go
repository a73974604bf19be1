package state

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"tributary.dev/tributary/pkg/link"
)

var _ link.Store = (*Store)(nil)

// pair names one value; an empty key stands for the whole bucket.
type pair struct{ bucket, key string }

// pending is a late change; a nil value removes.
type pending struct {
	value []byte
	order uint64
}

// Load implements link.Store. It fails with ErrCorrupt when a value does not match
// its checksum.
func (s *Store) Load(bucket string, fn func(key, value []byte) error) error {
	if err := s.writeLate(); err != nil {
		return err
	}
	name := []byte(ownPrefix + bucket)
	return s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(name)
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			value, ok := unwrap(name, k, v)
			if !ok {
				return fmt.Errorf("%w: bucket %q key %q", ErrCorrupt, bucket, k)
			}
			return fn(k, value)
		})
	})
}

// Get reads one value; nil when there is none. The slice is the caller's.
func (s *Store) Get(bucket, key string) (value []byte, err error) {
	s.mu.Lock()
	late, ok := s.late[pair{bucket, key}]
	s.mu.Unlock()
	if ok {
		return slices.Clone(late.value), nil
	}
	name := []byte(ownPrefix + bucket)
	err = s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(name)
		if b == nil {
			return nil
		}
		v := b.Get([]byte(key))
		if v == nil {
			return nil
		}
		got, ok := unwrap(name, []byte(key), v)
		if !ok {
			return fmt.Errorf("%w: bucket %q key %q", ErrCorrupt, bucket, key)
		}
		value = append(make([]byte, 0, len(got)), got...)
		return nil
	})
	return value, err
}

// Put writes one value, synced; nil removes it.
func (s *Store) Put(bucket, key string, value []byte) error {
	return s.Commit([]link.Op{{Bucket: bucket, Key: []byte(key), Value: value}}, true)
}

// Commit implements link.Store. Without sync the change is in the file within two
// seconds while Run runs; a full disk does not fail it.
func (s *Store) Commit(ops []link.Op, sync bool) error {
	if len(ops) == 0 {
		return nil
	}
	wipes := slices.ContainsFunc(ops, func(o link.Op) bool { return o.Key == nil })
	s.mu.Lock()
	s.dirty = true
	if !sync && !wipes && len(s.late)+len(ops) <= maxLate {
		for _, o := range ops {
			s.order++
			s.late[pair{o.Bucket, string(o.Key)}] = pending{slices.Clone(o.Value), s.order}
		}
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	return s.write(ops)
}

// write commits what is late, and then ops, in one transaction.
func (s *Store) write(ops []link.Op) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	late, upTo := s.takeLate()
	err := s.update(func(tx *bbolt.Tx) error {
		for _, o := range append(late, ops...) {
			if err := apply(tx, o); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, v := range s.late {
		if v.order <= upTo {
			delete(s.late, p)
		}
	}
	return nil
}

// takeLate lists what is late, oldest first; it stays listed until it is written.
func (s *Store) takeLate() (ops []link.Op, upTo uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, v := range s.late {
		ops = append(ops, link.Op{Bucket: p.bucket, Key: []byte(p.key), Value: v.value})
	}
	return ops, s.order
}

func (s *Store) writeLate() error {
	s.mu.Lock()
	n := len(s.late)
	s.mu.Unlock()
	if n == 0 {
		return nil
	}
	return s.write(nil)
}

func (s *Store) flushLate() {
	if err := s.writeLate(); err != nil {
		s.cfg.Log.Warn("late state not written; will be tried again", "err", err)
	}
}

func apply(tx *bbolt.Tx, o link.Op) error {
	name := []byte(ownPrefix + o.Bucket)
	if o.Key == nil {
		if err := tx.DeleteBucket(name); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
			return err
		}
		return nil
	}
	b, err := tx.CreateBucketIfNotExists(name)
	if err != nil {
		return err
	}
	if o.Value == nil {
		return b.Delete(o.Key)
	}
	return b.Put(o.Key, wrap(name, o.Key, o.Value))
}

// Blob is one value under a name of its own (meter.Store).
func (s *Store) Blob(name string) Blob { return Blob{s, name} }

// Blob loads and saves one value, durably.
type Blob struct {
	s    *Store
	name string
}

// Load returns nil when nothing was saved.
func (b Blob) Load() ([]byte, error) { return b.s.Get("blob", b.name) }

// Save is durable when it returns.
func (b Blob) Save(v []byte) error { return b.s.Put("blob", b.name, v) }

// Bundle reads an app bundle by its digest; nil when it is not kept. Bundles let a
// device restart its apps with nobody above it.
func (s *Store) Bundle(digest string) ([]byte, error) { return s.Get("bundle", digest) }

// PutBundle keeps a bundle.
func (s *Store) PutBundle(digest string, body []byte) error { return s.Put("bundle", digest, body) }

// KeepBundles removes the bundles that keep does not name.
func (s *Store) KeepBundles(keep func(digest string) bool) error {
	var drop []link.Op
	err := s.Load("bundle", func(k, _ []byte) error {
		if !keep(string(k)) {
			drop = append(drop, link.Op{Bucket: "bundle", Key: slices.Clone(k)})
		}
		return nil
	})
	if err != nil || len(drop) == 0 {
		return err
	}
	return s.Commit(drop, true)
}
