package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

const secretDoc = `{"apiVersion":"tributary/v1","kind":"Secret","metadata":{"name":"door"},"spec":{"data":{"value":"canary-b70d"}}}`

// holding lists the files of a folder that hold a text.
func holding(t *testing.T, dir, text string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func (r *running) door() string {
	r.t.Helper()
	o, err := r.c.store.Get(r.t.Context(), api.Key{Tenant: "default", Kind: api.KindSecret, Name: "door"})
	if err != nil {
		r.t.Fatal(err)
	}
	return string(o.Spec)
}

func rotate(t *testing.T, dir string) {
	t.Helper()
	cmd := root()
	cmd.SetArgs([]string{"secrets", "rotate", "--data", dir})
	cmd.SetOut(t.Output())
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The value of a secret is nowhere in the core's folder, whether the core was new, older
// than the encryption, or restored; and the key can be changed at any time.
func TestSecretsAtRest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "core")
	r := start(t, dir)
	r.must("POST", "/api/v1/secrets", secretDoc, nil)
	if names := holding(t, dir, "canary-b70d"); names != nil {
		t.Errorf("in clear in %v", names)
	}
	key := data(dir).secretKey()
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	before, _ := os.ReadFile(key)
	rotate(t, dir)
	during, _ := os.ReadFile(key)
	if bytes.Equal(before, during) || !strings.Contains(r.door(), "canary-b70d") {
		t.Error("the running core did not rotate")
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "backup.age")
	if _, err := makeBackup(t.Context(), data(dir), file, []age.Recipient{id.Recipient()}, false); err != nil {
		t.Fatal(err)
	}
	r.stop()
	rotate(t, dir)
	if after, _ := os.ReadFile(key); bytes.Equal(after, during) {
		t.Error("the stopped core did not rotate")
	}

	elsewhere := filepath.Join(t.TempDir(), "core")
	if _, _, err := restoreBackup(t.Context(), data(elsewhere), "", file, []age.Identity{id}); err != nil {
		t.Fatal(err)
	}
	r = start(t, elsewhere)
	if !strings.Contains(r.door(), "canary-b70d") {
		t.Error("the restored core does not know the secret")
	}
	if names := append(holding(t, elsewhere, "canary-b70d"), holding(t, filepath.Dir(file), "canary-b70d")...); names != nil {
		t.Errorf("in clear in %v", names)
	}
	r.stop()

	// Without its key the core does not start with another.
	if err := os.Remove(data(elsewhere).secretKey()); err != nil {
		t.Fatal(err)
	}
	if _, err := data(elsewhere).sealStore(t.Context(), r.c.log); api.CodeOf(err) != api.NotFound || !strings.Contains(err.Error(), "secret.key") {
		t.Errorf("without the key: %v", err)
	}
}

func TestSecretsOfAnOlderCore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "core")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	old, err := data(dir).openStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Put(t.Context(), &api.Object{Kind: api.KindSecret, Metadata: api.Meta{Tenant: "default", Name: "door"}, Spec: []byte(`{"data":{"value":"canary-b70d"}}`)}, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if holding(t, dir, "canary-b70d") == nil {
		t.Fatal("the test finds nothing where it is")
	}
	r := start(t, dir)
	if names := holding(t, dir, "canary-b70d"); names != nil {
		t.Errorf("in clear in %v", names)
	}
	if !strings.Contains(r.door(), "canary-b70d") {
		t.Error("the secret is lost")
	}
}
