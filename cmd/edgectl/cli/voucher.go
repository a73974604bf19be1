package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"rsc.io/qr"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/identity/voucher"
)

func (a *app) voucherCommand() *cobra.Command {
	c := &cobra.Command{Use: "voucher", Short: "Vouch for boxes, offline: a manufacturer's work",
		Long: `Vouch for boxes. None of these commands talks to a core: run them where the manufacturer's key is.

  edgectl voucher keygen maker --name "Example Boxes"            maker.key, and maker.pem for the image and for cores
  edgectl voucher birth EX-0001 --key maker.key --out idevid.pem a box's own key and certificate (IDevID)
  edgectl voucher issue EX-0001 --key maker.key --owner root.crt the box belongs to the owner of root.crt
  edgectl voucher label idevid.pem --svg > label.svg             what is printed on the box`}
	c.AddCommand(a.voucherKeygenCommand(), a.voucherBirthCommand(), a.voucherIssueCommand(), a.voucherShowCommand(), a.voucherLabelCommand())
	return c
}

// fresh refuses to write over what is there.
func fresh(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return api.Errorf(api.Conflict, "%s is there already, and is not written over", path)
	}
	return nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	text, err := identity.FormatKey(key)
	return key, text, err
}

func (a *app) voucherKeygenCommand() *cobra.Command {
	var name string
	c := &cobra.Command{Use: "keygen FILE", Short: "Make a manufacturer's key: FILE.key stays with him, FILE.pem goes into images and to cores", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := errors.Join(fresh(args[0]+".key"), fresh(args[0]+".pem")); err != nil {
				return err
			}
			key, text, err := newKey()
			if err != nil {
				return err
			}
			cert, err := voucher.NewManufacturer(key, name, a.now().Add(-time.Hour))
			if err != nil {
				return err
			}
			if err := atomicfile.Write(args[0]+".key", text, 0o600); err != nil {
				return err
			}
			if err := atomicfile.Write(args[0]+".pem", identity.FormatCerts([]*x509.Certificate{cert}), 0o644); err != nil {
				return err
			}
			fmt.Fprintf(a.Out, "%s.key\n%s.pem\n", args[0], args[0])
			return nil
		}}
	c.Flags().StringVar(&name, "name", "manufacturer", "name in the certificate")
	return c
}

// manufacturer reads a key and the certificate beside it.
type manufacturer struct{ key, cert string }

func (m *manufacturer) flags(c *cobra.Command) {
	c.Flags().StringVar(&m.key, "key", "", "the manufacturer's key (edgectl voucher keygen)")
	c.Flags().StringVar(&m.cert, "cert", "", "its certificate, the key's own first (default: the .pem beside the key)")
	_ = c.MarkFlagRequired("key") // fails for a flag that is not there alone
}

func (m *manufacturer) open() (*ecdsa.PrivateKey, []*x509.Certificate, error) {
	text, err := os.ReadFile(m.key)
	if err != nil {
		return nil, nil, err
	}
	key, err := identity.ParseKey(text)
	if err != nil {
		return nil, nil, &api.Error{Code: api.Invalid, Message: m.key + " is no key", Err: err}
	}
	path := m.cert
	if path == "" {
		path = strings.TrimSuffix(m.key, ".key") + ".pem"
	}
	chain, err := readCerts(path)
	if err != nil {
		return nil, nil, err
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return nil, nil, api.Errorf(api.Invalid, "%s is not the certificate of %s", path, m.key)
	}
	return key, chain, nil
}

func readCerts(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := identity.ParseCerts(text)
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: path + " holds no certificates", Err: err}
	}
	return certs, nil
}

func (a *app) voucherBirthCommand() *cobra.Command {
	var m manufacturer
	var out string
	c := &cobra.Command{Use: "birth SERIAL", Short: "Make a box's key and the certificate of its birth (IDevID, IEEE 802.1AR)", Args: cobra.ExactArgs(1),
		Long: `Make a box's key and the certificate of its birth. The file goes onto the box's partition CONFIG as idevid.pem
and stays there through factory resets. A box without one makes its own, whose serial number is the box's id.`,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := fresh(out); err != nil {
				return err
			}
			by, chain, err := m.open()
			if err != nil {
				return err
			}
			key, text, err := newKey()
			if err != nil {
				return err
			}
			certs, err := voucher.IssueIDevID(&key.PublicKey, args[0], by, chain)
			if err != nil {
				return &api.Error{Code: api.Invalid, Message: err.Error()}
			}
			if err := atomicfile.Write(out, append(text, identity.FormatCerts(certs)...), 0o600); err != nil {
				return err
			}
			fmt.Fprintln(a.Out, out)
			return nil
		}}
	m.flags(c)
	c.Flags().StringVar(&out, "out", "idevid.pem", "file to write")
	return c
}

