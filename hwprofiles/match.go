package hwprofiles

// Rule is a look that a box may have: every condition that is given must hold. Texts
// are patterns in any case, with * for any run of characters; one of a list suffices.
type Rule struct {
	Vendor  []string `json:"vendor,omitempty"`  // DMI system or board vendor
	Product []string `json:"product,omitempty"` // DMI product name
	Board   []string `json:"board,omitempty"`   // DMI board name
	Family  []string `json:"family,omitempty"`  // DMI product family
	Chassis []string `json:"chassis,omitempty"` // rack, embedded, desktop, …; see Probe
	// DeviceTree is any of the root node's compatible strings, or the model.
	DeviceTree []string `json:"deviceTree,omitempty"`
	// PCI is vendor:device in hexadecimal; every one of the list must be there.
	PCI []string `json:"pci,omitempty"`
	CPU []string `json:"cpu,omitempty"` // model name
	// Virtual is no (when left out), yes or any.
	Virtual string `json:"virtual,omitempty"`
	// Least and most, MiB of memory; least of the rest.
	MinMemory int64 `json:"minMemory,omitempty"`
	MaxMemory int64 `json:"maxMemory,omitempty"`
	MinCPUs   int64 `json:"minCPUs,omitempty"`
	MinNICs   int64 `json:"minNICs,omitempty"`
	MinGPUs   int64 `json:"minGPUs,omitempty"`
}

// conditions counts what the rule asks for.
func (r Rule) conditions() (n int) {
	for _, list := range [][]string{r.Vendor, r.Product, r.Board, r.Family, r.Chassis, r.DeviceTree, r.PCI, r.CPU} {
		if len(list) > 0 {
			n++
		}
	}
	for _, v := range []int64{r.MinMemory, r.MaxMemory, r.MinCPUs, r.MinNICs, r.MinGPUs} {
		if v > 0 {
			n++
		}
	}
	if r.Virtual == "yes" {
		n++
	}
	return n
}
