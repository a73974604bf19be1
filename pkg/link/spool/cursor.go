package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/fxamacker/cbor/v2"
	"go.etcd.io/bbolt"

	"tributary.dev/tributary/pkg/link/record"
)

var (
	bucketCursor = []byte("spool")
	bucketIndex  = []byte("spool-index")
	keyCursor    = []byte("cursor")
)

// cursor is what bbolt remembers of the spool. It may be old: then records are sent
// again.
type cursor struct {
	Epoch uint64      `cbor:"1,keyasint"`
	Nonce uint64      `cbor:"2,keyasint"`
	Mark  string      `cbor:"3,keyasint"`
	Opens uint64      `cbor:"4,keyasint"`
	Acked uint64      `cbor:"5,keyasint"`
	Hash  record.Hash `cbor:"6,keyasint"` // chain value after Acked
	Safe  uint64      `cbor:"7,keyasint"`
	// CoreEpoch is the highest of any acknowledgement.
	CoreEpoch uint64 `cbor:"8,keyasint"`
	// Last is the last number known at the time.
	Last uint64 `cbor:"9,keyasint"`
}

// indexed segment, as bbolt keeps it.
type indexRow struct {
	Epoch  uint64        `cbor:"1,keyasint"`
	Salt   uint32        `cbor:"2,keyasint"`
	Next   uint64        `cbor:"3,keyasint"`
	End    record.Hash   `cbor:"4,keyasint"`
	Size   int64         `cbor:"5,keyasint"`
	Kinds  []int64       `cbor:"6,keyasint"`
	Seqs   []uint64      `cbor:"7,keyasint"`
	Offs   []int64       `cbor:"8,keyasint"`
	Chains []record.Hash `cbor:"9,keyasint"`
	Opens  uint64        `cbor:"11,keyasint"`
	Sent   uint64        `cbor:"12,keyasint"`
}

func (s *Spool) loadCursor() (c cursor, err error) {
	if s.cfg.DB == nil {
		return c, nil
	}
	err = s.cfg.DB.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketCursor)
		if b == nil {
			return nil
		}
		raw := b.Get(keyCursor)
		if raw == nil {
			return nil
		}
		if err := cbor.Unmarshal(raw, &c); err != nil {
			// As good as lost: the log is the truth.
			s.cfg.Log.Warn("spool cursor unreadable", "err", err)
			c = cursor{}
		}
		return nil
	})
	return c, err
}

// saveCursor writes the cursor and the segments filled since. Callers hold mu.
func (s *Spool) saveCursor() error {
	if s.cfg.DB == nil {
		return nil
	}
	s.cur.Epoch, s.cur.Last = s.active().epoch, s.active().last()
	raw, err := cbor.Marshal(s.cur)
	if err != nil {
		return err
	}
	err = s.cfg.DB.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucketCursor)
		if err != nil {
			return err
		}
		ix, err := tx.CreateBucketIfNotExists(bucketIndex)
		if err != nil {
			return err
		}
		return errors.Join(b.Put(keyCursor, raw), s.saveIndex(ix))
	})
	if err != nil {
		return fmt.Errorf("write spool cursor: %w", err)
	}
	s.index, s.saved = nil, s.cfg.Now()
	return nil
}

func indexKey(first uint64) []byte { return binary.BigEndian.AppendUint64(nil, first) }

func (s *Spool) saveIndex(ix *bbolt.Bucket) error {
	for _, g := range s.index {
		row := indexRow{Epoch: g.epoch, Salt: g.salt, Next: g.next, End: g.end, Size: g.size, Kinds: g.kinds[:],
			Opens: g.opens, Sent: g.sent}
		for _, st := range g.steps {
			row.Seqs, row.Offs, row.Chains = append(row.Seqs, st.seq), append(row.Offs, st.off), append(row.Chains, st.chain)
		}
		raw, err := cbor.Marshal(row)
		if err != nil {
			return err
		}
		if err := ix.Put(indexKey(g.first), raw); err != nil {
			return err
		}
	}
	// Rows of segments that are gone.
	c := ix.Cursor()
	for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) < s.segs[0].first; k, _ = c.Next() {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// indexed fills g from the index; false when it is not there or is of another file.
func (s *Spool) indexed(g *segment, limit uint64) bool {
	if s.cfg.DB == nil {
		return false
	}
	var row indexRow
	found := false
	err := s.cfg.DB.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(bucketIndex); b != nil {
			if raw := b.Get(indexKey(g.first)); raw != nil {
				found = true
				return cbor.Unmarshal(raw, &row)
			}
		}
		return nil
	})
	size, sizeErr := g.file.Size()
	n := len(row.Seqs)
	if err != nil || sizeErr != nil || !found || row.Epoch != g.epoch || row.Salt != g.salt || row.Size != size ||
		row.Next > limit || row.Next < g.first || n != len(row.Offs) || n != len(row.Chains) {
		return false
	}
	g.fresh()
	g.next, g.end, g.size, g.alloc = row.Next, row.End, row.Size, row.Size
	g.opens, g.sent = row.Opens, row.Sent
	copy(g.kinds[:], row.Kinds)
	for i := range n {
		g.steps = append(g.steps, step{row.Seqs[i], row.Offs[i], row.Chains[i]})
	}
	return true
}

const markName = "mark"

// mark tells this folder from a copy of it, by a file that is never rewritten.
func (s *Spool) mark() (string, error) {
	path := filepath.Join(s.cfg.Dir, markName)
	if m, err := s.cfg.FS.Mark(path); err == nil {
		return m, nil
	}
	f, err := s.cfg.FS.Create(path)
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Sync(), f.Close(), s.cfg.FS.SyncDir(s.cfg.Dir)); err != nil {
		return "", err
	}
	return s.cfg.FS.Mark(path)
}