func (a *app) voucherIssueCommand() *cobra.Command {
	var m manufacturer
	var owner, out, nonce, assertion string
	var life time.Duration
	c := &cobra.Command{Use: "issue SERIAL…", Short: "Say whose boxes are, signed (RFC 8366): SERIAL.vcj for each", Args: cobra.MinimumNArgs(1),
		Long: `Say whose boxes are. The owner gives his core's root certificate (ca/root.crt of cored's data folder), and gets the
files: edgectl device import *.vcj. A voucher without --expires is good for ever, as is a sale.`,
		RunE: func(_ *cobra.Command, args []string) error {
			key, chain, err := m.open()
			if err != nil {
				return err
			}
			pinned, err := readCerts(owner)
			if err != nil {
				return err
			}
			v := voucher.Voucher{CreatedOn: a.now().UTC().Truncate(time.Second), Assertion: voucher.Assertion(assertion), PinnedDomainCert: pinned[0].Raw}
			if life != 0 {
				at := v.CreatedOn.Add(life)
				v.ExpiresOn = &at
			}
			if nonce != "" {
				if v.Nonce, err = hex.DecodeString(nonce); err != nil {
					return &api.Error{Code: api.Invalid, Field: "--nonce", Message: "is not hexadecimal"}
				}
			}
			for _, serial := range args {
				v.SerialNumber = serial
				raw, err := voucher.Sign(&v, key, chain)
				if err != nil {
					return &api.Error{Code: api.Invalid, Message: err.Error()}
				}
				file := filepath.Join(out, strings.ReplaceAll(serial, "/", "_")+".vcj")
				if err := fresh(file); err != nil {
					return err
				}
				if err := atomicfile.Write(file, raw, 0o644); err != nil {
					return err
				}
				fmt.Fprintln(a.Out, file)
			}
			return nil
		}}
	m.flags(c)
	f := c.Flags()
	f.StringVar(&owner, "owner", "", "the owner's root certificate")
	f.StringVar(&out, "out", ".", "folder for the files")
	f.StringVar(&nonce, "nonce", "", "the box's own, in hexadecimal: for one request alone")
	f.StringVar(&assertion, "assertion", string(voucher.Verified), "how the manufacturer knows: verified, logged or proximity")
	f.DurationVar(&life, "expires", 0, "good for so long, such as 720h; 0 is for ever")
	_ = c.MarkFlagRequired("owner") // fails for a flag that is not there alone
	return c
}

func (a *app) voucherShowCommand() *cobra.Command {
	var makers string
	c := &cobra.Command{Use: "show FILE…", Short: "Show what vouchers say, and whether a manufacturer signed them", Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var anchors []*x509.Certificate
			if makers != "" {
				var err error
				if anchors, err = readCerts(makers); err != nil {
					return err
				}
			}
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
					a.showVoucher(v)
					if anchors == nil {
						fmt.Fprintln(a.Out, "  signature  not checked: give --manufacturers FILE")
						continue
					}
					if _, err := voucher.Open(raw, anchors); err != nil {
						return &api.Error{Code: api.Forbidden, Message: file + ": " + err.Error()}
					}
					fmt.Fprintln(a.Out, "  signature  good")
				}
			}
			return nil
		}}
	c.Flags().StringVar(&makers, "manufacturers", "", "certificates of those whose word counts: check the signature against them")
	return c
}

