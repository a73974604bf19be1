package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/stream"
)

// splitService reads APP/SERVICE or APP.
func splitService(arg string, needService bool) (app, service string, err error) {
	app, service, found := strings.Cut(arg, "/")
	if app == "" || found && service == "" || needService && service == "" {
		return "", "", &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%q names no service", arg), Remedy: "write APP/SERVICE; see `edgectl describe device NAME`"}
	}
	return app, service, nil
}

// broken explains a stream that ended before the device said so.
func broken(err error, device string) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &api.Error{Code: api.Unavailable, Message: "the stream to " + device + " broke off", Remedy: "check `edgectl get device " + device + "` and try again"}
	}
	return err
}

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var tail int
	c := &cobra.Command{
		Use: "logs DEVICE APP[/SERVICE]", Short: "Show what an app on a device wrote", Args: cobra.ExactArgs(2),
		Example:           "  edgectl logs -f field-1 shop/web\n  edgectl logs --tail 100 field-1 shop",
		ValidArgsFunction: a.completeDeviceService,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, service, err := splitService(args[1], false)
			if err != nil {
				return err
			}
			q := stream.Command{Verb: stream.Logs, App: app, Service: service, Follow: follow, Tail: tail}
			return a.runStream(cmd.Context(), args[0], "logs", q, stream.Local{Stdout: a.Out, Stderr: a.Err})
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as more is written")
	c.Flags().IntVar(&tail, "tail", -1, "the last so many lines; -1 is all that the device keeps")
	return c
}

// runStream opens a stream and connects it until it ends.
func (a *app) runStream(ctx context.Context, device, verb string, q stream.Command, l stream.Local) error {
	if err := q.Check(); err != nil {
		return err
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	conn, err := cl.Stream(ctx, device, verb, q.Query())
	if err != nil {
		return err
	}
	code, err := stream.Run(ctx, conn, l)
	if err != nil {
		return broken(err, device)
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

func (a *app) execCommand() *cobra.Command {
	var stdin, tty bool
	c := &cobra.Command{
		Use: "exec DEVICE APP/SERVICE -- COMMAND [ARG…]", Short: "Run a command in a container on a device",
		Long:              "Run a command in a container on a device. The exit code is the command's.",
		Example:           "  edgectl exec -it field-1 shop/web -- sh\n  edgectl exec field-1 shop/cache -- redis-cli ping",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeDeviceService,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, service, err := splitService(args[1], true)
			if err != nil {
				return err
			}
			q := stream.Command{Verb: stream.Exec, App: app, Service: service, Argv: args[2:], TTY: tty}
			if len(q.Argv) == 0 {
				return &api.Error{Code: api.Invalid, Message: "there is no command to run", Remedy: "put it after --: edgectl exec " + args[0] + " " + args[1] + " -- ls"}
			}
			l := stream.Local{Stdout: a.Out, Stderr: a.Err}
			if stdin {
				l.Stdin = a.In
			} else {
				l.Stdin = strings.NewReader("")
			}
			if !tty {
				return a.runStream(cmd.Context(), args[0], "exec", q, l)
			}
			return a.onTerminal(cmd.Context(), args[0], "exec", q, l)
		},
	}
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	c.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	return c
}

func (a *app) consoleCommand() *cobra.Command {
	var plain bool
	var card string
	c := &cobra.Command{
		Use: "console DEVICE", Short: "Use the recovery console of a device",
		Long: `Use the recovery console of a device, as it stands on its screen and serial lines. With --card it is the console of a DPU in
the device, through RShim; Ctrl-] leaves it. For admins; what is opened is in the device's records.`,
		Example:           "  edgectl console field-1\n  edgectl console server-7 --card rshim0",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDevice,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := stream.Command{Verb: stream.Console}
			l := stream.Local{Stdin: a.In, Stdout: a.Out, Stderr: a.Err}
			in, ok := a.In.(*os.File)
			terminal := ok && term.IsTerminal(int(in.Fd()))
			if card != "" {
				q = stream.Command{Verb: stream.Line, Line: card}
				if !terminal {
					return a.runStream(cmd.Context(), args[0], "line", q, l)
				}
				l.Stdin = &untilKey{a.In, leaveKey}
				return a.onTerminal(cmd.Context(), args[0], "line", q, l)
			}
			if plain || !terminal || os.Getenv("TERM") == "dumb" {
				return a.runStream(cmd.Context(), args[0], "console", q, l)
			}
			q.TTY = true
			return a.onTerminal(cmd.Context(), args[0], "console", q, l)
		},
	}
	c.Flags().BoolVar(&plain, "plain", false, "numbered menus, without escape codes")
	c.Flags().StringVar(&card, "card", "", "the console of a DPU in the device, such as rshim0")
	return c
}

// leaveKey is Ctrl-], as telnet has it: what is at the other end of a line never ends it.
const leaveKey = 0x1d

// untilKey ends where a key is pressed.
type untilKey struct {
	from io.Reader
	key  byte
}

func (u *untilKey) Read(b []byte) (int, error) {
	n, err := u.from.Read(b)
	if i := bytes.IndexByte(b[:n], u.key); i >= 0 {
		u.from = strings.NewReader("")
		return i, io.EOF
	}
	return n, err
}

// onTerminal passes every key on, resizes with the window, and puts the terminal
// back as it was.
func (a *app) onTerminal(ctx context.Context, device, verb string, q stream.Command, l stream.Local) error {
	in, ok := a.In.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return &api.Error{Code: api.Invalid, Message: "standard input is no terminal", Remedy: "leave -t out"}
	}
	fd := int(in.Fd())
	changed := make(chan os.Signal, 1) // listened for before the first size is read, so that no change is missed
	signal.Notify(changed, syscall.SIGWINCH)
	defer signal.Stop(changed)
	if w, h, err := term.GetSize(fd); err == nil {
		q.Size = size(w, h)
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return &api.Error{Code: api.Invalid, Message: "the terminal cannot be set", Remedy: "leave -t out", Err: err}
	}
	resize := make(chan stream.Size, 1)
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { followSize(ctx, fd, changed, resize) })
	l.Resize = resize
	err = a.runStream(ctx, device, verb, q, l)
	cancel()
	group.Wait()
	if restoreErr := term.Restore(fd, old); err == nil {
		err = restoreErr
	}
	return err
}

