package sztp

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRefusalsAreTested takes the checks of Judge out, one by one, and runs TestJudge
// against what is left: it must fail each time, since a test that passes without the check
// proves nothing of it. All are in one build, where a variable of the environment chooses.
func TestRefusalsAreTested(t *testing.T) {
	if testing.Short() {
		t.Skip("builds this package once more: not in the short form")
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("needs the go command")
	}
	text, err := os.ReadFile("judge.go")
	if err != nil {
		t.Fatal(err)
	}
	source := string(text)
	checks := []struct{ name, from, to string }{
		{"a voucher by whomever", `	if err != nil {
		return nil, refuse(Forged, "%v", err)
	}
	switch {`, `	if err != nil && gone("a voucher by whomever") {
		v, err = voucher.Peek(a.Voucher)
	}
	if err != nil {
		return nil, refuse(Forged, "%v", err)
	}
	switch {`},
		{"another box's voucher", `case v.SerialNumber != d.Serial:`, `case v.SerialNumber != d.Serial && !gone("another box's voucher"):`},
		{"a replayed voucher", `case v.Nonce != nil && !bytes.Equal(v.Nonce, a.Nonce):`, `case v.Nonce != nil && !bytes.Equal(v.Nonce, a.Nonce) && !gone("a replayed voucher"):`},
		{"an expired voucher", `if v.ExpiresOn != nil && !past.Before(*v.ExpiresOn) {`, `if v.ExpiresOn != nil && !past.Before(*v.ExpiresOn) && !gone("an expired voucher") {`},
		{"another owner's certificate", `	if err != nil {
		return nil, refuse(WrongOwner, "%v", err)
	}`, `	if err != nil && gone("another owner's certificate") {
		c, e := voucher.PeekConveyed(a.Conveyed)
		return &Verdict{Owner: root, Conveyed: c}, e
	}
	if err != nil {
		return nil, refuse(WrongOwner, "%v", err)
	}`},
		{"information signed by another", `	if err != nil {
		return nil, refuse(Forged, "%v", err)
	}
	return &Verdict{Owner: root`, `	if err != nil && gone("information signed by another") {
		conveyed, err = voucher.PeekConveyed(a.Conveyed)
	}
	if err != nil {
		return nil, refuse(Forged, "%v", err)
	}
	return &Verdict{Owner: root`},
		{"unsigned information", `if err != nil || conveyed.Redirect == nil {`, `if err != nil || conveyed.Redirect == nil && !gone("unsigned information") {`},
		{"a pairing where none is allowed", `if d.Code == "" {`, `if d.Code == "" && !gone("a pairing where none is allowed") {`},
		{"a pairing by another code", `	if err != nil {
			return nil, refuse(Forged, "%v", err)
		}
		return root, nil`, `	if err != nil && gone("a pairing by another code") {
			root, err = x509.ParseCertificate(a.Pairing.Root)
		}
		if err != nil {
			return nil, refuse(Forged, "%v", err)
		}
		return root, nil`},
	}
	for _, c := range checks {
		if strings.Count(source, c.from) != 1 {
			t.Fatalf("%s: judge.go has changed: %q stands there %d times", c.name, c.from, strings.Count(source, c.from))
		}
		source = strings.Replace(source, c.from, c.to, 1)
	}
	source = strings.Replace(source, "import (", "import (\n\t\"os\"", 1) + "\nfunc gone(check string) bool { return os.Getenv(\"SZTP_WITHOUT\") == check }\n"
	dir := t.TempDir()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(here, "judge.go"): filepath.Join(dir, "judge.go")}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"judge.go": []byte(source), "overlay.json": overlay} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(dir, "without.test")
	if out, err := exec.CommandContext(t.Context(), goTool, "test", "-c", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	judge := func(without string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), binary, "-test.run", "^TestJudge$")
		cmd.Env = append(os.Environ(), "SZTP_WITHOUT="+without)
		return cmd.CombinedOutput()
	}
	if out, err := judge(""); err != nil {
		t.Fatalf("with every check in place: %v: %s", err, out)
	}
	for _, c := range checks {
		if out, err := judge(c.name); err == nil {
			t.Errorf("the check against %s is gone, and TestJudge passes: %s", c.name, out)
		}
	}
}
