// Command cored answers: which process is the core? It reads flags, wires the rooms of
// pkg/core together, and runs them until it is told to stop.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/flagvalue"
)

// version is set by the linker (make build).
var version = "dev"

func main() { os.Exit(Main()) }

// Main runs cored with the arguments of the process and returns its exit status, which
// is that of api.Code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := root().ExecuteContext(ctx)
	if err == nil || errors.Is(err, context.Canceled) {
		return 0
	}
	fmt.Fprintln(os.Stderr, "cored:", err)
	return api.CodeOf(err).ExitCode()
}

func root() *cobra.Command {
	cmd := &cobra.Command{Use: "cored", Short: "The core of a Tributary tree", SilenceUsage: true, SilenceErrors: true}
	cmd.SetFlagErrorFunc(flagvalue.Explain)
	cmd.AddCommand(runCommand(), tokenCommand(), adminTokenCommand(), backupCommand(), restoreCommand(), migrateStoreCommand(), secretsCommand(), billingCommand(), unlockCommand(), sealingCommand(), mosquittoCommand(), auditCommand(), versionCommand())
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, Run: func(cmd *cobra.Command, _ []string) {
		fmt.Fprintln(cmd.OutOrStdout(), "cored", version)
	}}
}
