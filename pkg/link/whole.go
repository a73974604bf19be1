package link

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"slices"

	"tributary.dev/tributary/pkg/api"
)

// A device's every change carries, beside its own MAC, a proof of the whole: a MAC over
// the number and the sum of terms, one for each key that is reported then. The core
// keeps the same sum and takes nothing that leaves a key out. The terms stay secret, so
// that nobody between finds two sets of keys with one sum.

// whole makes the terms and proofs of one device's state epoch.
type whole struct {
	key   [32]byte
	dev   api.DeviceID
	epoch uint64
}

func newWhole(stateKey [32]byte, dev api.DeviceID, epoch uint64) whole {
	m := hmac.New(sha256.New, stateKey[:])
	m.Write([]byte("tributary/state/whole/1"))
	return whole{[32]byte(m.Sum(nil)), dev, epoch}
}

func (w *whole) mac(kind byte, seq, sum uint64, key string) uint64 {
	m := hmac.New(sha256.New, w.key[:])
	var fixed [1 + 8 + 8 + 8 + 8]byte
	fixed[0] = kind
	copy(fixed[1:], w.dev[:])
	binary.BigEndian.PutUint64(fixed[9:], w.epoch)
	binary.BigEndian.PutUint64(fixed[17:], seq)
	binary.BigEndian.PutUint64(fixed[25:], sum)
	m.Write(fixed[:])
	m.Write([]byte(key))
	return binary.BigEndian.Uint64(m.Sum(nil))
}

// term is what a reported key adds to the sum.
func (w *whole) term(e *Entry) uint64 { return w.mac(0, e.Seq, 0, e.Key) }

// proof is the first extra field of the entry with a number, when the sum is as told.
func (w *whole) proof(seq, sum uint64) []byte {
	return putBytes(nil, binary.BigEndian.AppendUint64(nil, w.mac(1, seq, sum, "")))
}

// proves reports whether an entry proves a sum under its number.
func (w *whole) proves(e *Entry, sum uint64) bool {
	r := reader{b: e.Extra}
	first := r.raw(0)
	return r.err == nil && hmac.Equal(first, w.proof(e.Seq, sum))
}

// census is which keys the core holds of a device: 16 bytes a key.
type census struct {
	marks []mark // in the order of keys
	sum   uint64
}

type mark struct{ key, term uint64 }

var keySeed = maphash.MakeSeed()

// with is the census after entries, oldest first. The old one stays as it is.
func (c census) with(w *whole, entries []Entry) census {
	out := census{slices.Clone(c.marks), c.sum}
	for i := range entries {
		e := &entries[i]
		m := mark{maphash.String(keySeed, e.Key), 0}
		at, there := slices.BinarySearchFunc(out.marks, m, func(a, b mark) int { return cmp.Compare(a.key, b.key) })
		if there {
			out.sum -= out.marks[at].term
		}
		switch {
		case e.Deleted && there:
			out.marks = slices.Delete(out.marks, at, at+1)
		case !e.Deleted:
			m.term = w.term(e)
			out.sum += m.term
			if there {
				out.marks[at] = m
			} else {
				out.marks = slices.Insert(out.marks, at, m)
			}
		}
	}
	return out
}
