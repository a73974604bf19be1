package identity

import "tributary.dev/tributary/pkg/api"

// GreetPrefix is where relays pass on what boxes without an owner ask, under it the name of
// an operation of RFC 8572: POST with a Greeting, answered as the box would be.
const GreetPrefix = "/greet/v1/"

// GreetExpected is, in an operation's place, a relay's own question for what it may tell
// boxes while its parent is away: a Greeting without a chain, answered by a JSON object of
// answers by serial number.
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
	// Attach is where the box reaches the relay: before all other parents.
	Attach []api.ParentRef `json:"attach,omitempty"`
}
