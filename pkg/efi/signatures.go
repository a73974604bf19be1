package efi

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf16"

	"tributary.dev/tributary/pkg/disk/gpt"
)

// Secure Boot's lists of keys (UEFI 2.10, 32.4.1): db says what starts, dbx what does not, KEK who may change both.
var (
	SecurityDB = mustParse("d719b2cb-3d3a-4596-a3bc-dad00e67656f") // the vendor of db and dbx
	certX509   = mustParse("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
)

// Attributes of authenticated variables.
const (
	authenticated = 0x20
	appendWrite   = 0x40
)

// ListVendor is the vendor of one of the lists: KEK, db or dbx.
func ListVendor(name string) (gpt.GUID, bool) {
	switch name {
	case "KEK":
		return Global, true
	case "db", "dbx":
		return SecurityDB, true
	}
	return gpt.GUID{}, false
}

// Signature is one entry of a list.
type Signature struct {
	Type gpt.GUID
	// Entry is EFI_SIGNATURE_DATA: the owner's GUID, and the certificate or hash.
	Entry []byte
}

// Certificate is the DER of an X.509 certificate; nil for entries of another kind.
func (s Signature) Certificate() []byte {
	if s.Type != certX509 || len(s.Entry) < 16 {
		return nil
	}
	return s.Entry[16:]
}

// Signatures takes lists of at most 1 MiB apart.
func Signatures(b []byte) ([]Signature, error) {
	var out []Signature
	err := eachList(b, func(_ []byte, kind gpt.GUID, entries [][]byte) {
		for _, e := range entries {
			out = append(out, Signature{kind, e})
		}
	})
	return out, err
}

func eachList(b []byte, do func(head []byte, kind gpt.GUID, entries [][]byte)) error {
	if len(b) > maxVariable {
		return fmt.Errorf("signature lists of %d bytes: at most 1 MiB", len(b))
	}
	le := binary.LittleEndian
	for len(b) > 0 {
		if len(b) < 28 {
			return errors.New("a signature list is cut short")
		}
		size, head, each := le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:])
		if uint64(size) > uint64(len(b)) || size < 28 || head > size-28 || each < 16 || (size-28-head)%each != 0 {
			return fmt.Errorf("a signature list of %d bytes, %d head, %d each: malformed", size, head, each)
		}
		var entries [][]byte
		for body := b[28+head : size]; len(body) > 0; body = body[each:] {
			entries = append(entries, body[:each:each])
		}
		do(b[:28+head], gpt.GUID(b[:16]), entries)
		b = b[size:]
	}
	return nil
}

// Appended is what a list becomes when more is appended to it: entries that it has are left out, as UEFI asks for (8.2.2),
// and what is left of each list comes behind, as EDK2 has it.
func Appended(list, more []byte) ([]byte, error) {
	have, err := Signatures(list)
	if err != nil {
		return nil, err
	}
	out := bytes.Clone(list)
	err = eachList(more, func(head []byte, kind gpt.GUID, entries [][]byte) {
		known := func(e []byte) bool {
			return slices.ContainsFunc(have, func(s Signature) bool { return s.Type == kind && bytes.Equal(s.Entry, e) })
		}
		entries = slices.DeleteFunc(entries, known)
		if len(entries) == 0 {
			return
		}
		at := len(out)
		out = append(append(out, head...), bytes.Join(entries, nil)...)
		binary.LittleEndian.PutUint32(out[at+16:], uint32(len(out)-at))
	})
	return out, err
}

// Append is a signed addition to one of the lists, as a release carries it.
type Append struct {
	Name     string `json:"name"`     // for people
	Variable string `json:"variable"` // KEK, db or dbx
	// Data is EFI_VARIABLE_AUTHENTICATION_2 (when it was signed, by whom) and the lists to append.
	Data []byte `json:"data"`
}

// Content is what is appended. Who signed it, the firmware judges.
func (a Append) Content() ([]byte, error) {
	if _, ok := ListVendor(a.Variable); !ok {
		return nil, fmt.Errorf("%s: an addition to %q: want KEK, db or dbx", a.Name, a.Variable)
	}
	const stamp = 16
	if len(a.Data) < stamp+4 || len(a.Data) > maxVariable {
		return nil, fmt.Errorf("%s: a signed variable of %d bytes", a.Name, len(a.Data))
	}
	n := binary.LittleEndian.Uint32(a.Data[stamp:])
	if uint64(n)+stamp > uint64(len(a.Data)) || n < 24 {
		return nil, fmt.Errorf("%s: a signature of %d bytes does not fit", a.Name, n)
	}
	return a.Data[stamp+n:], nil
}

// Authority is the list whose keys may sign an addition to a list: the platform's key speaks for KEK, KEK for db and dbx.
func Authority(variable string) string {
	if variable == "KEK" {
		return "PK"
	}
	return "KEK"
}

// SignedIn tells whether the key of a certificate in a list signed the addition (UEFI 2.10, 8.2.2): SHA-256, RSA of PKCS #1
// v1.5, no signed attributes, as ours are.
func (a Append) SignedIn(list []byte) (bool, error) {
	content, err := a.Content()
	if err != nil {
		return false, err
	}
	const stamp, head = 16, 24
	signature, err := lastSignature(a.Data[stamp+head : len(a.Data)-len(content)])
	if err != nil {
		return false, fmt.Errorf("%s: %w", a.Name, err)
	}
	le := binary.LittleEndian
	var signed []byte
	for _, u := range utf16.Encode([]rune(a.Variable)) {
		signed = le.AppendUint16(signed, u)
	}
	vendor, _ := ListVendor(a.Variable) // Content knows it
	signed = le.AppendUint32(append(signed, vendor[:]...), kept|authenticated|appendWrite)
	signed = append(append(signed, a.Data[:stamp]...), content...)
	digest := sha256.Sum256(signed)
	trusted, err := Signatures(list)
	if err != nil {
		return false, err
	}
	for _, s := range trusted {
		cert, err := x509.ParseCertificate(s.Certificate())
		if err != nil {
			continue // an entry of another kind
		}
		if key, ok := cert.PublicKey.(*rsa.PublicKey); ok && rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil {
			return true, nil
		}
	}
	return false, nil
}

