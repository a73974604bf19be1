package identity

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"tributary.dev/tributary/pkg/api"
)

// The enrolment protocol, under /enrol/v1/ of the core, and of every relay, which
// passes it upward unread:
//
//	GET  trust   → Trust.Encode; header Replay-Nonce (as in RFC 8555 section 6.5)
//	POST device  sealed EnrolRequest → sealed EnrolReply
//	POST renew   sealed RenewRequest → sealed EnrolReply
//	POST recover sealed RecoverRequest → sealed EnrolReply
//
// A body is sealed by HPKE to the core's sealing key, which the root of the join token
// certifies; the reply is sealed under a key exported from the same context (RFC 9180
// section 5.3), so that only the core can have written it. The TLS below is of no
// consequence for it. The nonce, the core's own word on the time, keeps old requests
// from being played again.
const (
	EnrolPrefix   = "/enrol/v1/"
	PathTrust     = EnrolPrefix + "trust"
	PathEnrol     = EnrolPrefix + "device"
	PathRenew     = EnrolPrefix + "renew"
	NonceHeader   = "Replay-Nonce"
	SealedType    = "application/vnd.tributary.sealed"
	MaxEnrolBody  = 64 << 10
	maxEnrolReply = MaxTrust + 64<<10
)

// EnrolRequest is what a box tells the core of itself.
type EnrolRequest struct {
	TokenID string `cbor:"1,keyasint"`
	Secret  string `cbor:"2,keyasint"`
	// CSR is a PKCS #10 request (RFC 2986, DER) signed by the device key, with the seal
	// key as an extension.
	CSR       []byte            `cbor:"3,keyasint"`
	Name      string            `cbor:"4,keyasint,omitempty"`
	Hardware  api.Hardware      `cbor:"5,keyasint"`
	Labels    map[string]string `cbor:"6,keyasint,omitempty"`
	Relay     bool              `cbor:"7,keyasint,omitempty"`
	Addresses []string          `cbor:"8,keyasint,omitempty"`
	// IDevID is the birth certificate of the device key, DER, leaf first, of a box that
	// comes by ExpectedToken and has one by a manufacturer.
	IDevID [][]byte `cbor:"9,keyasint,omitempty"`
	// BirthProof is the signature of the birth certificate's key over the request where that
	// is another than the device key (CheckBirth): a factory reset makes a new device key,
	// and a manufacturer's birth certificate stays.
	BirthProof []byte `cbor:"10,keyasint,omitempty"`
}

// ExpectedToken stands for the id of a join token with a box that the core expects: its
// own key lets it in.
const ExpectedToken = "expected"

// RenewRequest asks for a new certificate of the same device key (the simple
// re-enrolment of RFC 7030 section 4.2.2). The request's own signature proves the key;
// the certificate in hand, expired or not, proves that the core once named it.
type RenewRequest struct {
	CSR  []byte `cbor:"1,keyasint"`
	Cert []byte `cbor:"2,keyasint"` // DER
	// What follows is for a core that lost sight of the box: it was restored from a backup
	// which is older than the box's enrolment.
	Name      string            `cbor:"3,keyasint,omitempty"`
	Hardware  *api.Hardware     `cbor:"4,keyasint,omitempty"`
	Labels    map[string]string `cbor:"5,keyasint,omitempty"`
	Relay     bool              `cbor:"6,keyasint,omitempty"`
	Addresses []string          `cbor:"7,keyasint,omitempty"`
}

// EnrolReply is what the core answers.
type EnrolReply struct {
	Chain  [][]byte          `cbor:"1,keyasint,omitempty"` // DER, leaf first
	Trust  []byte            `cbor:"2,keyasint,omitempty"` // Trust.Encode
	Name   string            `cbor:"3,keyasint,omitempty"`
	Tenant string            `cbor:"4,keyasint,omitempty"`
	Labels map[string]string `cbor:"5,keyasint,omitempty"`
	// Approved tells whether the device gets manifests at once or waits for a person.
	Approved bool `cbor:"6,keyasint,omitempty"`
	// Time is the core's clock in Unix seconds, a floor for the device's own.
	Time int64 `cbor:"7,keyasint,omitempty"`
	// Error stands alone when the core refuses.
	Error *EnrolError `cbor:"8,keyasint,omitempty"`
	// Recover answers a RecoverRequest, alone.
	Recover *RecoverReply `cbor:"9,keyasint,omitempty"`
}

