// Command edgectl answers: what can a person at a shell ask of the core?
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"tributary.dev/tributary/cmd/edgectl/cli"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cli.Main(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, os.LookupEnv)
}
