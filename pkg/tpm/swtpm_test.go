package tpm

import (
	"errors"
	"testing"

	"tributary.dev/tributary/pkg/tpm/tpmtest"
)

// box is a machine with a software TPM. It is switched off and on again by boot.
type box struct {
	*tpmtest.Box
	t   *testing.T
	dir string
	tpm *TPM // as it was handed out last
}

func newBox(t *testing.T) *box {
	t.Helper()
	b := tpmtest.New(t)
	return &box{Box: b, t: t, dir: b.Dir}
}

// boot starts the box and measures Secure Boot's state and the kernel's image.
func (b *box) boot(secureBoot, kernel string) *TPM {
	b.t.Helper()
	t := b.start()
	if err := errors.Join(t.Extend(PCRSecureBoot, []byte(secureBoot)), t.Extend(PCRKernel, []byte(kernel))); err != nil {
		b.t.Fatal(err)
	}
	return t
}

// start switches the box on, with a fresh set of PCRs, and hands its TPM out.
func (b *box) start() *TPM {
	b.t.Helper()
	b.tpm = New(b.Box.Start())
	return b.tpm
}