// lastSignature reads the signature of a SignedData (RFC 2315) of one signer.
func lastSignature(der []byte) ([]byte, error) {
	var data struct {
		Version      int
		Digests      asn1.RawValue
		Info         asn1.RawValue
		Certificates asn1.RawValue `asn1:"tag:0,optional"`
		Signers      []struct {
			Version    int
			Issuer     asn1.RawValue
			Digest     asn1.RawValue
			Attributes asn1.RawValue `asn1:"tag:0,optional"`
			Encryption asn1.RawValue
			Signature  []byte
		} `asn1:"set"`
	}
	if rest, err := asn1.Unmarshal(der, &data); err != nil || len(rest) > 0 || len(data.Signers) != 1 || len(data.Signers[0].Attributes.FullBytes) > 0 {
		return nil, errors.New("its signature is no SignedData of one signer without attributes")
	}
	return data.Signers[0].Signature, nil
}

// Write hands it to the firmware.
func (a Append) Write(v Variables) error {
	vendor, ok := ListVendor(a.Variable)
	if !ok {
		return fmt.Errorf("%s: an addition to %q", a.Name, a.Variable)
	}
	if err := v.Set(a.Variable, vendor, kept|authenticated|appendWrite, a.Data); err != nil {
		return fmt.Errorf("%s: the firmware does not take it: %w", a.Name, err)
	}
	return nil
}

// Lists reads PK, KEK, db and dbx; one that does not exist is empty.
func Lists(v Variables) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range []string{"PK", "KEK", "db", "dbx"} {
		vendor, ok := ListVendor(name)
		if !ok {
			vendor = Global
		}
		_, b, err := v.Get(name, vendor)
		if err != nil && !errors.Is(err, ErrNone) {
			return nil, err
		}
		out[name] = b
	}
	return out, nil
}

// Checks tells whether the firmware checks what it starts: Secure Boot is on, and setup mode over.
func Checks(v Variables) bool {
	is := func(name string, want byte) bool {
		_, b, err := v.Get(name, Global)
		return err == nil && len(b) == 1 && b[0] == want
	}
	return is("SecureBoot", 1) && is("SetupMode", 0)
}

// AppendsFile is where the image carries the additions, below its root; appendsRoom is the file's size: two releases
// that differ in it differ in little else.
const (
	AppendsFile = "usr/share/tributary/firmware-keys.json"
	appendsRoom = 24 << 10
	maxAppends  = 16
)

// EncodeAppends writes that file.
func EncodeAppends(list []Append) ([]byte, error) {
	if list == nil {
		list = []Append{}
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	if len(list) > maxAppends || len(b) >= appendsRoom {
		return nil, fmt.Errorf("%d additions to the firmware's lists, %d bytes: at most %d and %d; leave out what all boxes have", len(list), len(b), maxAppends, appendsRoom)
	}
	return append(append(b, bytes.Repeat([]byte{' '}, appendsRoom-1-len(b))...), '\n'), nil
}

// DecodeAppends reads it, in the order in which they are to be written.
func DecodeAppends(b []byte) (list []Append, err error) {
	if len(b) > appendsRoom {
		return nil, fmt.Errorf("additions of %d bytes: at most %d", len(b), appendsRoom)
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	if len(list) > maxAppends {
		return nil, fmt.Errorf("%d additions: at most %d", len(list), maxAppends)
	}
	return list, nil
}

// SignedBy reads the certificate table of a PE image (PE format, "The Attribute Certificate Table"): at most 64 KiB, in
// which the certificate of who signed it lies as it is. Empty where nobody did.
func SignedBy(r io.ReaderAt, size int64) ([]byte, error) {
	const most = 64 << 10
	head := make([]byte, min(4096, max(size, 0)))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	le := binary.LittleEndian
	if len(head) < 0x40 || head[0] != 'M' || head[1] != 'Z' {
		return nil, errors.New("not a PE image")
	}
	at := int64(le.Uint32(head[0x3c:]))
	const optional, directories = 24, 112
	if at < 0 || at+optional+directories+5*8 > int64(len(head)) || !bytes.Equal(head[at:at+4], []byte("PE\x00\x00")) || le.Uint16(head[at+optional:]) != 0x20b {
		return nil, errors.New("not a PE image of 64 bits")
	}
	entry := head[at+optional+directories+4*8:]
	offset, n := int64(le.Uint32(entry)), int64(le.Uint32(entry[4:]))
	if n == 0 {
		return nil, nil
	}
	if n > most || offset+n > size {
		return nil, fmt.Errorf("a certificate table of %d bytes at %d of %d", n, offset, size)
	}
	table := make([]byte, n)
	_, err := r.ReadAt(table, offset)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return table, err
}

// LetBy is the entry of a list by which the firmware lets through what carries that certificate table; nil for none. It is
// true of images that were signed by the key of a certificate in the list itself, as ours are.
func LetBy(list, table []byte) ([]byte, error) {
	all, err := Signatures(list)
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if c := s.Certificate(); len(c) > 0 && bytes.Contains(table, c) {
			return s.Entry, nil
		}
	}
	return nil, nil
}