func (a *app) showVoucher(v *voucher.Voucher) {
	fmt.Fprintf(a.Out, "%s\n", printable(v.SerialNumber))
	if owner, err := v.Owner(); err == nil {
		fp := identity.Fingerprint(owner)
		fmt.Fprintf(a.Out, "  owner      %s, root %s\n", printable(owner.Subject.String()), hex.EncodeToString(fp[:]))
	}
	fmt.Fprintf(a.Out, "  made       %s, %s\n", v.CreatedOn.UTC().Format(time.RFC3339), v.Assertion)
	switch {
	case v.ExpiresOn != nil:
		fmt.Fprintf(a.Out, "  expires    %s\n", v.ExpiresOn.UTC().Format(time.RFC3339))
	case v.Nonce != nil:
		fmt.Fprintf(a.Out, "  nonce      %x\n", v.Nonce)
	default:
		fmt.Fprintln(a.Out, "  expires    never")
	}
}

// maxVoucherFile bounds a vendor's list.
const maxVoucherFile = 256 << 20

// readVouchers reads one voucher in DER, or a list: a voucher in base64 a line, of which
// the last column counts where lines have commas; lines that begin with # and a head line
// are left out.
func readVouchers(file string) ([][]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxVoucherFile {
		return nil, api.Errorf(api.TooLarge, "%s is larger than %d bytes", file, maxVoucherFile)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if len(b) > 0 && b[0] == 0x30 {
		return [][]byte{b}, nil
	}
	var out [][]byte
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		cell := strings.Trim(strings.TrimSpace(line[strings.LastIndexByte(line, ',')+1:]), `"`)
		raw, err := base64.StdEncoding.DecodeString(cell)
		if err == nil {
			_, err = voucher.Peek(raw)
		}
		if err != nil && i == 0 {
			continue // the head
		}
		if err != nil {
			return nil, &api.Error{Code: api.Invalid, Line: i + 1, Message: file + ": no voucher in the last column", Remedy: "a list has a voucher in base64 a line, in its last column", Err: err}
		}
		out = append(out, raw)
	}
	if len(out) == 0 {
		return nil, api.Errorf(api.Invalid, "%s holds no voucher", file)
	}
	return out, nil
}

func (a *app) voucherLabelCommand() *cobra.Command {
	var svg, noCode bool
	c := &cobra.Command{Use: "label FILE|SERIAL [CODE]", Short: "Draw a box's label: its serial number, and its pairing code, as text and QR code", Args: cobra.RangeArgs(1, 2),
		Long: `Draw a box's label from the file of its birth (edgectl voucher birth), or from what its console shows. The QR code
holds text that edgectl device approve takes. Who reads the code on the label can let the box in: leave it out
(--no-code) where strangers see the box before you do and it has a voucher.`,
		RunE: func(_ *cobra.Command, args []string) error {
			l := label{Serial: args[0]}
			if len(args) == 2 {
				code, err := voucher.ReadCode(args[1])
				if err != nil {
					return err
				}
				l.Code = code
			} else if _, err := os.Stat(args[0]); err == nil {
				if l, err = labelOf(args[0]); err != nil {
					return err
				}
			}
			if noCode {
				l.Code = ""
			}
			if err := voucher.CheckSerial(l.Serial); err != nil {
				return &api.Error{Code: api.Invalid, Message: err.Error()}
			}
			return a.drawLabel(l, svg)
		}}
	c.Flags().BoolVar(&svg, "svg", false, "draw SVG for a printer, 60 mm by 30 mm")
	c.Flags().BoolVar(&noCode, "no-code", false, "leave the pairing code out")
	return c
}

// label is what a box's QR code says, as a URI of our own.
type label struct{ Serial, Code string }

const labelScheme = "tributary:"

func (l label) String() string {
	q := url.Values{"sn": {l.Serial}}
	if l.Code != "" {
		q.Set("code", l.Code)
	}
	return labelScheme + "?" + q.Encode()
}

// parseLabel reads what a QR code says; ok is false for other words.
func parseLabel(text string) (l label, ok bool) {
	rest, ok := strings.CutPrefix(text, labelScheme+"?")
	if !ok {
		return l, false
	}
	q, err := url.ParseQuery(rest)
	return label{q.Get("sn"), q.Get("code")}, err == nil
}

func labelOf(file string) (l label, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return l, err
	}
	key, certs, err := voucher.ParseBirth(text)
	if err != nil {
		return l, &api.Error{Code: api.Invalid, Message: file + " is no file of a birth", Err: err}
	}
	if l.Code, err = voucher.Code(key); err != nil {
		return l, err
	}
	l.Serial = certs[0].Subject.SerialNumber
	return l, nil
}

