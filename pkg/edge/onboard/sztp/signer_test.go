package sztp

import (
	"crypto"
	"log/slog"
	"testing"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// A box may be known by a key that never leaves its TPM; the pairing code is then by the
// key that it made itself.
func TestKeyThatNobodyReads(t *testing.T) {
	tpm, own := newPair(t, "tpm", nil), newPair(t, "own", nil)
	opaque := struct{ crypto.Signer }{tpm.key}
	chain := must(t, try(voucher.SelfIDevID(opaque))(t), nil)
	cfg := Config{Key: opaque, Own: own.key, IDevID: chain, Pairing: true, Log: slog.New(slog.DiscardHandler)}
	s := must(t, try(New(cfg))(t), nil)
	id := identity.KeyID(&tpm.key.PublicKey)
	if d := s.Device(); d.ID != id || d.Serial != id.String() || d.Code != must(t, try(voucher.Code(own.key))(t), nil) {
		t.Errorf("%+v", d)
	}
	if serial, err := voucher.Serial(chain, nil); err != nil || serial != id.String() {
		t.Errorf("%s, %v", serial, err)
	}
	cfg.Own = nil
	if _, err := New(cfg); err == nil {
		t.Error("a pairing code by a key that nobody reads")
	}
}
