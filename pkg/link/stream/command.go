package stream

import (
	"crypto"
	"crypto/ecdsa"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/pattern"
)

// Verb is what a command asks for.
type Verb string

// The verbs.
const (
	Logs    Verb = "logs"    // App, Service, Follow, Tail → Stdout
	Exec    Verb = "exec"    // App, Service, Argv, TTY, Size → Stdin, Stdout, Stderr, Exit
	Forward Verb = "forward" // App, Service, Port → Stdin, Stdout; one TCP connection
	Top     Verb = "top"     // Follow → Stdout: one JSON Sample a line
	Console Verb = "console" // TTY, Size → Stdin, Stdout: the recovery console
	Line    Verb = "line"    // Line → Stdin, Stdout: the console of a card in the box
	Attest  Verb = "attest"  // Nonce → Stdout: an attest.Report; Stdin: an attest.Reply
)

// The bounds of a command.
const (
	// MaxCommand bounds a signed command in bytes.
	MaxCommand = 64 << 10
	// MaxLife bounds the time between issue and expiry.
	MaxLife = 5 * time.Minute
	// Skew is how far the device's clock may be behind the core's, or ahead of it.
	Skew = 2 * time.Minute
)

// SessionID names one stream, and is the nonce of the command that asks for it:
// 16 random bytes, 32 hexadecimal digits in the path.
type SessionID [16]byte

func (s SessionID) String() string { return hex.EncodeToString(s[:]) }

// ParseSessionID reads the text form.
func ParseSessionID(text string) (s SessionID, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(s) {
		return s, api.Errorf(api.Invalid, "not a session id")
	}
	copy(s[:], b)
	return s, nil
}

// Command asks one device to open one stream. Version, Device, Session, Issued and
// Expires are filled by Hub.Open.
type Command struct {
	Version uint         `cbor:"1,keyasint"`
	Device  api.DeviceID `cbor:"2,keyasint"`
	Session SessionID    `cbor:"3,keyasint"`
	// Issued and Expires are Unix seconds by the core's clock.
	Issued  int64 `cbor:"4,keyasint"`
	Expires int64 `cbor:"5,keyasint"`
	Verb    Verb  `cbor:"6,keyasint"`
	// Actor is the person who asked, for the audit record.
	Actor   string   `cbor:"7,keyasint,omitempty"`
	App     string   `cbor:"8,keyasint,omitempty"`
	Service string   `cbor:"9,keyasint,omitempty"`
	Argv    []string `cbor:"10,keyasint,omitempty"`
	TTY     bool     `cbor:"11,keyasint,omitempty"`
	Size    Size     `cbor:"12,keyasint,omitempty"`
	Follow  bool     `cbor:"13,keyasint,omitempty"`
	// Tail is the number of lines from the end; negative is all that is kept.
	Tail int    `cbor:"14,keyasint,omitempty"`
	Port uint16 `cbor:"15,keyasint,omitempty"`
	// Nonce is what a TPM is to sign: 32 bytes.
	Nonce []byte `cbor:"16,keyasint,omitempty"`
	// Line names a card by what the box's kernel has for it: "rshim0".
	Line string `cbor:"17,keyasint,omitempty"`
}

// lineName is what a DPU's RShim is called on its host; it becomes part of a path.
var lineName = pattern.New(`^rshim[0-9]{1,2}$`)

// aad binds the signature to its use: a manifest or acknowledgement can never pass
// for a command.
var aad = []byte("tributary/command/1")

var decMode = func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 4, MaxArrayElements: 256, MaxMapPairs: 64,
	}.DecMode()
	if err != nil {
		panic(err) // constant options: a fault in this file
	}
	return m
}()

var encMode = func() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// Check reports whether the arguments fit the verb.
func (c *Command) Check() error {
	needApp := func() error {
		if c.App == "" || len(c.App) > 63 || len(c.Service) > 63 {
			return &api.Error{Code: api.Invalid, Field: "app", Message: "names no app", Remedy: "give APP or APP/SERVICE"}
		}
		return nil
	}
	switch c.Verb {
	case Top, Console:
		return nil
	case Line:
		if !lineName.MatchString(c.Line) { // check: line
			return &api.Error{Code: api.Invalid, Field: "line", Message: "names no card", Remedy: "write rshim0, or as /dev of the box has it"}
		}
		return nil
	case Attest:
		if len(c.Nonce) != 32 {
			return api.Errorf(api.Invalid, "a nonce of %d bytes", len(c.Nonce))
		}
		return nil
	case Logs:
		return needApp()
	case Exec:
		if len(c.Argv) == 0 {
			return &api.Error{Code: api.Invalid, Field: "argv", Message: "names no command to run", Remedy: "put it after --"}
		}
		return needApp()
	case Forward:
		if c.Port == 0 {
			return &api.Error{Code: api.Invalid, Field: "port", Message: "names no port", Remedy: "give LOCAL:REMOTE"}
		}
		return needApp()
	}
	return api.Errorf(api.Invalid, "%q is no verb that this version knows", c.Verb)
}

