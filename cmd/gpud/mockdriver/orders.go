//go:build cgo

package mockdriver

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Order is what a test wants of a card whose driver is in another process.
type Order struct {
	Card int `json:"card"`
	// Xid is told as an event, of this GPU instance; Whole tells it of the card.
	Xid   uint64 `json:"xid,omitempty"`
	Slice uint32 `json:"slice,omitempty"`
	Whole bool   `json:"whole,omitempty"`
	// Celsius is how warm the card is from now on.
	Celsius uint32 `json:"celsius,omitempty"`
}

// noInstance is how the driver says that an event is of no GPU instance.
const noInstance = 0xFFFFFFFF

// Say leaves an order for the driver that keeps its cards at path, whenever it runs: each is
// taken once.
func Say(path string, o Order) error {
	raw, err := json.Marshal(o)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".orders", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(raw, '\n'))
	return err
}

// ordered takes the next order that is an event; the others it does on the way.
func (d *Driver) ordered() (nvml.EventData, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	raw, err := os.ReadFile(d.path + ".orders")
	if err != nil {
		return nvml.EventData{}, false
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for n := 0; lines.Scan(); n++ {
		var o Order
		if n < d.Done || json.Unmarshal(lines.Bytes(), &o) != nil || o.Card >= len(d.Cards) {
			continue // one that is being written is whole the next time
		}
		d.Done = n + 1
		if o.Celsius > 0 {
			d.Cards[o.Card].Celsius = o.Celsius
		}
		if d.save() != nil || o.Xid == 0 {
			continue
		}
		e := nvml.EventData{Device: d.Devices[o.Card], EventType: nvml.EventTypeXidCriticalError, EventData: o.Xid, GpuInstanceId: o.Slice, ComputeInstanceId: noInstance}
		if o.Whole {
			e.GpuInstanceId = noInstance
		}
		return e, true
	}
	return nvml.EventData{}, false
}
