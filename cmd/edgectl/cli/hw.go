package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/hardware"
)

// maxProbeFile bounds a recorded probe, or the text of dmidecode.
const maxProbeFile = 2 << 20

func (a *app) hwCommand() *cobra.Command {
	c := &cobra.Command{Use: "hw", Short: "Hardware profiles, and which of them fits a box"}
	c.AddCommand(a.hwProbeCommand(), a.hwProfilesCommand())
	return c
}

type hwOptions struct {
	from             []string
	profiles, output string
	record           bool
}

// dir has the profiles that are built in, and over them those of the folder that was given.
func (o *hwOptions) dir() (fs.FS, error) {
	if o.profiles == "" {
		return hwprofiles.With(os.DirFS("/nonexistent"), ""), nil
	}
	const remedy = "give a folder that holds NAME.yaml; docs/hardware.md describes it"
	files, err := os.ReadDir(o.profiles)
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Field: "--profiles", Message: "the folder cannot be read", Remedy: remedy, Err: err}
	}
	if !slices.ContainsFunc(files, func(f fs.DirEntry) bool { return filepath.Ext(f.Name()) == ".yaml" }) {
		return nil, &api.Error{Code: api.Invalid, Field: "--profiles", Message: o.profiles + " holds no profile", Remedy: remedy}
	}
	return hwprofiles.With(os.DirFS(o.profiles), o.profiles), nil
}

func (a *app) hwProbeCommand() *cobra.Command {
	var o hwOptions
	c := &cobra.Command{
		Use: "probe", Short: "Find the hardware profile of this machine, and say why", Args: cobra.NoArgs,
		Long: `Find the hardware profile of this machine, and say why it is this one and not another.
It needs no core, and runs on any Linux machine. --from reads a recorded probe, or the
text that dmidecode or lspci -nn prints, instead of the machine; --record prints a probe that can be
recorded: it holds no serial numbers, names or addresses.`,
		Example: "  edgectl hw probe\n  edgectl hw probe --record > hwprofiles/testdata/probes/acme-box-9.yaml\n  dmidecode | edgectl hw probe --from -\n  edgectl hw probe --from dmidecode.txt --from lspci.txt\n  edgectl hw probe --from probe.yaml --profiles my-boards/",
		RunE:    func(*cobra.Command, []string) error { return a.hwProbe(o) },
	}
	f := c.Flags()
	f.StringArrayVar(&o.from, "from", nil, "read a recorded probe, or the output of dmidecode or lspci -nn; again for more of the same box; - is standard input")
	f.BoolVar(&o.record, "record", false, "print what was found, to be recorded, and not the profile")
	f.StringVar(&o.profiles, "profiles", "", "a folder with further profiles, to try them")
	f.StringVarP(&o.output, "output", "o", "table", "table, json, yaml or name")
	return c
}

func (a *app) hwProbe(o hwOptions) error {
	box, err := a.readBox(o.from)
	if err != nil {
		return err
	}
	if o.record {
		b, err := box.Record()
		if err != nil {
			return err
		}
		_, err = a.Out.Write(b)
		return err
	}
	dir, err := o.dir()
	if err != nil {
		return err
	}
	all, err := hwprofiles.AllFrom(dir)
	if err != nil {
		return err
	}
	r := hwprofiles.Match(box, all)
	switch o.output {
	case "table":
		a.printMatch(box, r)
	case "json", "yaml":
		err = a.printValue(struct {
			hwprofiles.Result
			Probe hwprofiles.Probe `json:"probe"`
		}{r, box}, o.output)
	case "name":
		if r.Profile != "" {
			fmt.Fprintln(a.Out, r.Profile)
		}
	default:
		return badOutput(o.output, "table, json, yaml or name")
	}
	if err == nil && r.Profile == "" { // a script must not go on
		return &api.Error{Code: api.NotFound, Message: r.Why, Remedy: "there are images for amd64 and arm64"}
	}
	return err
}

