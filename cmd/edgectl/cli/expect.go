package cli

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// expectFlags are what a box shall be called and get.
type expectFlags struct {
	name, site string
	labels     []string
	redirect   []string
	release    string
}

func (e *expectFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&e.name, "name", "", "name of the device")
	f.StringVar(&e.site, "site", "", "site of the device")
	f.StringVar(&e.release, "release", "", "Release that the box must run before it takes its apps")
	f.StringSliceVar(&e.labels, "labels", nil, "labels for the device, e.g. role=field,rack=3")
}

// object is the ExpectedDevice.
func (e *expectFlags) object(a *app, spec api.ExpectedDeviceSpec, tenant string) (*api.Object, error) {
	spec.Name, spec.Site, spec.Redirect, spec.Release = e.name, e.site, e.redirect, e.release
	for _, pair := range e.labels {
		k, v, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, &api.Error{Code: api.Invalid, Field: "--labels", Message: fmt.Sprintf("%q is not a label", pair), Remedy: "write --labels role=field,rack=3"}
		}
		if spec.Labels == nil {
			spec.Labels = map[string]string{}
		}
		spec.Labels[k] = v
	}
	o := &api.Object{APIVersion: api.Version, Kind: api.KindExpectedDevice, Metadata: api.Meta{Tenant: tenant, Name: expectedName(spec)}}
	setSpec(o, &spec)
	api.SetDefaults(o)
	return o, api.Validate(o)
}

// expectedName makes a name of a serial number, which may hold what no name does.
func expectedName(spec api.ExpectedDeviceSpec) string {
	if spec.Serial == "" {
		return strings.ToLower(spec.Code)
	}
	var b strings.Builder
	for _, r := range strings.ToLower(spec.Serial) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else {
			b.WriteByte('-')
		}
	}
	name := strings.Trim(b.String(), "-")
	if name == strings.ToLower(spec.Serial) && len(name) <= 63 {
		return name
	}
	sum := sha256.Sum256([]byte(spec.Serial))
	return strings.Trim(fmt.Sprintf("%.54s-%s", name, hex.EncodeToString(sum[:4])), "-")
}

func (a *app) expectCommand() *cobra.Command {
	var e expectFlags
	var file, code string
	var again bool
	c := &cobra.Command{Use: "expect SERIAL", Short: "Let a box in that will ask whose it is, by its manufacturer's voucher or its pairing code", Args: cobra.ExactArgs(1),
		Example: "  edgectl device expect EX-0001 --voucher EX-0001.vcj --name shed-7 --labels role=field\n  edgectl device expect EX-0001 --code 7K2M-9QXA-4HTR",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := api.ExpectedDeviceSpec{Serial: args[0]}
			if code != "" {
				var err error
				if spec.Code, err = voucher.ReadCode(code); err != nil {
					return err
				}
			}
			if file != "" {
				list, err := readVouchers(file)
				if err != nil {
					return err
				}
				if len(list) != 1 {
					return &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%s holds %d vouchers", file, len(list)), Remedy: "import them: edgectl device import " + file}
				}
				spec.Voucher = base64.StdEncoding.EncodeToString(list[0])
			}
			if spec.Code == "" && spec.Voucher == "" && len(e.redirect) == 0 {
				return &api.Error{Code: api.Invalid, Message: "nothing would make the box believe this core", Remedy: "give --voucher FILE, or --code CODE as the box shows it"}
			}
			return a.expect(cmd, &e, spec, again)
		}}
	e.add(c)
	f := c.Flags()
	f.StringVar(&file, "voucher", "", "the manufacturer's voucher")
	f.StringVar(&code, "code", "", "the pairing code that the box shows, or that is on its label")
	f.StringSliceVar(&e.redirect, "redirect", nil, "send the box on to other bootstrap servers, https://host:port")
	f.BoolVar(&again, "again", false, "the box came in before and was reset: let it in anew")
	return c
}

