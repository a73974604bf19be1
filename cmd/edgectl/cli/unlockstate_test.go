package cli

import (
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
)

func TestDescribeState(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		state *api.Attestation
		facts int
		want  []string
	}{
		{nil, 0, []string{"has not shown a TPM"}},
		{&api.Attestation{Attested: true, System: "1.2", Sealed: "tpm2", Escrow: true, PCR7: "77"}, 2, []string{"attested: true", "yes, 1.2", "in the TPM", "77"}},
		{&api.Attestation{Message: "another kernel", Sealed: "file", Unfit: "no Secure Boot"}, 2, []string{"attested: false (another kernel)", "no: another kernel", "no Secure Boot"}},
		{&api.Attestation{Attested: true, PCR7: "before", Waiting: &api.AttestWaiting{Since: at, Message: "PCR 7 changed", PCR7: "after"}}, 2,
			[]string{"waits since", "PCR 7 changed", "before", "after", "system: not known", "waits for its key: edgectl device unlock-state"}},
		{&api.Attestation{Waiting: &api.AttestWaiting{Since: at, Approved: &at, By: "anna"}}, 2, []string{"approved by anna"}},
	} {
		text := describeState("box", c.state)
		facts := attestedText(c.state)
		for _, f := range facts {
			text += f[0] + ": " + f[1] + "\n"
		}
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if len(facts) != c.facts {
			t.Errorf("%q", facts)
		}
	}
}
