package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/image/uki"
	"tributary.dev/tributary/pkg/tpm/attest"
)

// TestRelease goes all the way: the builder foretells PCR 11 and signs it, a TPM measures the
// image's sections as systemd-stub does, the key is sealed under one release and opened under
// the next, and the core recognises both.
func TestRelease(t *testing.T) {
	const path = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	stub, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("needs %s: run tests/install-deps vm", path)
	}
	set, err := keys.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b, want := newBox(t), secret(t)
	var token []byte
	var releases []attest.Release
	for i, version := range []string{"1", "2"} {
		var pcr11 [32]byte
		image, err := uki.Build(uki.Config{
			Stub: stub, Kernel: stub, Initrd: []byte("initramfs " + version), Cmdline: "roothash=" + version, OSRelease: "ID=tributary\n", Uname: "6.12", PolicyKey: set.PCR.PublicPEM(),
			Policy: func(image []byte) (_ []byte, err error) {
				if pcr11, err = uki.PCR11(image); err != nil {
					return nil, err
				}
				return SignPolicy(set.PCR, pcr11, uint64(i+1))
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, attest.Release{Name: version, PCR11: pcr11})
		var sections []attest.Section
		for _, name := range []string{".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat", ".pcrpkey"} {
			if content, err := uki.Read(image, name); err == nil {
				sections = append(sections, attest.Section{Name: name, Digest: sha256.Sum256(content)})
			}
		}
		log := attest.Predict(sections)
		if attest.Replay(log) != pcr11 {
			t.Fatal("the builder foretells another value than the sections lead to")
		}
		tpm := b.start()
		if err := tpm.Extend(PCRSecureBoot, []byte(ourKeys)); err != nil {
			t.Fatal(err)
		}
		for _, s := range sections {
			if err := tpm.Extend(PCRKernel, append([]byte(s.Name), 0)); err != nil {
				t.Fatal(err)
			}
			content, _ := uki.Read(image, s.Name)
			if err := tpm.Extend(PCRKernel, content); err != nil {
				t.Fatal(err)
			}
		}
		s := extra(t, tpm, image)
		if i == 0 {
			token, err = s.Seal(context.Background(), want)
		} else {
			var got []byte
			if got, err = s.Unseal(context.Background(), token); !bytes.Equal(got, want) {
				t.Error("another key comes back")
			}
		}
		if err != nil {
			t.Fatalf("release %s: %v", version, err)
		}
		if err := s.Shut(context.Background()); err != nil {
			t.Fatal(err)
		}
		x := enrolled(t, tpm)
		x.Releases = releases
		e, err := tpm.Quote(x.Challenge.Nonce, []uint{PCRSecureBoot, PCRKernel}, append(log, attest.Event([]byte(attest.StateOpened))))
		if err != nil {
			t.Fatal(err)
		}
		if v, err := x.Verify(e); err != nil || v.Release != version || !v.StateOpened {
			t.Errorf("%+v, %v", v, err)
		}
	}
}

// extra is the sealer of a box with the files that the stub hands to the initramfs.
func extra(t *testing.T, tpm *TPM, image []byte) *Sealer {
	t.Helper()
	s := sealer(t, tpm, "")
	for section, path := range map[string]string{".pcrsig": s.Signatures, ".pcrpkey": s.Key} {
		content, err := uki.Read(image, section)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Clean(path), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}
