package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/ca"
)

const sealingRotate = "/sealing-key/rotate"

func sealingCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "sealing-key", Short: "The key to which boxes seal what the core alone may read"}
	cmd.AddCommand(rotateCommand("sealing", "Make a new key, also while the core runs; takes ca/root.key", `Make a new key, also while the core runs. The root certifies it: put root.key back for this step.

Boxes learn of it by their manifests and renew their certificates at once. One that was away does when it comes
back; until then what it reports counts by the old key, which the core keeps for as long as a box may come with
it. With --lost the old key is destroyed at once, for which the core must run: what a box reports counts
again when it has renewed.`, rotateSealing))
	return cmd
}

func rotateSealing(ctx context.Context, d data, lost bool) error {
	return d.rotate(ctx, sealingRotate, lost, func(a *ca.CA) error {
		if lost {
			return &api.Error{Code: api.Unavailable, Message: "the core does not run, and keeps keys of boxes that only the old key opens", Remedy: "start cored, then try again"}
		}
		return a.RotateSealing()
	})
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
