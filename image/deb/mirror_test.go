package deb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"tributary.dev/tributary/image/deb/debtest"
)

// mirror is a made-up Debian archive that this machine's own apt is set upon.
type mirror struct {
	t     *testing.T
	dir   string
	key   *openpgp.Entity
	index map[string]string // suite/arch -> Packages
}

func newMirror(t *testing.T) *mirror {
	if testing.Short() {
		t.Skip("needs 5 s for apt: not in short mode")
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("needs apt-get, which is not installed")
	}
	key, err := openpgp.NewEntity("made up", "", "a@b.invalid", &packet.Config{Algorithm: packet.PubKeyAlgoRSA, RSABits: 3072})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &mirror{t: t, dir: dir, key: key, index: map[string]string{}}
}

func (m *mirror) add(suite, arch, name, version, depends string, deb []byte) {
	path := "pool/main/" + name + "_" + version + "_" + arch + ".deb"
	m.write(path, deb)
	m.index[suite+"/"+arch] += fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nDepends: %s\nFilename: %s\nSize: %d\nSHA256: %x\n\n",
		name, version, arch, depends, path, len(deb), sha256.Sum256(deb))
}

func (m *mirror) write(name string, b []byte) {
	file := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// publish signs the suites with key and returns how to reach them.
func (m *mirror) publish(signer *openpgp.Entity) Mirror {
	for _, suite := range []string{"made", "made-updates", "made-backports"} {
		sums := ""
		for _, arch := range []string{"amd64", "arm64"} {
			plain := []byte(m.index[suite+"/"+arch])
			packed := debtest.XZ(plain)
			name := "main/binary-" + arch + "/Packages"
			m.write("dists/"+suite+"/"+name+".xz", packed)
			sums += fmt.Sprintf(" %x %d %s\n %x %d %s.xz\n", sha256.Sum256(plain), len(plain), name, sha256.Sum256(packed), len(packed), name)
		}
		var signed bytes.Buffer
		w, err := clearsign.Encode(&signed, signer.PrivateKey, nil)
		if err != nil {
			m.t.Fatal(err)
		}
		fmt.Fprintf(w, "Origin: made up\nSuite: %s\nCodename: %s\nDate: %s\nArchitectures: amd64 arm64\nComponents: main contrib non-free non-free-firmware\nSHA256:\n%s",
			suite, suite, time.Now().UTC().Format("Mon, 02 Jan 2006 15:04:05 UTC"), sums)
		w.Close()
		m.write("dists/"+suite+"/InRelease", signed.Bytes())
	}
	var ring bytes.Buffer
	if err := m.key.Serialize(&ring); err != nil {
		m.t.Fatal(err)
	}
	m.write("keyring.gpg", ring.Bytes())
	srv := httptest.NewServer(http.FileServer(http.Dir(m.dir)))
	m.t.Cleanup(srv.Close)
	return Mirror{Main: srv.URL, Keyring: filepath.Join(m.dir, "keyring.gpg")}
}

func fill(m *mirror) {
	for _, arch := range []string{"amd64", "arm64"} {
		m.add("made", arch, "tool", "1.0-1", "lib (>= 2), doc", debtest.Make(".xz", debtest.Member{Name: "./usr/bin/tool", Body: arch}))
		m.add("made", arch, "lib", "2", "", debtest.Make(".zst", debtest.Member{Name: "./lib/l.so", Body: arch}))
		m.add("made-backports", arch, "lib", "3", "", debtest.Make(".gz", debtest.Member{Name: "./lib/l.so", Body: "3" + arch}))
	}
}

// TestApt goes the whole way with the machine's real apt: update, verify, lock, fetch, read, and again without a network.
func TestApt(t *testing.T) {
	m := newMirror(t)
	fill(m)
	where := m.publish(m.key)
	ctx, log := context.Background(), slog.New(slog.DiscardHandler)
	d := &Declared{Suite: "made", Sets: map[string]Set{"base": {Packages: []string{"tool"}}, "new": {Release: "made-backports", Packages: []string{"lib"}}}, Exclude: []string{"doc"}}
	lock, err := MakeLock(ctx, &Apt{Dir: t.TempDir(), Mirror: where, Log: log}, d, []string{"amd64", "arm64"})
	if err != nil {
		t.Fatal(err)
	}
	if lock, err = DecodeLock(bytes.NewReader(lock.Encode())); err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Packages("amd64", "base", "new"); err == nil {
		t.Error("two versions of lib went into one image")
	}
	list, err := lock.Packages("arm64", "base")
	if err != nil || len(list) != 2 || list[0].Name != "lib" || list[0].Version != "2" {
		t.Fatalf("%v, %v", list, err)
	}
	cache := &Cache{Dir: t.TempDir(), Log: log}
	if err := cache.Fetch(ctx, list, func() (Mirror, error) { return where, nil }); err != nil {
		t.Fatal(err)
	}
	offline := func() (Mirror, error) { return Mirror{}, errors.New("no network") }
	if err := cache.Fetch(ctx, list, offline); err != nil {
		t.Errorf("a filled cache asked for the mirror: %v", err)
	}
	for range 2 { // the second time from the kept form
		if text, err := read(cache, list[1]); err != nil || text != "usr/bin/tool arm64" {
			t.Errorf("%q, %v", text, err)
		}
	}
	amd, err := lock.Packages("amd64", "base")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(m.dir, amd[0].Path)); err != nil {
		t.Fatal(err)
	}
	err = cache.Fetch(ctx, amd, func() (Mirror, error) { return where, nil })
	if !errors.Is(err, ErrDropped) || !strings.Contains(err.Error(), "go run ./image lock") || !strings.Contains(err.Error(), "lib_2_amd64") {
		t.Errorf("a dropped version gives %v", err)
	}
	if len(cache.Missing(amd)) != 1 {
		t.Error("the packages that are still there were not fetched")
	}
	m.write(amd[0].Path, []byte("something else"))
	if err := cache.Fetch(ctx, amd, func() (Mirror, error) { return where, nil }); err == nil || len(cache.Missing(amd)) != 1 {
		t.Errorf("a changed package was let in: %v", err)
	}
}

// TestForeignKey: neither apt nor our own check takes an index that another key signed.
func TestForeignKey(t *testing.T) {
	m := newMirror(t)
	fill(m)
	other, err := openpgp.NewEntity("another", "", "x@b.invalid", &packet.Config{Algorithm: packet.PubKeyAlgoRSA, RSABits: 3072})
	if err != nil {
		t.Fatal(err)
	}
	where := m.publish(other)
	dir := t.TempDir()
	if _, err := (&Apt{Dir: dir, Mirror: where, Log: slog.New(slog.DiscardHandler)}).Update(context.Background(), "made", []string{"amd64"}); err == nil {
		t.Error("apt let an index of a foreign key in")
	}
	signed, err := os.ReadFile(filepath.Join(m.dir, "dists/made/InRelease"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifyRelease(signed, openpgp.EntityList{m.key}); !errors.Is(err, errUnsigned) {
		t.Errorf("a foreign key: %v", err)
	}
	if sums, err := verifyRelease(signed, openpgp.EntityList{other}); err != nil || len(sums) != 4 {
		t.Errorf("the right key: %v, %v", sums, err)
	}
	if _, err := verifyRelease(bytes.Replace(signed, []byte("Origin: made"), []byte("Origin: mode"), 1), openpgp.EntityList{other}); !errors.Is(err, errUnsigned) {
		t.Errorf("a changed text: %v", err)
	}
}
