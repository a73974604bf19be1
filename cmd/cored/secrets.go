package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
)

func secretsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "secrets", Short: "The key by which secrets are encrypted in the database"}
	var dir string
	rotate := &cobra.Command{Use: "rotate", Short: "Make a new key, also while the core runs", Args: cobra.NoArgs,
		Long: `Make a new key, also while the core runs.

Every value is encrypted anew and the old key is forgotten: a copy of the old key opens
nothing that the database holds from now on. Devices see nothing of it. Who may have read
the old key together with the database knows the values themselves: change those, too.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := rotateSecrets(cmd.Context(), data(dir)); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "secrets are encrypted by a new key; make a backup")
			return nil
		}}
	rotate.Flags().StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	cmd.AddCommand(rotate)
	return cmd
}

// rotateSecrets has the core that runs do it, which holds the key, or does it itself.
func rotateSecrets(ctx context.Context, d data) (err error) {
	if err := d.exists(); err != nil {
		return err
	}
	lock, err := d.lock()
	if api.CodeOf(err) == api.Unavailable && err != nil {
		return d.order(ctx, "/secrets/rotate", nil)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	db, err := d.sealStore(ctx, newLog(&options{}))
	if err != nil {
		return err
	}
	return errors.Join(db.Rotate(ctx, rand.Reader), db.Close())
}
