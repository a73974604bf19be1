package api

// DeviceUse is one device that services can claim, and who holds it.
type DeviceUse struct {
	Claimable
	Holders []DeviceHolder `json:"holders,omitempty"`
	// Makes was said by older boxes of what further devices may be made out of: what is not
	// listed may still be had.
	Makes bool `json:"makes,omitempty"`
	// Room is how many devices like this the box could still make when they are claimed, such
	// as slices of a card, as long as it makes no others there. It is no device yet.
	Room int `json:"room,omitempty"`
}

// DeviceHolder is a service that holds a device, or Units of it.
type DeviceHolder struct {
	App     string `json:"app"`
	Service string `json:"service"`
	Units   int    `json:"units"`
}

// DeviceGone is the fault of a device that is held and no longer there.
const DeviceGone = "it is gone"

// Name is how devices are told together: the class, and the size where it has one.
func (u *DeviceUse) Name() string {
	if size := u.Facts["size"]; size != "" {
		return string(u.Class) + "-" + size
	}
	return string(u.Class)
}

// Capacity is how much a box has of what services can claim: devices, or parts of those that
// are held by parts.
type Capacity struct {
	// Name is the class of the devices: "cpu", "vf", "hugepages-2M".
	Name  string `json:"name"`
	Total int    `json:"total"` // those at fault among them
	Held  int    `json:"held"`  // those that are gone among them
	Free  int    `json:"free"`
}

// CapacityOf sums up devices by their names, in their order.
func CapacityOf(uses []DeviceUse) (out []Capacity) {
	at := map[string]int{}
	for i := range uses {
		u := &uses[i]
		if u.Room > 0 {
			continue
		}
		n, ok := at[u.Name()]
		if !ok {
			n = len(out)
			at[u.Name()] = n
			out = append(out, Capacity{Name: u.Name()})
		}
		c, units, held := &out[n], max(u.Units, 1), 0
		for _, h := range u.Holders {
			held += h.Units
		}
		free := units - held
		if u.Shares > 1 { // it is one device, however many hold it
			free, held = min(1, u.Shares-len(u.Holders)), min(held, 1)
		}
		c.Held += held
		if u.Fault == "" {
			c.Free += max(free, 0)
		}
		if u.Fault != DeviceGone {
			c.Total += units
		}
	}
	return out
}
