package uki

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"tributary.dev/tributary/image/pkcs7"
)

// Object identifiers of Authenticode.
var (
	oidIndirectData = []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x04}
	oidPEImageData  = []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0f}
)

// Digest is the Authenticode hash of a PE image: all of it but the checksum, the certificate table's entry and the
// certificates.
func Digest(pe []byte) ([32]byte, error) {
	p, err := parse(pe)
	if err != nil {
		return [32]byte{}, err
	}
	return p.digest(), nil
}

func (p *image) digest() (sum [32]byte) {
	end := len(p.b)
	if p.certSize > 0 {
		end = int(p.certOffset)
	}
	sum0, entry := p.optional+64, p.optional+112+4*8
	h := sha256.New()
	h.Write(p.b[:sum0])
	h.Write(p.b[sum0+4 : entry])
	h.Write(p.b[entry+8 : p.headers])
	order := slices.DeleteFunc(slices.Clone(p.sections), func(s Section) bool { return s.raw == 0 })
	slices.SortStableFunc(order, func(a, b Section) int { return cmp.Compare(a.offset, b.offset) })
	at := int(p.headers)
	for _, s := range order {
		h.Write(p.b[s.offset : s.offset+s.raw])
		at += int(s.raw)
	}
	if at < end {
		h.Write(p.b[at:end])
	}
	if p.certSize == 0 {
		h.Write(make([]byte, (8-end%8)%8)) // the certificates must begin at a multiple of 8
	}
	return [32]byte(h.Sum(nil))
}

func indirectData(digest [32]byte) []byte {
	var obsolete []byte
	for _, c := range "<<<Obsolete>>>" {
		obsolete = append(obsolete, 0, byte(c))
	}
	link := pkcs7.DER(0xa0, pkcs7.DER(0xa2, pkcs7.DER(0x80, obsolete)))
	return pkcs7.DER(pkcs7.Sequence,
		pkcs7.DER(pkcs7.Sequence,
			pkcs7.DER(pkcs7.OID, oidPEImageData),
			pkcs7.DER(pkcs7.Sequence, pkcs7.DER(pkcs7.BitString, []byte{0}), link)),
		pkcs7.DER(pkcs7.Sequence, pkcs7.SHA256(), pkcs7.DER(pkcs7.OctetString, digest[:])))
}

// Sign gives a signed copy of an unsigned PE image. The same image and key give the same bytes.
func Sign(pe []byte, s pkcs7.Signer) ([]byte, error) {
	p, err := parse(pe)
	if err != nil {
		return nil, err
	}
	if p.certSize > 0 {
		return nil, errors.New("the image is signed already")
	}
	sig, err := pkcs7.SignContent(s, oidIndirectData, indirectData(p.digest()))
	if err != nil {
		return nil, err
	}
	out := append(bytes.Clone(pe), make([]byte, (8-len(pe)%8)%8)...)
	le := binary.LittleEndian
	entry := out[p.optional+112+4*8:]
	size := uint32(8+len(sig)+7) &^ 7
	le.PutUint32(entry, uint32(len(out)))
	le.PutUint32(entry[4:], size)
	cert := make([]byte, size)
	le.PutUint32(cert, size)
	le.PutUint16(cert[4:], 0x0200) // revision 2
	le.PutUint16(cert[6:], 0x0002) // PKCS #7
	copy(cert[8:], sig)
	out = append(out, cert...)
	setChecksum(out, p.optional+64)
	return out, nil
}

// Unsigned gives a copy without the signatures, to be signed by another key.
func Unsigned(pe []byte) ([]byte, error) {
	p, err := parse(pe)
	if err != nil {
		return nil, err
	}
	out := bytes.Clone(pe)
	if p.certSize > 0 {
		out = out[:p.certOffset]
		clear(out[p.optional+112+4*8:][:8])
	}
	setChecksum(out, p.optional+64)
	return out, nil
}

// Verify says whether the image carries one signature, as Sign makes it, by the key of one of the certificates.
func Verify(pe []byte, trusted ...*x509.Certificate) error {
	p, err := parse(pe)
	if err != nil {
		return err
	}
	if p.certSize == 0 {
		return errors.New("the image is not signed")
	}
	b := p.b[p.certOffset : p.certOffset+p.certSize]
	if len(b) < 8 || binary.LittleEndian.Uint32(b) > uint32(len(b)) || binary.LittleEndian.Uint32(b) < 8 {
		return malformed("its certificate table is cut short")
	}
	want := indirectData(p.digest())
	faults := []error{errors.New("no trusted key signed the image")}
	for _, cert := range trusted {
		content, err := pkcs7.OpenContent(b[8:binary.LittleEndian.Uint32(b)], oidIndirectData, cert)
		switch {
		case err != nil:
			faults = append(faults, err)
		case !bytes.Equal(content, want):
			return fmt.Errorf("the image was changed after %s signed it", cert.Subject.CommonName)
		default:
			return nil
		}
	}
	return errors.Join(faults...)
}
