package modules

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"tributary.dev/tributary/image/keys"
)

// What Sign writes is what the certificate's key signed, by our own reading and by OpenSSL's; nothing else is.
func TestSign(t *testing.T) {
	set, err := keys.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	object := bytes.Repeat([]byte("not quite ELF"), 999)
	module, err := Sign(object, set.Signer())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Sign(object, set.Signer()); err != nil || !bytes.Equal(module, again) {
		t.Errorf("not the same bytes twice: %v", err)
	}
	if err := Verify(module, set.Signer().Certificate()); err != nil {
		t.Error(err)
	}
	if _, err := Sign(module, set.Signer()); err == nil {
		t.Error("signed twice")
	}
	altered := bytes.Clone(module)
	altered[100] ^= 1
	for what, err := range map[string]error{
		"altered":         Verify(altered, set.Signer().Certificate()),
		"by another's":    Verify(module, set.KEK.Certificate()),
		"by nobody's":     Verify(module),
		"not signed":      Verify(object, set.Signer().Certificate()),
		"a line alone":    Verify([]byte(signatureLine), set.Signer().Certificate()),
		"a wrong length":  Verify(append([]byte{0, 0, 2, 0, 0, 0, 0, 0, 255, 255, 255, 255}, signatureLine...), set.Signer().Certificate()),
		"no CMS behind":   Verify(append([]byte{'x', 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1}, signatureLine...), set.Signer().Certificate()),
		"of another kind": Verify(append([]byte{'x', 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1}, signatureLine...), set.Signer().Certificate()),
	} {
		if !errors.Is(err, ErrUnsigned) {
			t.Errorf("%s: %v", what, err)
		}
	}
	asOpenSSL(t, module, set.Signer())
}

func asOpenSSL(t *testing.T, module []byte, k *keys.Key) {
	t.Helper()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Log("openssl is not installed: it is not asked")
		return
	}
	object, cms, err := Signature(module)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		at := filepath.Join(dir, name)
		if err := os.WriteFile(at, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return at
	}
	cert := file("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Certificate().Raw}))
	out, err := exec.Command(openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in", file("cms", cms), "-content", file("object", object),
		"-certfile", cert, "-nointern", "-noverify", "-out", os.DevNull).CombinedOutput()
	if err != nil {
		t.Errorf("OpenSSL does not take it: %v\n%s", err, out)
	}
}

func FuzzSignature(f *testing.F) {
	f.Add(append([]byte{'x', 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1}, signatureLine...))
	f.Fuzz(func(t *testing.T, b []byte) {
		object, cms, err := Signature(b)
		if err == nil && len(object)+len(cms)+signatureInfo+len(signatureLine) != len(b) {
			t.Fatalf("%d and %d of %d bytes", len(object), len(cms), len(b))
		}
	})
}
