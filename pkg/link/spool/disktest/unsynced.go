package disktest

import "tributary.dev/tributary/pkg/link/spool"

// Unsynced is a disk whose syncs do nothing: below it any spool must be seen to lose what it
// acknowledged, or a test of power cuts shows nothing.
type Unsynced struct{ spool.FS }

type unsynced struct{ spool.File }

func (unsynced) Sync() error { return nil }

// SyncDir implements spool.FS.
func (Unsynced) SyncDir(string) error { return nil }

// Create implements spool.FS.
func (u Unsynced) Create(name string) (spool.File, error) { return dull(u.FS.Create(name)) }

// Open implements spool.FS.
func (u Unsynced) Open(name string) (spool.File, error) { return dull(u.FS.Open(name)) }

func dull(f spool.File, err error) (spool.File, error) {
	if err != nil {
		return nil, err
	}
	return unsynced{f}, nil
}
