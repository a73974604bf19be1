package luks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// made is a volume that cryptsetup made on a file, as boot makes STATE and DATA.
func made(t testing.TB, key []byte) string {
	t.Helper()
	if _, err := exec.LookPath("cryptsetup"); err != nil {
		t.Skip("needs cryptsetup (tests/install-deps)")
	}
	path := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 24<<20); err != nil {
		t.Fatal(err)
	}
	run(t, key, "luksFormat", "--batch-mode", "--type", "luks2", "--label", "tributary-test-new", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--cipher", "aes-xts-plain64", "--key-size", "512", "--hash", "sha256", "--key-file", "-", "--keyfile-size", fmt.Sprint(len(key)), path)
	return path
}

func run(t testing.TB, stdin []byte, args ...string) string {
	t.Helper()
	cmd := exec.Command("cryptsetup", args...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cryptsetup %s: %v: %s", args[0], err, out)
	}
	return string(out)
}

// The volume key that is found is the one that cryptsetup tells, and the table is the one
// that cryptsetup would load.
func TestAgainstCryptsetup(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	path := made(t, key)
	run(t, []byte(`{"type":"tributary-file","keyslots":["0"],"sealed":"AAAA"}`), "token", "import", "--json-file", "-", path)
	run(t, nil, "config", "--label", "tributary-test", path)
	dump := filepath.Join(t.TempDir(), "key")
	run(t, key, "luksDump", "--batch-mode", "--dump-volume-key", "--volume-key-file", dump, "--key-file", "-", path)
	want, err := os.ReadFile(dump)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	if h.Label != "tributary-test" || len(h.Tokens()) != 1 || !strings.Contains(string(h.Tokens()[0]), `"sealed":"AAAA"`) {
		t.Errorf("%q, tokens %s", h.Label, h.Tokens())
	}
	target, err := h.Open(f, "/dev/x", 24<<20, key)
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(target.Params)
	if target.Type != "crypt" || target.Length != (8<<20)/512 || fields[0] != "aes-xts-plain64" || fields[1] != fmt.Sprintf("%x", want) || fields[2] != "0" || fields[3] != "/dev/x" || fields[4] != "32768" {
		t.Errorf("%+v", target)
	}
	if _, err := h.Open(f, "/dev/x", 24<<20, []byte("wrong")); !errors.Is(err, ErrKey) {
		t.Errorf("a wrong key: %v", err)
	}
}

// A header of which a byte is torn is not read: cryptsetup is to mend it.
func TestTorn(t *testing.T) {
	path := made(t, []byte("k"))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 100, 4200, 0x4000, 0x4000 + 4200} {
		torn := bytes.Clone(b)
		torn[at] ^= 1
		if _, err := Read(bytes.NewReader(torn)); err == nil {
			t.Errorf("byte %d is torn, and nobody sees", at)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("LUKS\xba\xbe\x00\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Read(bytes.NewReader(b))
		if err == nil {
			_, _ = h.Open(bytes.NewReader(b), "/dev/x", int64(len(b)), []byte("k"))
		}
	})
}

// What a header may say beyond its checksum: whoever can write it can make one that fits.
func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":2,"hash":"sha256"},"area":{"type":"raw","offset":"0","size":"128","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"pbkdf2","hash":"sha256","iterations":2,"salt":"AAAA"}}},"segments":{"0":{"type":"crypt","offset":"16384","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":2,"salt":"AAAA","digest":"AAAAAAAAAAAAAAAAAAAAAA=="}}}`))
	f.Fuzz(func(t *testing.T, meta []byte) {
		var h Header
		if len(meta) > 64<<10 || json.Unmarshal(meta, &h.meta) != nil {
			return
		}
		if target, err := h.Open(bytes.NewReader(make([]byte, 256<<10)), "/dev/x", 256<<10, []byte("k")); err == nil && target.Length == 0 {
			t.Fatal("a table of nothing")
		}
	})
}
