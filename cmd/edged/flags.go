package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/boundedfile"
	"tributary.dev/tributary/pkg/identity"
)

// options are the flags of edged run.
type options struct {
	data, run     string
	parents       []api.ParentRef
	token         string
	tokenFile     string
	name          string
	labels        map[string]string
	proxyFile     string
	uplinks       string
	containerd    string
	cniBin        string
	logHelper     string
	snapshotter   string
	pool          string
	relay         bool
	cacheMB       int64
	preload       string
	listenMQTT    string
	listenHTTPS   string
	listenGreet   string
	verbose       bool
	memoryLimitMB int
	findOwner     bool
	finder        string // program that finds him, with more arguments
	gpud          string
	gpudAlways    bool
	cdi           string
	nvidiaRoot    string
}

func parseOptions(args []string, errs io.Writer) (options, error) {
	var o options
	var parent string
	f := flag.NewFlagSet("edged run", flag.ContinueOnError)
	f.SetOutput(errs)
	f.StringVar(&o.data, "data", "/var/lib/edged", "folder for what must outlive a reboot")
	f.StringVar(&o.run, "run", "/run/edged", "folder for sockets and what a reboot may clear")
	f.StringVar(&parent, "parent", "", "where to attach: host[:mqtt-port[,https-port]]; several are separated by spaces")
	f.StringVar(&o.token, "join-token", "", "join token for the first start")
	f.StringVar(&o.tokenFile, "join-token-file", "", "file that holds the join token; it is watched until the box has enrolled")
	f.StringVar(&o.name, "name", hostname(), "name wished for")
	f.Func("labels", "what the box says of itself beside its hardware, as rack=3,room=b; fleets pick it by hw.tributary/config.rack", func(text string) (err error) {
		o.labels, err = parseLabels(text)
		return err
	})
	f.StringVar(&o.uplinks, "uplinks", "", "file that lists the box's uplinks (uplinks.json of process 1): a parent's name that the first name server does not know is asked of each uplink's own")
	f.StringVar(&o.proxyFile, "proxy-file", "", "file that holds the HTTP proxy by which parents are reached that are on none of the box's own networks; it may change or go at any time")
	f.StringVar(&o.containerd, "containerd", "/run/containerd/containerd.sock", "containerd's socket")
	f.StringVar(&o.cniBin, "cni-bin", "/opt/cni/bin", "folder of the CNI plugins bridge, host-local and portmap")
	f.StringVar(&o.logHelper, "log-helper", besideMe("edged-log"), "the edged-log program")
	f.StringVar(&o.snapshotter, "snapshotter", "overlayfs", "containerd's snapshotter")
	f.StringVar(&o.pool, "pool", "10.213.0.0/16", "addresses for app networks")
	f.BoolVar(&o.relay, "relay", false, "serve children")
	f.StringVar(&o.listenMQTT, "listen-mqtt", ":8883", "where a relay serves MQTT")
	f.StringVar(&o.listenGreet, "listen-bootstrap", ":8444", "where a relay answers boxes that look for their owner (RFC 8572), of which it tells by mDNS; empty: nowhere")
	f.StringVar(&o.listenHTTPS, "listen-https", ":8443", "where a relay serves artifacts, enrolment and streams")
	f.Int64Var(&o.cacheMB, "cache", 0, "MiB of artifacts that a relay keeps at most, unless the core says otherwise; 0 is 80 % of the disk")
	f.StringVar(&o.preload, "preload", "/usr/share/tributary/preload/apps", "folder of OCI image layouts, one for each repository, that are looked into before the parent is asked")
	f.BoolVar(&o.findOwner, "find-owner", false, "a box without a membership and a join token finds its owner by itself (RFC 8572); --parent may be left out")
	f.StringVar(&o.finder, "find-owner-with", besideMe("edged-onboard"), "the program that finds him, with what more it is told")
	f.StringVar(&o.gpud, "gpud", besideMe("gpud"), "the program that speaks with NVIDIA's library; it is started where such a card is on PCI; empty: nowhere")
	f.BoolVar(&o.gpudAlways, "gpud-always", false, "start gpud also where no card of NVIDIA's is on PCI, as on boards that have it within the processor")
	f.StringVar(&o.cdi, "cdi", "/var/run/cdi", "folder where other programs on the box look for devices that are made at run time (Container Device Interface)")
	f.StringVar(&o.nvidiaRoot, "nvidia-root", "", "folder below which the driver of NVIDIA's is: its libraries, /dev and /proc; empty: the release's extension nvidia where it is mounted, else /")
	f.BoolVar(&o.verbose, "verbose", false, "log details")
	f.IntVar(&o.memoryLimitMB, "memory-limit", 0, "memory in MiB that the garbage collector tries to stay under; 0 is 24, or 128 for a relay")
	if err := f.Parse(args); err != nil {
		if err == flag.ErrHelp {
			return o, err
		}
		return o, &api.Error{Code: api.Invalid, Message: err.Error()}
	}
	if f.NArg() > 0 {
		return o, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%q is not understood", f.Arg(0)), Remedy: "see edged run -h"}
	}
	if o.findOwner && strings.TrimSpace(parent) == "" {
		return o, nil
	}
	var err error
	o.parents, err = parseParents(parent)
	return o, err
}

// parseLabels reads key=value pairs between commas.
func parseLabels(text string) (map[string]string, error) {
	out := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		k, v, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%q is no key=value", pair)
		}
		out[k] = v
	}
	return out, nil
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return ""
	}
	h, _, _ = strings.Cut(h, ".")
	return h
}

func besideMe(name string) string {
	exe, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(exe), name)
}

// parseParents reads host[:mqtt[,https]] entries. An IPv6 address stands in brackets.
func parseParents(text string) ([]api.ParentRef, error) {
	var out []api.ParentRef
	for _, item := range strings.Fields(text) {
		p, err := api.ParseParent(item)
		if err != nil {
			return nil, &api.Error{Code: api.Invalid, Field: "--parent", Message: fmt.Sprintf("%q: %v", item, err), Remedy: "write host[:mqtt-port[,https-port]]"}
		}
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, &api.Error{Code: api.Invalid, Field: "--parent", Message: "names no parent", Remedy: "write host[:mqtt-port[,https-port]]"}
	}
	return out, nil
}

// joinToken reads the token from where the flags say. A file may change, so what is wrong
// with it is Unavailable; a flag does not, and what is wrong with it is Invalid.
func (o options) joinToken() (identity.JoinToken, error) {
	if o.token != "" {
		return identity.ParseJoinToken(o.token)
	}
	none := identity.JoinToken{}
	if o.tokenFile == "" {
		return none, &api.Error{Code: api.Invalid, Message: "this box has not enrolled and has no join token", Remedy: "pass --join-token or --join-token-file; make one with `edgectl token create`"}
	}
	text, err := boundedfile.Read(o.tokenFile, 4<<10)
	if err != nil {
		return none, &api.Error{Code: api.Unavailable, Message: "the join token cannot be read", Remedy: "put it into " + o.tokenFile, Err: err}
	}
	token, err := identity.ParseJoinToken(string(text))
	if err != nil {
		return none, &api.Error{Code: api.Unavailable, Message: o.tokenFile + " holds no join token", Remedy: "write a whole one there, as `edgectl token create` prints it; edged is watching the file", Err: err}
	}
	return token, nil
}
