package api

// Inventory is what a box is made of, as its kernel sees it now. It holds no value that
// changes while nothing happens: temperatures, clock rates and counters stay on the box,
// only what follows from them is told (a sensor's state, a disk's wear). Lists are in the
// order of their names or addresses.
type Inventory struct {
	PCI []PCIFunction `json:"pci,omitempty"`
	// NetDevices are network interfaces of hardware, virtual functions and representors
	// included, as far as they are in the box's own network namespace.
	NetDevices []NetDevice `json:"netDevices,omitempty"`
	// Cards tell of network cards that watch themselves.
	Cards        []CardHealth  `json:"cards,omitempty"`
	Accelerators []Accelerator `json:"accelerators,omitempty"`
	CPU          *CPU          `json:"cpu,omitempty"`
	// Nodes are those of NUMA; a machine without has one.
	Nodes     []Node       `json:"nodes,omitempty"`
	Disks     []Disk       `json:"disks,omitempty"`
	TPMs      []TPMDevice  `json:"tpms,omitempty"`
	Watchdogs []Watchdog   `json:"watchdogs,omitempty"`
	Sensors   []SensorChip `json:"sensors,omitempty"`
	// Claims are what services can claim of all this, and who holds it.
	Claims []DeviceUse `json:"claims,omitempty"`
	// Flows tell how the rules of flow policies stand; their counters may be some minutes old.
	Flows []FlowState `json:"flows,omitempty"`
	// Cut names the lists that were longer than is kept.
	Cut []string `json:"cut,omitempty"`
}

// PCIFunction is one function on a PCI bus.
type PCIFunction struct {
	// Address is domain:bus:device.function in hexadecimal: "0000:03:00.1".
	Address string `json:"address" cbor:"-"`
	// Bridge is the address of the bridge that leads to it; empty on a root bus.
	Bridge string `json:"bridge,omitempty" cbor:"-"`
	// ID is vendor:device, Class the base class, subclass and programming interface: "020000".
	ID     string `json:"id" cbor:"1,keyasint"`
	Class  string `json:"class" cbor:"2,keyasint"`
	Driver string `json:"driver,omitempty" cbor:"3,keyasint,omitempty"`
	// Node is the NUMA node that it is near to; nil where the firmware does not say.
	Node *int `json:"node,omitempty" cbor:"4,keyasint,omitempty"`
	// IOMMUGroup is what it is isolated with; nil without an IOMMU.
	IOMMUGroup *int `json:"iommuGroup,omitempty" cbor:"5,keyasint,omitempty"`
	// Physical is the address of the physical function that this virtual one is of.
	Physical string `json:"physical,omitempty" cbor:"6,keyasint,omitempty"`
	// VirtualFunctions are made now, of MaxVirtualFunctions that it could have.
	VirtualFunctions    int `json:"virtualFunctions,omitempty" cbor:"7,keyasint,omitempty"`
	MaxVirtualFunctions int `json:"maxVirtualFunctions,omitempty" cbor:"8,keyasint,omitempty"`
	// Width and MaxWidth are lanes: fewer than both ends could have tell of a bad seat.
	// MaxSpeed is in MT/s per lane.
	Width    int `json:"width,omitempty" cbor:"9,keyasint,omitempty"`
	MaxWidth int `json:"maxWidth,omitempty" cbor:"10,keyasint,omitempty"`
	MaxSpeed int `json:"maxSpeed,omitempty" cbor:"11,keyasint,omitempty"`
}

// NetDevice is a network interface of hardware.
type NetDevice struct {
	Name   string `json:"name" cbor:"-"`
	MAC    string `json:"mac,omitempty" cbor:"1,keyasint,omitempty"`
	Driver string `json:"driver,omitempty" cbor:"2,keyasint,omitempty"`
	// PCI is the address of the function that it is on; empty for USB and platform devices.
	PCI  string `json:"pci,omitempty" cbor:"3,keyasint,omitempty"`
	Node *int   `json:"node,omitempty" cbor:"4,keyasint,omitempty"`
	// Firmware is the card's own, as the driver tells it.
	Firmware string `json:"firmware,omitempty" cbor:"5,keyasint,omitempty"`
	// Eswitch is the mode of the card's switch: legacy or switchdev.
	Eswitch string `json:"eswitch,omitempty" cbor:"6,keyasint,omitempty"`
	// Switch and SwitchPort name a port of that switch: "pf0vf1" for the representor of a
	// virtual function.
	Switch     string `json:"switch,omitempty" cbor:"7,keyasint,omitempty"`
	SwitchPort string `json:"switchPort,omitempty" cbor:"8,keyasint,omitempty"`
	// Offloads are those features of the card that matter to apps and are on.
	Offloads []string `json:"offloads,omitempty" cbor:"9,keyasint,omitempty"`
	// PTP is the card's hardware clock: "ptp0"; empty where it has none.
	PTP string `json:"ptp,omitempty" cbor:"10,keyasint,omitempty"`
	MTU int    `json:"mtu,omitempty" cbor:"11,keyasint,omitempty"`
	// Physical is the address of the physical function, of a virtual function's interface.
	Physical string `json:"physical,omitempty" cbor:"12,keyasint,omitempty"`
	// Link is what changes most, and crosses the wire by itself.
	Link Link `json:"link" cbor:"-"`
}

