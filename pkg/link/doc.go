// Package link answers: how do a core, its relays and its devices stay of one mind
// over links that lose, repeat and stop?
//
// Three state machines without clocks, goroutines or sockets: Device (a box's own
// state, manifest and records), Relay (a box's place in the tree: its own device and
// everything below it), and Core (the root). Inputs are frames, sessions that come
// and go, local changes, and ticks; outputs are Effects: things to commit, then frames
// to send. Endpoint and CoreEndpoint run them over an Uplink and a Downlink.
package link

// Bounds of what the link takes from anyone.
const (
	MaxKey     = 255        // bytes of a reported key
	MaxValue   = 64 << 10   // bytes of a reported value
	MaxEntries = 4096       // reported keys of one device, tombstones included
	MaxFrame   = 1280 << 10 // bytes of a frame on the wire (a manifest has up to 1 MiB)
	MaxBody    = 4 << 20    // bytes of a frame once decompressed
	MaxNesting = 8          // levels of CBOR in a frame
	MaxDepth   = 16         // hops of the tree
)
