package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/ca"
)

const sealingRotate = "/sealing-key/rotate"

func sealingCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "sealing-key", Short: "The key to which boxes seal what the core alone may read"}
	var dir string
	var lost bool
	rotate := &cobra.Command{Use: "rotate", Short: "Make a new key, also while the core runs; takes ca/root.key", Args: cobra.NoArgs,
		Long: `Make a new key, also while the core runs. The root certifies it: put root.key back for this step.

Boxes learn of it by their manifests and renew their certificates at once. One that was away does when it comes
back; until then what it reports counts by the old key, which the core keeps for as long as a box may come with
it. With --lost the old key is destroyed at once, for which the core must run: what a box reports counts
again when it has renewed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := rotateSealing(cmd.Context(), data(dir), lost); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the sealing key is another; make a backup")
			return nil
		}}
	rotate.Flags().StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	rotate.Flags().BoolVar(&lost, "lost", false, "somebody else may have the old key: destroy it")
	cmd.AddCommand(rotate)
	return cmd
}

// rotateSealing has the core that runs do it, or does it itself: the core then tells the boxes when it starts.
func rotateSealing(ctx context.Context, d data, lost bool) (err error) {
	if err := d.exists(); err != nil {
		return err
	}
	lock, err := d.lock()
	if api.CodeOf(err) == api.Unavailable && err != nil {
		what := sealingRotate
		if lost {
			what += "?lost"
		}
		return d.order(ctx, what, nil)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if lost {
		return &api.Error{Code: api.Unavailable, Message: "the core does not run, and keeps keys of boxes that only the old key opens", Remedy: "start cored, then try again"}
	}
	authority, err := ca.Open(d.ca(), ca.Options{})
	if err != nil {
		return err
	}
	return authority.RotateSealing()
}

// rotateSealing makes another sealing key while the core runs.
func (c *core) rotateSealing(ctx context.Context, lost bool) error {
	if err := c.ca.RotateSealing(); err != nil {
		return err
	}
	return errors.Join(c.tidySealing(ctx, lost), c.fleet.TouchAll(ctx))
}

// tidySealing seals anew what is kept under an earlier sealing key, and destroys those that no box needs any more.
func (c *core) tidySealing(ctx context.Context, lost bool) error {
	keys := c.ca.SealingKeys()
	if len(keys) == 1 {
		return nil
	}
	if err := c.attest.Reseal(ctx, keys[0]); err != nil {
		return err
	}
	return c.ca.DestroySealing(lost)
}
