package manifest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
)

// parts is a signed manifest taken apart into encoded pieces. Since the whole is
// deterministic CBOR, the pieces go together again to the same bytes, without anyone
// having to understand each of them.
type parts struct {
	protected []byte // the COSE protected header
	signature []byte
	head      map[uint64]cbor.RawMessage // the payload's fields but the items
	items     map[string]cbor.RawMessage
}

// sign1 is COSE_Sign1 (RFC 9052 section 4.2). The unprotected header stays empty: it is
// not signed, so any hop could write there.
type sign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected cbor.RawMessage
	Payload     []byte
	Signature   []byte
}

const (
	tagSign1  = 0xd2 // CBOR tag 18
	emptyMap  = 0xa0
	sigLength = 64 // ES256
)

// split takes a COSE_Sign1 apart, and refuses one that would not go together again to
// the same bytes.
func split(raw []byte) (parts, error) {
	var p parts
	if len(raw) == 0 || raw[0] != tagSign1 {
		return p, errors.New("not a tagged COSE_Sign1")
	}
	var msg sign1
	if err := decMode.Unmarshal(raw[1:], &msg); err != nil {
		return p, err
	}
	if len(msg.Signature) != sigLength {
		return p, fmt.Errorf("signature of %d bytes, want %d", len(msg.Signature), sigLength)
	}
	p.protected, p.signature = msg.Protected, msg.Signature
	if err := decMode.Unmarshal(msg.Payload, &p.head); err != nil {
		return p, err
	}
	rawItems, ok := p.head[itemsField]
	if !ok {
		return p, errors.New("no items field")
	}
	delete(p.head, itemsField)
	if err := decMode.Unmarshal(rawItems, &p.items); err != nil {
		return p, err
	}
	if p.items == nil {
		p.items = map[string]cbor.RawMessage{}
	}
	again, err := p.raw()
	if err != nil {
		return p, err
	}
	if !bytes.Equal(again, raw) {
		return p, errors.New("not in deterministic CBOR (RFC 8949 section 4.2.1), or with an unprotected header")
	}
	return p, nil
}

// raw puts the COSE_Sign1 together.
func (p parts) raw() ([]byte, error) {
	payload, err := p.payload()
	if err != nil {
		return nil, err
	}
	b, err := encMode.Marshal(sign1{Protected: p.protected, Unprotected: cbor.RawMessage{emptyMap}, Payload: payload, Signature: p.signature})
	if err != nil {
		return nil, err
	}
	return append([]byte{tagSign1}, b...), nil
}

// payload puts together what is signed.
func (p parts) payload() ([]byte, error) {
	items, err := encMode.Marshal(p.items)
	if err != nil {
		return nil, err
	}
	all := make(map[uint64]cbor.RawMessage, len(p.head)+1)
	for k, v := range p.head {
		all[k] = v
	}
	all[itemsField] = items
	return encMode.Marshal(all)
}

// partsOf encodes a manifest; signature and protected header are left empty.
func partsOf(m Manifest) (parts, error) {
	p := parts{items: make(map[string]cbor.RawMessage, len(m.Items))}
	head, err := encMode.Marshal(headWire{Version: m.Version, Device: m.Device[:], Tenant: m.Tenant, Name: m.Name,
		Epoch: m.Epoch, Generation: m.Generation, Time: m.Time})
	if err != nil {
		return p, err
	}
	if err := decMode.Unmarshal(head, &p.head); err != nil {
		return p, err
	}
	for k, it := range m.Items {
		w := itemWire{Gen: it.Gen, Body: it.Body}
		for _, r := range it.Refs {
			d, err := digestBytes(r.Digest)
			if err != nil {
				return p, err
			}
			w.Refs = append(w.Refs, refWire{Repo: r.Repo, Digest: d, Size: r.Size})
		}
		if p.items[k], err = encMode.Marshal(w); err != nil {
			return p, err
		}
	}
	return p, nil
}

// manifest reads the known fields out of the pieces.
func (p parts) manifest() (m Manifest, err error) {
	h, err := decodeHead(p.head)
	if err != nil {
		return m, err
	}
	m = Manifest{Version: h.Version, Device: api.DeviceID(h.Device), Tenant: h.Tenant, Name: h.Name,
		Epoch: h.Epoch, Generation: h.Generation, Time: h.Time, Items: make(map[string]Item, len(p.items))}
	for k, raw := range p.items {
		var w itemWire
		if err := decMode.Unmarshal(raw, &w); err != nil {
			return m, fmt.Errorf("item %q: %w", k, err)
		}
		it := Item{Gen: w.Gen, Body: w.Body}
		for _, r := range w.Refs {
			if len(r.Digest) != 32 {
				return m, fmt.Errorf("item %q: digest of %d bytes", k, len(r.Digest))
			}
			it.Refs = append(it.Refs, Ref{Repo: r.Repo, Digest: digestPrefix + hex.EncodeToString(r.Digest), Size: r.Size})
		}
		m.Items[k] = it
	}
	return m, nil
}

func decodeHead(fields map[uint64]cbor.RawMessage) (h headWire, err error) {
	b, err := encMode.Marshal(fields)
	if err != nil {
		return h, err
	}
	if err := decMode.Unmarshal(b, &h); err != nil {
		return h, err
	}
	if len(h.Device) != len(api.DeviceID{}) {
		return h, fmt.Errorf("device id of %d bytes", len(h.Device))
	}
	return h, nil
}