func size(columns, rows int) stream.Size {
	return stream.Size{Columns: uint16(min(max(columns, 0), 1<<16-1)), Rows: uint16(min(max(rows, 0), 1<<16-1))}
}

func followSize(ctx context.Context, fd int, changed <-chan os.Signal, to chan<- stream.Size) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			w, h, err := term.GetSize(fd)
			if err != nil {
				continue
			}
			select {
			case to <- size(w, h):
			case <-ctx.Done():
				return
			}
		}
	}
}

// forwarding is one LOCAL:REMOTE of port-forward.
type forwarding struct {
	address string // where to listen
	remote  uint16
}

// parseForwarding reads REMOTE, LOCAL:REMOTE, :REMOTE (any free port) and
// ADDRESS:LOCAL:REMOTE.
func parseForwarding(s string) (forwarding, error) {
	bad := &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%q names no ports", s), Remedy: "write LOCAL:REMOTE, e.g. 8080:80; an address may stand before: 0.0.0.0:8080:80"}
	host, local, remote := "127.0.0.1", s, s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		local, remote = s[:i], s[i+1:]
		if j := strings.LastIndexByte(local, ':'); j >= 0 {
			host, local = strings.Trim(local[:j], "[]"), local[j+1:]
		}
	}
	if local == "" {
		local = "0"
	}
	r, err := strconv.ParseUint(remote, 10, 16)
	if err != nil || r == 0 {
		return forwarding{}, bad
	}
	if _, err := strconv.ParseUint(local, 10, 16); err != nil || host == "" {
		return forwarding{}, bad
	}
	return forwarding{net.JoinHostPort(host, local), uint16(r)}, nil
}

func (a *app) forwardCommand() *cobra.Command {
	return &cobra.Command{
		Use: "port-forward DEVICE APP/SERVICE [LOCAL:]REMOTE…", Short: "Reach a port of a container from here",
		Example:           "  edgectl port-forward field-1 shop/web 8080:80",
		Args:              cobra.MinimumNArgs(3),
		ValidArgsFunction: a.completeDeviceService,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, service, err := splitService(args[1], true)
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			var list []forwarding
			for _, arg := range args[2:] {
				f, err := parseForwarding(arg)
				if err != nil {
					return err
				}
				list = append(list, f)
			}
			return a.forward(cmd.Context(), cl, args[0], app, service, list)
		},
	}
}

