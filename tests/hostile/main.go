// Hostile answers: what can a relay do to the boxes around it when it means ill?
//
// It is a relay with the identity and the data folder of a real one, made of the real
// rooms, and it misbehaves above and below them: in the frames that it passes, in what
// it serves, and in what it makes up. It is for tests alone and is never installed.
//
// It takes the flags of `edged run`, and --evil with the names of what it shall do (see
// the table in evil.go). Over RUN/hostile.sock the list is replaced while it runs
// (POST /evil?do=a,b), and it tells how often it did what (GET /done). With --seen it
// writes down everything that it ever saw in clear.
package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/agent"
	"tributary.dev/tributary/pkg/edge/relay"
	"tributary.dev/tributary/pkg/edge/state"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/mqtt"
	"tributary.dev/tributary/pkg/link/spool"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/oci"
)

type options struct {
	data, run, parent, mqtt, https, evil, seen string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	if len(args) == 0 || args[0] != "run" {
		return o, errors.New("the only command is run")
	}
	f := flag.NewFlagSet("hostile run", flag.ContinueOnError)
	f.StringVar(&o.data, "data", "", "the real relay's folder")
	f.StringVar(&o.run, "run", "", "folder for the control socket")
	f.StringVar(&o.parent, "parent", "", "host of the parent")
	f.StringVar(&o.mqtt, "listen-mqtt", ":8883", "where to serve MQTT")
	f.StringVar(&o.https, "listen-https", ":8443", "where to serve HTTPS")
	f.StringVar(&o.evil, "evil", "", "what to do, by name, with commas between")
	f.StringVar(&o.seen, "seen", "", "file for everything that was seen in clear")
	f.Bool("relay", true, "always so")
	for _, name := range []string{"name", "join-token", "join-token-file", "containerd", "cni-bin", "log-helper", "snapshotter", "pool"} {
		f.String(name, "", "taken and not used")
	}
	return o, f.Parse(args[1:])
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	me, err := identity.Load(filepath.Join(o.data, "identity"))
	if err != nil {
		return fmt.Errorf("the real relay has to enrol first: %w", err)
	}
	seen, err := openSeen(o.seen)
	if err != nil {
		return err
	}
	defer seen.Close()
	e := newEvil(me, seen, log)
	if err := e.Do(strings.Split(o.evil, ",")); err != nil {
		return err
	}
	st, err := state.Open(state.Config{Path: filepath.Join(o.data, "state.db"), Log: log})
	if err != nil {
		return err
	}
	defer st.Close()
	records, err := spool.Open(spool.Config{Dir: filepath.Join(o.data, "spool"), DB: st.DB(), Now: time.Now, Rand: rand.Reader, Log: log})
	if err != nil {
		return err
	}
	defer records.Close()
	return serve(ctx, o, me, e, st, records, log)
}

// serve wires the real rooms with the evil between them.
func serve(ctx context.Context, o options, me *identity.Identity, e *evil, st *state.Store, records *spool.Spool, log *slog.Logger) error {
	live := identity.NewLive(me)
	var end *link.Endpoint
	var uplink *mqtt.Uplink
	parents := agent.NewParents(agent.ParentsConfig{Live: live, First: []api.ParentRef{{Address: net.JoinHostPort(o.parent, mqtt.DefaultPort)}}, Log: log,
		Attach: func(list []api.ParentRef) { uplink.SetParents(list) },
		Current: func() (string, bool) {
			if end == nil {
				return "", false
			}
			return end.Parent()
		}})
	uplink = mqtt.NewUplink(mqtt.UplinkConfig{Identity: live, Parents: parents.List(), Log: log})
	listenMQTT, err := net.Listen("tcp", o.mqtt)
	if err != nil {
		return err
	}
	listenHTTPS, err := net.Listen("tcp", o.https)
	if err != nil {
		return err
	}
	broker, err := mqtt.NewBroker(mqtt.BrokerConfig{Listener: listenMQTT, Identity: live, Log: log})
	if err != nil {
		return err
	}
	cache, err := oci.Open(oci.Config{Dir: filepath.Join(o.data, "cache"), Upstream: parents, Log: log})
	if err != nil {
		return err
	}
	defer cache.Close()
	splice := stream.NewSplice(stream.SpliceConfig{Parent: parents.Stream, Log: log})
	server, err := relay.New(relay.Config{Live: live, Cache: cache, Parent: parents, Stream: splice, Log: log})
	if err != nil {
		return err
	}
	e.up, e.down, e.parents = uplink, broker, parents
	end, err = link.NewEndpoint(link.EndpointConfig{
		RelayConfig: link.RelayConfig{Config: link.Config{Rand: random, Log: log, Health: 2 * time.Second}, Self: me.ID(), Cert: me.Cert[0].Raw, Store: st, Spool: records, Keys: link.KeysOf(live)},
		Uplink:      evilUplink{uplink, e}, Downlink: evilDownlink{broker, e},
		Below: func(list []*manifest.Signed) {
			for _, s := range list {
				server.Named(s.Manifest.Device, s.Manifest.Refs())
			}
		},
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, loop := range []func(context.Context) error{
		st.Run, end.Run, server.Run, e.run,
		func(ctx context.Context) error { return serveTLS(ctx, listenHTTPS, live, e.handler(server.Handler())) },
		func(ctx context.Context) error { return serveControl(ctx, filepath.Join(o.run, "hostile.sock"), e) },
	} {
		g.Go(func() error { return loop(ctx) })
	}
	if err := g.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

func serveTLS(ctx context.Context, l net.Listener, live *identity.Live, h http.Handler) error {
	conf := live.ServerTLSOptional()
	conf.NextProtos = []string{"http/1.1"} // a body is cut short on the connection itself
	srv := &http.Server{Handler: h, TLSConfig: conf, ReadHeaderTimeout: 20 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	context.AfterFunc(ctx, func() { srv.Close() })
	return srv.ServeTLS(l, "", "")
}

// serveControl lets the test choose.
func serveControl(ctx context.Context, path string, e *evil) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /evil", func(w http.ResponseWriter, r *http.Request) {
		if err := e.Do(strings.Split(r.FormValue("do"), ",")); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	mux.HandleFunc("GET /done", func(w http.ResponseWriter, _ *http.Request) {
		for name, n := range e.Done() {
			fmt.Fprintln(w, name, strconv.Itoa(n))
		}
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	context.AfterFunc(ctx, func() { srv.Close() })
	return srv.Serve(l)
}

func random() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}
