package modules

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"

	"tributary.dev/tributary/image/pkcs7"
)

// What stands behind a signed module (Linux, include/linux/module_signature.h): the signature, a struct of twelve bytes
// that says of which kind and how long it is, and a line.
const (
	signatureLine = "~Module signature appended~\n"
	signatureInfo = 12
	signatureCMS  = 2 // PKEY_ID_PKCS7
)

// ErrUnsigned says that a module bears no signature, or not one of that signer.
var ErrUnsigned = errors.New("the module is not signed by that key")

// Sign puts a signature behind an unpacked module, as the kernel's scripts/sign-file does. The same module and key give
// the same bytes. A kernel takes it if it has the certificate: Debian's has those of the firmware's db.
func Sign(object []byte, s pkcs7.Signer) ([]byte, error) {
	if bytes.HasSuffix(object, []byte(signatureLine)) {
		return nil, errors.New("the module is signed already")
	}
	cms, err := pkcs7.SignBare(s, object)
	if err != nil {
		return nil, err
	}
	out := append(bytes.Clone(object), cms...)
	out = append(out, 0, 0, signatureCMS, 0, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(len(cms)))
	return append(out, signatureLine...), nil
}

// Signature takes a module apart.
func Signature(module []byte) (object, cms []byte, err error) {
	body, ok := bytes.CutSuffix(module, []byte(signatureLine))
	if !ok || len(body) < signatureInfo {
		return nil, nil, ErrUnsigned
	}
	info := body[len(body)-signatureInfo:]
	body = body[:len(body)-signatureInfo]
	n := binary.BigEndian.Uint32(info[8:])
	if info[2] != signatureCMS || uint64(n) > uint64(len(body)) { // check: kind
		return nil, nil, fmt.Errorf("%w: a signature of kind %d and %d bytes", ErrUnsigned, info[2], n)
	}
	at := len(body) - int(n)
	return body[:at], body[at:], nil
}

// Verify says whether one of the certificates signed the module.
func Verify(module []byte, trusted ...*x509.Certificate) error {
	object, cms, err := Signature(module)
	if err != nil {
		return err
	}
	err = ErrUnsigned
	for _, c := range trusted {
		cause := pkcs7.OpenBare(cms, object, c)
		if cause == nil {
			return nil
		}
		err = fmt.Errorf("%w: %w", ErrUnsigned, cause)
	}
	return err
}