func (a *app) printMatch(box hwprofiles.Probe, r hwprofiles.Result) {
	a.fact("Box", box.Describe())
	a.fact("Profile", strings.TrimSpace(cmp.Or(r.Profile, "-")+"  "+r.Title))
	a.fact("Why", r.Why)
	t := &table{header: []string{"OTHERS", "FIT", "WHY NOT"}}
	for _, x := range r.Others {
		fit := "no"
		if x.Fits {
			fit = "yes"
		}
		t.rows = append(t.rows, []string{x.Profile, fit, x.Why})
	}
	fmt.Fprintln(a.Out)
	t.write(a.Out, true)
}

// readBox probes this machine, or reads files that tell of one.
func (a *app) readBox(from []string) (box hwprofiles.Probe, err error) {
	if len(from) == 0 {
		return hardware.Box(hardware.Host("/")), nil
	}
	for _, name := range from {
		b, err := a.readProbeFile(name)
		if err != nil {
			return box, err
		}
		part, err := hwprofiles.ReadProbe(b)
		if err != nil {
			return box, probeFault(name, err)
		}
		box.Add(part)
	}
	return box, nil
}

const probeRemedy = "give the output of `edgectl hw probe --record`, of dmidecode or of lspci -nn"

// probeFault names the file that faults are in.
func probeFault(name string, err error) error {
	var e *api.Error
	if !errors.As(err, &e) {
		return err
	}
	causes := e.Causes
	if len(causes) == 0 {
		causes = []*api.Error{e}
	}
	if e.Code == api.TooLarge {
		e.Remedy = "" // the reader's own speaks of objects that are applied
	}
	return &api.Error{Code: e.Code, Message: called(name) + " tells of no box", Remedy: probeRemedy, Causes: causes}
}

func called(name string) string {
	if name == "-" {
		return "standard input"
	}
	return name
}

func (a *app) readProbeFile(name string) ([]byte, error) {
	in := a.In
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, &api.Error{Code: api.Invalid, Field: "--from", Message: "the file cannot be read", Remedy: probeRemedy, Err: err}
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxProbeFile+1))
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Field: "--from", Message: called(name) + " cannot be read", Remedy: probeRemedy, Err: err}
	}
	if len(b) > maxProbeFile {
		return nil, &api.Error{Code: api.TooLarge, Message: called(name) + " is larger than 2 MiB", Remedy: probeRemedy}
	}
	return b, nil
}

func (a *app) hwProfilesCommand() *cobra.Command {
	var o hwOptions
	c := &cobra.Command{
		Use: "profiles [NAME]", Short: "List the hardware profiles, or show one in full", Args: cobra.MaximumNArgs(1),
		Long: `List the hardware profiles that this edgectl knows, or show one with all that it takes
from its base. With --profiles, the files of a folder are read and checked too.`,
		RunE: func(_ *cobra.Command, args []string) error { return a.hwProfiles(o, args) },
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return hwprofiles.Names(), cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := c.Flags()
	f.StringVar(&o.profiles, "profiles", "", "a folder with further profiles")
	f.StringVarP(&o.output, "output", "o", "table", "table, json, yaml or name")
	return c
}

func (a *app) hwProfiles(o hwOptions, args []string) error {
	dir, err := o.dir()
	if err != nil {
		return err
	}
	if len(args) == 1 {
		p, err := hwprofiles.LoadFrom(dir, args[0])
		if err != nil {
			return err
		}
		if o.output == "table" {
			o.output = "yaml"
		}
		if o.output == "name" {
			fmt.Fprintln(a.Out, p.Name)
			return nil
		}
		return a.printValue(p, o.output)
	}
	all, err := hwprofiles.AllFrom(dir)
	if err != nil {
		return err
	}
	t := &table{header: []string{"NAME", "ARCH", "KERNEL", "DISK FROM", "RULES", "TITLE"}}
	switch o.output {
	case "json", "yaml":
		return a.printValue(all, o.output)
	case "name":
		for _, p := range all {
			fmt.Fprintln(a.Out, p.Name)
		}
		return nil
	case "table":
	default:
		return badOutput(o.output, "table, json, yaml or name")
	}
	for _, p := range all {
		t.rows = append(t.rows, []string{p.Name, p.Arch, p.Kernel.Flavour, bytesText(uint64(p.Partitions.Total()) << 20), fmt.Sprint(len(p.Match)), p.Title})
	}
	t.write(a.Out, true)
	return nil
}
