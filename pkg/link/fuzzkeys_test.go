package link

import (
	"crypto"
	"errors"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// noKeys believes nothing; its own signatures are empty.
type noKeys struct{}

var errNoKeys = errors.New("no keys")

func (noKeys) Sign(_, payload []byte) ([]byte, error) {
	return putBytes(putBytes(append(putBytes([]byte{majTag | 18, 0x84}, nil), 0xa0), payload), nil), nil
}
func (noKeys) VerifyCore(_, _ []byte) ([]byte, error)                  { return nil, errNoKeys }
func (noKeys) OpenManifest([]byte) (*manifest.Signed, error)           { return nil, errNoKeys }
func (noKeys) StateKey() ([32]byte, error)                             { return [32]byte{}, nil }
func (noKeys) Verify(crypto.PublicKey, []byte, []byte) ([]byte, error) { return nil, errNoKeys }
func (noKeys) Certificate([]byte) (api.DeviceID, crypto.PublicKey, error) {
	return api.DeviceID{}, nil, errNoKeys
}

func fuzzRelay(t *testing.T, now time.Time) *Relay {
	t.Helper()
	r, err := NewRelay(now, RelayConfig{Self: api.DeviceID{5}, Store: NewMemStore(), Keys: noKeys{}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}
