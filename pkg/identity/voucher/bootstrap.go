package voucher

import (
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// The operations of a bootstrap server (RFC 8572 section 7, over RESTCONF, RFC 8040).
const (
	PathData     = "/restconf/operations/ietf-sztp-bootstrap-server:get-bootstrapping-data"
	PathProgress = "/restconf/operations/ietf-sztp-bootstrap-server:report-progress"
	MediaType    = "application/yang-data+json"
	// MaxRequest and MaxReply bound the bodies; a reply carries three artifacts in base64.
	MaxRequest = 16 << 10
	MaxReply   = 2 << 20

	inputMember  = "ietf-sztp-bootstrap-server:input"
	outputMember = "ietf-sztp-bootstrap-server:output"
)

// Ask is the input of get-bootstrapping-data.
type Ask struct {
	// SignedDataPreferred is YANG's type empty: [null] when it is there.
	SignedDataPreferred []any  `json:"signed-data-preferred,omitempty"`
	Model               string `json:"hw-model,omitempty"`
	OSName              string `json:"os-name,omitempty"`
	OSVersion           string `json:"os-version,omitempty"`
	Nonce               []byte `json:"nonce,omitempty"`
}

// Answer is its output.
type Answer struct {
	Reporting string `json:"reporting-level,omitempty"` // minimal or verbose
	Conveyed  []byte `json:"conveyed-information"`
	OwnerCert []byte `json:"owner-certificate,omitempty"`
	Voucher   []byte `json:"ownership-voucher,omitempty"`
	// Pairing stands where the voucher would for a device that has none: see Proof.
	Pairing *Pairing `json:"tributary-pairing:pairing,omitempty"`
}

// Pairing is an owner's proof that a person who saw the device's screen let it in.
type Pairing struct {
	// Root is the owner's root certificate, DER.
	Root  []byte `json:"root"`
	Proof []byte `json:"proof"`
}

// Progress is the input of report-progress.
type Progress struct {
	Type    string `json:"progress-type"`
	Message string `json:"message,omitempty"`
	// The rest is of devices with SSH and trust anchors of their own: read and not used.
	SSHHostKeys  json.RawMessage `json:"ssh-host-keys,omitempty"`
	TrustAnchors json.RawMessage `json:"trust-anchor-certs,omitempty"`
}

// The kinds of progress that our devices report; RFC 8572 section 7.3 has more.
const (
	Initiated  = "bootstrap-initiated"
	ParseError = "parsing-warning"
	Failed     = "bootstrap-error"
	Complete   = "bootstrap-complete"
)

// Input and Output wrap a value in its member; ReadInput and ReadOutput unwrap it.
func Input(v any) ([]byte, error)  { return json.Marshal(map[string]any{inputMember: v}) }
func Output(v any) ([]byte, error) { return json.Marshal(map[string]any{outputMember: v}) }

// ReadInput reads a request; no body at all is an empty input.
func ReadInput(b []byte, v any) error {
	if len(b) == 0 {
		return nil
	}
	return unwrap(b, inputMember, MaxRequest, v)
}

// ReadOutput reads a reply.
func ReadOutput(b []byte, v any) error { return unwrap(b, outputMember, MaxReply, v) }

func unwrap(b []byte, member string, most int, v any) error {
	if len(b) > most {
		return fmt.Errorf("%d bytes, more than %d", len(b), most)
	}
	var w map[string]json.RawMessage
	if err := strictJSON(b, &w); err != nil {
		return err
	}
	body, ok := w[member]
	if !ok || len(w) != 1 {
		return errors.New("the content is not one " + member)
	}
	// Another's server or client may say more than we know: members are not refused here.
	return json.Unmarshal(body, v)
}

// Code is the pairing code of a device: 60 bits that only who sees its screen knows, in
// three groups of four, derived from its private key and so the same after a restart.
// Its letters are Crockford's, which leave out I, L, O and U.
func Code(key *ecdsa.PrivateKey) (string, error) {
	secret, err := key.Bytes()
	if err != nil {
		return "", err
	}
	m := hmac.New(sha256.New, secret)
	m.Write([]byte("tributary/pairing/1"))
	sum := m.Sum(nil)
	var b strings.Builder
	for i := range 12 {
		if i > 0 && i%4 == 0 {
			b.WriteByte('-')
		}
		b.WriteByte(letters[sum[i]&31])
	}
	return b.String(), nil
}

const letters = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// ReadCode brings a code that a person typed into its one form.
func ReadCode(s string) (string, error) {
	s = strings.NewReplacer("-", "", " ", "", "O", "0", "I", "1", "L", "1").Replace(strings.ToUpper(s))
	if len(s) != 12 || strings.Trim(s, letters) != "" {
		return "", &api.Error{Code: api.Invalid, Message: "this is no pairing code", Remedy: "type the twelve characters that the device shows, such as 7K2M-9QXA-4HTR"}
	}
	return s[:4] + "-" + s[4:8] + "-" + s[8:], nil
}

// HintHeader goes with get-bootstrapping-data of a device that shows a pairing code.
const HintHeader = "Tributary-Pairing-Hint"

// Hint tells an owner to whom a person has typed a code which of the waiting devices shows
// it: four letters, 20 bits, of which nobody who does not know the code learns more than
// those.
func Hint(code string, device api.DeviceID) string {
	m := hmac.New(sha256.New, []byte(code))
	m.Write([]byte("tributary/pairing/hint/1"))
	m.Write(device[:])
	sum := m.Sum(nil)
	out := make([]byte, 4)
	for i := range out {
		out[i] = letters[sum[i]&31]
	}
	return string(out)
}

// IsCode tells a pairing code in its one form from other words.
func IsCode(s string) bool {
	code, err := ReadCode(s)
	return err == nil && strings.EqualFold(code, s)
}

// Proof shows the device that the owner of root was told its code. It binds both, so that
// nobody between can put another root in its place.
func Proof(code string, root []byte, device api.DeviceID) []byte {
	m := hmac.New(sha256.New, []byte(code))
	m.Write([]byte("tributary/pairing/proof/1"))
	m.Write(device[:])
	sum := sha256.Sum256(root)
	m.Write(sum[:])
	return m.Sum(nil)
}

// Check verifies a pairing at the device and returns the owner's root.
func (p *Pairing) Check(code string, device api.DeviceID) (*x509.Certificate, error) {
	if !hmac.Equal(p.Proof, Proof(code, p.Root, device)) {
		return nil, errors.New("the pairing is not by someone who knows the code that this device shows")
	}
	return x509.ParseCertificate(p.Root)
}