// Link is how an interface is connected.
type Link struct {
	// State is up, down (no cable, or the other end is off) or off (not in use).
	State string `json:"state" cbor:"1,keyasint"`
	// Speed is in Mbit/s; 0 when the driver does not tell.
	Speed int `json:"speed,omitempty" cbor:"2,keyasint,omitempty"`
	// Half says that only one end speaks at a time: the ends did not agree.
	Half bool `json:"half,omitempty" cbor:"3,keyasint,omitempty"`
}

// The states of a link.
const (
	LinkUp   = "up"
	LinkDown = "down"
	LinkOff  = "off"
)

// CardHealth is how a card is by its own word (devlink health).
type CardHealth struct {
	// Card is as devlink names it: "pci/0000:03:00.0".
	Card      string           `json:"card" cbor:"-"`
	Reporters []HealthReporter `json:"reporters,omitempty" cbor:"1,keyasint,omitempty"`
	// ResetFailed says that its driver began anew and failed: the card does nothing.
	ResetFailed bool `json:"resetFailed,omitempty" cbor:"2,keyasint,omitempty"`
}

// HealthReporter is one of a card's watchers, such as its firmware's.
type HealthReporter struct {
	Name string `json:"name" cbor:"1,keyasint"`
	// Interface is the port's that it watches; empty for all of the card.
	Interface string `json:"interface,omitempty" cbor:"2,keyasint,omitempty"`
	// Failed says that what it watches has failed and is not mended; Errors and Recoveries are counted since its
	// driver began.
	Failed     bool   `json:"failed,omitempty" cbor:"3,keyasint,omitempty"`
	Errors     uint64 `json:"errors,omitempty" cbor:"4,keyasint,omitempty"`
	Recoveries uint64 `json:"recoveries,omitempty" cbor:"5,keyasint,omitempty"`
}

// What says for people what it watches: "tx of eth0".
func (r HealthReporter) What() string {
	if r.Interface == "" {
		return r.Name
	}
	return r.Name + " of " + r.Interface
}

// State says for people how that is.
func (r HealthReporter) State() string {
	if r.Failed {
		return "failed"
	}
	return "well"
}

// CPU is all processors together; CPU lists are in the kernel's form: "0-3,8".
type CPU struct {
	Model   string `json:"model,omitempty" cbor:"1,keyasint,omitempty"`
	Sockets int    `json:"sockets,omitempty" cbor:"2,keyasint,omitempty"`
	Cores   int    `json:"cores,omitempty" cbor:"3,keyasint,omitempty"`
	Threads int    `json:"threads,omitempty" cbor:"4,keyasint,omitempty"`
	Online  string `json:"online,omitempty" cbor:"5,keyasint,omitempty"`
	Offline string `json:"offline,omitempty" cbor:"6,keyasint,omitempty"`
	// Isolated are left alone by the scheduler; NoHZ have no clock tick while one task runs.
	Isolated string `json:"isolated,omitempty" cbor:"7,keyasint,omitempty"`
	NoHZ     string `json:"nohz,omitempty" cbor:"8,keyasint,omitempty"`
	// MinMHz and MaxMHz bound the clock rate as it is set now; BaseMHz is what the maker
	// promises at full load.
	MinMHz   int    `json:"minMHz,omitempty" cbor:"9,keyasint,omitempty"`
	MaxMHz   int    `json:"maxMHz,omitempty" cbor:"10,keyasint,omitempty"`
	BaseMHz  int    `json:"baseMHz,omitempty" cbor:"11,keyasint,omitempty"`
	Governor string `json:"governor,omitempty" cbor:"12,keyasint,omitempty"`
	Driver   string `json:"driver,omitempty" cbor:"13,keyasint,omitempty"`
	// Siblings are the threads that share a core, where more than one does: "0,4", one entry a core.
	Siblings []string `json:"siblings,omitempty" cbor:"14,keyasint,omitempty"`
	// RealTime says that the kernel is fully preemptible.
	RealTime bool `json:"realTime,omitempty" cbor:"15,keyasint,omitempty"`
}

