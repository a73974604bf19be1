package record

import (
	"fmt"

	"tributary.dev/tributary/pkg/api"
)

// Ack is the core's signed word to one device: what is counted, and what is newest.
type Ack struct {
	// CoreEpoch orders acknowledgements: one of a higher epoch may go back, one of a
	// lower epoch is void.
	CoreEpoch uint64
	// SpoolEpoch and Acked name the last record counted; Acked 0 with SpoolEpoch 0
	// means that the core has none of this device.
	SpoolEpoch, Acked uint64
	// Hash is the chain value after Acked. It is zero in an explicit acknowledgement
	// when the core set an unreadable batch aside and so does not know it.
	Hash Hash
	// Safe is the last record that a backup of the core holds too.
	Safe uint64
	// Generation is the device's newest manifest (of CoreEpoch).
	Generation uint64
	// Time is the core's clock in Unix seconds.
	Time int64
	// StateEpoch and StateSeq name the newest of the device's state changes that the
	// core committed.
	StateEpoch, StateSeq uint64
	// Explicit acknowledgements carry Hash. A short one is signed over it, and only a
	// device with the same chain can verify it.
	Explicit bool
}

type wireAck struct {
	_          struct{} `cbor:",toarray"`
	Version    uint8
	CoreEpoch  uint64
	SpoolEpoch uint64
	Acked      uint64
	Hash       []byte
	Unsafe     uint64 // Acked - Safe
	Generation uint64
	Time       int64
	StateEpoch uint64
	StateSeq   uint64
}

func ackAAD(dev api.DeviceID, h Hash, explicit bool) []byte {
	aad := append(make([]byte, 0, 48), "tributary/ack/1"...)
	aad = append(aad, dev[:]...)
	if !explicit {
		aad = append(aad, h[:]...)
	}
	return aad
}

// SealAck encodes and signs an acknowledgement to dev.
func SealAck(sign Signer, dev api.DeviceID, a Ack) ([]byte, error) {
	if a.Safe > a.Acked {
		return nil, fmt.Errorf("%w: safe %d past acknowledged %d", ErrMalformed, a.Safe, a.Acked)
	}
	w := wireAck{Version: Version, CoreEpoch: a.CoreEpoch, SpoolEpoch: a.SpoolEpoch, Acked: a.Acked,
		Unsafe: a.Acked - a.Safe, Generation: a.Generation, Time: a.Time, StateEpoch: a.StateEpoch, StateSeq: a.StateSeq}
	if a.Explicit {
		w.Hash = a.Hash[:]
	}
	payload, err := encMode().Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode acknowledgement: %w", err)
	}
	return sign(ackAAD(dev, a.Hash, a.Explicit), payload)
}

// OpenAck verifies an acknowledgement to dev. chainAt gives the device's own chain
// value after a record; it is asked when the acknowledgement is short. ErrSignature
// then also means that the chains differ: send an explicit batch, and the core
// answers explicitly.
func OpenAck(verify Verifier, raw []byte, dev api.DeviceID, chainAt func(epoch, seq uint64) (Hash, bool)) (*Ack, error) {
	if len(raw) > MaxAck {
		return nil, fmt.Errorf("%w: acknowledgement of %d bytes", ErrMalformed, len(raw))
	}
	payload, err := cosePayload(raw)
	if err != nil {
		return nil, err
	}
	var w wireAck
	if err := decMode().Unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if w.Version != Version || w.Unsafe > w.Acked || (len(w.Hash) != 0 && len(w.Hash) != len(Hash{})) {
		return nil, fmt.Errorf("%w: acknowledgement version %d of %d", ErrMalformed, w.Version, w.Acked)
	}
	a := &Ack{CoreEpoch: w.CoreEpoch, SpoolEpoch: w.SpoolEpoch, Acked: w.Acked, Safe: w.Acked - w.Unsafe,
		Generation: w.Generation, Time: w.Time, StateEpoch: w.StateEpoch, StateSeq: w.StateSeq, Explicit: len(w.Hash) != 0}
	if a.Explicit {
		copy(a.Hash[:], w.Hash)
	} else if w.Acked != 0 {
		h, ok := chainAt(w.SpoolEpoch, w.Acked)
		if !ok {
			return nil, fmt.Errorf("%w: no chain value at %d of epoch %d here", ErrSignature, w.Acked, w.SpoolEpoch)
		}
		a.Hash = h
	}
	if _, err := verify(raw, ackAAD(dev, a.Hash, a.Explicit)); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrSignature, err)
	}
	return a, nil
}
