package machines

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/lab"
)

// attestation is what the core says of the box's TPM.
func attestation(ctx context.Context, tree *Tree) (*api.DeviceStatus, error) {
	var o api.Object
	if err := tree.GetJSON(ctx, &o, "get", "device", "box"); err != nil {
		return nil, err
	}
	var s api.DeviceStatus
	if err := json.Unmarshal(o.Status, &s); err != nil {
		return nil, err
	}
	if s.Attestation == nil {
		s.Attestation = &api.Attestation{}
	}
	return &s, nil
}

func untilAttestation(t *testing.T, ctx context.Context, tree *Tree, what string, ok func(*api.Attestation) bool) *api.DeviceStatus {
	t.Helper()
	var s *api.DeviceStatus
	err := lab.Until(ctx, what, patience, func(ctx context.Context) (err error) {
		if s, err = attestation(ctx, tree); err == nil && !ok(s.Attestation) {
			err = fmt.Errorf("the core says %+v", *s.Attestation)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestStateKey follows the key of a box's STATE: it stands in the open at first, goes into the
// TPM once the core has it in escrow, opens STATE at each start, stays where it is when the
// firmware's keys change, and comes back from the core when a person approves.
func TestStateKey(t *testing.T) {
	needImage(t, "amd64")
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	images, bin := os.Getenv("TRIBUTARY_IMAGES"), os.Getenv("TRIBUTARY_BIN")
	if images == "" {
		images = filepath.Join(root, "build")
	}
	if bin == "" {
		bin = filepath.Join(root, "bin")
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := New(Spec{Bin: bin, Images: images, Dir: t.TempDir(), Say: t.Logf, Boxes: []BoxSpec{{Name: "box", Parent: "core", Role: "field", Secure: true}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			if m := tree.Machine("box"); m != nil {
				t.Logf("the box's serial line:\n%s", m.Console.Tail(150))
			}
			log, _ := os.ReadFile(filepath.Join(tree.Dir, "cored.log"))
			t.Logf("cored:\n%s", log)
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	says := func(pattern string) {
		t.Helper()
		if _, err := tree.Machine("box").Expect(ctx, pattern); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.StartCore(ctx); err != nil {
		t.Fatal(err)
	}
	if err := tree.Join(ctx); err != nil {
		t.Fatal(err)
	}
	vars := filepath.Join(tree.Dir, "box", "vars.fd")
	enrol(t, vars)
	began := time.Now()
	took := func(what string) { t.Logf("%s after %.0f s", what, time.Since(began).Seconds()) }

	if err := tree.StartBoxes(ctx); err != nil {
		t.Fatal(err)
	}
	says(`the core has STATE's key in escrow`)
	took("in escrow")
	says(`STATE's key is in the TPM`)
	says(up)
	took("sealed")
	s := untilAttestation(t, ctx, tree, "STATE is opened by the TPM", func(a *api.Attestation) bool { return a.Sealed == "tpm2" && a.Escrow })
	if s.Attestation.Attested || !strings.Contains(s.Attestation.Message, "none of the releases") {
		t.Errorf("nobody has named its system, and the core says %+v", *s.Attestation)
	}
	for _, w := range s.Health {
		if w.Name == "state-key-unsealed" {
			t.Errorf("%+v", w)
		}
	}

	text, err := os.ReadFile(filepath.Join(images, "vm", "build.json"))
	if err != nil {
		t.Fatal(err)
	}
	var built struct {
		PCR11 string `json:"pcr11"`
	}
	if err := json.Unmarshal(text, &built); err != nil {
		t.Fatal(err)
	}
	fleet := fmt.Sprintf("apiVersion: %s\nkind: Fleet\nmetadata: {name: field}\nspec:\n  selector: {matchLabels: {role: field}}\n  attest: {required: true, systems: {flashed: %q}}\n", api.Version, built.PCR11)
	if _, err := tree.Edgectl(ctx, fleet, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	untilAttestation(t, ctx, tree, "the box is attested", func(a *api.Attestation) bool { return a.Attested && a.System == "flashed" })
	took("attested")

	// Another key in the firmware's db: PCR 7 is another.
	if err := tree.Box("box").PowerCut(); err != nil {
		t.Fatal(err)
	}
	before := s.Attestation.PCR7
	moreKeys(t, vars)
	if err := tree.Box("box").Start(ctx); err != nil {
		t.Fatal(err)
	}
	says(`state-locked`)
	says(`STATE waits for its key: a person has to approve`)
	took("waiting")
	s = untilAttestation(t, ctx, tree, "the box waits", func(a *api.Attestation) bool { return a.Waiting != nil })
	if w := s.Attestation.Waiting; w.System != "flashed" || w.PCR7 == before || len(w.PCR7) != 64 {
		t.Errorf("%+v, before %s", *w, before)
	}
	if !hasWarning(s, "state-locked") {
		t.Errorf("nobody is warned: %+v", s.Health)
	}
	out, err := tree.Edgectl(ctx, "", "device", "unlock-state", "box")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(out)
	says(`sealed anew`)
	says(up)
	took("open again")
	untilAttestation(t, ctx, tree, "the box is attested again", func(a *api.Attestation) bool {
		return a.Attested && a.Waiting == nil && a.Sealed == "tpm2" && a.PCR7 != before
	})

	// And it stays so.
	if err := tree.Box("box").PowerCut(); err != nil {
		t.Fatal(err)
	}
	if err := tree.Box("box").Start(ctx); err != nil {
		t.Fatal(err)
	}
	says(up)
	if console := tree.Machine("box").Console.String(); strings.Contains(console, "state-locked") || strings.Contains(console, "state-key-unsealed") {
		t.Error("the next start does not open STATE by the TPM")
	}
}

func hasWarning(s *api.DeviceStatus, name string) bool {
	for _, w := range s.Health {
		if w.Name == name {
			return true
		}
	}
	return false
}

// moreKeys makes a variable store with the keys of this checkout and those of a vendor.
func moreKeys(t *testing.T, path string) {
	t.Helper()
	set, err := keys.LoadOrCreate(filepath.Join(root, ".cache", "keys"))
	if err != nil {
		t.Fatal(err)
	}
	vendor, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
	if err != nil {
		t.Fatal(err)
	}
	vars, err := set.OVMFVars(vendor, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, vars, 0o600); err != nil {
		t.Fatal(err)
	}
}
