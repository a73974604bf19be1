package ca

import (
	"context"
	"log/slog"
	"net/http"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// Recoverer decides whether a box gets the key of its state back. The nonce is what its TPM
// signed; that it is fresh is known by then. Errors are *api.Error, which reach the box.
type Recoverer interface {
	Recover(ctx context.Context, nonce [32]byte, r *identity.RecoverRequest) (*identity.RecoverReply, error)
}

// RecoverHandler serves identity.PathRecover.
func (c *CA) RecoverHandler(to Recoverer, log *slog.Logger) http.Handler {
	h := &handler{ca: c, log: log, busy: make(chan struct{}, maxBusy)}
	return h.limited(func(w http.ResponseWriter, r *http.Request, body []byte) {
		var req identity.RecoverRequest
		h.serve(w, r, body, &req, func() (*identity.EnrolReply, error) {
			if len(req.Reason) > identity.MaxReason {
				return nil, api.Errorf(api.Invalid, "the reason has more than %d bytes", identity.MaxReason)
			}
			// The nonce that serve checked is the envelope's own.
			nonce, err := identity.NonceOf(body)
			if err != nil {
				return nil, err
			}
			reply, err := to.Recover(r.Context(), identity.RecoverNonce(req.Device, nonce), &req)
			if err != nil {
				return nil, err
			}
			return &identity.EnrolReply{Recover: reply}, nil
		})
	})
}
