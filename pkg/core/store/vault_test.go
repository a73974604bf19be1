package store_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

const canary = "canary-9c41e7"

// safe is a database with its key.
type safe struct {
	t        *testing.T
	db, keys string
	uid      atomic.Int64
}

func newSafe(t *testing.T) *safe {
	dir := t.TempDir()
	return &safe{t: t, db: filepath.Join(dir, "core.db"), keys: filepath.Join(dir, "secret.key")}
}

func (s *safe) open(vault *store.Vault) *store.SQL {
	s.t.Helper()
	db, err := store.Open(context.Background(), store.Config{Place: s.db, Now: time.Now, NewUID: func() string { return fmt.Sprint("uid-", s.uid.Add(1)) }, Vault: vault})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { db.Close() })
	return db
}

func (s *safe) vault() *store.Vault {
	s.t.Helper()
	v, err := store.OpenVault(s.keys)
	if errors.Is(err, fs.ErrNotExist) {
		v, err = store.CreateVault(s.keys, rand.Reader)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

func (s *safe) put(db *store.SQL, name, value string) {
	s.t.Helper()
	o := &api.Object{Kind: api.KindSecret, Metadata: api.Meta{Tenant: "default", Name: name}, Spec: []byte(`{"data":{"value":"` + value + `"}}`)}
	if _, err := db.Put(s.t.Context(), o, store.PutOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *safe) get(db *store.SQL, name string) (string, error) {
	o, err := db.Get(s.t.Context(), secretKey(name))
	if err != nil {
		return "", err
	}
	return string(o.Spec), nil
}

func secretKey(name string) api.Key {
	return api.Key{Tenant: "default", Kind: api.KindSecret, Name: name}
}

// inClear lists the files beside the database that hold a text.
func (s *safe) inClear(text string) (names []string) {
	s.t.Helper()
	files, err := filepath.Glob(s.db + "*")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			s.t.Fatal(err)
		}
		if bytes.Contains(b, []byte(text)) {
			names = append(names, f)
		}
	}
	return names
}

// raw changes the database behind the store's back.
func (s *safe) raw(statement string, args ...any) {
	s.t.Helper()
	db, err := sql.Open("sqlite", s.db)
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement, args...); err != nil {
		s.t.Fatal(err)
	}
}

var seals = map[string][32]byte{"secret/door": [32]byte([]byte("hash-of-a-short-secret-0123456789"))}

func saveSeals(t *testing.T, db *store.SQL) {
	t.Helper()
	if err := db.SaveManifests(t.Context(), []*store.ManifestRecord{{Device: api.DeviceID{1}, Raw: []byte("raw"), Seals: seals}}); err != nil {
		t.Fatal(err)
	}
}