// Sign encodes and signs c with the core's online signing key (P-256).
func (c *Command) Sign(signer crypto.Signer) ([]byte, error) {
	pub, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, api.Errorf(api.Internal, "the signing key is no ECDSA key")
	}
	payload, err := encMode.Marshal(c)
	if err != nil {
		return nil, err
	}
	raw, err := identity.SignKID(signer, identity.KID(pub), aad, payload)
	if err == nil && len(raw) > MaxCommand {
		return nil, api.Errorf(api.TooLarge, "the command takes %d bytes, more than %d", len(raw), MaxCommand)
	}
	return raw, err
}

// Verify opens a signed command and decides whether device self may act on it at
// now: signed by one of keys (identity.Trust), addressed to self, in its time, never
// seen. It fails with api.Error of code Forbidden, TooLarge or Invalid. Safe from many
// goroutines; verifying the same command twice fails the second time.
func Verify(raw []byte, keys identity.Keys, self api.DeviceID, now time.Time, seen *Replay) (*Command, error) {
	if len(raw) > MaxCommand {
		return nil, api.Errorf(api.TooLarge, "a command of %d bytes", len(raw))
	}
	payload, err := identity.VerifyBy(keys, raw, aad)
	if err != nil {
		return nil, &api.Error{Code: api.Forbidden, Message: "a command that the core did not sign", Err: err}
	}
	c, err := decodeCommand(payload)
	if err != nil {
		return nil, err
	}
	if c.Device != self {
		return nil, api.Errorf(api.Forbidden, "a command for device %s", c.Device)
	}
	issued, expires := time.Unix(c.Issued, 0), time.Unix(c.Expires, 0)
	switch {
	case expires.Sub(issued) > MaxLife || expires.Before(issued):
		return nil, api.Errorf(api.Forbidden, "a command valid for %s", expires.Sub(issued))
	case now.After(expires):
		return nil, api.Errorf(api.Forbidden, "a command that expired %s ago", now.Sub(expires).Round(time.Second))
	case issued.Sub(now) > Skew:
		return nil, api.Errorf(api.Forbidden, "a command from %s ahead of this clock", issued.Sub(now).Round(time.Second))
	}
	if !seen.admit(c.Session, expires, now) {
		return nil, api.Errorf(api.Forbidden, "a command seen before")
	}
	return c, c.Check()
}

func decodeCommand(payload []byte) (*Command, error) {
	c := &Command{}
	if err := decMode.Unmarshal(payload, c); err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: "a command that does not decode", Err: err}
	}
	if c.Version != 1 {
		return nil, api.Errorf(api.Invalid, "a command of version %d", c.Version)
	}
	return c, nil
}

// Replay remembers the sessions of unexpired commands. The zero value is ready.
// After a restart it is empty: a command of the last MaxLife could then be played
// once more, and the core would refuse its session.
type Replay struct {
	mu   sync.Mutex
	seen map[SessionID]time.Time
}

// maxReplay bounds the memory; past it new commands are refused until old ones expire.
const maxReplay = 4096

func (r *Replay) admit(s SessionID, expires, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, dup := r.seen[s]; dup {
		return false
	}
	for id, t := range r.seen {
		if now.After(t) {
			delete(r.seen, id)
		}
	}
	if len(r.seen) >= maxReplay {
		return false
	}
	if r.seen == nil {
		r.seen = map[SessionID]time.Time{}
	}
	r.seen[s] = expires
	return true
}

// Path is where the device dials for the session.
func (s SessionID) Path() string { return fmt.Sprintf("%s%s", PathPrefix, s) }

// PathPrefix is where relays and the core serve streams.
const PathPrefix = "/stream/v1/"
