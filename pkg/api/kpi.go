package api

// KPI sums up readings of one quantity of a device over an interval. It is the payload of a
// telemetry record.
type KPI struct {
	// Name is what was read, Unit in what: "ptp.offset" in "ns" is how far the device's clock is from the one that
	// it follows.
	Name string `cbor:"1,keyasint" json:"name"`
	Unit string `cbor:"2,keyasint" json:"unit"`
	// From and To are Unix milliseconds by the device's clock.
	From int64 `cbor:"3,keyasint" json:"from"`
	To   int64 `cbor:"4,keyasint" json:"to"`
	// Count readings were taken; Missing more could not be, since there was nothing to read.
	Count   uint64 `cbor:"5,keyasint" json:"count"`
	Missing uint64 `cbor:"6,keyasint,omitempty" json:"missing,omitempty"`
	// Min, Max and Mean are of the readings, RMS is the root of the mean of their squares. Zero without readings.
	Min  int64 `cbor:"7,keyasint,omitempty" json:"min"`
	Max  int64 `cbor:"8,keyasint,omitempty" json:"max"`
	Mean int64 `cbor:"9,keyasint,omitempty" json:"mean"`
	RMS  int64 `cbor:"10,keyasint,omitempty" json:"rms"`
}
