package link

import (
	"bytes"
	"fmt"
	"slices"
	"sync"

	"go.etcd.io/bbolt"
)

// BoltStore is a Store in buckets of a bbolt file. Commits without sync wait in memory
// for the next one with sync, or for Flush.
type BoltStore struct {
	db      *bbolt.DB
	mu      sync.Mutex
	pending []Op
}

// OpenBolt makes a Store of a bbolt file, which stays the caller's to close.
func OpenBolt(db *bbolt.DB) *BoltStore { return &BoltStore{db: db} }

// bucketPrefix keeps the link's buckets apart from others in the file.
const bucketPrefix = "link/"

// maxPending bounds what waits in memory.
const maxPending = 1024

// Load implements Store.
func (s *BoltStore) Load(bucket string, fn func(key, value []byte) error) error {
	if err := s.Flush(); err != nil {
		return err
	}
	return s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucketPrefix + bucket))
		if b == nil {
			return nil
		}
		return b.ForEach(fn)
	})
}

// Commit implements Store.
func (s *BoltStore) Commit(ops []Op, sync bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	waited := len(s.pending)
	for _, op := range ops {
		s.pending = append(s.pending, Op{op.Bucket, slices.Clone(op.Key), bytes.Clone(op.Value)})
	}
	if !sync && len(s.pending) < maxPending {
		return nil
	}
	if err := s.flush(); err != nil {
		if sync {
			s.pending = s.pending[:waited] // the caller knows that these are not stored
		}
		return err
	}
	return nil
}

// Flush writes what waits.
func (s *BoltStore) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flush()
}

func (s *BoltStore) flush() error {
	if len(s.pending) == 0 {
		return nil
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		for _, op := range s.pending {
			if err := applyBolt(tx, op); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write link state: %w", err)
	}
	s.pending = nil
	return nil
}

func applyBolt(tx *bbolt.Tx, op Op) error {
	name := []byte(bucketPrefix + op.Bucket)
	if op.Key == nil {
		if tx.Bucket(name) == nil {
			return nil
		}
		return tx.DeleteBucket(name)
	}
	b, err := tx.CreateBucketIfNotExists(name)
	if err != nil {
		return err
	}
	if op.Value == nil {
		return b.Delete(op.Key)
	}
	return b.Put(op.Key, op.Value)
}
