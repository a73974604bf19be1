package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/ca"
	"tributary.dev/tributary/pkg/core/roster"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/link/mqtt"
)

// brokerOptions are the flags of mosquitto-config.
type brokerOptions struct {
	data  data
	conf  mqtt.MosquittoConfig
	names []string
}

func mosquittoCommand() *cobra.Command {
	var o brokerOptions
	var dir string
	cmd := &cobra.Command{Use: "mosquitto-config", Short: "Write all that a Mosquitto needs to carry the link instead of the embedded broker",
		Long: `Writes mosquitto.conf, a certificate and the first list of devices into a folder that
belongs to Mosquitto. It may be repeated: the list stays as the broker has it, and the
certificate is renewed from two thirds of its life on. Then run

  mosquitto -c DIR/mosquitto.conf
  cored run --mqtt-broker HOST:PORT …`,
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			o.data = data(dir)
			return o.write(cmd.Context(), cmd.OutOrStdout())
		}}
	f := cmd.Flags()
	f.StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	f.StringVar(&o.conf.Dir, "out", "/etc/mosquitto/tributary", "folder to write to; Mosquitto must own it")
	f.StringVar(&o.conf.Listen, "listen", ":8883", "address for devices")
	f.StringVar(&o.conf.User, "user", "mosquitto", "whom Mosquitto runs as")
	f.StringVar(&o.conf.Plugin, "plugin", mqtt.FindDynsec(), "path of mosquitto_dynamic_security.so")
	f.StringSliceVar(&o.names, "names", nil, "host names and addresses in the broker's certificate (default: this host's)")
	return cmd
}

// write makes the folder, and makes good what an interrupted run left.
func (o *brokerOptions) write(ctx context.Context, out io.Writer) (err error) {
	if o.conf.Plugin == "" {
		return &api.Error{Code: api.NotFound, Field: "--plugin", Message: "mosquitto_dynamic_security.so is not where distributions put it",
			Remedy: "install Mosquitto 2 (Debian: mosquitto), or name the file; where Mosquitto runs on another host, its path there"}
	}
	if len(o.names) == 0 {
		o.names = ownNames()
	}
	if o.conf.Dir, err = filepath.Abs(o.conf.Dir); err != nil {
		return err
	}
	conf, err := o.conf.Conf()
	if err != nil {
		return &api.Error{Code: api.Invalid, Field: "--listen", Message: err.Error(), Remedy: "[host]:port"}
	}
	owner, err := ownerOf(o.conf.User)
	if err != nil {
		return err
	}
	authority, err := o.authority()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.conf.Dir, 0o700); err != nil {
		return err
	}
	file := func(name string) string { return filepath.Join(o.conf.Dir, name) }
	until, renewed, err := authority.ServerFile(file(mqtt.MosquittoServer), o.names)
	if err != nil {
		return err
	}
	root, err := os.ReadFile(filepath.Join(o.data.ca(), mqtt.MosquittoRoot))
	if err != nil {
		return err
	}
	if err := errors.Join(atomicfile.Write(file(mqtt.MosquittoRoot), root, 0o600), atomicfile.Write(file(mqtt.MosquittoConf), conf, 0o600)); err != nil {
		return err
	}
	if err := o.firstList(ctx, file(mqtt.MosquittoDynsec)); err != nil {
		return err
	}
	for _, path := range []string{o.conf.Dir, file(mqtt.MosquittoServer), file(mqtt.MosquittoRoot), file(mqtt.MosquittoConf), file(mqtt.MosquittoDynsec)} {
		if err := owner.give(path); err != nil {
			return err
		}
	}
	what := "kept"
	if renewed {
		what = "new: have a running Mosquitto reload (SIGHUP)"
	}
	_, err = fmt.Fprintf(out, "%s\ncertificate until %s (%s)\n", file(mqtt.MosquittoConf), until.UTC().Format(time.DateOnly), what)
	return err
}

// authority opens the core's CA, and makes it when there is none yet.
func (o *brokerOptions) authority() (*ca.CA, error) {
	if _, err := os.Stat(filepath.Join(o.data.ca(), mqtt.MosquittoRoot)); errors.Is(err, fs.ErrNotExist) {
		lock, err := o.data.lock() // cored makes it as well
		if err != nil {
			return nil, err
		}
		defer lock.Close()
	}
	return ca.Open(o.data.ca(), ca.Options{})
}

// firstList writes the plugin's list of devices unless there is one, which is the
// plugin's own and newer than what is known here.
func (o *brokerOptions) firstList(ctx context.Context, path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var devices []api.DeviceID
	if o.data.exists() == nil {
		db, err := o.data.openStore(ctx)
		if err != nil {
			return err
		}
		defer db.Close()
		r, err := roster.Open(ctx, roster.Config{Store: db, Came: func(api.DeviceID) {}, Gone: func(api.DeviceID) {},
			Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		devices = r.AllActive()
	}
	return atomicfile.Write(path, mqtt.DynsecList(devices...), 0o600)
}

// owner is whom files are given to; nil gives nothing away.
type owner struct{ uid, gid int }

// ownerOf finds a user. Only root can give files away; for others Mosquitto must be run
// by the same person.
func ownerOf(name string) (*owner, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, &api.Error{Code: api.NotFound, Field: "--user", Message: "no user " + name + " on this host", Remedy: "install Mosquitto first, or name the user that it runs as", Err: err}
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(u.Gid)
	return &owner{uid, gid}, err
}

func (o *owner) give(path string) error {
	if o == nil {
		return nil
	}
	return os.Lchown(path, o.uid, o.gid)
}
