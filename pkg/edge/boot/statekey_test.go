package boot

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/tpm/attest"
)

// chip is a TPM as far as boot sees one: it gives a key while pcr is what it was, until it is shut.
type chip struct {
	TPM
	pcr   string
	shut  bool
	keys  map[string][]byte // by the token's text
	unfit error
}

func (c *chip) Name() string              { return "tpm2" }
func (c *chip) Fit(context.Context) error { return c.unfit }
func (c *chip) Shut(context.Context) error {
	c.shut = true
	return nil
}

// pcr7 is the PCR's value under the firmware keys of that name.
func pcr7(keys string) [32]byte { return sha256.Sum256([]byte(keys)) }

func (c *chip) Seal(ctx context.Context, key []byte) (json.RawMessage, error) {
	return c.SealTo(ctx, key, pcr7(c.pcr))
}

func (c *chip) SealTo(_ context.Context, key []byte, pcr7 [32]byte) (json.RawMessage, error) {
	text, err := json.Marshal(map[string]any{"n": len(c.keys), "pcr7": pcr7[:]})
	c.keys[fmt.Sprint(len(c.keys))] = bytes.Clone(key)
	return text, errors.Join(err, c.unfit)
}

func (c *chip) Unseal(_ context.Context, sealed json.RawMessage) ([]byte, error) {
	var s struct {
		N    int    `json:"n"`
		PCR7 []byte `json:"pcr7"`
	}
	if err := json.Unmarshal(sealed, &s); err != nil {
		return nil, err
	}
	key := c.keys[fmt.Sprint(s.N)]
	if now := pcr7(c.pcr); key == nil || !bytes.Equal(s.PCR7, now[:]) || c.shut {
		return nil, errors.New("the TPM does not give the key")
	}
	return bytes.Clone(key), nil
}

func (c *chip) Quote(_ context.Context, nonce []byte) (Quoted, error) {
	return Quoted{Evidence: nonce}, nil
}

func (c *chip) Activate(_ context.Context, blob, _ []byte) ([]byte, error) { return blob, nil }

// headed is a STATE of which there is only the header, as the first start makes it.
func headed(t *testing.T) (node string, tpm *chip) {
	t.Helper()
	if _, err := exec.LookPath("cryptsetup"); err != nil {
		t.Skip("needs cryptsetup: run tests/install-deps")
	}
	node, tpm = filepath.Join(t.TempDir(), "state"), &chip{pcr: "7", keys: map[string][]byte{}}
	if err := os.WriteFile(node, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(node, 24<<20); err != nil {
		t.Fatal(err)
	}
	b := starts(t, node, tpm)
	key, keep, err := b.newStateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.cryptsetup(t.Context(), key, "luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--cipher", "aes-xts-plain64", "--key-size", "512", "--hash", "sha256", "--key-file", "-", "--keyfile-size", "32", node); err != nil {
		t.Fatal(err)
	}
	if err := keep(); err != nil {
		t.Fatal(err)
	}
	return node, tpm
}

// starts is process 1 of another start.
func starts(t *testing.T, node string, tpm *chip) *booter {
	t.Helper()
	tpm.shut = false
	b := &booter{cfg: Config{TPM: tpm}, out: &consoles{}, leave: make(chan request, 1)}
	b.keys.node = node
	b.keys.run = func(ctx context.Context, stdin []byte, argv ...string) (string, int, error) {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Stdin = bytes.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", argv[1], err, out)
		}
		return string(out), cmd.ProcessState.ExitCode(), err
	}
	return b
}

