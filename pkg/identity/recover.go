package identity

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"

	"tributary.dev/tributary/pkg/api"
)

// PathRecover is where a box whose TPM does not give the key of its state asks the core for it,
// as it would enrol: sealed to the core, through relays that read nothing. The box has no
// certificate then; its TPM speaks for it.
const PathRecover = EnrolPrefix + "recover"

// RecoverRequest is what such a box says of itself.
type RecoverRequest struct {
	Device api.DeviceID `cbor:"1,keyasint"`
	// Evidence is an attest.Evidence over RecoverNonce.
	Evidence []byte `cbor:"2,keyasint"`
	// Reason is why the TPM keeps the key, in at most MaxReason bytes.
	Reason string `cbor:"3,keyasint,omitempty"`
}

// MaxReason bounds RecoverRequest.Reason.
const MaxReason = 512

// RecoverReply is the core's answer. Without Blob a person has yet to approve: Message says so.
type RecoverReply struct {
	// Blob and Secret are a credential that the box's TPM alone opens.
	Blob    []byte `cbor:"1,keyasint,omitempty"`
	Secret  []byte `cbor:"2,keyasint,omitempty"`
	Message string `cbor:"3,keyasint,omitempty"`
}

// RecoverNonce is what the TPM is to sign: the core's nonce, bound to the device and to the use.
func RecoverNonce(device api.DeviceID, nonce []byte) [32]byte {
	h := sha256.New()
	h.Write([]byte("tributary/recover/1\x00"))
	h.Write(device[:])
	h.Write(nonce)
	return [32]byte(h.Sum(nil))
}

// RecoverConfig is what a box needs to ask.
type RecoverConfig struct {
	ParentURL string
	Root      [32]byte // SHA-256 of the root's certificate
	Device    api.DeviceID
	Reason    string
	// Evidence has the TPM sign.
	Evidence func(ctx context.Context, nonce [32]byte) ([]byte, error)
	HTTP     *http.Client // nil: one of its own, which takes any server
}

// Recover asks once. It may be repeated; each time has a nonce of its own.
func Recover(ctx context.Context, cfg RecoverConfig) (*RecoverReply, error) {
	c := enrolClient{url: cfg.ParentURL, http: cfg.HTTP}
	if c.http == nil {
		c.http = enrolHTTP(nil)
		defer c.http.CloseIdleConnections()
	}
	trust, nonce, err := c.trust(ctx, cfg.Root[:])
	if err != nil {
		return nil, err
	}
	sealing, err := p256(trust.Sealing.PublicKey)
	if err != nil {
		return nil, err
	}
	req := RecoverRequest{Device: cfg.Device, Reason: cfg.Reason[:min(len(cfg.Reason), MaxReason)]}
	if req.Evidence, err = cfg.Evidence(ctx, RecoverNonce(cfg.Device, nonce)); err != nil {
		return nil, fmt.Errorf("the TPM: %w", err)
	}
	body, open, err := sealRequest(sealing, PathRecover, nonce, req)
	if err != nil {
		return nil, err
	}
	status, header, answer, err := c.do(ctx, http.MethodPost, PathRecover, body)
	if err != nil {
		return nil, err
	}
	if header.Get("Content-Type") != SealedType {
		return nil, plainError(status, answer)
	}
	reply, err := open(answer)
	if err != nil {
		return nil, err
	}
	if e := reply.Error; e != nil {
		return nil, &api.Error{Code: e.Code, Message: e.Message, Remedy: e.Remedy}
	}
	if reply.Recover == nil {
		return nil, errors.New("the core answers another question")
	}
	return reply.Recover, nil
}

// NonceOf reads the nonce that a sealed request is bound to, without opening it.
func NonceOf(body []byte) ([]byte, error) {
	var e envelope
	if len(body) > MaxEnrolBody {
		return nil, api.Errorf(api.TooLarge, "request of %d bytes is larger than %d", len(body), MaxEnrolBody)
	}
	if err := decMode.Unmarshal(body, &e); err != nil {
		return nil, fmt.Errorf("sealed request: %w", err)
	}
	return e.Nonce, nil
}
