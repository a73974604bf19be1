// Package api answers: which nouns does Tributary speak of, and what makes one valid?
//
// It holds the kinds that people write (Device, Fleet, App, …), the shapes that
// cross between parts (Bundle, Usage, Hardware), the one error type, and the
// small interfaces by which packages of one wing meet. It imports nothing of
// Tributary and knows no SQL, HTTP, containerd or MQTT.
package api

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"time"
)

// Version is the apiVersion of every kind in this package.
const Version = "tributary/v1"

// Reserved is the label prefix that only a device itself may set (probed facts).
const Reserved = "hw.tributary/"

// Meta is the part that every kind shares.
type Meta struct {
	// Tenant owns the object. Empty means "default" on the way in.
	Tenant string `json:"tenant,omitempty"`
	// Name is unique per tenant and kind: a DNS label, 1 to 63 characters (RFC 1123).
	Name string `json:"name"`
	// UID is assigned by the core and never reused.
	UID         string            `json:"uid,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Revision grows with every write in the whole store. A write that carries one
	// fails with Conflict unless it names the current one.
	Revision int64 `json:"revision,omitempty"`
	// Generation grows with every change of spec.
	Generation int64      `json:"generation,omitempty"`
	Created    *time.Time `json:"created,omitempty"`
	Updated    *time.Time `json:"updated,omitempty"`
}

// Object is the envelope of every kind. Spec has one writer, people; Status has
// one writer, the core.
type Object struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   Meta            `json:"metadata"`
	Spec       json.RawMessage `json:"spec,omitempty"`
	Status     json.RawMessage `json:"status,omitempty"`
}

// Key names an object in the store.
type Key struct{ Tenant, Kind, Name string }

func (k Key) String() string { return k.Tenant + "/" + k.Kind + "/" + k.Name }

// Key returns the object's key.
func (o *Object) Key() Key { return Key{o.Metadata.Tenant, o.Kind, o.Metadata.Name} }

// DeviceID names a device for its whole life: the first 8 bytes of the SHA-256 of
// its public key (PKIX, DER). As text it is 13 characters of lower-case base32
// (RFC 4648 section 6, no padding). It is the MQTT client id, the common name of
// the device's certificate, and 8 bytes on the wire.
type DeviceID [8]byte

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewDeviceID derives the id from a PKIX public key in DER form.
func NewDeviceID(spki []byte) (id DeviceID) {
	sum := sha256.Sum256(spki)
	copy(id[:], sum[:])
	return id
}

func (id DeviceID) String() string { return idEncoding.EncodeToString(id[:]) }

// IsZero reports whether no device is named.
func (id DeviceID) IsZero() bool { return id == DeviceID{} }

// MarshalText implements encoding.TextMarshaler.
func (id DeviceID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *DeviceID) UnmarshalText(b []byte) error {
	parsed, err := ParseDeviceID(string(b))
	*id = parsed
	return err
}

// ParseDeviceID reads the 13-character text form.
func ParseDeviceID(s string) (id DeviceID, err error) {
	b, err := idEncoding.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, &Error{Code: Invalid, Message: fmt.Sprintf("%q is not a device id", s), Remedy: "a device id has 13 characters, a-z and 2-7; see `edgectl get devices -o wide`"}
	}
	copy(id[:], b)
	return id, nil
}
