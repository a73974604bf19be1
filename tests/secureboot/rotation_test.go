package secureboot

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/tests/vm"
)

// A key is changed in the field: a release signed by the old key adds the new one to the firmware's db, one signed by
// the new key then starts, and once it revokes the old key nothing that the old one signed starts any more. Without the
// addition the new release does not start; a revocation that a stranger signed is not taken.
func TestRotation(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") == "" {
		t.Skip("boots seven machines: run make vmtest")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 7*patience)
	defer cancel()
	dir := t.TempDir()
	set, vars := ownerOf(t, dir)
	old := set.Signer()
	if _, err := keys.Prepare(dir); err != nil {
		t.Fatal(err)
	}
	set, err := keys.Rotate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if set.Signer().Name == old.Name {
		t.Fatal("the key is still the old one")
	}
	stranger, _ := owner(t)
	add, err := set.Append(day.Add(time.Hour), set.Signer())
	revoke, err2 := set.Revoke(day.Add(2*time.Hour), old)
	forged, err3 := stranger.Revoke(day.Add(time.Hour), set.Signer())
	if err != nil || err2 != nil || err3 != nil {
		t.Fatal(err, err2, err3)
	}
	file := func(v keys.Variable) initramfs.File {
		return initramfs.File{Path: filepath.Base(v.Path()), Mode: 0o600, Data: v.File()}
	}
	first := build(t, ctx, file(add), initramfs.File{Path: "forged/" + file(forged).Path, Mode: 0o600, Data: forged.File()})
	first = parts{sign(t, old, first.uki), sign(t, old, first.manager)}
	second := build(t, ctx, file(revoke))
	second = parts{sign(t, set.Signer(), second.uki), sign(t, set.Signer(), second.manager)}

	store := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(store, vars, 0o600); err != nil {
		t.Fatal(err)
	}
	// end writes variables, by what is to be said of them, and switches the machine off.
	end := func(m *vm.Machine, lines ...[2]string) {
		t.Helper()
		for _, l := range append(lines, [2]string{"off", ""}) {
			if err := m.Send(l[0] + "\n"); err != nil {
				t.Fatal(err)
			}
			if l[1] == "" {
				continue
			}
			if _, err := m.Expect(ctx, l[1]); err != nil {
				t.Fatalf("%v\n%s", err, m.Console.Tail(40))
			}
		}
		if err := m.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	stop := func(m *vm.Machine) { _ = m.Close() }

	stop(start(t, ctx, second, store, refused)) // nobody told this box of the new key
	end(start(t, ctx, first, store, "guest: ready"), [2]string{"variable forged/" + file(forged).Path, "guest: error"}, [2]string{"variable " + file(add).Path, "guest: db is written"})
	stop(start(t, ctx, first, store, "guest: ready")) // both keys are good: the other slot may still be needed
	end(start(t, ctx, second, store, "guest: ready"), [2]string{"variable " + file(revoke).Path, "guest: dbx is written"})
	stop(start(t, ctx, first, store, refused))
	stop(start(t, ctx, second, store, "guest: ready"))

	fd, err := os.ReadFile(store)
	if err != nil {
		t.Fatal(err)
	}
	db, _, err := keys.VendorLists(fd)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := keys.Lists(db)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range certs {
		names = append(names, c.Subject.CommonName)
	}
	if text := strings.Join(names, ", "); !strings.Contains(text, "Microsoft") || !strings.HasSuffix(text, "Tributary db-1, Tributary db-2") {
		t.Errorf("db holds %s", text)
	}
}
