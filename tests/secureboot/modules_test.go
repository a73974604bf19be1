package secureboot

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/tests/vm"
)

// unsigned takes the signature off a module (Linux, include/linux/module_signature.h): it stands behind the code, with
// its length and a magic line last.
func unsigned(module []byte) ([]byte, error) {
	const magic, info = "~Module signature appended~\n", 12
	body, ok := bytes.CutSuffix(module, []byte(magic))
	if !ok || len(body) < info {
		return nil, errors.New("the module is not signed")
	}
	n := int(binary.BigEndian.Uint32(body[len(body)-4:]))
	if n > len(body)-info {
		return nil, fmt.Errorf("a signature of %d bytes", n)
	}
	return body[:len(body)-info-n], nil
}

// someModule is one of those that the guest has loaded already.
func someModule(t *testing.T) []byte {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(root, ".cache/vm/kernel-amd64/modules.[0-9]*"))
	if err != nil || len(dirs) == 0 {
		t.Fatal("no modules beside the guest's kernel", err)
	}
	number := func(dir string) int {
		n, _ := strconv.Atoi(strings.TrimPrefix(filepath.Ext(dir), ".")) // another folder is none of them
		return n
	}
	newest := slices.MaxFunc(dirs, func(a, b string) int { return cmp.Compare(number(a), number(b)) })
	files, err := filepath.Glob(filepath.Join(newest, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal("no modules in", newest, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// security reads a file of the guest kernel's securityfs.
func security(t *testing.T, ctx context.Context, m *vm.Machine, file string) []byte {
	t.Helper()
	if err := m.Send("security " + file + "\n"); err != nil {
		t.Fatal(err)
	}
	found, err := m.Expect(ctx, "guest: "+file+`: ([A-Za-z0-9+/=]*)\.`)
	if err != nil {
		t.Fatal(err)
	}
	b, err := base64.StdEncoding.DecodeString(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestModules: under Secure Boot the kernel is locked down and takes no module that is not signed by a key it knows, nor one
// that was altered. Started without Secure Boot the same kernel takes it: it is the check that refuses.
func TestModules(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") == "" {
		t.Skip("boots two machines: run make vmtest")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	build(t, ctx) // its kernel, with the modules beside it
	signed := someModule(t)
	bare, err := unsigned(signed)
	if err != nil {
		t.Fatal(err)
	}
	// A byte of a name of the symbol table: the code stays what it was.
	altered := bytes.Clone(signed)
	at := bytes.LastIndex(altered, []byte("vermagic="))
	if at < 0 {
		t.Fatal("a module without vermagic")
	}
	altered[at] = 'V'
	file := func(name string, b []byte) initramfs.File { return initramfs.File{Path: name, Mode: 0o600, Data: b} }
	p := build(t, ctx, file("signed.ko", signed), file("unsigned.ko", bare), file("altered.ko", altered))
	set, vars := owner(t)
	p = parts{sign(t, set.Signer(), p.uki), sign(t, set.Signer(), p.manager)}
	empty, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		t.Skipf("needs ovmf: run tests/install-deps vm: %v", err)
	}
	asks := func(m *vm.Machine, what, answer string) {
		t.Helper()
		if err := m.Send(what + "\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Expect(ctx, answer); err != nil {
			t.Errorf("%s: %v\n%s", what, err, m.Console.Tail(20))
		}
	}
	m := boot(t, ctx, p, vars, "guest: ready")
	locked := func(m *vm.Machine, want string) {
		t.Helper()
		if got := security(t, ctx, m, "lockdown"); !bytes.Contains(got, []byte(want)) {
			t.Errorf("the kernel's lockdown is %s", got)
		}
	}
	locked(m, "[integrity]")
	asks(m, "module signed.ko", "guest: signed.ko is taken")
	asks(m, "module unsigned.ko", "guest: unsigned.ko is refused")
	asks(m, "module altered.ko", `guest: altered.ko is refused: (key was rejected by service|bad message)`)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = boot(t, ctx, p, empty, "guest: ready")
	locked(m, "[none]")
	asks(m, "module unsigned.ko", "guest: unsigned.ko is taken")
}