// expect makes an ExpectedDevice; again takes the old one away first.
func (a *app) expect(cmd *cobra.Command, e *expectFlags, spec api.ExpectedDeviceSpec, again bool) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	o, err := e.object(a, spec, cl.Tenant())
	if err != nil {
		return err
	}
	k, err := api.LookupKind(o.Kind)
	if err != nil {
		return err
	}
	if again {
		// What the core would refuse takes nothing away.
		if _, err := cl.Apply(cmd.Context(), []*api.Object{o}, true); err != nil {
			return err
		}
		if err := cl.Delete(cmd.Context(), k, o.Metadata.Name); err != nil && api.CodeOf(err) != api.NotFound {
			return err
		}
	}
	made, err := cl.Create(cmd.Context(), k, o)
	if api.CodeOf(err) == api.Conflict {
		return &api.Error{Code: api.Conflict, Message: "the box is expected already, as expecteddevice/" + o.Metadata.Name,
			Remedy: "say it anew with `edgectl device expect SERIAL --again …`, also for a box that came in and was reset"}
	}
	if err != nil {
		return err
	}
	var got api.ExpectedDeviceSpec
	if err := json.Unmarshal(made.Spec, &got); err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "expecteddevice/%s made: the box %s is let in when it asks\n", made.Metadata.Name, printable(got.Serial))
	return nil
}

// importChunk is how many expectations one request makes.
const importChunk = 100