func (a *app) drawLabel(l label, svg bool) error {
	code, err := qr.Encode(l.String(), qr.M)
	if err != nil {
		return err
	}
	if !svg {
		drawText(a, code)
		fmt.Fprintf(a.Out, "serial number  %s\n", l.Serial)
		if l.Code != "" {
			fmt.Fprintf(a.Out, "pairing code   %s\n", l.Code)
		}
		return nil
	}
	var dots strings.Builder
	for y := range code.Size {
		for x := range code.Size {
			if code.Black(x, y) {
				fmt.Fprintf(&dots, "M%d %dh1v1h-1z", x, y)
			}
		}
	}
	scale := 24 / float64(code.Size)
	fmt.Fprintf(a.Out, `<svg xmlns="http://www.w3.org/2000/svg" width="60mm" height="30mm" viewBox="0 0 60 30">
<rect width="60" height="30" fill="#fff"/>
<path transform="translate(3 3) scale(%.5f)" shape-rendering="crispEdges" d="%s"/>
<g font-family="monospace" font-size="2.6"><text x="30" y="8">serial number</text><text x="30" y="12" font-weight="bold">%s</text>`, scale, dots.String(), xmlText(l.Serial))
	if l.Code != "" {
		fmt.Fprintf(a.Out, `<text x="30" y="19">pairing code</text><text x="30" y="23" font-weight="bold">%s</text>`, l.Code)
	}
	fmt.Fprintln(a.Out, "</g>\n</svg>")
	return nil
}

// drawText draws a QR code in half blocks, light on dark turned round so that it can be read
// from a dark terminal, with the quiet zone of four modules (ISO/IEC 18004).
func drawText(a *app, code *qr.Code) {
	const quiet = 4
	light := func(x, y int) bool { return !code.Black(x, y) }
	for y := -quiet; y < code.Size+quiet; y += 2 {
		var line strings.Builder
		for x := -quiet; x < code.Size+quiet; x++ {
			switch {
			case light(x, y) && light(x, y+1):
				line.WriteString("█")
			case light(x, y):
				line.WriteString("▀")
			case light(x, y+1):
				line.WriteString("▄")
			default:
				line.WriteString(" ")
			}
		}
		fmt.Fprintln(a.Out, line.String())
	}
}

func xmlText(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

// expectFlags are what a box shall be called and get.
type expectFlags struct {
	name, site string
	labels     []string
	redirect   []string
}

func (e *expectFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&e.name, "name", "", "name of the device")
	f.StringVar(&e.site, "site", "", "site of the device")
	f.StringSliceVar(&e.labels, "labels", nil, "labels for the device, e.g. role=field,rack=3")
}

// object is the ExpectedDevice.
func (e *expectFlags) object(a *app, spec api.ExpectedDeviceSpec, tenant string) (*api.Object, error) {
	spec.Name, spec.Site, spec.Redirect = e.name, e.site, e.redirect
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
	var dryRun bool
	c := &cobra.Command{Use: "import FILE…", Short: "Expect all boxes of a vendor's voucher list", Args: cobra.MinimumNArgs(1),
		Long: `Expect all boxes of a vendor's voucher list: single vouchers (.vcj), or files with one voucher in base64 a line, in
the last column of a CSV. The serial numbers stand in the vouchers. To import a list again changes nothing.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if e.name != "" && len(args) > 1 {
				return &api.Error{Code: api.Invalid, Field: "--name", Message: "one name for several boxes"}
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			var objects []*api.Object
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
					o, err := e.object(a, api.ExpectedDeviceSpec{Serial: v.SerialNumber, Voucher: base64.StdEncoding.EncodeToString(raw)}, cl.Tenant())
					if err != nil {
						return err
					}
					objects = append(objects, o)
				}
			}
			done := map[string]int{}
			for len(objects) > 0 {
				n := min(importChunk, len(objects))
				results, err := cl.Apply(cmd.Context(), objects[:n], dryRun)
				if err != nil {
					return err
				}
				for _, r := range results {
					done[r.Action]++
				}
				objects = objects[n:]
			}
			for _, action := range []string{"created", "configured", "unchanged"} {
				if done[action] > 0 {
					fmt.Fprintf(a.Out, "%d expected devices %s\n", done[action], action)
				}
			}
			return nil
		}}
	e.add(c)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be, and change nothing")
	return c
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
