package main

import (
	"context"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/core/ca"
)

const unlockRotate = "/unlock-key/rotate"

func unlockCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "unlock-key", Short: "The key that answers the challenges of boxes' consoles"}
	cmd.AddCommand(rotateCommand("unlock", "Make a new key, also while the core runs", `Make a new key, also while the core runs.

Boxes learn of it by their manifests and ask for its answers from then on. Those that have not heard of it yet
ask for the old key's, which the core keeps for them; with --lost it is destroyed: nobody who has a copy of it
opens a box that has its newest manifest, and a box that has not cannot be opened until it has.`, rotateUnlock))
	return cmd
}

func rotateUnlock(ctx context.Context, d data, lost bool) error {
	return d.rotate(ctx, unlockRotate, lost, func(a *ca.CA) error { return a.RotateUnlock(lost) })
}
