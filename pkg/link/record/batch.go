package record

import (
	"crypto"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// Version of the batch and acknowledgement formats. Another one is refused.
const Version = 1

// Signer makes a COSE_Sign1 (RFC 9052 section 4.2) over payload and the external
// data aad. identity.Sign under one key is one.
type Signer func(aad, payload []byte) ([]byte, error)

// Verifier checks such a message and returns its payload.
type Verifier func(cose, aad []byte) (payload []byte, err error)

// By makes a Signer of a device's or the core's P-256 key.
func By(key crypto.Signer) Signer {
	return func(aad, payload []byte) ([]byte, error) { return identity.Sign(key, aad, payload) }
}

// Of makes a Verifier of a public key.
func Of(pub crypto.PublicKey) Verifier {
	return func(cose, aad []byte) ([]byte, error) { return identity.Verify(pub, cose, aad) }
}

// Batch is a run of records under one signature.
type Batch struct {
	// Epoch is the spool epoch; a batch never spans two.
	Epoch uint64
	// First and Last are the numbers that the batch covers, both included.
	First, Last uint64
	// Prev is the chain value before First.
	Prev    Hash
	Records []Record
	// Explicit batches carry Prev: every retry is one.
	Explicit bool
}

// Header is what a batch tells of itself without its key.
type Header struct {
	Epoch, First, Last uint64
	// Prev is set when Explicit.
	Prev     Hash
	Explicit bool
	// Size is the batch's length on the wire in bytes.
	Size int
}

// Check reports why the batch breaks a rule: numbers run on without a gap from
// First to Last, and no bound is passed.
func (b *Batch) Check() error {
	if len(b.Records) == 0 || len(b.Records) > MaxRecords {
		return fmt.Errorf("%w: %d records in a batch", ErrMalformed, len(b.Records))
	}
	next, size := b.First, 0
	for i := range b.Records {
		r := &b.Records[i]
		if r.Seq != next || r.Last < r.Seq || r.Last == ^uint64(0) {
			return fmt.Errorf("%w: record %d..%d follows %d", ErrMalformed, r.Seq, r.Last, next-1)
		}
		if len(r.Payload) > MaxPayload {
			return fmt.Errorf("%w: record %d has %d bytes", ErrMalformed, r.Seq, len(r.Payload))
		}
		if r.Stands() == r.End.IsZero() || (r.Kind == Lost && len(r.Payload) != 0) {
			return fmt.Errorf("%w: record %d stands for others and names no chain value, or the reverse", ErrMalformed, r.Seq)
		}
		size += len(r.Payload)
		next = r.Last + 1
	}
	if b.First == 0 || next != b.Last+1 {
		return fmt.Errorf("%w: batch %d..%d ends at %d", ErrMalformed, b.First, b.Last, next-1)
	}
	if size > MaxBody {
		return fmt.Errorf("%w: %d bytes of records", ErrMalformed, size)
	}
	return nil
}

// wireBatch is the signed payload. Prev is empty unless explicit; the records are
// in Body, packed as Packing says.
type wireBatch struct {
	_       struct{} `cbor:",toarray"`
	Version uint8
	Epoch   uint64
	First   uint64
	Span    uint64 // Last - First
	Prev    []byte
	Packing uint8
	Body    []byte
}

// batchAAD is what the signature covers beside the payload.
func batchAAD(dev api.DeviceID, prev Hash, explicit bool) []byte {
	aad := append(make([]byte, 0, 48), "tributary/batch/1"...)
	aad = append(aad, dev[:]...)
	if !explicit {
		aad = append(aad, prev[:]...)
	}
	return aad
}

// Seal encodes and signs a batch of dev. It returns the bytes and the chain value
// after the batch. A batch over MaxBatch on the wire is refused with api.TooLarge:
// cut it smaller.
func Seal(sign Signer, dev api.DeviceID, b Batch) ([]byte, Hash, error) {
	if err := b.Check(); err != nil {
		return nil, Hash{}, err
	}
	packing, body, err := pack(b.Records)
	if err != nil {
		return nil, Hash{}, err
	}
	w := wireBatch{Version: Version, Epoch: b.Epoch, First: b.First, Span: b.Last - b.First, Packing: packing, Body: body}
	if b.Explicit {
		w.Prev = b.Prev[:]
	}
	payload, err := encMode().Marshal(w)
	if err != nil {
		return nil, Hash{}, fmt.Errorf("encode batch: %w", err)
	}
	raw, err := sign(batchAAD(dev, b.Prev, b.Explicit), payload)
	if err != nil {
		return nil, Hash{}, fmt.Errorf("sign batch: %w", err)
	}
	if len(raw) > MaxBatch {
		return nil, Hash{}, &api.Error{Code: api.TooLarge, Message: fmt.Sprintf("a batch of %d bytes", len(raw)), Remedy: "cut fewer records into it"}
	}
	return raw, Chain(b.Prev, b.Records), nil
}

// Open verifies and decodes a batch of dev. prev is the chain value that the
// reader has before the batch's First; it is ignored when the batch is explicit
// (compare the result's Prev). It returns the chain value after the batch.
// Errors: ErrMalformed, ErrSignature, *PoisonError.
func Open(verify Verifier, raw []byte, dev api.DeviceID, prev Hash) (*Batch, Hash, error) {
	h, w, err := peek(raw)
	if err != nil {
		return nil, Hash{}, err
	}
	if _, err := verify(raw, batchAAD(dev, prev, h.Explicit)); err != nil {
		return nil, Hash{}, fmt.Errorf("%w: %v", ErrSignature, err)
	}
	if h.Explicit {
		prev = h.Prev
	}
	b := &Batch{Epoch: h.Epoch, First: h.First, Last: h.Last, Prev: prev, Explicit: h.Explicit}
	b.Records, err = unpack(w.Packing, w.Body, h.First)
	if err == nil {
		err = b.Check()
	}
	if err != nil {
		return nil, Hash{}, &PoisonError{Header: h, Err: err}
	}
	return b, Chain(prev, b.Records), nil
}

// Peek reads a batch's header without checking its signature: for relays, which
// only count bytes, and for the core, which must find the chain value first.
func Peek(raw []byte) (Header, error) {
	h, _, err := peek(raw)
	return h, err
}

func peek(raw []byte) (Header, *wireBatch, error) {
	if len(raw) > MaxBatch {
		return Header{}, nil, fmt.Errorf("%w: batch of %d bytes", ErrMalformed, len(raw))
	}
	payload, err := cosePayload(raw)
	if err != nil {
		return Header{}, nil, err
	}
	var w wireBatch
	if err := decMode().Unmarshal(payload, &w); err != nil {
		return Header{}, nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if w.Version != Version {
		return Header{}, nil, fmt.Errorf("%w: batch version %d, this build reads %d", ErrMalformed, w.Version, Version)
	}
	h := Header{Epoch: w.Epoch, First: w.First, Last: w.First + w.Span, Size: len(raw)}
	if h.First == 0 || h.Last < h.First || h.Last == ^uint64(0) {
		return Header{}, nil, fmt.Errorf("%w: batch %d..%d", ErrMalformed, h.First, h.Last)
	}
	switch len(w.Prev) {
	case 0:
	case len(h.Prev):
		h.Explicit = true
		copy(h.Prev[:], w.Prev)
	default:
		return Header{}, nil, fmt.Errorf("%w: chain value of %d bytes", ErrMalformed, len(w.Prev))
	}
	return h, &w, nil
}

// cosePayload takes the payload out of a COSE_Sign1 without looking at the rest.
func cosePayload(raw []byte) ([]byte, error) {
	var m struct {
		_           struct{} `cbor:",toarray"`
		Protected   []byte
		Unprotected cbor.RawMessage
		Payload     []byte
		Signature   []byte
	}
	var tag cbor.RawTag
	if err := decMode().Unmarshal(raw, &tag); err != nil || tag.Number != 18 {
		return nil, fmt.Errorf("%w: no COSE_Sign1", ErrMalformed)
	}
	if err := decMode().Unmarshal(tag.Content, &m); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	return m.Payload, nil
}
