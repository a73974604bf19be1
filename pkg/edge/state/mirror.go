package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Mirror is a Blob that is also kept in a small file beside the state file, and so does
// not go back in time when the state file is rebuilt from its copy. The meter's
// baselines need that: use that was recorded would be counted again.
//
// The file has two halves of equal size, allocated when it is made and written in turn,
// so a save needs no room on a full disk and a torn one leaves the half before it whole.
// A half is: length of the body (uint32, big-endian), then the body under its checksum.
type Mirror struct {
	blob Blob
	path string
	mu   sync.Mutex
	seq  uint64
}

// Bounds of a half of a mirror's file: what it has at least, and what is read at most.
const (
	minHalf = 32 << 10
	maxHalf = 16 << 20
)

// Mirror names a blob whose second copy is the file NAME.mirror. The file is made at
// once, so that its room is taken before somebody else fills the disk.
func (s *Store) Mirror(name string) *Mirror {
	m := &Mirror{blob: s.Blob(name), path: filepath.Join(filepath.Dir(s.cfg.Path), name+".mirror")}
	if info, err := os.Stat(m.path); err != nil || info.Size() < 2*minHalf {
		if err := m.rebuild(m.newestHalf(), minHalf); err != nil {
			s.cfg.Log.Warn("no room is taken ahead for a mirror", "path", m.path, "err", err) // Save tries again
		}
	}
	return m
}

// Load returns the newer of the two copies that is whole; nil when nothing was saved.
func (m *Mirror) Load() ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	inState, err := m.blob.Load()
	if err != nil {
		return nil, err
	}
	seq, value := numbered(inState)
	if s, v := numbered(m.newestHalf()); s > seq {
		seq, value = s, v
	}
	m.seq = seq
	return value, nil
}

// Save writes both copies; it is durable when it returns. When one of the two cannot be
// written it fails, and Load gives the other, which is newer.
func (m *Mirror) Save(value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seq++
	b := append(binary.BigEndian.AppendUint64(nil, m.seq), value...)
	if err := m.writeFile(b); err != nil {
		return err
	}
	return m.blob.Save(b)
}

// writeFile writes the half that is not the newest, or a larger file if b needs one.
func (m *Mirror) writeFile(b []byte) error {
	half := m.half(b)
	f, err := os.OpenFile(m.path, os.O_RDWR, 0)
	if err != nil {
		return m.rebuild(b, minHalf)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if size := info.Size() / 2; size < minHalf || size < int64(len(half)) {
		return errors.Join(f.Close(), m.rebuild(b, minHalf))
	}
	_, err = f.WriteAt(half, int64(m.seq%2)*(info.Size()/2))
	return errors.Join(err, f.Sync(), f.Close())
}

// rebuild replaces the file by one whose halves hold b and at least size bytes. It is
// written out, zeros too: blocks only promised need more room when they are first used.
func (m *Mirror) rebuild(b []byte, size int) error {
	half := m.half(b)
	for size < len(half) {
		size *= 2
	}
	if size > maxHalf {
		return fmt.Errorf("%s: %d bytes are too many", m.path, len(b))
	}
	seq, _ := numbered(b)
	whole := make([]byte, 2*size)
	copy(whole[int(seq%2)*size:], half)
	return atomicfile.Write(m.path, whole, 0o600)
}

func (m *Mirror) half(b []byte) []byte {
	body := wrap([]byte("mirror"), []byte(m.blob.name), b)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// newestHalf is the newest whole body of the file, nil if there is none.
func (m *Mirror) newestHalf() (newest []byte) {
	f, err := os.Open(m.path)
	if err != nil {
		return nil
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 2*maxHalf))
	if err != nil {
		return nil
	}
	for _, half := range [][]byte{raw[:len(raw)/2], raw[len(raw)/2:]} {
		body, ok := m.whole(half)
		seq, _ := numbered(body)
		if best, _ := numbered(newest); ok && (newest == nil || seq > best) {
			newest = body
		}
	}
	return newest
}

// whole returns the body of a half, if that is as it was written.
func (m *Mirror) whole(half []byte) ([]byte, bool) {
	if len(half) < 4 {
		return nil, false
	}
	n := binary.BigEndian.Uint32(half)
	if uint64(n) > uint64(len(half)-4) {
		return nil, false
	}
	body, ok := unwrap([]byte("mirror"), []byte(m.blob.name), half[4:][:n])
	return body, ok && len(body) >= 8
}

func numbered(b []byte) (seq uint64, value []byte) {
	if len(b) < 8 {
		return 0, nil
	}
	return binary.BigEndian.Uint64(b), b[8:]
}
