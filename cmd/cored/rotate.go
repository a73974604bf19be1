package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/ca"
)

// rotateCommand is `cored KEY rotate [--lost]`; key is what people call it.
func rotateCommand(key, short, long string, do func(ctx context.Context, d data, lost bool) error) *cobra.Command {
	var dir string
	var lost bool
	cmd := &cobra.Command{Use: "rotate", Short: short, Args: cobra.NoArgs, Long: long,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := do(cmd.Context(), data(dir), lost); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the %s key is another; make a backup\n", key)
			return nil
		}}
	cmd.Flags().StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	cmd.Flags().BoolVar(&lost, "lost", false, "somebody else may have the old key: destroy it")
	return cmd
}

// rotate has the core that runs do it, by the path of its control socket, or does it itself: the core then tells the
// boxes when it starts.
func (d data) rotate(ctx context.Context, path string, lost bool, do func(*ca.CA) error) (err error) {
	if err := d.exists(); err != nil {
		return err
	}
	lock, err := d.lock()
	if api.CodeOf(err) == api.Unavailable && err != nil {
		if lost {
			path += "?lost"
		}
		return d.order(ctx, path, nil)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	authority, err := ca.Open(d.ca(), ca.Options{})
	if err != nil {
		return err
	}
	return do(authority)
}