// opensBy has a start open STATE, and tells what gave the key.
func opensBy(t *testing.T, b *booter) string {
	t.Helper()
	key, err := b.stateKey(t.Context())
	if err != nil {
		if b.keys.locked == nil {
			t.Fatal(err)
		}
		return "locked"
	}
	if err := b.opens(key); err != nil {
		t.Fatal(err)
	}
	if err := b.shut(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.state = true
	b.settleKey(t.Context())
	return b.keys.source
}

func inHeader(t *testing.T, b *booter) string {
	t.Helper()
	tokens, slots, err := b.header(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, k := range tokens {
		kinds = append(kinds, strings.TrimPrefix(k.Type, tokenPrefix))
	}
	slices.Sort(kinds)
	return fmt.Sprint(kinds, len(slots))
}

func someKey(t *testing.T) []byte {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	return key
}

var ofBox = Recovery{Device: "abcdefghijklm", Parents: []string{"https://core:8443"}, Root: make([]byte, 32)}

// TestKeyGoesIntoTPM goes from the first start to a changed firmware and back, on a header that
// cryptsetup made.
func TestKeyGoesIntoTPM(t *testing.T) {
	node, tpm := headed(t)
	key := someKey(t)
	b := starts(t, node, tpm)
	if by := opensBy(t, b); by != "file" {
		t.Fatal(by)
	}
	if err := b.escrow(t.Context(), key, &ofBox); err != nil {
		t.Fatal(err)
	}
	if err := b.escrow(t.Context(), someKey(t), &ofBox); err == nil {
		t.Error("a second key in one start: the core would have another than the TPM")
	}
	if got := inHeader(t, b); got != "[file recovery tpm2] 2" {
		t.Errorf("after the escrow: %s", got)
	}
	for range 2 {
		b = starts(t, node, tpm)
		if by := opensBy(t, b); by != "tpm2" {
			t.Fatal(by)
		}
		if got := inHeader(t, b); got != "[recovery tpm2] 1" {
			t.Errorf("opened by the TPM: %s", got)
		}
		if err := b.opens(key); err != nil {
			t.Errorf("the core's key: %v", err)
		}
	}
	tpm.pcr = "other"
	b = starts(t, node, tpm)
	if by := opensBy(t, b); by != "locked" || b.keys.locked.Device != ofBox.Device {
		t.Fatalf("after a change of the firmware: %s", by)
	}
	if err := b.unlock(t.Context(), someKey(t), nil); err == nil || inHeader(t, b) != "[recovery tpm2] 1" {
		t.Errorf("another key from the core: %v, %s", err, inHeader(t, b))
	}
	if err := b.unlock(t.Context(), key, nil); err != nil {
		t.Fatal(err)
	}
	if r := <-b.leave; r.Do != doReboot {
		t.Errorf("%+v", r)
	}
	if !tpm.shut {
		t.Error("the TPM is not shut")
	}
	b = starts(t, node, tpm)
	if by := opensBy(t, b); by != "tpm2" || inHeader(t, b) != "[recovery tpm2] 1" {
		t.Errorf("after it was sealed anew: %s, %s", by, inHeader(t, b))
	}
}

// TestKeyResealCut cuts the power between the TPM's new token and the removal of the old one.
func TestKeyResealCut(t *testing.T) {
	node, tpm := headed(t)
	key := someKey(t)
	b := starts(t, node, tpm)
	opensBy(t, b)
	if err := b.escrow(t.Context(), key, &ofBox); err != nil {
		t.Fatal(err)
	}
	opensBy(t, starts(t, node, tpm))
	tpm.pcr = "other"
	b = starts(t, node, tpm)
	sealed, err := tpm.Seal(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.importToken(t.Context(), token{Type: tokenTPM, Keyslots: []string{"1"}, Sealed: sealed}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b = starts(t, node, tpm)
		if by := opensBy(t, b); by != "tpm2" || inHeader(t, b) != "[recovery tpm2 tpm2] 1" {
			t.Errorf("%s, %s", by, inHeader(t, b))
		}
	}
	// What is left of the other is dropped when it is said what may come.
	if foretells(t, b, "other"); inHeader(t, b) != "[recovery tpm2] 1" {
		t.Error(inHeader(t, b))
	}
}

// foretells says what PCR 7 may become.
func foretells(t *testing.T, b *booter, keys ...string) {
	t.Helper()
	var values [][]byte
	for _, k := range keys {
		v := pcr7(k)
		values = append(values, v[:])
	}
	f, err := b.foretell(t.Context(), values)
	if err != nil || !f.Sealed || len(values) > 0 && !bytes.Equal(f.Word.Evidence, attest.Foretold(values)) {
		t.Fatalf("%+v %v", f, err)
	}
}

// TestKeyForetold: STATE opens under firmware keys that were foretold, on the way there and back, without the core.
func TestKeyForetold(t *testing.T) {
	node, tpm := headed(t)
	b := starts(t, node, tpm)
	opensBy(t, b)
	if f, err := b.foretell(t.Context(), [][]byte{make([]byte, 32)}); err != nil || f.Sealed || len(f.PCR7) > 0 {
		t.Fatalf("a key that stands in the open is sealed: %+v %v", f, err)
	}
	if err := b.escrow(t.Context(), someKey(t), &ofBox); err != nil {
		t.Fatal(err)
	}
	foretells(t, b, "7", "more keys") // in the start in which it went into the TPM
	start := func(keys, want string) {
		t.Helper()
		tpm.pcr = keys
		b = starts(t, node, tpm)
		if by := opensBy(t, b); by != want {
			t.Fatalf("%s under %q", by, keys)
		}
	}
	start("7", "tpm2") // the power was cut before anything was written
	start("more keys", "tpm2")
	foretells(t, b, "more keys", "more keys, another signs")
	start("7", "locked")
	start("more keys, another signs", "tpm2")
	start("more keys", "tpm2") // the trial came back
	foretells(t, b, "more keys", "more keys, another signs", "one key less, another signs")
	start("one key less, another signs", "tpm2")
	for range 2 {
		foretells(t, b, "one key less, another signs")
		if got := inHeader(t, b); got != "[recovery tpm2] 1" {
			t.Error(got)
		}
	}
	foretells(t, b, "a value that leaves out the present one")
	start("one key less, another signs", "tpm2")
	for _, bad := range [][][]byte{{make([]byte, 31)}, make([][]byte, maxForetold+1)} {
		if _, err := b.foretell(t.Context(), bad); err == nil {
			t.Errorf("%x is taken", bad)
		}
	}
	if f, err := b.foretell(t.Context(), nil); err != nil || !f.Sealed || len(f.PCR7) != 2 || f.Word != nil {
		t.Errorf("how it stands: %+v %v", f, err)
	}
}

// TestKeyForetoldRoom: a header holds as many tokens as may be foretold, of the size that a TPM's have.
func TestKeyForetoldRoom(t *testing.T) {
	node, tpm := headed(t)
	b := starts(t, node, tpm)
	opensBy(t, b)
	r := ofBox
	for len(r.Parents) < 8 {
		r.Parents = append(r.Parents, "https://a-rather-long-name.of-a-relay.example.net:8443")
	}
	if err := b.escrow(t.Context(), someKey(t), &r); err != nil {
		t.Fatal(err)
	}
	for range maxForetold + 1 {
		text, err := json.Marshal(map[string]any{"version": 1, "pcr7": someKey(t), "public": make([]byte, 78), "private": make([]byte, 224), "release": make([]byte, 294)})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.importToken(t.Context(), token{Type: tokenTPM, Keyslots: []string{"1"}, Sealed: text}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKeySealedInVain has the TPM not give back what it sealed: the old key still opens, what was
// begun is destroyed, and the next escrow works.
func TestKeySealedInVain(t *testing.T) {
	node, tpm := headed(t)
	b := starts(t, node, tpm)
	opensBy(t, b)
	if err := b.escrow(t.Context(), someKey(t), &ofBox); err != nil {
		t.Fatal(err)
	}
	tpm.pcr = "other"
	b = starts(t, node, tpm)
	if by := opensBy(t, b); by != "file" || inHeader(t, b) != "[file] 1" {
		t.Fatalf("%s, %s", by, inHeader(t, b))
	}
	if err := b.escrow(t.Context(), someKey(t), &ofBox); err != nil {
		t.Fatal(err)
	}
	if by := opensBy(t, starts(t, node, tpm)); by != "tpm2" {
		t.Error(by)
	}
}

// TestKeyCut cuts the power in the middle of the escrow.
func TestKeyCut(t *testing.T) {
	for at, left := range map[string]func(*booter, []byte) error{
		"slot": func(b *booter, key []byte) error { return b.addKey(t.Context(), fileKey(t, b), key, "1") },
		"recovery": func(b *booter, key []byte) error {
			return errors.Join(b.addKey(t.Context(), fileKey(t, b), key, "1"), b.importToken(t.Context(), token{Type: tokenRecovery, Keyslots: []string{"1"}, Sealed: json.RawMessage(`{}`)}))
		},
	} {
		node, tpm := headed(t)
		b := starts(t, node, tpm)
		opensBy(t, b)
		if err := left(b, someKey(t)); err != nil {
			t.Fatal(err)
		}
		b = starts(t, node, tpm)
		if by := opensBy(t, b); by != "file" || inHeader(t, b) != "[file] 1" {
			t.Errorf("%s: %s, %s", at, by, inHeader(t, b))
		}
		if err := b.escrow(t.Context(), someKey(t), &ofBox); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
}

func fileKey(t *testing.T, b *booter) []byte {
	t.Helper()
	tokens, _, err := b.header(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key, err := fileSealer{}.Unseal(t.Context(), find(tokens, tokenFile)[0].Sealed)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestTidyKeepsOne shows that no header loses the slot by which STATE was just opened.
func TestTidyKeepsOne(t *testing.T) {
	kinds := []string{tokenFile, tokenTPM, tokenRecovery, tokenPrefix + "other"}
	rapid.Check(t, func(t *rapid.T) {
		source := rapid.SampledFrom([]string{"tpm2", "file"}).Draw(t, "source")
		slot := rapid.SampledFrom([]string{"0", "1", "2"})
		var tokens []token
		for i := range rapid.IntRange(0, 5).Draw(t, "n") {
			tokens = append(tokens, token{id: fmt.Sprint(i), Type: rapid.SampledFrom(kinds).Draw(t, "kind"), Keyslots: rapid.SliceOfNDistinct(slot, 0, 2, rapid.ID).Draw(t, "slots")})
		}
		opener := find(tokens, tokenPrefix+source)
		if len(opener) == 0 {
			return
		}
		opener = opener[:1]
		ids, kill := tidy(source, tokens, []string{"0", "1", "2"})
		for _, k := range opener {
			if slices.Contains(ids, k.id) {
				t.Errorf("the token that opened goes: %v", ids)
			}
			for _, s := range k.Keyslots {
				if slices.Contains(kill, s) {
					t.Errorf("its slot goes: %v", kill)
				}
			}
		}
		if len(kill) == 3 {
			t.Error("all slots go")
		}
	})
}

// rewritten changes the text of both headers, and mends their checksums.
func rewritten(t *testing.T, node, from, to string) {
	t.Helper()
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 16 << 10
	for _, at := range []int64{0, size} {
		h := make([]byte, size)
		if _, err := f.ReadAt(h, at); err != nil {
			t.Fatal(err)
		}
		text, _, _ := bytes.Cut(h[4096:], []byte{0})
		changed := bytes.Replace(text, []byte(from), []byte(to), 1)
		if bytes.Equal(changed, text) {
			t.Fatalf("the header says nothing of %s: %s", from, text)
		}
		clear(h[4096:])
		copy(h[4096:], changed)
		clear(h[448:512])
		sum := sha256.Sum256(h)
		copy(h[448:], sum[:])
		if _, err := f.WriteAt(h, at); err != nil {
			t.Fatal(err)
		}
	}
}

// TestForgedHeader: a volume in STATE's place whose key slot is no cipher's, or whose data are, is not opened by the key that the TPM
// gave, and that key is handed to no program. Only a header that is torn is cryptsetup's affair.
func TestForgedHeader(t *testing.T) {
	key := bytes.Repeat([]byte{7}, keySize)
	// asked puts a program in cryptsetup's place that tells what it was asked for, and whether it was given the key.
	asked := func(node string, tpm *chip) (b *booter, words *[]string) {
		b, words = starts(t, node, tpm), &[]string{}
		real := b.keys.run
		b.keys.run = func(ctx context.Context, stdin []byte, argv ...string) (string, int, error) {
			*words = append(*words, argv[1])
			if bytes.Contains(stdin, key) {
				*words = append(*words, "the key")
			}
			return real(ctx, stdin, argv...)
		}
		return b, words
	}
	for what, forge := range map[string][2]string{
		"a key slot in the open":  {`"encryption":"aes-xts-plain64"`, `"encryption":"cipher_null-ecb"`},
		"data in the open":        {`"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64"`, `"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"cipher_null-ecb"`},
		"another key's slot":      {`"stripes":4000`, `"stripes":3999`},
		"a slot of another maker": {`"type":"pbkdf2"`, `"type":"nothing"`},
	} {
		node, tpm := headed(t)
		rewritten(t, node, forge[0], forge[1])
		b, words := asked(node, tpm)
		if _, table, err := b.luksTable(t.Context(), node, key); err == nil {
			t.Errorf("%s: opened: %s", what, table.Type)
		}
		if len(*words) > 0 {
			t.Errorf("%s: cryptsetup is asked to %q", what, *words)
		}
	}
	// One torn copy is mended by the other, and the volume opens by its own key.
	node, tpm := headed(t)
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(make([]byte, 4096), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	b, words := asked(node, tpm)
	own, err := b.stateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, table, err := b.luksTable(t.Context(), node, own); err != nil || table.Type != "crypt" {
		t.Errorf("a torn header: %v, cryptsetup was asked to %q", err, *words)
	}
	if !slices.Contains(*words, "repair") || slices.Contains(*words, "open") {
		t.Errorf("for a torn header cryptsetup is asked to %q", *words)
	}
}
