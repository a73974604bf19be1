package machines

import (
	"context"
	"regexp"
	"strings"
	"testing"
)

// A box with a TPM and Secure Boot seals the key of its STATE at the first start, and opens
// it by the TPM at the second.
func TestStateIsSealed(t *testing.T) {
	spec := flashed(t, "amd64", "name: box\n")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	for _, which := range []string{"first", "second"} {
		m := power(t, ctx, spec)
		expect(t, ctx, m, up)
		if bad := failures(m); len(bad) > 0 {
			t.Errorf("the %s start, steps that failed:\n%s", which, strings.Join(bad, "\n"))
		}
		if text := m.Console.String(); strings.Contains(text, "state-key-unsealed") {
			t.Fatalf("the %s start: STATE's key is not sealed:\n%s", which, m.Console.Tail(60))
		}
		t.Log(which, regexp.MustCompile(`\bstate +\d+ ms`).FindString(m.Console.String()))
		if err := m.PowerButton(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