// forward listens until interrupted; every connection is a stream of its own.
func (a *app) forward(ctx context.Context, cl *client.Client, device, app, service string, list []forwarding) error {
	var listeners []net.Listener
	closeAll := func() {
		for _, l := range listeners {
			l.Close()
		}
	}
	for _, f := range list {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", f.address)
		if err != nil {
			closeAll()
			return &api.Error{Code: api.Conflict, Message: "cannot listen on " + f.address, Remedy: "choose another local port, or none: :" + strconv.Itoa(int(f.remote)), Err: err}
		}
		listeners = append(listeners, l)
	}
	stop := context.AfterFunc(ctx, closeAll)
	defer stop()
	var group sync.WaitGroup
	for i, l := range listeners {
		fmt.Fprintf(a.Out, "forwarding %s to %s %s/%s port %d\n", l.Addr(), device, app, service, list[i].remote)
		q := stream.Command{Verb: stream.Forward, App: app, Service: service, Port: list[i].remote}
		group.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				group.Go(func() {
					defer conn.Close()
					a.forwardOne(ctx, cl, device, q, conn)
				})
			}
		})
	}
	group.Wait()
	return nil // ended by the person
}

func (a *app) forwardOne(ctx context.Context, cl *client.Client, device string, q stream.Command, conn net.Conn) {
	s, err := cl.Stream(ctx, device, "port-forward", q.Query())
	if err == nil {
		_, err = stream.Run(ctx, s, stream.Local{Stdin: conn, Stdout: conn})
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintf(a.Err, "connection from %s: %s\n", conn.RemoteAddr(), printable(broken(err, device).Error()))
	}
}

func (a *app) topCommand() *cobra.Command {
	var once bool
	var output string
	c := &cobra.Command{
		Use: "top DEVICE", Short: "Show what a device's containers use now", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDevice,
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "table" && output != "json" {
				return badOutput(output, "table or json (one sample a line)")
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			r, w := io.Pipe()
			shown := make(chan error, 1)
			go func() {
				err := a.showSamples(r, once, output)
				r.Close()
				shown <- err
				cancel()
			}()
			err := a.runStream(ctx, args[0], "top", stream.Command{Verb: stream.Top, Follow: true}, stream.Local{Stdout: w, Stderr: a.Err})
			w.Close()
			if showErr := <-shown; showErr != nil || once && cmd.Context().Err() == nil && (errors.Is(err, context.Canceled) || errors.Is(err, io.ErrClosedPipe)) {
				return showErr
			}
			return err
		},
	}
	c.Flags().BoolVar(&once, "once", false, "show one table with rates and end")
	outputFlag(c, &output, "table, or json: one sample a line")
	return c
}

// showSamples prints samples as they come. With once it ends after the second: the
// first has no rates.
func (a *app) showSamples(r io.Reader, once bool, output string) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), 4<<20)
	terminal := false
	if f, ok := a.Out.(*os.File); ok {
		terminal = term.IsTerminal(int(f.Fd())) && !once
	}
	for n := 1; lines.Scan(); n++ {
		if once && n == 1 {
			continue
		}
		if output == "json" {
			fmt.Fprintln(a.Out, lines.Text())
		} else {
			var s stream.Sample
			if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
				return &api.Error{Code: api.Internal, Message: "a sample of the device cannot be read", Remedy: "compare the versions of edgectl and the device", Err: err}
			}
			if terminal {
				fmt.Fprint(a.Out, "\x1b[H\x1b[2J")
			}
			a.printSample(s)
		}
		if once {
			return nil
		}
	}
	return nil
}

func (a *app) printSample(s stream.Sample) {
	fmt.Fprintf(a.Out, "load %.2f, memory %s of %s\n", s.Load, bytesText(uint64(max(s.MemoryUsed, 0))), bytesText(uint64(max(s.MemoryBytes, 0))))
	t := &table{header: []string{"APP/SERVICE", "STATE", "CPU", "MEMORY", "RX/s", "TX/s"}}
	for _, u := range s.Uses {
		t.rows = append(t.rows, []string{u.App + "/" + u.Service, u.State, fmt.Sprintf("%.2f", u.CPUs), bytesText(u.MemoryBytes), bytesText(uint64(max(u.RxPerSecond, 0))), bytesText(uint64(max(u.TxPerSecond, 0)))})
	}
	t.write(a.Out, true)
}
