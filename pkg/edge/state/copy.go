package state

import (
	"errors"
	"io"
	"os"
	"time"

	"go.etcd.io/bbolt"
)

// CopySoon asks for a verified copy; call it after changes that must not be lost,
// such as a new manifest.
func (s *Store) CopySoon() {
	s.mu.Lock()
	s.dirty = true
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// copyIfDue makes a copy when something changed and the last one is older than least.
func (s *Store) copyIfDue(least time.Duration) {
	s.mu.Lock()
	due := s.dirty && (s.copied.IsZero() || s.cfg.Now().Sub(s.copied) >= least)
	if due {
		s.dirty = false
	}
	s.mu.Unlock()
	if !due {
		return
	}
	if err := s.Copy(); err != nil {
		s.mu.Lock()
		s.dirty = true
		s.mu.Unlock()
		s.cfg.Log.Warn("state not copied", "err", err)
	}
}

// Copy makes a verified copy now: a snapshot under another name, synced, read back and
// checked, then renamed over the old copy. The old copy stands until then.
func (s *Store) Copy() error {
	err := s.copy()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.badCopy = err
	s.copied = s.cfg.Now()
	return err
}

func (s *Store) copy() error {
	temp := s.cfg.Path + ".copy.new"
	err := s.db.View(func(tx *bbolt.Tx) error {
		return writeSynced(temp, func(w io.Writer) error { _, err := tx.WriteTo(w); return err })
	})
	if err == nil {
		err = CheckFile(temp)
	}
	if err == nil {
		err = putInPlace(temp, s.cfg.Path+".copy")
	}
	if err != nil {
		os.Remove(temp)
	}
	return err
}

// restoreCopy puts a copy of the verified copy where the file was, if it still verifies.
func (s *Store) restoreCopy() bool {
	from, temp := s.cfg.Path+".copy", s.cfg.Path+".new"
	if err := CheckFile(from); err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			s.cfg.Log.Error("the verified copy is damaged too", "err", err)
		}
		return false
	}
	err := writeSynced(temp, func(w io.Writer) error {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	if err == nil {
		err = CheckFile(temp)
	}
	if err == nil {
		err = putInPlace(temp, s.cfg.Path)
	}
	if err != nil {
		s.cfg.Log.Error("the verified copy could not be put in place", "err", err)
		os.Remove(temp)
	}
	return err == nil
}

func writeSynced(path string, fill func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err = fill(f); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
