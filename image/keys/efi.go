package keys

import (
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf16"

	"tributary.dev/tributary/image/pkcs7"
	"tributary.dev/tributary/pkg/disk/gpt"
)

// Attributes of EFI variables (UEFI 2.10, 8.2).
const (
	attributes  = 0x27 // kept, seen by boot services and at run time, authenticated by time
	appendWrite = 0x40
)

// GUIDs of UEFI 2.10, sections 3.3 and 32.
var (
	globalVariable = guid("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	securityDB     = guid("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
	certX509       = guid("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
	certPKCS7      = guid("4aafd29d-68df-49ee-8aa9-347d375665a7")
)

func guid(s string) gpt.GUID {
	g, err := gpt.Parse(s)
	if err != nil {
		panic(err) // a constant of this package is mistyped
	}
	return g
}

// List is an EFI_SIGNATURE_LIST per certificate (UEFI 2.10, 32.4.1), which is what PK, KEK and db hold.
func List(owner gpt.GUID, certs ...*x509.Certificate) []byte {
	var out []byte
	le := binary.LittleEndian
	for _, c := range certs {
		out = append(out, certX509[:]...)
		out = le.AppendUint32(out, uint32(28+16+len(c.Raw)))
		out = le.AppendUint32(out, 0)
		out = le.AppendUint32(out, uint32(16+len(c.Raw)))
		out = append(out, owner[:]...)
		out = append(out, c.Raw...)
	}
	return out
}

// Lists reads the certificates of a PK, KEK or db. Lists of other kinds (hashes) are passed over. At most 1 MiB.
func Lists(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	le := binary.LittleEndian
	if len(b) > 1<<20 {
		return nil, fmt.Errorf("signature lists of %d bytes: at most 1 MiB", len(b))
	}
	for len(b) > 0 {
		if len(b) < 28 {
			return nil, errors.New("a signature list is cut short")
		}
		size, head, each := le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:])
		if uint64(size) > uint64(len(b)) || size < 28 || head > size-28 || each < 16 {
			return nil, fmt.Errorf("a signature list of %d bytes, %d head, %d each: malformed", size, head, each)
		}
		body := b[28+head : size]
		if gpt.GUID(b[:16]) == certX509 {
			for ; len(body) >= int(each); body = body[each:] {
				c, err := x509.ParseCertificate(body[16:each])
				if err != nil {
					return nil, err
				}
				out = append(out, c)
			}
		}
		b = b[size:]
	}
	return out, nil
}

// Variable is an authenticated EFI variable, ready to be written: Data begins with the EFI_VARIABLE_AUTHENTICATION_2
// that says who signed it. A file NAME.auth of common tools holds Data.
type Variable struct {
	Name       string
	GUID       gpt.GUID
	Attributes uint32
	Data       []byte
}

// Path is the variable's file in efivarfs; what is written there begins with the attributes, as File gives it.
func (v Variable) Path() string { return "/sys/firmware/efi/efivars/" + v.Name + "-" + v.GUID.String() }

// File is what is written to Path.
func (v Variable) File() []byte {
	return append(binary.LittleEndian.AppendUint32(nil, v.Attributes), v.Data...)
}

// authenticated signs one write. The same inputs give the same bytes.
func authenticated(name string, vendor gpt.GUID, attrs uint32, at time.Time, content []byte, by *Key) (Variable, error) {
	le := binary.LittleEndian
	var signed []byte
	for _, u := range utf16.Encode([]rune(name)) {
		signed = le.AppendUint16(signed, u)
	}
	stamp := efiTime(at)
	signed = append(signed, vendor[:]...)
	signed = le.AppendUint32(signed, attrs)
	signed = append(append(signed, stamp...), content...)
	sig, err := pkcs7.SignDetached(by, signed)
	if err != nil {
		return Variable{}, err
	}
	out := stamp
	out = le.AppendUint32(out, uint32(8+16+len(sig)))
	out = le.AppendUint16(out, 0x0200)
	out = le.AppendUint16(out, 0x0ef1) // WIN_CERT_TYPE_EFI_GUID
	out = append(append(append(out, certPKCS7[:]...), sig...), content...)
	return Variable{Name: name, GUID: vendor, Attributes: attrs, Data: out}, nil
}

func efiTime(t time.Time) []byte {
	t = t.UTC()
	b := binary.LittleEndian.AppendUint16(nil, uint16(t.Year()))
	b = append(b, byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()), 0)
	return append(b, make([]byte, 8)...)
}

// Enrolment gives the variables that make a box in setup mode ours, in the order in which they are written: db, KEK,
// then PK, which ends setup mode. The vendor's lists go first into db and KEK, so that cards' option ROMs go on
// loading; they may be empty.
func (s *Set) Enrolment(at time.Time, vendorDB, vendorKEK []byte) ([]Variable, error) {
	return variables(
		write{"db", securityDB, attributes, append(vendorDB[:len(vendorDB):len(vendorDB)], List(s.Owner(), s.Certificates()...)...), s.KEK},
		write{"KEK", globalVariable, attributes, append(vendorKEK[:len(vendorKEK):len(vendorKEK)], List(s.Owner(), s.KEK.cert)...), s.PK},
		write{"PK", globalVariable, attributes, List(s.Owner(), s.PK.cert), s.PK},
	)(at)
}

// Additions gives the variables that add our keys to what a box in setup mode has, keeping the vendor's keys: written
// with the attribute that appends. PK comes last and ends setup mode.
func (s *Set) Additions(at time.Time) ([]Variable, error) {
	return variables(
		write{"db", securityDB, attributes | appendWrite, List(s.Owner(), s.Certificates()...), s.KEK},
		write{"KEK", globalVariable, attributes | appendWrite, List(s.Owner(), s.KEK.cert), s.PK},
		write{"PK", globalVariable, attributes, List(s.Owner(), s.PK.cert), s.PK},
	)(at)
}

// Append gives the variable that adds one more db key to a box that trusts our KEK: how a rotation reaches the field.
func (s *Set) Append(at time.Time, key *Key) (Variable, error) {
	return authenticated("db", securityDB, attributes|appendWrite, at, List(s.Owner(), key.cert), s.KEK)
}

// AppendKEK gives the variable that adds the newest KEK to a box whose PK is ours.
func (s *Set) AppendKEK(at time.Time) (Variable, error) {
	return authenticated("KEK", globalVariable, attributes|appendWrite, at, List(s.Owner(), s.KEK.cert), s.PK)
}

// Revoke gives the variable by which a box's firmware starts nothing any more that was signed by that key: the last
// step of a rotation, once both slots of all boxes hold what a newer key signed. There is no way back but by setup mode.
func (s *Set) Revoke(at time.Time, key *Key) (Variable, error) {
	return authenticated("dbx", securityDB, attributes|appendWrite, at, List(s.Owner(), key.cert), s.KEK)
}

type write struct {
	name    string
	vendor  gpt.GUID
	attrs   uint32
	content []byte
	by      *Key
}

func variables(ws ...write) func(time.Time) ([]Variable, error) {
	return func(at time.Time) ([]Variable, error) {
		var out []Variable
		for _, w := range ws {
			v, err := authenticated(w.name, w.vendor, w.attrs, at, w.content, w.by)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	}
}