// Node is one NUMA node.
type Node struct {
	ID        int    `json:"id" cbor:"1,keyasint"`
	CPUs      string `json:"cpus,omitempty" cbor:"2,keyasint,omitempty"`
	MemoryMiB int64  `json:"memoryMiB,omitempty" cbor:"3,keyasint,omitempty"`
	// HugePages are those set aside, used or not.
	HugePages []HugePages `json:"hugePages,omitempty" cbor:"4,keyasint,omitempty"`
	// Distances are to each node, in the order of the nodes; 10 is its own.
	Distances []int `json:"distances,omitempty" cbor:"5,keyasint,omitempty"`
}

// HugePages is a number of pages of one size.
type HugePages struct {
	SizeKiB int64 `json:"sizeKiB" cbor:"1,keyasint"`
	Count   int64 `json:"count" cbor:"2,keyasint"`
}

// Disk is one block device of hardware.
type Disk struct {
	Name string `json:"name" cbor:"-"`
	// Bus is nvme, sata, scsi, usb, mmc, virtio or empty.
	Bus        string `json:"bus,omitempty" cbor:"1,keyasint,omitempty"`
	Model      string `json:"model,omitempty" cbor:"2,keyasint,omitempty"`
	Serial     string `json:"serial,omitempty" cbor:"3,keyasint,omitempty"`
	Firmware   string `json:"firmware,omitempty" cbor:"4,keyasint,omitempty"`
	Bytes      int64  `json:"bytes,omitempty" cbor:"5,keyasint,omitempty"`
	Rotational bool   `json:"rotational,omitempty" cbor:"6,keyasint,omitempty"`
	Removable  bool   `json:"removable,omitempty" cbor:"7,keyasint,omitempty"`
	ReadOnly   bool   `json:"readOnly,omitempty" cbor:"8,keyasint,omitempty"`
	PCI        string `json:"pci,omitempty" cbor:"9,keyasint,omitempty"`
	Node       *int   `json:"node,omitempty" cbor:"10,keyasint,omitempty"`
	// Wear is how much of its life is used, in percent; it may pass 100. Nil where the disk does not tell.
	Wear *int `json:"wear,omitempty" cbor:"11,keyasint,omitempty"`
	// Spare is what is left of the blocks in reserve, in percent.
	Spare *int `json:"spare,omitempty" cbor:"12,keyasint,omitempty"`
	// MediaErrors counts data that could not be kept whole.
	MediaErrors int64 `json:"mediaErrors,omitempty" cbor:"13,keyasint,omitempty"`
	// Faults is what the disk complains of, in words; a state that is not its working one included.
	Faults []string `json:"faults,omitempty" cbor:"14,keyasint,omitempty"`
}

// TPMDevice is a trusted platform module.
type TPMDevice struct {
	Name    string `json:"name" cbor:"1,keyasint"`
	Version string `json:"version,omitempty" cbor:"2,keyasint,omitempty"`
	// Device is where it is: a name of ACPI, a bus address.
	Device string `json:"device,omitempty" cbor:"3,keyasint,omitempty"`
}

// Watchdog resets a box that hangs.
type Watchdog struct {
	Name     string `json:"name" cbor:"1,keyasint"`
	Identity string `json:"identity,omitempty" cbor:"2,keyasint,omitempty"`
	// Timeout is in seconds.
	Timeout int  `json:"timeout,omitempty" cbor:"3,keyasint,omitempty"`
	Active  bool `json:"active,omitempty" cbor:"4,keyasint,omitempty"`
	// Fired says that the box starts anew because of it.
	Fired bool `json:"fired,omitempty" cbor:"5,keyasint,omitempty"`
}

// SensorChip is a chip of sensors.
type SensorChip struct {
	// ID tells chips apart: the chip's name and the device that it is on.
	ID      string   `json:"id" cbor:"-"`
	Sensors []Sensor `json:"sensors,omitempty" cbor:"1,keyasint,omitempty"`
}

// Sensor is one of them. Its value stays on the box, where Value has it: in thousandths of
// a degree Celsius, volt or ampere, millionths of a watt, or turns a minute.
type Sensor struct {
	Label string `json:"label" cbor:"1,keyasint"`
	// Kind is temperature, fan, voltage, current or power.
	Kind string `json:"kind" cbor:"2,keyasint"`
	// State is empty while all is well; else high, low, critical, fault or alarm.
	State string `json:"state,omitempty" cbor:"3,keyasint,omitempty"`
	// High and Critical are its own limits, in Value's unit; 0 for none.
	High     int64  `json:"high,omitempty" cbor:"4,keyasint,omitempty"`
	Critical int64  `json:"critical,omitempty" cbor:"5,keyasint,omitempty"`
	Value    *int64 `json:"value,omitempty" cbor:"-"`
}
