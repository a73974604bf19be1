package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/google/go-tpm/tpm2"
)

// Floor is the lowest security counter that this box still takes; 0 when none was ever set.
func (t *TPM) Floor() (uint64, error) {
	index, err := floorHandle()
	if err != nil {
		return 0, err
	}
	rsp, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: FloorIndex, Name: index.Name, Auth: tpm2.PasswordAuth(nil)}, NVIndex: index, Size: 8,
	}.Execute(t.t)
	if errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCNVUninitialized) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("the floor: %w", err)
	}
	if len(rsp.Data.Buffer) != 8 {
		return 0, errors.New("the floor has not 8 bytes")
	}
	// Whatever stands there, the highest bit is what a comparison meets first.
	return uint64(bits.Len64(binary.BigEndian.Uint64(rsp.Data.Buffer))), nil
}

// RaiseFloor makes n the floor, unless it is higher already. It is called when a release with
// that counter has been confirmed, and with 0 before a key is sealed, to make the index. Bits are
// only ever added. Who holds the TPM's owner password (empty, unless the box's owner set one) can
// remove the index and make it anew: the floor stops old releases, not a person at an open box.
func (t *TPM) RaiseFloor(n uint64) error {
	if n > MaxCounter {
		return fmt.Errorf("security counter %d: at most %d", n, MaxCounter)
	}
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, PublicInfo: tpm2.New2B(floorPublic(false)),
	}.Execute(t.t)
	if err != nil && !errors.Is(err, tpm2.TPMRCNVDefined) {
		return fmt.Errorf("the floor: %w", err)
	}
	if err := t.setBits(FloorIndex, mask(n)); err != nil {
		return fmt.Errorf("the floor: %w", err)
	}
	return nil
}

// atLeastFloor has the TPM compare the release's counter with the floor, within a policy.
func (t *TPM) atLeastFloor(session tpm2.Session, counter uint64) error {
	index, err := floorHandle()
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyNV{
		AuthHandle: tpm2.AuthHandle{Handle: FloorIndex, Name: index.Name, Auth: tpm2.PasswordAuth(nil)}, NVIndex: index,
		PolicySession: session.Handle(), OperandB: counterOperand(counter), Operation: tpm2.TPMEOUnsignedLE,
	}.Execute(t.t)
	if err != nil {
		return fmt.Errorf("%w: the running release's security counter, %d, is below this box's floor: %w", ErrRefused, counter, err)
	}
	return nil
}
