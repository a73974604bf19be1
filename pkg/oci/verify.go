package oci

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
)

// verifier passes a body on, one block behind, and fails with errCorrupt instead of
// giving out the last block when the whole is not what the digest names.
type verifier struct {
	r      io.Reader
	digest string
	sum    hash.Hash
	buf    []byte // read and hashed; all but the last holdBack bytes may go out
	eof    bool
}

func newVerifier(r io.Reader, digest string) *verifier {
	return &verifier{r: r, digest: digest, sum: sha256.New(), buf: make([]byte, 0, 2*holdBack)}
}

func (v *verifier) Read(p []byte) (int, error) {
	for !v.eof && len(v.buf) <= holdBack {
		n, err := v.r.Read(v.buf[len(v.buf):cap(v.buf)])
		v.sum.Write(v.buf[len(v.buf) : len(v.buf)+n])
		v.buf = v.buf[:len(v.buf)+n]
		switch {
		case err == io.EOF:
			if got := fmt.Sprintf("sha256:%x", v.sum.Sum(nil)); got != v.digest {
				return 0, errCorrupt
			}
			v.eof = true
		case err != nil:
			return 0, err
		}
	}
	give := len(v.buf)
	if !v.eof {
		give -= holdBack
	}
	if give == 0 {
		return 0, io.EOF
	}
	n := copy(p, v.buf[:give])
	v.buf = v.buf[:copy(v.buf, v.buf[n:])]
	return n, nil
}
