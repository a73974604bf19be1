package api

import (
	"encoding/json"
	"fmt"
	"time"
)

// Duration is a time.Duration that reads and writes as "90s" or "1h30m" in JSON and YAML.
type Duration time.Duration

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a duration is text such as \"90s\": %w", err)
	}
	v, err := time.ParseDuration(s)
	*d = Duration(v)
	return err
}

// RecordKind classes a record. Usage is never dropped; when the spool is full the
// oldest telemetry goes first, then events, then audit is summed up.
type RecordKind uint8

// The kinds of record.
const (
	RecordUsage     RecordKind = 1 // CBOR Usage
	RecordEvent     RecordKind = 2 // CBOR Event
	RecordAudit     RecordKind = 3 // CBOR Event
	RecordTelemetry RecordKind = 4 // free
)

// Usage is what the containers of one device used in one interval. Intervals of a
// device neither overlap nor leave a gap while edged knows the container.
type Usage struct {
	// From and To are Unix milliseconds by the device's clock.
	From int64          `cbor:"1,keyasint" json:"from"`
	To   int64          `cbor:"2,keyasint" json:"to"`
	Uses []ContainerUse `cbor:"3,keyasint" json:"uses"`
	// Cut says that To is a cut point: midnight where the tenant is, a change of tenant, a
	// close on order. What is summed up never goes across one.
	Cut bool `cbor:"4,keyasint,omitempty" json:"cut,omitempty"`
}

// ContainerUse is the use of one service of one app within the interval.
type ContainerUse struct {
	App     string `cbor:"1,keyasint" json:"app"`
	Service string `cbor:"2,keyasint" json:"service"`
	// RunMillis is how long a container of the service ran.
	RunMillis uint64 `cbor:"3,keyasint,omitempty" json:"runMillis"`
	// CPUMicros is processor time.
	CPUMicros uint64 `cbor:"4,keyasint,omitempty" json:"cpuMicros"`
	// MemoryByteSeconds is the integral of memory in use.
	MemoryByteSeconds uint64 `cbor:"5,keyasint,omitempty" json:"memoryByteSeconds"`
	// RxBytes and TxBytes crossed the container's own network interfaces.
	RxBytes uint64 `cbor:"6,keyasint,omitempty" json:"rxBytes"`
	TxBytes uint64 `cbor:"7,keyasint,omitempty" json:"txBytes"`
	// Accelerator is what it used of cards and slices that it holds.
	Accelerator AcceleratorUse `cbor:"8,keyasint,omitzero" json:"accelerator,omitzero"`
	// More is what further meters counted, by meter and class ("vf", "network.rx/cellular"; see
	// MeterKey), in their base units. Classes of network bytes are parts of RxBytes and TxBytes.
	More map[string]uint64 `cbor:"9,keyasint,omitempty" json:"more,omitempty"`
}

// Empty reports whether nothing was used.
func (c *ContainerUse) Empty() bool {
	return c.RunMillis|c.CPUMicros|c.MemoryByteSeconds|c.RxBytes|c.TxBytes == 0 && c.Accelerator == (AcceleratorUse{}) && len(c.More) == 0
}

// MeterKey names a meter and the class that divides it, as ContainerUse.More does.
func MeterKey(meter, class string) string {
	if class == "" {
		return meter
	}
	return meter + "/" + class
}

// AcceleratorUse is what a service used of accelerators.
type AcceleratorUse struct {
	// HeldMillis is how long it held cards or slices, each by itself; SliceMillis the same
	// times the compute slices of each (a card that is not cut is one).
	HeldMillis  uint64 `cbor:"1,keyasint,omitempty" json:"heldMillis,omitempty"`
	SliceMillis uint64 `cbor:"2,keyasint,omitempty" json:"sliceMillis,omitempty"`
	// MemoryMiBSeconds is the integral of the card's memory in use.
	MemoryMiBSeconds uint64 `cbor:"3,keyasint,omitempty" json:"memoryMiBSeconds,omitempty"`
	// BusyMillis is how long something ran on them, of the time for which they tell;
	// UnknownMillis is the time for which they do not.
	BusyMillis    uint64 `cbor:"4,keyasint,omitempty" json:"busyMillis,omitempty"`
	UnknownMillis uint64 `cbor:"5,keyasint,omitempty" json:"unknownMillis,omitempty"`
	// EnergyMillijoules is its part of what the cards drew.
	EnergyMillijoules uint64 `cbor:"6,keyasint,omitempty" json:"energyMillijoules,omitempty"`
}

// AddTo adds the counters to others.
func (u *AcceleratorUse) AddTo(sum *AcceleratorUse) {
	more := u.Fields()
	for i, n := range sum.Fields() {
		*n += *more[i]
	}
}

// Fields lists the counters, in their order on the wire.
func (u *AcceleratorUse) Fields() [6]*uint64 {
	return [6]*uint64{&u.HeldMillis, &u.SliceMillis, &u.MemoryMiBSeconds, &u.BusyMillis, &u.UnknownMillis, &u.EnergyMillijoules}
}

// EventAnomaly is the name of an event that tells of a number of the box (its subject) that is odd.
const EventAnomaly = "anomaly.found"

// Event is something that happened, for people to read.
type Event struct {
	// Time is Unix milliseconds by the device's clock.
	Time    int64  `cbor:"1,keyasint" json:"time"`
	Name    string `cbor:"2,keyasint" json:"name"` // e.g. "app.started", "exec.opened"
	Subject string `cbor:"3,keyasint,omitempty" json:"subject,omitempty"`
	Message string `cbor:"4,keyasint,omitempty" json:"message,omitempty"`
	Actor   string `cbor:"5,keyasint,omitempty" json:"actor,omitempty"`
}