// EnrolError is an api.Error on the wire.
type EnrolError struct {
	Code    api.Code `cbor:"1,keyasint"`
	Message string   `cbor:"2,keyasint"`
	Remedy  string   `cbor:"3,keyasint,omitempty"`
}

// envelope is a sealed request. Kind and nonce are bound into the HPKE info.
type envelope struct {
	_     struct{} `cbor:",toarray"`
	V     uint
	Kid   []byte // of the sealing key
	Nonce []byte
	Enc   []byte
	Text  []byte
}

const exportLabel = "tributary/enrol/reply/1"

func enrolInfo(path string, nonce []byte) []byte {
	return append([]byte("tributary"+path+"\x00"), nonce...)
}

// sealRequest encrypts v for the core; open decrypts the answer to it.
func sealRequest(sealing *ecdsa.PublicKey, path string, nonce []byte, v any) (body []byte, open func([]byte) (*EnrolReply, error), err error) {
	pk, err := hpkePublic(sealing)
	if err != nil {
		return nil, nil, err
	}
	kdf, aead := suite()
	enc, sender, err := hpke.NewSender(pk, kdf, aead, enrolInfo(path, nonce))
	if err != nil {
		return nil, nil, err
	}
	plain, err := encMode.Marshal(v)
	if err != nil {
		return nil, nil, err
	}
	text, err := sender.Seal(nil, plain)
	if err != nil {
		return nil, nil, err
	}
	gcm, err := replyCipher(sender.Export)
	if err != nil {
		return nil, nil, err
	}
	body, err = encMode.Marshal(envelope{V: 1, Kid: KID(sealing), Nonce: nonce, Enc: enc, Text: text})
	open = func(b []byte) (*EnrolReply, error) {
		n := gcm.NonceSize()
		if len(b) < n {
			return nil, errors.New("reply is cut off")
		}
		plain, err := gcm.Open(nil, b[:n], b[n:], nil)
		if err != nil {
			return nil, errors.New("the reply does not come from the core: something between altered it")
		}
		var r EnrolReply
		return &r, decMode.Unmarshal(plain, &r)
	}
	return body, open, err
}

// OpenRequest decrypts a request that came in at path into v (an *EnrolRequest or
// *RenewRequest) and returns the nonce that it is bound to, which the caller checks,
// and the function that seals the one answer. For the core, which has one of several keys for it.
func OpenRequest(keys []*ecdsa.PrivateKey, path string, body []byte, v any) (nonce []byte, reply func(*EnrolReply) ([]byte, error), err error) {
	if len(body) > MaxEnrolBody {
		return nil, nil, api.Errorf(api.TooLarge, "request of %d bytes is larger than %d", len(body), MaxEnrolBody)
	}
	var e envelope
	if err := decMode.Unmarshal(body, &e); err != nil {
		return nil, nil, fmt.Errorf("sealed request: %w", err)
	}
	if e.V != 1 {
		return nil, nil, fmt.Errorf("sealed request has version %d; this build knows 1", e.V)
	}
	which := slices.IndexFunc(keys, func(key *ecdsa.PrivateKey) bool { return bytes.Equal(e.Kid, KID(&key.PublicKey)) })
	if which < 0 {
		return nil, nil, errors.New("sealed to another key: fetch the trust again")
	}
	sk, err := hpkePrivate(keys[which])
	if err != nil {
		return nil, nil, err
	}
	kdf, aead := suite()
	rec, err := hpke.NewRecipient(e.Enc, sk, kdf, aead, enrolInfo(path, e.Nonce))
	if err != nil {
		return nil, nil, fmt.Errorf("sealed request: %w", err)
	}
	plain, err := rec.Open(nil, e.Text)
	if err != nil {
		return nil, nil, fmt.Errorf("sealed request: %w", err)
	}
	if err := decMode.Unmarshal(plain, v); err != nil {
		return nil, nil, fmt.Errorf("sealed request: %w", err)
	}
	gcm, err := replyCipher(rec.Export)
	if err != nil {
		return nil, nil, err
	}
	return e.Nonce, func(r *EnrolReply) ([]byte, error) {
		plain, err := encMode.Marshal(r)
		if err != nil {
			return nil, err
		}
		n := make([]byte, gcm.NonceSize())
		if _, err := rand.Read(n); err != nil {
			return nil, err
		}
		return gcm.Seal(n, n, plain, nil), nil
	}, nil
}

func replyCipher(export func(string, int) ([]byte, error)) (cipher.AEAD, error) {
	k, err := export(exportLabel, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
