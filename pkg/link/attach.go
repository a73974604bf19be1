package link

import (
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"tributary.dev/tributary/pkg/api"
)

// AttachPurpose is the external data of an attachment's signature.
const AttachPurpose = "tributary/attach/1"

// Attachment is a device's signed word on whom it is attached to. The highest counter
// wins, so that a device moves between parents without the core being there.
type Attachment struct {
	Device, Parent api.DeviceID // Parent is zero for the core
	Counter        uint64
	Raw            []byte // COSE_Sign1 over [device, parent, counter]
}

func signAttachment(sign func(aad, payload []byte) ([]byte, error), dev, parent api.DeviceID, counter uint64) (Attachment, error) {
	payload := putUint(putID(putID(putArray(nil, 3), dev), parent), counter)
	raw, err := sign([]byte(AttachPurpose), payload)
	if err != nil {
		return Attachment{}, fmt.Errorf("sign attachment: %w", err)
	}
	return Attachment{Device: dev, Parent: parent, Counter: counter, Raw: raw}, nil
}

// attachmentParts reads an attachment's payload; fields that follow are allowed.
func attachmentParts(payload []byte) (a Attachment, err error) {
	r := reader{b: payload}
	if r.array() < 3 {
		r.fail("attachment too short")
	}
	a.Device, a.Parent, a.Counter = r.id(), r.id(), r.uint()
	return a, r.err
}

// peekAttachment reads a COSE_Sign1's payload without believing it.
func peekAttachment(raw []byte) (Attachment, error) {
	r := reader{b: raw}
	if m, _ := r.head(); m == majTag {
		if r.array() != 4 {
			r.fail("no COSE_Sign1")
		}
	} else {
		r.fail("no tag")
	}
	r.bytes(64)
	r.skip(2)
	a, err := attachmentParts(r.bytes(256))
	if r.err != nil {
		err = r.err
	}
	a.Raw = raw
	return a, err
}

// AttachmentCounter reads the number of an attachment, of which the higher wins, without
// checking who signed it.
func AttachmentCounter(raw []byte) (uint64, error) {
	a, err := peekAttachment(raw)
	return a.Counter, err
}

func openAttachment(verify func(pub crypto.PublicKey, cose, aad []byte) ([]byte, error), pub crypto.PublicKey, raw []byte) (Attachment, error) {
	payload, err := verify(pub, raw, []byte(AttachPurpose))
	if err != nil {
		return Attachment{}, err
	}
	a, err := attachmentParts(payload)
	a.Raw = raw
	return a, err
}

// StateMAC is what a device and the core share over an entry: HMAC-SHA256 under the
// state key over device, state epoch, number, whether it is a tombstone, key and value,
// cut to MACSize bytes.
func StateMAC(key [32]byte, dev api.DeviceID, epoch uint64, e *Entry) (out [MACSize]byte) {
	m := hmac.New(sha256.New, key[:])
	var fixed [8 + 8 + 8 + 1 + 2]byte
	copy(fixed[:], dev[:])
	binary.BigEndian.PutUint64(fixed[8:], epoch)
	binary.BigEndian.PutUint64(fixed[16:], e.Seq)
	if e.Deleted {
		fixed[24] = 1
	}
	binary.BigEndian.PutUint16(fixed[25:], uint16(len(e.Key)))
	m.Write(fixed[:])
	m.Write([]byte(e.Key))
	m.Write(e.Value)
	copy(out[:], m.Sum(nil))
	return out
}
