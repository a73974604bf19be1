// Edged answers: what runs on a box? It is the one long-running process of the
// appliance: it enrols, keeps the link to its parent, runs the apps of its manifest
// through containerd, and, as a relay, serves the boxes below.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"tributary.dev/tributary/pkg/api"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = "dev"

const usage = `edged keeps one box of a Tributary.

  edged run      run the box (see edged run -h)
  edged status   show how the running box stands
  edged console  show the recovery console (see edged console -h)
  edged records  print the records that the box keeps, one JSON object a line
  edged recover  ask the core for the key of STATE, in process 1's place
  edged version  print the version

Exit status: 0 success, 1 failure, 2 wrong usage or a join token that is none, 6 not reachable.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := dispatch(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func dispatch(ctx context.Context, args []string, out, errs io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(errs, usage)
		return 2
	}
	var err error
	switch args[0] {
	case "run":
		err = run(ctx, args[1:], errs)
	case "status":
		err = status(ctx, args[1:], out, errs)
	case "console":
		err = console(args[1:])
	case "records":
		err = records(ctx, args[1:], out, errs)
	case "recover":
		err = recoverState(ctx, args[1:], errs)
	case "version", "--version":
		fmt.Fprintln(out, version)
	case "help", "-h", "--help":
		fmt.Fprint(out, usage)
	default:
		fmt.Fprintf(errs, "edged: %q is not a command\n%s", args[0], usage)
		return 2
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		return 0
	}
	fmt.Fprintf(errs, "edged: %v\n", err)
	return api.CodeOf(err).ExitCode()
}
