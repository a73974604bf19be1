package build

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/oci"
)

// folder is a preload that has one of everything: an app's bundle, a private CA, settings.
func folder(t *testing.T) (dir, digest string) {
	t.Helper()
	dir = t.TempDir()
	bundle := []byte(`{"name":"web"}`)
	manifest, digest := oci.BundleManifest(bundle)
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []oci.Descriptor{{MediaType: oci.TypeManifest, Digest: digest, Size: int64(len(manifest))}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"apps/default/web/oci-layout":                                   []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"apps/default/web/index.json":                                   index,
		"apps/default/web/blobs/sha256/" + digest[7:]:                   manifest,
		"apps/default/web/blobs/sha256/" + oci.Digest(bundle)[7:]:       bundle,
		"apps/default/web/blobs/sha256/" + oci.Digest([]byte("{}"))[7:]: []byte("{}"),
		"ca/ours.crt":    authority(t),
		makersFile:       authority(t),
		serversFile:      []byte("# ours\nhttps://core.example:8444 # the first\n"),
		"tributary.yaml": []byte("name: box\nrelay: true\n"),
	} {
		put(t, dir, name, b)
	}
	return dir, digest
}

func put(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	file := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func authority(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestPreload(t *testing.T) {
	dir, digest := folder(t)
	put(t, dir, "apps/default/web/.stamp", []byte("x"))
	put(t, dir, ".git/config", []byte("x"))
	count := func(files map[string][]byte) (n int) {
		for name := range files {
			if strings.Contains(name, "/.") {
				n++
			}
		}
		return n
	}
	files, err := preload(dir, "amd64")
	if n := count(files); n > 0 {
		t.Errorf("%d hidden files", n)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/share/tributary/preload/apps/default/web/blobs/sha256/" + digest[7:], "usr/share/tributary/preload/ca/ours.crt", "etc/ssl/certs/preload-ours.crt", "usr/share/tributary/preload/tributary.yaml",
		"usr/share/tributary/preload/manufacturers.pem", "usr/share/tributary/preload/bootstrap-servers"} {
		if files[name] == nil {
			t.Errorf("no %s", name)
		}
	}
	if files, err := preload("", "amd64"); err != nil || files == nil {
		t.Errorf("no preload: %v %v", files, err)
	}
}

// What a box could not use is refused while somebody is there to mend it.
func TestPreloadRefused(t *testing.T) {
	for what, spoil := range map[string]func(dir, digest string) error{
		"a blob that was altered": func(dir, digest string) error {
			return os.WriteFile(filepath.Join(dir, "apps/default/web/blobs/sha256", digest[7:]), []byte("{}"), 0o644)
		},
		"a blob that is missing": func(dir, digest string) error {
			return os.Remove(filepath.Join(dir, "apps/default/web/blobs/sha256", digest[7:]))
		},
		"an archive in place of a layout": func(dir, _ string) error { put(t, dir, "apps/web.tar", []byte("x")); return nil },
		"a repository's name": func(dir, _ string) error {
			return os.Rename(filepath.Join(dir, "apps/default/web"), filepath.Join(dir, "apps/default/Web"))
		},
		"a broken certificate": func(dir, _ string) error { put(t, dir, "ca/b.crt", []byte("no certificate")); return nil },
		"a certificate of nothing": func(dir, _ string) error {
			put(t, dir, "ca/b.crt", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
			return nil
		},
		"a key": func(dir, _ string) error {
			put(t, dir, "ca/b.crt", []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
			return nil
		},
		"a manufacturer who is none": func(dir, _ string) error { put(t, dir, makersFile, []byte("x")); return nil },
		"a server without TLS":       func(dir, _ string) error { put(t, dir, serversFile, []byte("http://a\n")); return nil },
		"a second server without TLS": func(dir, _ string) error {
			put(t, dir, serversFile, []byte("# ours\nhttps://a:8444\nhttp://b\n"))
			return nil
		},
		"a server with a path": func(dir, _ string) error { put(t, dir, serversFile, []byte("https://a:8444/x\n")); return nil },
		"a key's file":         func(dir, _ string) error { put(t, dir, "ca/b.key", []byte("x")); return nil },
		"a slip":               func(dir, _ string) error { put(t, dir, "app/x", []byte("x")); return nil },
		"a link outside":       func(dir, _ string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "ca", "link.crt")) },
	} {
		dir, digest := folder(t)
		if err := spoil(dir, digest); err != nil {
			t.Fatal(err)
		}
		if _, err := preload(dir, "amd64"); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

func TestSettings(t *testing.T) {
	p := hwprofiles.Profile{Name: "tiny"}
	if err := checkSettings([]byte("nam: box\n"), p); err == nil || !strings.Contains(err.Error(), "nam") {
		t.Errorf("an unknown field: %v", err)
	}
	if err := checkSettings([]byte("relay: true\n"), p); err == nil {
		t.Error("a relay that cannot be one")
	}
	p.Relay.Capable = true
	if err := checkSettings([]byte("relay: true\n"), p); err != nil {
		t.Error(err)
	}
	if err := checkSettings(nil, p); err != nil {
		t.Error(err)
	}
}
