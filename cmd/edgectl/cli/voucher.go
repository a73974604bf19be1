package cli

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

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
		return nil, nil, readFault(m.key, err)
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
	var e *api.Error
	if errors.As(err, &e) && m.cert == "" {
		e.Remedy = "name the certificate of " + m.key + ": --cert FILE"
	}
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
		return nil, readFault(path, err)
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

// checkOwner finds a certificate that no core's can be: boxes would look for ever for what leads to it.
func checkOwner(pinned *x509.Certificate, makers []*x509.Certificate) error {
	e := &api.Error{Code: api.Invalid, Field: "--owner", Remedy: "give the root certificate of the owner's core: DATA/ca/root.crt there"}
	for _, m := range makers {
		if bytes.Equal(m.RawSubjectPublicKeyInfo, pinned.RawSubjectPublicKeyInfo) {
			e.Message = "it is the manufacturer's own certificate"
			return e
		}
	}
	if !pinned.IsCA || pinned.CheckSignatureFrom(pinned) != nil {
		e.Message = "it is no root certificate"
		return e
	}
	return nil
}

// checkFile finds a serial number by which no plain file can be named; / becomes _.
func checkFile(serial string) error {
	if err := voucher.CheckSerial(serial); err != nil {
		return &api.Error{Code: api.Invalid, Message: err.Error()}
	}
	if strings.HasPrefix(serial, ".") || strings.Contains(serial, "/.") {
		return &api.Error{Code: api.Invalid, Message: "the file of the serial number " + serial + " would be hidden, or elsewhere", Remedy: "give the serial number as the box has it, not a path"}
	}
	return nil
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
			if err := checkOwner(pinned[0], chain); err != nil {
				return err
			}
			for _, serial := range args { // all, before the first file is written
				if err := checkFile(serial); err != nil {
					return err
				}
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
