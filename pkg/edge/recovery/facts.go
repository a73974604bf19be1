package recovery

import (
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Facts is what the box looks like at one moment. Whatever could not be learnt is zero and
// has its reason in Missing.
type Facts struct {
	Now      time.Time
	Uptime   time.Duration
	Hostname string
	Kernel   string
	Machine  string // vendor and product
	Serial   string
	CPUs     int
	Memory   Amount
	Load     string
	System   string // PRETTY_NAME of os-release
	Profile  string
	Slot     string
	Pairing  string

	Boot      *Boot
	Children  []Child
	Agent     *Agent
	Uplinks   []Uplink
	Links     []Link
	Resolvers []string
	// WiFi: this system has what joins wireless networks.
	WiFi  bool
	Trial *Trial
	// Settings are those in force; nil where none were ever made. They hold passphrases, and go into no bundle.
	Settings *api.NetworkSettings `json:"-"`
	Parent   string               // where it is told to attach
	Volumes  []Volume
	Sticks   []Stick
	Update   *Update
	// Hardware is what the box is made of; who holds what of it is the agent's to know.
	Hardware *api.Inventory
	Warnings []api.Warning
	// Shell is nil where the console opens none.
	Shell *Shell
	// Rollback: the console can start the other slot.
	Rollback bool
	Missing  []Missing
}

// Missing is a source that did not answer.
type Missing struct{ What, Why string }

// Amount is a part of a whole, in bytes.
type Amount struct{ Used, Total int64 }

// Boot is boot.json, as far as the console reads it.
type Boot struct {
	Version string     `json:"version"`
	Slot    string     `json:"slot"`
	Profile string     `json:"profile"`
	Disk    string     `json:"disk"`
	First   bool       `json:"first"`
	Done    bool       `json:"done"`
	Steps   []BootStep `json:"steps"`
}

// BootStep is one step of it.
type BootStep struct {
	Name  string  `json:"name"`
	At    float64 `json:"at"`
	Took  float64 `json:"took"`
	Error string  `json:"error"`
}

// Child is a program that process 1 keeps.
type Child struct {
	Name     string `json:"name"`
	PID      int    `json:"pid"`
	Restarts int    `json:"restarts"`
	LastEnd  string `json:"lastEnd"`
}

// Agent is what the agent says of itself (/status).
type Agent struct {
	Device   api.DeviceID    `json:"device"`
	Name     string          `json:"name"`
	Tenant   string          `json:"tenant"`
	Version  string          `json:"version"`
	Relay    bool            `json:"relay"`
	Parent   string          `json:"parent"`
	Online   bool            `json:"online"`
	Epoch    uint64          `json:"epoch"`
	Desired  uint64          `json:"desired"`
	Applied  uint64          `json:"applied"`
	Apps     []api.AppStatus `json:"apps"`
	Warnings []api.Warning   `json:"warnings"`
}

// Uplink is a line of uplinks.json.
type Uplink struct {
	Name    string   `json:"name"`
	Up      bool     `json:"up"`
	DHCP    bool     `json:"dhcp"`
	Address string   `json:"address"`
	Gateway string   `json:"gateway"`
	DNS     []string `json:"dns"`
	Metric  int      `json:"metric"`
	Cost    int64    `json:"cost"`
	// WiFi is the wireless network that it is in, or tries to join.
	WiFi *Joining `json:"wifi"`
	// Best: the way out goes by it.
	Best bool `json:"best"`
}

// Link is an interface of the machine itself.
type Link struct {
	Name, MAC, State string
	// Kind is "Wi-Fi", "mobile", or empty for a card with a socket.
	Kind      string
	Speed     string
	Addresses []string
	// Driver serves it; Master is the bond or bridge that it is a port of.
	Driver, Master string
}

// Trial is how network settings that were changed here stand.
type Trial struct {
	// Phase is "trial", "kept" or "reverted"; Reason says why.
	Phase  string    `json:"phase"`
	Reason string    `json:"reason"`
	Until  time.Time `json:"until"`
}

// Volume is a file system of the box.
type Volume struct {
	Name string
	Amount
	ReadOnly bool
}

// Stick is a removable partition.
type Stick struct {
	Node, Label, Model string
	Bytes              int64
}

// Update is update.json, as far as the console reads it.
type Update struct {
	Phase  string `json:"phase"`
	Good   string `json:"good"`
	Target *struct {
		Version string `json:"version"`
	} `json:"target"`
	Slots map[string]struct {
		Version string `json:"version"`
		Counter uint64 `json:"counter"`
	} `json:"slots"`
	Verdict *struct {
		Reason string `json:"reason"`
	} `json:"verdict"`
	Refused []struct {
		Version string    `json:"version"`
		Reason  string    `json:"reason"`
		Time    time.Time `json:"time"`
	} `json:"refused"`
	History []struct {
		Time    time.Time `json:"time"`
		Version string    `json:"version"`
		Slot    string    `json:"slot"`
		What    string    `json:"what"`
	} `json:"history"`
}

// Shell is how the way into a root shell stands.
type Shell struct {
	// Button: this box's profile takes its power button for an answer.
	Button bool
	// Challenge stands until Left is over, and is named ID in records; Code is its QR code.
	Challenge, ID string
	Code          [][]bool
	Left          time.Duration
	// Device is whose challenge it is, as far as the box knows.
	Device string
}
