package api

import "time"

// KindIncident is something that went wrong, and whom it concerned. The core raises it.
const KindIncident = "Incident"

// IncidentSpec is what people say of an incident.
type IncidentSpec struct {
	// Acknowledged says that somebody looks after it.
	Acknowledged bool `json:"acknowledged,omitempty"`
	// Closed is a person's word that it is over. It is not raised again by what raised it.
	Closed bool `json:"closed,omitempty"`
	// Note is for other people.
	Note string `json:"note,omitempty"`
}

// The causes of incidents.
const (
	CauseLink    = "link"    // devices are away because a link, or the device below it, is gone
	CauseAnomaly = "anomaly" // a number of a device is odd
)

// The states of incidents.
const (
	IncidentOpen   = "open"
	IncidentClosed = "closed"
)

// IncidentStatus is what the core found.
type IncidentStatus struct {
	State string `json:"state"`
	Cause string `json:"cause"`
	// Message explains it in a sentence.
	Message string        `json:"message"`
	Link    *IncidentLink `json:"link,omitempty"`
	// Subject is the number that is odd, such as "cpu.busy".
	Subject string `json:"subject,omitempty"`
	// Devices are those concerned, by name, at most 100 of them; Count is how many there are.
	Devices []string `json:"devices,omitempty"`
	Count   int      `json:"count"`
	// Sites are where they stand.
	Sites []string `json:"sites,omitempty"`
	// Findings counts what devices told: of an anomaly how often it was found, of a link how many
	// anomalies it explains.
	Findings int       `json:"findings,omitempty"`
	Since    time.Time `json:"since"`
	// Last is when something was found last.
	Last time.Time `json:"last"`
	// Closed is when it was over, and Why how that is known.
	Closed *time.Time `json:"closed,omitempty"`
	Why    string     `json:"why,omitempty"`
	// Heard is the newest record of each device that was counted: what comes again is not counted again.
	Heard map[DeviceID]RecordPosition `json:"heard,omitempty"`
}

// IncidentLink is a link of the tree by its two ends.
type IncidentLink struct {
	// Parent and Child are names of devices, or "core". A device of another tenant has no name here.
	Parent string `json:"parent,omitempty"`
	Child  string `json:"child,omitempty"`
	// ID is the child's id.
	ID DeviceID `json:"id"`
}

// RecordPosition is the place of a record in a device's log.
type RecordPosition struct {
	Epoch uint64 `json:"epoch"`
	Seq   uint64 `json:"seq"`
}

// After tells whether it comes later in the log than another.
func (p RecordPosition) After(o RecordPosition) bool {
	return p.Epoch > o.Epoch || p.Epoch == o.Epoch && p.Seq > o.Seq
}

const maxNote = 4 << 10

func validateIncident(s *IncidentSpec, f *findings) {
	if len(s.Note) > maxNote {
		f.addf("spec.note", "say it in fewer words, or where it is written", "%d bytes, at most %d", len(s.Note), maxNote)
	}
}
