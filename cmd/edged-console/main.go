// Edged-console answers: how does a person talk to a box without a network?
//
// It shows the recovery console (pkg/edge/recovery) on a terminal, or serves it on the
// sockets of the box. It is a program of its own, so that what draws on terminals is not in
// edged, and so that a fault of either leaves the other.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/hardware"
	"tributary.dev/tributary/pkg/edge/recovery"
	"tributary.dev/tributary/pkg/edge/uplink/wifi"
)

const usage = `edged-console shows the recovery console of this box.

  edged-console --tty /dev/ttyS0   on a terminal, for as long as the box runs
  edged-console --stdio            here, until the person leaves
  edged-console --serve            on the box's console socket and on vsock

`

type options struct {
	tty, socket, root string
	stdio, serve      bool
	plain             bool
	port              uint
	width, height     int
}

func main() {
	debug.SetGCPercent(20) // it lies in memory for as long as the box runs, and does little
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return
	case errors.Is(err, errUsage):
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "edged-console:", err)
	os.Exit(1)
}

var errUsage = errors.New("wrong usage")

func parse(args []string, errs io.Writer) (o options, err error) {
	f := flag.NewFlagSet("edged-console", flag.ContinueOnError)
	f.SetOutput(errs)
	f.Usage = func() {
		fmt.Fprint(errs, usage)
		f.PrintDefaults()
	}
	f.StringVar(&o.tty, "tty", "", "the terminal to show it on, such as /dev/ttyS0")
	f.BoolVar(&o.stdio, "stdio", false, "show it on standard input and output")
	f.BoolVar(&o.serve, "serve", false, "serve --socket and --vsock")
	f.StringVar(&o.socket, "socket", "/run/tributary/console.sock", "the unix socket to serve; empty for none")
	f.UintVar(&o.port, "vsock", 9040, "the vsock port to serve to the machine's host; 0 for none")
	f.BoolVar(&o.plain, "plain", false, "numbered menus even on a terminal that can draw")
	f.IntVar(&o.width, "width", 0, "columns, where the terminal does not tell")
	f.IntVar(&o.height, "height", 0, "lines, where the terminal does not tell")
	f.StringVar(&o.root, "root", "", "look at the box below this folder")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, errUsage
	}
	ways := 0
	for _, on := range []bool{o.tty != "", o.stdio, o.serve} {
		if on {
			ways++
		}
	}
	if f.NArg() > 0 || ways != 1 {
		f.Usage()
		return o, errUsage
	}
	return o, nil
}

func run(ctx context.Context, args []string, in *os.File, out *os.File, errs io.Writer) error {
	o, err := parse(args, errs)
	if err != nil {
		return err
	}
	if o.serve {
		return serve(ctx, o, errs)
	}
	box := appliance(o.root, cmp.Or(strings.TrimPrefix(o.tty, "/dev/"), "stdio"))
	switch {
	case o.tty != "":
		f, err := os.OpenFile(o.tty, os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return live(ctx, o, f, box)
	}
	return once(ctx, o, in, out, box)
}

// appliance is the box to a person who comes by where: the lock of the shell is each one's
// own.
func appliance(root, where string) *recovery.Appliance {
	s := recovery.Usual()
	s.Look = func() api.Inventory { return hardware.Look(hardware.Host(s.Data)) }
	s.Root = root
	a := &recovery.Appliance{Sources: s}
	at := func(path string) string { return filepath.Join("/", root, path) }
	if _, err := os.Stat(filepath.Join(at(s.Run), "slot")); err == nil {
		a.Desk = newDesk(root, at(s.Run), at(s.State), at("/data"), where)
	}
	a.Listen = func(ctx context.Context, card string) ([]recovery.Network, error) {
		heard, err := wifi.Scan(ctx, wifi.Config{Link: card, Dir: filepath.Join(at(s.Run), wifi.Dir), Program: at(wifi.Program)})
		list := make([]recovery.Network, 0, len(heard))
		for _, n := range heard {
			list = append(list, recovery.Network(n))
		}
		return list, err
	}
	if root == "" {
		a.Reset = reset(s.Run)
		if _, err := os.Stat(filepath.Join(s.State, "update.json")); err == nil {
			a.Rollback = rollback(s.Run, s.State, where)
		}
	}
	return a
}
