package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
)

func (a *app) unlockStateCommand() *cobra.Command {
	var look bool
	c := &cobra.Command{
		Use: "unlock-state NAME", Short: "Approve a device's new firmware, and let it have the key of its state back", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeDevices,
		Long: `Approve that a device's firmware may be as its TPM shows it now.

A box whose TPM does not give the key of its encrypted state any more, since the firmware's keys or settings changed,
waits and shows that (warning state-locked). Approved, it gets the key from the core, encrypted to its own TPM, seals
it anew and restarts. A device that runs and is not attested since its firmware changed is taken as it is. The approval
holds for an hour, for that device with just this firmware, and is noted among its events.

If nobody touched the firmware, look at the box before you approve.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(args[0], "device/")
			k, err := api.LookupKind(api.KindDevice)
			if err != nil {
				return err
			}
			o, err := cl.Get(cmd.Context(), k, name)
			if err != nil {
				return err
			}
			var s api.DeviceStatus
			if err := json.Unmarshal(o.Status, &s); err != nil {
				return err
			}
			fmt.Fprint(a.Out, describeState(name, s.Attestation))
			if look {
				return nil
			}
			if _, err := cl.Act(cmd.Context(), name, "unlock-state"); err != nil {
				return err
			}
			fmt.Fprintf(a.Out, "device/%s approved for an hour\n", name)
			return nil
		},
	}
	c.Flags().BoolVar(&look, "look", false, "show what would be approved, and approve nothing")
	return c
}

// describeState says what a person is about to approve.
func describeState(name string, s *api.Attestation) string {
	if s == nil {
		return fmt.Sprintf("device/%s has not shown a TPM\n", name)
	}
	known := func(text string) string {
		if text == "" {
			return "not known"
		}
		return text
	}
	var b strings.Builder
	if w := s.Waiting; w != nil {
		fmt.Fprintf(&b, "device/%s waits since %s: %s\n  system: %s\n  firmware's keys and settings (PCR 7): %s\n", name, w.Since.Local().Format("15:04:05"), known(w.Message), known(w.System), w.PCR7)
		if s.PCR7 != "" {
			fmt.Fprintf(&b, "  before:                               %s\n", s.PCR7)
		}
		return b.String()
	}
	fmt.Fprintf(&b, "device/%s is attested: %v", name, s.Attested)
	if s.Message != "" {
		fmt.Fprintf(&b, " (%s)", s.Message)
	}
	fmt.Fprintf(&b, "\n  system: %s\n  firmware's keys and settings (PCR 7): %s\n", known(s.System), known(s.PCR7))
	return b.String()
}

// attestedText says what a device's TPM showed, as facts of describe.
func attestedText(s *api.Attestation) (facts [][2]string) {
	if s == nil {
		return nil
	}
	attested := "yes, " + s.System
	if !s.Attested {
		attested = "no: " + s.Message
	}
	facts = append(facts, [2]string{"Attested", attested})
	state := map[string]string{"tpm2": "its key is in the TPM", "file": "its key lies beside it"}[s.Sealed]
	switch {
	case s.Waiting != nil && s.Waiting.Approved != nil:
		state = "waits for its key, approved by " + s.Waiting.By
	case s.Waiting != nil:
		state = "waits for its key: edgectl device unlock-state"
	case s.Unfit != "":
		state += ": " + s.Unfit
	case s.Sealed == "tpm2" && !s.Escrow:
		state += ", and the core has none in escrow"
	}
	if state != "" {
		facts = append(facts, [2]string{"State", state})
	}
	return facts
}
