package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/ca"
)

const unlockRotate = "/unlock-key/rotate"

func unlockCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "unlock-key", Short: "The key that answers the challenges of boxes' consoles"}
	var dir string
	var lost bool
	rotate := &cobra.Command{Use: "rotate", Short: "Make a new key, also while the core runs", Args: cobra.NoArgs,
		Long: `Make a new key, also while the core runs.

Boxes learn of it by their manifests and ask for its answers from then on. Those that have not heard of it yet
ask for the old key's, which the core keeps for them; with --lost it is destroyed: nobody who has a copy of it
opens a box that has its newest manifest, and a box that has not cannot be opened until it has.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := rotateUnlock(cmd.Context(), data(dir), lost); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the unlock key is another; make a backup")
			return nil
		}}
	rotate.Flags().StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	rotate.Flags().BoolVar(&lost, "lost", false, "somebody else may have the old key: destroy it")
	cmd.AddCommand(rotate)
	return cmd
}

// rotateUnlock has the core that runs do it, or does it itself: the core then tells the boxes when it starts.
func rotateUnlock(ctx context.Context, d data, lost bool) (err error) {
	if err := d.exists(); err != nil {
		return err
	}
	lock, err := d.lock()
	if api.CodeOf(err) == api.Unavailable && err != nil {
		what := unlockRotate
		if lost {
			what += "?lost"
		}
		return d.order(ctx, what, nil)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	authority, err := ca.Open(d.ca(), ca.Options{})
	if err != nil {
		return err
	}
	return authority.RotateUnlock(lost)
}
