// Edged-onboard answers: whose is this box? It looks for the owner of a box that has
// neither a membership nor a join token (RFC 8572), enrols with him, leaves the identity
// where edged finds it, and ends: none of what this takes lies in the memory of a box that
// is a member. edged starts it.
//
// Standard output tells edged how it goes: one api.Warning in JSON a line. The log is
// standard error.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/hardware"
	"tributary.dev/tributary/pkg/edge/onboard"
	"tributary.dev/tributary/pkg/edge/onboard/sztp"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/proxy"
	"tributary.dev/tributary/pkg/rest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	told := ctx.Err() != nil
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case told:
		os.Exit(130)
	default:
		fmt.Fprintf(os.Stderr, "edged-onboard: %v\n", err)
		os.Exit(api.CodeOf(err).ExitCode())
	}
}

// options are the flags. The defaults are those of the appliance.
type options struct {
	data      string
	name      string
	relay     bool
	floor     int64
	makers    string
	birth     string
	servers   string
	bootstrap string
	sticks    string
	uplinks   string
	proxy     string
	site      string
	code      string
	built     string
	slot      string
	pause     time.Duration
	noPairing bool
	verbose   bool
}

func parse(args []string, errs io.Writer) (o options, err error) {
	f := flag.NewFlagSet("edged-onboard", flag.ContinueOnError)
	f.SetOutput(errs)
	f.StringVar(&o.data, "data", "/var/lib/edged", "edged's data folder: the identity goes there, and "+onboard.OwnerFile)
	f.StringVar(&o.name, "name", "", "name wished for; what the owner says goes first")
	f.BoolVar(&o.relay, "relay", false, "the box serves children")
	f.Int64Var(&o.floor, "floor", 0, "a moment that is certainly past, in Unix seconds")
	f.StringVar(&o.makers, "manufacturers", "/usr/share/tributary/preload/manufacturers.pem", "certificates of those whose vouchers count")
	f.StringVar(&o.birth, "birth", "/run/tributary/idevid.pem", "key and certificates of the box's birth (IDevID), where a manufacturer gave it some; else the box is its own")
	f.StringVar(&o.servers, "bootstrap-file", "/run/tributary/bootstrap-servers,/usr/share/tributary/preload/bootstrap-servers", "files of bootstrap servers to ask at last, separated by commas, one https://host:port a line: a person's on CONFIG, then the image's")
	f.StringVar(&o.bootstrap, "bootstrap", "", "more of them, separated by commas")
	f.StringVar(&o.sticks, "sticks", "auto", "folders, FAT32 images or disks with signed data, separated by commas; auto: whatever removable disk is there; none: none")
	f.StringVar(&o.uplinks, "uplinks", "/run/tributary/uplinks.json", "file in which the network tells what DHCP gave")
	f.StringVar(&o.proxy, "proxy-file", "/run/tributary/proxy", "file that holds the HTTP proxy by which all is reached that is on none of the box's own networks")
	f.StringVar(&o.site, "ask-site", "on", "off: do not ask the site by mDNS and DNS; host:port: ask there in place of the group of mDNS")
	f.StringVar(&o.code, "code-file", "/run/tributary/pairing-code", "where the pairing code is written for the console; left out when its folder is not there")
	f.StringVar(&o.slot, "slot-file", "/run/tributary/slot", "file that is there on a box that can install another system")
	f.StringVar(&o.built, "build-time", "/usr/lib/tributary/build-time", "file that tells when the image was made, in Unix seconds")
	f.DurationVar(&o.pause, "pause", 15*time.Second, "time between two walks through all sources")
	f.BoolVar(&o.noPairing, "no-pairing", false, "take no owner by pairing code, by voucher alone")
	f.BoolVar(&o.verbose, "verbose", false, "log details")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, &api.Error{Code: api.Invalid, Message: err.Error()}
	}
	if f.NArg() > 0 {
		return o, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%q is not understood", f.Arg(0)), Remedy: "see edged-onboard -h"}
	}
	return o, nil
}

// patience is how long an owner that was found is tried before others are looked for
// again: he may have changed his mind, or moved.
const patience = 5 * time.Minute

func run(ctx context.Context, args []string, out, errs io.Writer) error {
	o, err := parse(args, errs)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	b := &box{o: o, log: slog.New(slog.NewTextHandler(errs, &slog.HandlerOptions{Level: level})), out: json.NewEncoder(out), floor: time.Unix(o.floor, 0)}
	if _, err := os.Stat(b.identity("device.pem")); err == nil {
		return nil // a member already
	}
	if err := os.MkdirAll(b.identity(""), 0o700); err != nil {
		return err
	}
	if err := b.wake(); err != nil {
		return err
	}
	for {
		found, err := b.search(ctx)
		if err != nil {
			return err
		}
		if err = b.enrol(ctx, found); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.log.Warn("the owner that was found does not let the box in; looking again", "err", err)
		b.finder.Decline(found, err)
		rest.For(ctx, b.o.pause)
	}
}

// tell says why the box waits: to edged, which shows it.
func (b *box) tell(w api.Warning) {
	w.Since = b.now().Unix()
	_ = b.out.Encode(w) // edged has gone when this fails, and ends this too
}

// enrol makes the box a member with its owner.
func (b *box) enrol(ctx context.Context, f *sztp.Found) error {
	limited, cancel := context.WithTimeout(proxy.With(ctx, b.dial), patience)
	defer cancel()
	owner := onboard.Owner{RootFP: f.RootFP, Parents: f.Beginning.Parents, Name: f.Beginning.Name, Source: f.Source}
	if f.Release != nil {
		owner.Release = &onboard.Release{Repo: f.Release.Repo, Digest: f.Release.Digest}
	}
	if err := owner.Save(b.o.data); err != nil {
		return err
	}
	if err := b.saveFirst(f); err != nil {
		return err
	}
	var last error
	_, err := onboard.Join(limited, onboard.Config{
		Dir:     b.identity(""),
		Parents: func() []string { return b.roots(owner.Parents) },
		Token: func() (identity.JoinToken, error) {
			return identity.JoinToken{ID: identity.ExpectedToken, Secret: "-", RootFP: f.RootFP}, nil
		},
		Waiting: func(err error) {
			last = err
			b.tell(api.Warning{Name: "not-enrolled", Severity: api.Critical, Message: "the owner is found (" + f.Source + ") and has not let the box in yet: " + err.Error()})
			switch api.CodeOf(err) {
			case api.Unauthorized, api.Forbidden, api.Conflict:
				cancel() // he said no: ask again from the beginning
			}
		},
		Describe: func() identity.EnrolConfig {
			h := hardware.Probe(hardware.Host(b.o.data))
			if h.Profile = hardware.Running(hardware.Host(b.o.data)); h.Profile == "" {
				h.Profile = hardware.Fitting(hardware.Host(b.o.data))
			}
			name := b.o.name
			if owner.Name != "" {
				name = owner.Name
			}
			return identity.EnrolConfig{IDevID: b.idevid, Birth: b.key, Name: name, Hardware: h, Labels: hardware.Labels(h), Relay: b.o.relay, Addresses: hardware.Addresses()}
		},
		Now: b.now, Raise: b.raise, Log: b.log,
	})
	if last != nil && err != nil {
		return last
	}
	if err != nil {
		return err
	}
	b.finder.Done(ctx)
	return nil
}

func (b *box) identity(name string) string { return filepath.Join(b.o.data, "identity", name) }
