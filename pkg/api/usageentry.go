package api

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// UsageEntry is one quantity of one meter that one workload used, as invoices are made of:
// with the tenant, site, fleet and labels that were in force when it was used. An entry
// never changes, but what is late becomes entries of its own.
type UsageEntry struct {
	// ID is unique and leads to what the entry came from: "r/DEVICE/EPOCH/SEQ/N" is the Nth
	// entry of record SEQ of a device's spool epoch, "e/SOURCE/ID" a CloudEvent.
	ID string `json:"id"`
	// Tenant, Device and App are uids, but for the tenants without an object (PlatformTenant,
	// DefaultTenant), which are their names. Device and App are empty where outside usage has none.
	Tenant string `json:"tenant"`
	Device string `json:"device,omitempty"`
	App    string `json:"app,omitempty"`
	// TenantName, DeviceName and AppName are what people called them then.
	TenantName string            `json:"tenantName"`
	DeviceName string            `json:"deviceName,omitempty"`
	AppName    string            `json:"appName,omitempty"`
	Service    string            `json:"service,omitempty"`
	Site       string            `json:"site,omitempty"`
	Fleet      string            `json:"fleet,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	// Meter is what was used: one of Meters, or a name that outside usage brought.
	Meter string `json:"meter"`
	// Class divides a meter where its parts may cost differently, such as the class of link
	// of network bytes; empty where nothing divides it.
	Class string `json:"class,omitempty"`
	// Quantity is in Unit, the meter's base unit: a whole number, so that sums are exact. A
	// correction from outside may be negative.
	Unit     string `json:"unit"`
	Quantity int64  `json:"quantity"`
	// From and To are the interval of use, [From, To), UTC. It crosses no UTC hour and no cut
	// point but where it is Coarse: the device summed up what it had no room for, within a day
	// of the tenant's.
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	Coarse bool      `json:"coarse,omitempty"`
	// Received is when the core counted it, by its own clock.
	Received time.Time `json:"received"`
}

// UsageGap is a time of which is not known what was used: it blocks invoices until a person decides.
type UsageGap struct {
	Tenant     string    `json:"tenant"` // uid, as in UsageEntry
	Device     string    `json:"device"` // uid
	DeviceName string    `json:"deviceName"`
	From       time.Time `json:"from"`
	To         time.Time `json:"to"`
	Why        string    `json:"why"` // one of the GapWhy
}

// Why there is a gap.
const (
	GapAway    = "away"    // nothing came from the device for this time, and may yet come
	GapLost    = "lost"    // the device says that records of this time are lost
	GapCoarse  = "coarse"  // an interval is summed across an hour: its parts are not known
	GapUnknown = "unknown" // a record of this time could not be read
)

// Meter is a thing that devices measure, and the unit that its entries count.
type Meter struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	Says string `json:"says"`
}

// The meters of devices.
const (
	MeterRuntime   = "runtime"
	MeterCPU       = "cpu"
	MeterMemory    = "memory"
	MeterStorage   = "storage"
	MeterNetworkRx = "network.rx"
	MeterNetworkTx = "network.tx"
	MeterGPUHeld   = "gpu.held"
	MeterGPUSlice  = "gpu.slice"
	MeterGPUMemory = "gpu.memory"
	MeterGPUBusy   = "gpu.busy"
	MeterVF        = "vf"
	MeterEnergy    = "energy"
	MeterInference = "inferences"
)

var meters = []Meter{
	{MeterRuntime, "ms", "how long containers ran"},
	{MeterCPU, "us", "processor time"},
	{MeterMemory, "B.s", "memory in use, over time"},
	{MeterStorage, "B.s", "disk in use by volumes and by what containers wrote, over time"},
	{MeterNetworkRx, "B", "bytes received, by class of the link in use"},
	{MeterNetworkTx, "B", "bytes sent, by class of the link in use"},
	{MeterGPUHeld, "ms", "how long cards or slices were held, each by itself"},
	{MeterGPUSlice, "ms", "the same, times the compute slices of each"},
	{MeterGPUMemory, "MiB.s", "memory of cards in use, over time"},
	{MeterGPUBusy, "ms", "how long something ran on cards or slices"},
	{MeterVF, "ms", "how long virtual functions were held, each by itself"},
	{MeterEnergy, "mJ", "energy that cards drew"},
	{MeterInference, "1", "inferences that were answered"},
}

// Meters lists the meters of devices with their base units.
func Meters() []Meter { return slices.Clone(meters) }

// MeterUnit is the base unit of a device's meter; empty for a name that is none.
func MeterUnit(name string) string {
	for i := range meters {
		if meters[i].Name == name {
			return meters[i].Unit
		}
	}
	return ""
}

// RecordEntryID names the Nth entry of a device's record.
func RecordEntryID(device DeviceID, epoch, seq uint64, n int) string {
	return "r/" + device.String() + "/" + strconv.FormatUint(epoch, 10) + "/" + strconv.FormatUint(seq, 10) + "/" + strconv.Itoa(n)
}

// ParseRecordEntryID reads what RecordEntryID wrote.
func ParseRecordEntryID(id string) (device DeviceID, epoch, seq uint64, n int, err error) {
	bad := &Error{Code: Invalid, Message: strconv.Quote(id) + " names no record", Remedy: "give an id of `edgectl usage entries`, such as r/DEVICE/EPOCH/SEQ/N"}
	parts := strings.Split(id, "/")
	if len(parts) != 5 || parts[0] != "r" {
		return device, 0, 0, 0, bad
	}
	if device, err = ParseDeviceID(parts[1]); err != nil {
		return device, 0, 0, 0, err
	}
	epoch, err1 := strconv.ParseUint(parts[2], 10, 63)
	seq, err2 := strconv.ParseUint(parts[3], 10, 63)
	n, err3 := strconv.Atoi(parts[4])
	if err1 != nil || err2 != nil || err3 != nil || n < 0 || RecordEntryID(device, epoch, seq, n) != id {
		return device, 0, 0, 0, bad
	}
	return device, epoch, seq, n, nil
}

// EventEntryID names the entry of a CloudEvent by its source and id. The source is quoted so
// that each pair has one name.
func EventEntryID(source, id string) string {
	return "e/" + strings.NewReplacer("%", "%25", "/", "%2F").Replace(source) + "/" + id
}
