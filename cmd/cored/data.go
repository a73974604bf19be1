package main

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/audit"
	"tributary.dev/tributary/pkg/core/lease"
	"tributary.dev/tributary/pkg/core/people"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// data is the layout of the folder in which everything of a core lies.
type data string

func (d data) path(name string) string { return filepath.Join(string(d), name) }
func (d data) store() string           { return d.path("core.db") }
func (d data) ca() string              { return d.path("ca") }
func (d data) registry() string        { return d.path("registry") }
func (d data) secretKey() string       { return d.path("secret.key") }
func (d data) auditKey() string        { return d.path("audit.key") }
func (d data) heads() string           { return d.path("heads.log") }
func (d data) adminToken() string      { return d.path("admin.token") }
func (d data) firstAdmin() string      { return d.path("first-admin.token") }

// lock keeps a second cored out of the folder. The lock ends with the process.
func (d data) lock() (*os.File, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, &api.Error{Code: api.Unavailable, Message: "another cored runs on " + string(d), Remedy: "stop it first, or choose another --data", Err: err}
	}
	return f, nil
}

// must tell that a folder holds a core, for commands that do not make one.
func (d data) exists() error {
	if place, err := d.database(); place != "" || err != nil {
		return err
	}
	if _, err := os.Stat(d.store()); err != nil {
		return &api.Error{Code: api.NotFound, Message: "there is no core in " + string(d), Remedy: "name the folder that `cored run` was given as --data", Err: err}
	}
	return nil
}

func (d data) openStore(ctx context.Context) (*store.SQL, error) {
	vault, err := store.OpenVault(d.secretKey())
	if errors.Is(err, fs.ErrNotExist) {
		vault, err = nil, nil // there are no secrets, or they are in clear: run encrypts them
	}
	if err != nil {
		return nil, err
	}
	place, err := d.place("core.db")
	if err != nil {
		return nil, err
	}
	key, err := d.openAuditKey(ctx, place)
	if err != nil {
		return nil, err
	}
	db, err := store.Open(ctx, store.Config{Place: place, Now: time.Now, NewUID: newUID, Vault: vault, Sealed: people.Reseal, Auditor: audit.NewChain(key, time.Now), Rooms: audit.Migrate})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(lease.Migrate(ctx, db.Database()), people.Migrate(ctx, db.Database())); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := db.Adopt(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// sealStore opens the store of the core that runs: it makes the key of secrets when there
// is none, and encrypts what an older core left in clear or a rotation did not come to.
// The caller holds the lock.
func (d data) sealStore(ctx context.Context, log *slog.Logger) (*store.SQL, error) {
	db, err := d.openStore(ctx)
	if err != nil {
		return nil, err
	}
	if _, err = os.Lstat(d.secretKey()); errors.Is(err, fs.ErrNotExist) {
		sealed, err := db.HasSealed(ctx)
		if err = errors.Join(err, db.Close()); err != nil {
			return nil, err
		}
		if sealed {
			return nil, &api.Error{Code: api.NotFound, Message: "the key of the secrets in the database, " + d.secretKey() + ", is missing",
				Remedy: "put it back from where the database comes from, or restore a backup, which has both"}
		}
		if _, err := store.CreateVault(d.secretKey(), rand.Reader); err != nil {
			return nil, fmt.Errorf("make the key of secrets: %w", err)
		}
		if db, err = d.openStore(ctx); err != nil {
			return nil, err
		}
	}
	if err := db.Reseal(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := db.Wipe(ctx); err != nil {
		log.Warn("secrets are encrypted, but their old values may still stand in free pages of the database; tried again at the next start", "err", err)
	}
	return db, nil
}

// newUID is 80 random bits in lower-case letters and digits.
func newUID() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// firstToken makes the first admin's token and leaves it in a file that only the owner
// reads, when no such file is there.
func (d data) firstToken(ctx context.Context, tokens store.Tokens) error {
	if _, err := os.Stat(d.adminToken()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	token, err := tokens.CreateToken(ctx, "admin", store.Admin, time.Time{}, rand.Reader)
	if err != nil {
		return fmt.Errorf("make the admin token: %w", err)
	}
	return atomicfile.Write(d.adminToken(), []byte(token+"\n"), 0o600)
}

// openPeople makes the room of people over the core's database.
func (d data) openPeople(ctx context.Context, db *store.SQL) (*people.Room, error) {
	epoch, err := db.Epoch(ctx)
	if err != nil {
		return nil, err
	}
	return people.New(people.Config{DB: db.Database(), Now: time.Now, NewUID: newUID, Random: rand.Reader, Epoch: epoch, Seal: db.Vault().Seal, Open: db.Vault().Open})
}

// inviteAdmin leaves a one-time token for the first person in a file that only the owner reads,
// at the very first start of a core: when no such file is there, and nobody.
func (d data) inviteAdmin(ctx context.Context, room *people.Room, log *slog.Logger) error {
	if _, err := os.Stat(d.firstAdmin()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if anybody, err := room.Anybody(ctx); err != nil || anybody {
		return err
	}
	token, err := room.AdminToken(ctx)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(d.firstAdmin(), []byte(token+"\n"), 0o600); err != nil {
		return err
	}
	log.Info("nobody is there yet: whoever has the one-time token becomes the first administrator, within a day, by `edgectl setup` or the console", "token", d.firstAdmin(), "another", "cored admin-token")
	return nil
}
