package main

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// data is the layout of the folder in which everything of a core lies.
type data string

func (d data) path(name string) string { return filepath.Join(string(d), name) }
func (d data) store() string           { return d.path("core.db") }
func (d data) ledger() string          { return d.path("ledger.db") }
func (d data) ca() string              { return d.path("ca") }
func (d data) registry() string        { return d.path("registry") }
func (d data) adminToken() string      { return d.path("admin.token") }

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
	if _, err := os.Stat(d.store()); err != nil {
		return &api.Error{Code: api.NotFound, Message: "there is no core in " + string(d), Remedy: "name the folder that `cored run` was given as --data", Err: err}
	}
	return nil
}

func (d data) openStore(ctx context.Context) (*store.SQLite, error) {
	return store.OpenSQLite(ctx, store.Config{Path: d.store(), Now: time.Now, NewUID: newUID})
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