func (a *app) importCommand() *cobra.Command {
	var e expectFlags
	var replace, dryRun bool
	c := &cobra.Command{Use: "import FILE…", Short: "Expect all boxes of a vendor's voucher list", Args: cobra.MinimumNArgs(1),
		Long: `Expect all boxes of a vendor's voucher list: single vouchers (.vcj), or files with one voucher in base64 a line, in
the last column of a CSV. The serial numbers stand in the vouchers. Boxes that are expected already stay as they are, with
the names and labels that they have; one that comes with another voucher than it has is an error. --replace takes what
is imported in their place.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if e.name != "" && len(args) > 1 {
				return &api.Error{Code: api.Invalid, Field: "--name", Message: "one name for several boxes"}
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			var objects []*api.Object
			from := map[string]string{} // the file of each serial number
			for _, file := range args {
				list, err := readVouchers(file)
				if err != nil {
					return err
				}
				for _, raw := range list {
					v, err := voucher.Peek(raw)
					if err != nil {
						return &api.Error{Code: api.Invalid, Message: file + ": " + err.Error()}
					}
					if other, twice := from[v.SerialNumber]; twice {
						return &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%s: a voucher of %s stands in %s too", file, printable(v.SerialNumber), other), Remedy: "leave the one that counts"}
					}
					from[v.SerialNumber] = file
					o, err := e.object(a, api.ExpectedDeviceSpec{Serial: v.SerialNumber, Voucher: base64.StdEncoding.EncodeToString(raw)}, cl.Tenant())
					if err != nil {
						return err
					}
					objects = append(objects, o)
				}
			}
			return a.importExpected(cmd.Context(), cl, objects, replace, dryRun)
		}}
	e.add(c)
	c.Flags().BoolVar(&replace, "replace", false, "what is said of boxes that are expected already, give way to this")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be, and change nothing")
	return c
}

// importExpected makes expectations, and leaves those that are there as they are unless they are to be replaced.
func (a *app) importExpected(ctx context.Context, cl *client.Client, objects []*api.Object, replace, dryRun bool) error {
	done, kept := map[string]int{}, 0
	var others []string // that are expected by another voucher
	for chunk := range slices.Chunk(objects, importChunk) {
		results, err := cl.Apply(ctx, chunk, true)
		if err != nil {
			return err
		}
		var take []*api.Object
		for i, r := range results {
			if r.Action != "configured" || replace {
				take = append(take, chunk[i])
				continue
			}
			kept++
			fmt.Fprintf(a.Out, "expecteddevice/%s stays as it is\n", r.Name)
			if slices.ContainsFunc(r.Changes, func(c client.Change) bool { return c.Path == "spec.voucher" }) {
				others = append(others, r.Name)
			}
		}
		if len(take) == 0 {
			continue
		}
		if results, err = cl.Apply(ctx, take, dryRun); err != nil {
			return err
		}
		for _, r := range results {
			done[r.Action]++
		}
	}
	for _, action := range []string{"created", "configured", "unchanged"} {
		if n := done[action]; n > 0 {
			fmt.Fprintf(a.Out, "%s %s\n", expectedDevices(n), action)
		}
	}
	if kept > 0 {
		fmt.Fprintf(a.Out, "%s left alone: --replace has them give way\n", expectedDevices(kept))
	}
	if len(others) > 0 {
		return &api.Error{Code: api.Conflict, Message: "another voucher is there already for " + strings.Join(others, ", "), Remedy: "if this one is right, import it with --replace"}
	}
	return nil
}

func expectedDevices(n int) string {
	if n == 1 {
		return "1 expected device"
	}
	return fmt.Sprintf("%d expected devices", n)
}

// approveByCode lets the box in that waits and shows a code, or that a label names.
func (a *app) approveByCode(cmd *cobra.Command, e *expectFlags, text string) error {
	spec := api.ExpectedDeviceSpec{Code: text}
	if l, ok := parseLabel(text); ok {
		spec.Serial, spec.Code = l.Serial, l.Code
	}
	code, err := voucher.ReadCode(spec.Code)
	if err != nil {
		return err
	}
	spec.Code = code
	return a.expect(cmd, e, spec, false)
}

// stick is what the core answers for removable storage.
type stick struct {
	Conveyed []byte `json:"conveyed-information"`
	Owner    []byte `json:"owner-certificate"`
	Voucher  []byte `json:"ownership-voucher"`
}

func (a *app) stickCommand() *cobra.Command {
	return &cobra.Command{Use: "stick SERIAL DIR", Short: "Write signed data for a box onto a USB stick (RFC 8572 section 4.1)", Args: cobra.ExactArgs(2),
		Long: `Write signed data for an expected box with a voucher into DIR/tributary/SERIAL, of a stick with a FAT32 file system.
Nothing on it is secret, and it serves no other box: data for many boxes may lie on one stick.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if info, err := os.Stat(args[1]); err != nil || !info.IsDir() {
				return &api.Error{Code: api.Invalid, Message: args[1] + " is no folder: is the stick mounted?", Remedy: "mount it, or make the folder"}
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			var s stick
			if err := cl.Do(cmd.Context(), http.MethodGet, "/bootstrap/v1/data", url.Values{"serial": {args[0]}}, nil, &s); err != nil {
				return err
			}
			dir := filepath.Join(args[1], "tributary")
			if filepath.Base(args[0]) == args[0] {
				dir = filepath.Join(dir, args[0])
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			for name, b := range map[string][]byte{"conveyed-information.cms": s.Conveyed, "owner-certificate.cms": s.Owner, "ownership-voucher.cms": s.Voucher} {
				if err := atomicfile.Write(filepath.Join(dir, name), b, 0o644); err != nil {
					return err
				}
			}
			fmt.Fprintln(a.Out, dir)
			return nil
		}}
}

// expectedRow tells by what a box may come in, and how far it has come.
func (a *app) expectedRow(obj *api.Object) []string {
	var spec api.ExpectedDeviceSpec
	var st api.ExpectedDeviceStatus
	_ = readSpec(obj, &spec)
	_ = readStatus(obj, &st)
	var by []string
	for _, way := range []struct {
		name string
		is   bool
	}{{"voucher", spec.Voucher != ""}, {"code", spec.Code != ""}, {"redirect", len(spec.Redirect) > 0}} {
		if way.is {
			by = append(by, way.name)
		}
	}
	return []string{obj.Metadata.Name, printable(spec.Serial), strings.Join(by, ","), orDash(st.Device), orDash(printable(st.Progress)), a.age(obj.Metadata.Created)}
}