func TestSecretsAreEncrypted(t *testing.T) {
	s := newSafe(t)
	db := s.open(s.vault())
	s.put(db, "door", canary)
	s.put(db, "door", canary+"-2")
	saveSeals(t, db)
	if got, err := s.get(db, "door"); err != nil || !strings.Contains(got, canary+"-2") {
		t.Fatal(got, err)
	}
	o, err := db.Put(t.Context(), &api.Object{Kind: api.KindSecret, Metadata: api.Meta{Tenant: "default", Name: "door"}, Spec: []byte(`{"data":{"value":"` + canary + `-2"}}`)}, store.PutOptions{})
	if err != nil || o.Metadata.Generation != 2 {
		t.Errorf("the same value again is a change: %+v %v", o, err)
	}
	if list, _, _, err := db.List(t.Context(), store.Query{Kind: api.KindSecret}); err != nil || len(list) != 1 || !bytes.Contains(list[0].Spec, []byte(canary)) {
		t.Fatal(list, err)
	}
	copied := filepath.Join(filepath.Dir(s.db), "core.db-copy")
	if err := db.BackupTo(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{canary, "hash-of-a-short"} {
		if names := s.inClear(text); names != nil {
			t.Errorf("%s stands in clear in %v", text, names)
		}
	}
	// A value opens in its own place alone, and not altered.
	s.put(db, "other", "harmless")
	db.Close()
	s.raw(`UPDATE objects SET spec = (SELECT spec FROM objects WHERE name = 'door') WHERE name = 'other'`)
	db = s.open(s.vault())
	if got, err := s.get(db, "other"); err == nil {
		t.Errorf("a secret moved to another's place opens to %s", got)
	}
	if got, err := s.get(db, "door"); err != nil || !strings.Contains(got, canary) {
		t.Error(got, err)
	}
	db.Close()
	without := s.open(nil)
	if _, err := s.get(without, "door"); err == nil || !strings.Contains(err.Error(), "secret.key") {
		t.Errorf("without the key: %v", err)
	}
	if sealed, err := without.HasSealed(t.Context()); err != nil || !sealed {
		t.Error(sealed, err)
	}
}

// What an older core left in clear is encrypted, and wiped from pages that are free now.
func TestClearSecretsAreEncryptedAtTheNextStart(t *testing.T) {
	s := newSafe(t)
	db := s.open(nil)
	s.put(db, "door", canary)
	s.put(db, "gone", canary)
	saveSeals(t, db)
	if err := db.Delete(t.Context(), secretKey("gone"), 0); err != nil {
		t.Fatal(err)
	}
	if s.inClear(canary) == nil || s.inClear("hash-of-a-short") == nil {
		t.Fatal("the test finds nothing where it is")
	}
	db.Close()
	db = s.open(s.vault())
	for range 2 {
		if err := db.Reseal(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Wipe(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{canary, "hash-of-a-short"} {
		if names := s.inClear(text); names != nil {
			t.Errorf("%s stands in clear in %v", text, names)
		}
	}
	if got, err := s.get(db, "door"); err != nil || !strings.Contains(got, canary) {
		t.Error(got, err)
	}
	found := false
	if err := db.EachManifest(t.Context(), func(r *store.ManifestRecord) error {
		found = r.Seals["secret/door"] == seals["secret/door"]
		return nil
	}); err != nil || !found {
		t.Error("the manifest's seals: ", found, err)
	}
}

func TestRotateSecrets(t *testing.T) {
	s := newSafe(t)
	db := s.open(s.vault())
	s.put(db, "door", canary)
	saveSeals(t, db)
	old, err := os.ReadFile(s.keys)
	if err != nil {
		t.Fatal(err)
	}
	reader := s.open(s.vault()) // another process, which read the key before
	if err := db.Rotate(t.Context(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	for name, one := range map[string]*store.SQL{"the one that rotated": db, "another": reader, "a new one": s.open(s.vault())} {
		if got, err := s.get(one, "door"); err != nil || !strings.Contains(got, canary) {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	if now, err := os.ReadFile(s.keys); err != nil || bytes.Equal(now, old) || bytes.Count(now, []byte("\n")) != 1 {
		t.Errorf("the keys after: %d lines, %v", bytes.Count(now, []byte("\n")), err)
	}
	db.Close()
	reader.Close()
	if err := os.WriteFile(s.keys, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.get(s.open(s.vault()), "door"); err == nil {
		t.Errorf("the old key opens %s", got)
	}
}

// A rotation that ends between its steps leaves both keys; the next start finishes it.
func TestRotationIsFinished(t *testing.T) {
	s := newSafe(t)
	db := s.open(s.vault())
	s.put(db, "door", canary)
	db.Close()
	old, err := os.ReadFile(s.keys)
	if err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(t.TempDir(), "key")
	if _, err := store.CreateVault(fresh, rand.Reader); err != nil {
		t.Fatal(err)
	}
	line, err := os.ReadFile(fresh)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.keys, append(line, old...), 0o600); err != nil {
		t.Fatal(err)
	}
	db = s.open(s.vault())
	if err := db.Reseal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(s.keys); err != nil || !bytes.Equal(now, line) {
		t.Errorf("%s %v", now, err)
	}
	if got, err := s.get(db, "door"); err != nil || !strings.Contains(got, canary) {
		t.Error(got, err)
	}
}

func FuzzVaultFile(f *testing.F) {
	f.Add([]byte("tributary-secret-key-1 00112233 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"))
	f.Add([]byte("\n"))
	f.Add([]byte("tributary-secret-key-1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "secret.key")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if v, err := store.OpenVault(path); err == nil && v == nil {
			t.Error("no keys and no error")
		}
	})
}
