package spool

import (
	"errors"
	"path/filepath"
)

// SetBudget puts another bound in force, as Config.MaxBytes would at the next Open; 0 means
// the default. What no longer fits is given up at once, least important first, as for a
// usage record that finds no room. It waits for appends under way. Setting the bound that
// is in force does nothing. Errors: ErrClosed.
func (s *Spool) SetBudget(budget int64) error {
	most, segment := sizes(budget)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	// Like the leader of a group: nobody else writes until done is closed.
	before, done := s.tail, make(chan struct{})
	s.tail = done
	s.mu.Unlock()
	defer close(done)
	<-before
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.MaxBytes == most {
		return nil
	}
	s.cfg.MaxBytes, s.segSize = most, segment
	if over := s.excess(); over > 0 {
		s.relieve(func(freed int64) bool { return freed >= over }, dropUnbackedUp)
	}
	if err := errors.Join(s.refit(), s.trimActive()); err != nil {
		s.cfg.Log.Warn("the spool's files do not have the sizes of the new budget yet", "err", err)
	}
	return nil
}

// refit gives the spare file its new size.
func (s *Spool) refit() error {
	if !s.spare {
		s.ensureSpare()
		return nil
	}
	f, err := s.cfg.FS.Open(filepath.Join(s.cfg.Dir, spareName))
	if err != nil {
		return err
	}
	return errors.Join(s.fitSpare(f), f.Close())
}

// trimActive gives back what is allocated to the active segment beyond a segment's size.
func (s *Spool) trimActive() error {
	a := s.active()
	keep := max(a.size, s.segSize)
	if a.alloc <= keep {
		return nil
	}
	if err := a.file.Truncate(keep); err != nil {
		return err
	}
	a.alloc = keep
	return nil
}
