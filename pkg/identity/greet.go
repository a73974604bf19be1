package identity

import (
	"encoding/json"

	"tributary.dev/tributary/pkg/api"
)

// GreetPrefix is where relays pass on what boxes without an owner ask, under it the name of
// an operation of RFC 8572: POST with a Greeting, answered as the box would be.
const GreetPrefix = "/greet/v1/"

// GreetExpected is, in an operation's place, a relay's own question for what it may tell
// boxes while its parent is away: a Greeting without a chain, answered by an Ahead.
const GreetExpected = "expected"

// MaxGreeting bounds it in bytes.
const MaxGreeting = 64 << 10

// Greeting is a box's question, of which a relay vouches that the box has the key of the
// certificate that it showed. A relay that lies learns what is no secret, and a box
// believes nothing for its sake.
type Greeting struct {
	Chain [][]byte `json:"chain"` // DER, the box's own first
	Hint  string   `json:"hint,omitempty"`
	Input []byte   `json:"input,omitempty"`
	// Kind is the media type of Input, Accept what the box takes; RESTCONF's JSON where they are empty.
	Kind   string `json:"kind,omitempty"`
	Accept string `json:"accept,omitempty"`
	// Attach is where the box reaches the relay: before all other parents.
	Attach []api.ParentRef `json:"attach,omitempty"`
}

// Ahead is what a relay keeps for boxes that are expected and have not come yet.
type Ahead struct {
	Boxes map[string]AheadBox `json:"boxes"` // by serial number
	// Makers are the manufacturers whose births count, DER: by them the relay knows the boxes
	// that may fetch what their first apps need.
	Makers [][]byte `json:"makers,omitempty"`
}

// AheadBox is one of them: what it is told, and what that names.
type AheadBox struct {
	Answer json.RawMessage `json:"answer"`
	Refs   []AheadRef      `json:"refs,omitempty"`
}

// AheadRef names an artifact.
type AheadRef struct {
	Repo   string `json:"repo"`
	Digest string `json:"digest"`
	Size   int64  `json:"size,omitempty"`
}
