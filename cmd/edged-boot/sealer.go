package main

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"time"

	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/edge/boot/nvram"
	"tributary.dev/tributary/pkg/tpm"
	"tributary.dev/tributary/pkg/tpm/attest"
)

// device is the box's TPM as boot asks for it.
type device struct {
	*tpm.Sealer
}

func newTPM() device {
	return device{&tpm.Sealer{
		Open:       func() (*tpm.TPM, func() error, error) { return tpm.Open(tpm.Device) },
		SecureBoot: secureBoot,
		Signatures: boot.Dir + "/tpm2-pcr-signature.json",
		Key:        boot.Dir + "/tpm2-pcr-public-key.pem",
		Wait:       driverWait,
		Expected:   firmwareHasTPM,
	}}
}

// driverWait is for the TPM's driver, which is loaded beside the first steps.
const driverWait = 20 * time.Second

// firmwareHasTPM asks ACPI's tables. A board without ACPI is not waited for.
func firmwareHasTPM() bool {
	_, err := os.Stat("/sys/firmware/acpi/tables/TPM2")
	return err == nil
}

// secureBoot reads the firmware's own word on whether it checked what it started (UEFI
// 2.10, 3.3): four bytes of attributes, then 1. It is for choosing how STATE's key is
// sealed; the seal itself binds to what the TPM measured.
func secureBoot() bool {
	if on, known := stubSays("/sys/kernel/boot_params/data"); known {
		return on
	}
	_ = nvram.Variables() // reading tells
	b, err := os.ReadFile("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
	return err == nil && len(b) == 5 && b[4] == 1
}

// known turns a missing device into boot's own word for it.
func known(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return boot.ErrNoTPM
	}
	return err
}

// stubSays reads what the kernel's own EFI stub found out of it (x86, "secure_boot" of the zero
// page): reading the firmware's variables has the firmware list all of them first.
func stubSays(zeroPage string) (on, known bool) {
	const at, off, enforced = 0x1ec, 2, 3
	b, err := os.ReadFile(zeroPage)
	if err != nil || len(b) <= at || b[at] != off && b[at] != enforced {
		return false, false
	}
	return b[at] == enforced, true
}

// Quote implements boot's TPM.
func (d device) Quote(ctx context.Context, nonce []byte) (q boot.Quoted, err error) {
	if len(nonce) != attest.NonceSize {
		return q, errors.New("a nonce has 32 bytes")
	}
	e, p, err := d.Sealer.Quote(ctx, [attest.NonceSize]byte(nonce), tpm.EventLog)
	if err != nil {
		return q, known(err)
	}
	q.Attestation, q.Endorsement = p.Attestation, p.Endorsement
	q.Evidence, err = e.Encode()
	return q, err
}

// Activate implements boot's TPM.
func (d device) Activate(ctx context.Context, blob, secret []byte) (key []byte, err error) {
	err = d.With(ctx, false, func(t *tpm.TPM) error {
		key, err = t.Activate(tpm.Credential{Blob: blob, Secret: secret})
		return err
	})
	return key, known(err)
}

// Identity implements boot's TPM.
func (d device) Identity(ctx context.Context, digest []byte) (public, signature []byte, err error) {
	err = d.With(ctx, true, func(t *tpm.TPM) error {
		key, err := t.IdentityKey()
		if err != nil {
			return err
		}
		if public, err = x509.MarshalPKIXPublicKey(key); err != nil || digest == nil {
			return err
		}
		signature, err = t.SignIdentity(digest)
		return err
	})
	return public, signature, known(err)
}

// Floor implements boot's TPM.
func (d device) Floor(ctx context.Context) (n uint64, err error) {
	err = d.With(ctx, false, func(t *tpm.TPM) error {
		n, err = t.Floor()
		return err
	})
	return n, known(err)
}

// RaiseFloor implements boot's TPM.
func (d device) RaiseFloor(ctx context.Context, counter uint64) error {
	return known(d.With(ctx, false, func(t *tpm.TPM) error { return t.RaiseFloor(counter) }))
}

// recoverArgs is the command line of what asks the core for STATE's key.
func recoverArgs(f boot.Facts, file string) []string {
	argv := []string{"/usr/bin/edged", "recover", "--file", file}
	if parent := f.Settings.Join.Parent; parent != "" {
		if flag, err := boot.ParentFlag(parent); err == nil {
			argv = append(argv, "--parent", flag)
		}
	}
	return argv
}
