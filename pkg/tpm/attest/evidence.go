package attest

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Evidence is a box's answer to a challenge.
type Evidence struct {
	Quote     []byte   `cbor:"1,keyasint"` // TPMS_ATTEST as the TPM signed it
	Signature []byte   `cbor:"2,keyasint"` // ECDSA with SHA-256, ASN.1
	PCRs      []PCR    `cbor:"3,keyasint"` // by rising number
	Log       [][]byte `cbor:"4,keyasint"` // the SHA-256 digests that went into PCR 11, in their order
}

// PCR is the SHA-256 value of one.
type PCR struct {
	Index uint   `cbor:"1,keyasint"`
	Value []byte `cbor:"2,keyasint"`
}

// Bounds of evidence.
const (
	MaxEvidence = 16 << 10
	maxQuote    = 1 << 10
	maxLog      = 128
	pcrs        = 24
)

// PCR is the value given for one.
func (e *Evidence) PCR(n uint) (out [32]byte, ok bool) {
	for _, p := range e.PCRs {
		if p.Index == n {
			return [32]byte(p.Value), true
		}
	}
	return out, false
}

// Encode is the evidence as CBOR.
func (e *Evidence) Encode() ([]byte, error) { return cbor.Marshal(e) }

// Decode reads evidence of at most MaxEvidence bytes. What it returns may be given to Verify.
func Decode(b []byte) (*Evidence, error) {
	if len(b) > MaxEvidence {
		return nil, fmt.Errorf("evidence of %d bytes: at most %d", len(b), MaxEvidence)
	}
	mode, err := cbor.DecOptions{MaxNestedLevels: 4, MaxArrayElements: maxLog, MaxMapPairs: 16,
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden}.DecMode()
	if err != nil {
		return nil, err
	}
	var e Evidence
	if err := mode.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	return &e, e.check()
}

func (e *Evidence) check() error {
	if len(e.Quote) > maxQuote || len(e.Signature) > 256 || len(e.PCRs) > pcrs || len(e.Log) > maxLog {
		return errors.New("evidence: a part is too long")
	}
	for i, p := range e.PCRs {
		if len(p.Value) != 32 || p.Index >= pcrs || i > 0 && p.Index <= e.PCRs[i-1].Index {
			return errors.New("evidence: the PCRs are not 32 bytes each, by rising number")
		}
	}
	for _, d := range e.Log {
		if len(d) != 32 {
			return errors.New("evidence: the log's digests are not 32 bytes each")
		}
	}
	return nil
}

// quote is what matters of a TPMS_ATTEST.
type quote struct {
	nonce, digest []byte
	clock         uint64
	resets        uint32
	pcrs          []uint
}

// reader takes big-endian fields from the front; it stays at its first error.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return make([]byte, min(n, 8))
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }
func (r *reader) sized(max int) []byte {
	n := int(r.u16())
	if n > max {
		r.bad = true
		return nil
	}
	return r.take(n)
}

// The constants of a quote (TCG TPM 2.0 part 2, 6.2, 6.9 and 6.3).
const (
	generated = 0xff544347 // made by a TPM: no key of this kind signs other bytes with this beginning
	typeQuote = 0x8018
	algSHA256 = 0x000b
)

// parseQuote reads a TPMS_ATTEST that is a quote over one selection of SHA-256 PCRs (TCG TPM 2.0
// part 2, 10.12.12).
func parseQuote(b []byte) (*quote, error) {
	if len(b) > maxQuote {
		return nil, fmt.Errorf("a quote of %d bytes: at most %d", len(b), maxQuote)
	}
	r := &reader{b: b}
	if magic, kind := r.u32(), r.u16(); magic != generated || kind != typeQuote {
		return nil, errors.New("not a quote that a TPM made")
	}
	q := &quote{}
	r.sized(68) // qualifiedSigner, a name
	q.nonce = r.sized(64)
	q.clock, q.resets = r.u64(), r.u32()
	r.u32() // restarts
	r.u8()  // safe
	r.u64() // firmware version
	if n, alg := r.u32(), r.u16(); n != 1 || alg != algSHA256 {
		return nil, errors.New("the quote is not over one selection of SHA-256 PCRs")
	}
	size := int(r.u8())
	if size > 4 {
		return nil, errors.New("the quote selects more PCRs than there are")
	}
	for i, bits := range r.take(size) {
		for bit := range 8 {
			if bits>>bit&1 == 1 {
				q.pcrs = append(q.pcrs, uint(i*8+bit))
			}
		}
	}
	q.digest = r.sized(64)
	if r.bad || len(r.b) > 0 {
		return nil, errors.New("the quote is cut short, or goes on behind its end")
	}
	return q, nil
}
