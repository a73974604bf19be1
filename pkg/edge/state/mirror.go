package state

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Mirror is a Blob that is also kept in a small file beside the state file, and so does
// not go back in time when the state file is rebuilt from its copy. The meter's
// baselines need that: use that was recorded would be counted again.
type Mirror struct {
	blob Blob
	path string
	mu   sync.Mutex
	seq  uint64
}

// Mirror names a blob whose second copy is the file NAME.mirror.
func (s *Store) Mirror(name string) *Mirror {
	return &Mirror{blob: s.Blob(name), path: filepath.Join(filepath.Dir(s.cfg.Path), name+".mirror")}
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
	if raw, err := os.ReadFile(m.path); err == nil {
		if body, ok := unwrap([]byte("mirror"), []byte(m.blob.name), raw); ok {
			if s, v := numbered(body); s > seq {
				seq, value = s, v
			}
		}
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
	if err := m.writeFile(wrap([]byte("mirror"), []byte(m.blob.name), b)); err != nil {
		return err
	}
	return m.blob.Save(b)
}

// writeFile replaces the file; on a full disk it is written over in place, within the
// block that it has. Torn by a power cut then, its checksum tells, and the copy in the
// state file serves.
func (m *Mirror) writeFile(b []byte) error {
	err := atomicfile.Write(m.path, b, 0o600)
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	f, openErr := os.OpenFile(m.path, os.O_WRONLY, 0)
	if openErr != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Truncate(int64(len(b))), f.Sync(), f.Close())
}

func numbered(b []byte) (seq uint64, value []byte) {
	if len(b) < 8 {
		return 0, nil
	}
	return binary.BigEndian.Uint64(b), b[8:]
}
