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
	// Attach is where the box reaches the relay: before all other parents. The first tells which
	// relay it is.
	Attach []api.ParentRef `json:"attach,omitempty"`
	// Page asks for expected boxes in pages: of serial numbers after it in the order of bytes.
	Page *AheadPage `json:"page,omitempty"`
}

// AheadPage is where a relay goes on that asks for what expected boxes are told.
type AheadPage struct {
	After string `json:"after"`
	// Have are the tags of what the relay has of boxes after that, the first of them: what is still
	// the same is not sent again.
	Have map[string]string `json:"have,omitempty"`
}

// AheadBoxes bounds the boxes of a page, and AheadBytes what is told of them.
const (
	AheadBoxes = 64
	AheadBytes = 256 << 10
)

// Ahead is what a relay keeps for boxes that are expected and have not come yet.
type Ahead struct {
	Boxes map[string]AheadBox `json:"boxes"` // by serial number
	// Same are those of the page of which the relay has the newest. Up to Next, or to the end
	// where that is empty, there are no others.
	Same []string `json:"same,omitempty"`
	Next string   `json:"next,omitempty"`
	// Makers are the manufacturers whose births count, DER: by them the relay knows the boxes
	// that may fetch what their first apps need.
	Makers [][]byte `json:"makers,omitempty"`
}

// AheadBox is one of them: what it is told, and what that names.
type AheadBox struct {
	// Tag is another one when the rest is.
	Tag    string          `json:"tag,omitempty"`
	Answer json.RawMessage `json:"answer"`
	Refs   []AheadRef      `json:"refs,omitempty"`
}

// AheadRef names an artifact.
type AheadRef struct {
	Repo   string `json:"repo"`
	Digest string `json:"digest"`
	Size   int64  `json:"size,omitempty"`
}
