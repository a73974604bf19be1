package machines

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/tests/lab"
)

// TestRotationSealed: releases bring keys for the firmware of a box whose STATE is sealed to a TPM. The box writes them by
// itself, a release is then started that the new key signed, and STATE opens at each of these starts without anybody.
// A release of a key that was revoked is not tried.
func TestRotationSealed(t *testing.T) {
	u := needUpdating(t, 30*time.Minute, needs{secure: true})
	old, err := keys.LoadOrCreate(filepath.Join(root, ".cache", "keys"))
	if err != nil {
		t.Fatal(err)
	}
	if len(old.DB) > 1 || old.Next != nil {
		t.Skip("the checkout's own keys were rotated: what this test adds is there already")
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, ".cache", "keys"))); err != nil {
		t.Fatal(err)
	}
	var set *keys.Set
	for _, step := range []func(string) (*keys.Set, error){keys.Prepare, keys.Rotate, keys.Prepare, keys.Rotate} { // db-2 is to sign, then another
		if set, err = step(dir); err != nil {
			t.Fatal(err)
		}
	}
	next, stolen := set.DB[1], set.DB[2]
	carried := func(name string, make func(time.Time, *keys.Key) (keys.Variable, error), k *keys.Key) efi.Append {
		v, err := make(time.Now(), k)
		if err != nil {
			t.Fatal(err)
		}
		return efi.Append{Name: name + k.Name, Variable: v.Name, Data: v.Data}
	}
	more := []efi.Append{carried("append-", set.Append, next), carried("append-", set.Append, stolen)}
	less := []efi.Append{carried("revoke-", set.Revoke, stolen), carried("revoke-", set.Revoke, set.DB[0])}
	holds := func(list string, want ...string) {
		t.Helper()
		err := lab.Until(u.ctx, list+" holds "+strings.Join(want, ", "), 2*patience, func(context.Context) error {
			got, err := firmwareList(u.tree.boxes["box"].path("vars.fd"), list)
			if err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("it holds %s", strings.Join(got, ", "))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	seen := 0 // bytes of the serial line that were looked through
	opens := func(what string) {
		t.Helper()
		text := u.tree.Machine("box").Console.String()
		for _, bad := range []string{"state-locked", "state-key-unsealed", "waits for its key"} {
			if strings.Contains(text[min(seen, len(text)):], bad) {
				t.Fatalf("%s: %s", what, bad)
			}
		}
		seen = len(text)
		s, err := attestation(u.ctx, u.tree)
		if err != nil || s.Attestation.Sealed != "tpm2" {
			t.Fatalf("%s: STATE was opened by %q: %v", what, s.Attestation.Sealed, err)
		}
	}
	// believed: the core takes the new PCR 7 for known by the TPM's word of before, and the release's system for this family by its pcr11.
	believed := func(release string) {
		t.Helper()
		untilAttestation(t, u.ctx, u.tree, "the core believes the box that runs "+release, func(a *api.Attestation) bool {
			return a.Attested && a.System == release+" vm/amd64" && a.Waiting == nil
		})
	}
	restart := func(what string) {
		t.Helper()
		if err := u.tree.Box("box").PowerCut(); err != nil {
			t.Fatal(err)
		}
		seen = 0
		if err := u.tree.Box("box").Start(u.ctx); err != nil {
			t.Fatal(err)
		}
		u.says(up)
		u.calm()
		opens(what)
	}

	seen = len(u.tree.Machine("box").Console.String()) // before it was sealed there was a warning
	u.updates(Variant{Version: "v2", Counter: 1, Carried: more})
	holds("db", "Tributary db-1", "Tributary db-2", "Tributary db-3")
	opens("a release that brings keys")
	restart("the keys are in db")
	believed("v2")
	u.updates(Variant{Version: "v3", Counter: 1, Signer: next, Carried: less})
	holds("dbx", "Tributary db-3") // not db-1: the other slot is by it
	opens("a release that the new key signed")
	believed("v3")
	restart("a key is revoked")
	believed("v3")
	u.release(Variant{Version: "v4", Counter: 1, Signer: stolen})
	u.refused(`dbx forbids`)
}

// firmwareList gives the names of the certificates in one of the firmware's lists.
func firmwareList(vars, list string) (names []string, err error) {
	fd, err := os.ReadFile(vars)
	if err != nil {
		return nil, err
	}
	stored, err := keys.Stored(fd)
	if err != nil {
		return nil, err
	}
	lists, err := efi.Lists(stored)
	if err != nil {
		return nil, err
	}
	certs, err := keys.Lists(lists[list])
	for _, c := range certs {
		names = append(names, c.Subject.CommonName)
	}
	return names, err
}
