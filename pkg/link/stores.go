package link

import (
	"crypto"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/manifest"
)

// MACSize is the length of an entry's MAC on the wire.
const MACSize = 8

// Entry is one key of a device's reported state. The device alone writes it; relays
// carry it as it is; the core checks the MAC.
type Entry struct {
	Key string
	// Value is free for the owner of the key (CBOR by convention); at most MaxValue.
	// It is nil when Deleted.
	Value []byte
	// Seq is the device's state counter at the change.
	Seq uint64
	// MAC is HMAC-SHA256 under the state key, cut to MACSize (see StateMAC).
	MAC [MACSize]byte
	// Deleted marks a tombstone.
	Deleted bool
	// Extra are further fields, CBOR each, carried untouched. The first is the proof of
	// the whole (see whole).
	Extra []byte
}

// Store keeps a device's or a relay's own things: a map of byte strings in buckets.
// Implemented by OpenBolt, and in memory by MemStore.
type Store interface {
	// Load calls fn for each pair of a bucket, in the order of keys. The slices are
	// valid during the call. An absent bucket is empty.
	Load(bucket string, fn func(key, value []byte) error) error
	// Commit applies all of ops or none. When sync is set it returns only after they
	// are on the disk; without it they may come later, in the order of commits.
	Commit(ops []Op, sync bool) error
}

// DeviceStore and RelayStore are Stores; they may be one and the same.
type (
	DeviceStore = Store
	RelayStore  = Store
)

// Op sets a pair of a bucket, or removes it when Value is nil. With a nil Key it
// empties the bucket.
type Op struct {
	Bucket     string
	Key, Value []byte
}

// CoreStore is what the core keeps of its devices. All calls come from one goroutine.
// After an error the caller drops what it had in memory and starts again from Devices.
type CoreStore interface {
	// Devices calls fn for every device that the store knows.
	Devices(fn func(DeviceRow) error) error
	// ApplyState commits changes of reported state, all or none, before it returns.
	ApplyState(changes []StateChange) error
	// AcceptBatches verifies batches of records and commits those that extend their
	// device's chain, each record exactly once, before it returns. It gives one result
	// for each batch, in order. It is called with all batches that came in meanwhile,
	// so that they share a transaction.
	AcceptBatches(in []BatchIn) ([]BatchResult, error)
	// Position tells what is counted of a device's records; zero when nothing is.
	Position(dev api.DeviceID) (Position, error)
}

// DeviceRow is what the link needs to know of a device when the core starts.
type DeviceRow struct {
	Device api.DeviceID
	// Attachment is the newest one accepted, as it was signed; nil when there is none.
	Attachment []byte
	// Epoch and Seq are the newest reported state that was committed; Live are its keys.
	Epoch, Seq uint64
	Live       []LiveKey
}

// LiveKey is a reported key and the number of its last change.
type LiveKey struct {
	Key string
	Seq uint64
}

// StateChange is news of one device. After it the device's vector is Epoch, Seq.
type StateChange struct {
	Device     api.DeviceID
	Epoch, Seq uint64
	// Full means that Entries are all there is: whatever else is held of the device goes.
	// It is set with the first change of a new state epoch.
	Full bool
	// Entries are checked, and newer than what was committed before (the last writer
	// wins by Seq within an epoch).
	Entries []Entry
	// Quarantined did not pass the check of the MAC: set aside, shown to operators,
	// never believed.
	Quarantined []Entry
	// Attachment, when not nil, replaces the device's attachment; Parent is whom it
	// names (zero: the core itself).
	Attachment []byte
	Parent     api.DeviceID
}

// BatchIn is a batch of records as it came from a device (record.Seal).
type BatchIn struct {
	Device api.DeviceID
	Key    crypto.PublicKey
	Raw    []byte
}

// Verdict says what became of a batch.
type Verdict uint8

// The verdicts.
const (
	Accepted  Verdict = iota + 1 // counted now
	Duplicate                    // counted before
	Gap                          // does not follow what is counted; the device must go back
	Fork                         // other content under numbers that are counted: set aside, alarmed
	Poison                       // signed by the device, but unreadable: set aside and counted as seen
	Refused                      // not signed by the device, or not readable at all
)

// Position is how far a device's records are counted.
type Position struct {
	SpoolEpoch, Acked uint64
	Hash              record.Hash
	// Safe is the last record that a backup holds too.
	Safe uint64
}

// BatchResult is the outcome of one batch. Position is the device's after the whole call.
type BatchResult struct {
	Verdict  Verdict
	Position Position
	// Detail explains any verdict but Accepted and Duplicate.
	Detail string
}

// DeviceKeys is what a device can prove and check. KeysOf makes one of an identity.
type DeviceKeys interface {
	// Sign makes a COSE_Sign1 by the device's key.
	Sign(aad, payload []byte) ([]byte, error)
	// VerifyCore checks one by any of the core's signers.
	VerifyCore(cose, aad []byte) ([]byte, error)
	OpenManifest(raw []byte) (*manifest.Signed, error)
	// StateKey is shared with the core. It is asked for often.
	StateKey() ([32]byte, error)
}

// RelayKeys is what a relay can check of the devices below it.
type RelayKeys interface {
	// Certificate verifies a device's certificate (DER) and tells whose key it holds.
	Certificate(der []byte) (api.DeviceID, crypto.PublicKey, error)
	// Verify checks a COSE_Sign1 by one key.
	Verify(pub crypto.PublicKey, cose, aad []byte) ([]byte, error)
	OpenManifest(raw []byte) (*manifest.Signed, error)
}

// CoreKeys is what the core can prove and check.
type CoreKeys interface {
	// Device finds the public key of a device that may take part; false for unknown,
	// unapproved and retired ones.
	Device(id api.DeviceID) (crypto.PublicKey, bool)
	// StateKeys are shared with that device, the newest first: an earlier one until the device knows the newest. None for
	// an unknown device.
	StateKeys(id api.DeviceID) [][32]byte
	Verify(pub crypto.PublicKey, cose, aad []byte) ([]byte, error)
	// Sign makes a COSE_Sign1 by the core's signer, with its key id.
	Sign(aad, payload []byte) ([]byte, error)
}
