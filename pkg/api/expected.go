package api

import (
	"encoding/base64"
	"strings"
)

// KindExpectedDevice is a box that shall find its owner by itself.
const KindExpectedDevice = "ExpectedDevice"

// ExpectedDeviceSpec says which box is expected, and why it may believe us: by a voucher
// of its manufacturer, or by the pairing code that it shows. A box that comes is
// approved.
type ExpectedDeviceSpec struct {
	// Serial is the serial number of the box's IDevID; of a box without a manufacturer's,
	// its device id. It may be left out with the code of a box that waits: the core fills
	// it in.
	Serial string `json:"serial,omitempty"`
	// Voucher is a voucher (RFC 8366), CMS in DER, in base64.
	Voucher string `json:"voucher,omitempty"`
	// Code is the pairing code that the box shows on its console.
	Code string `json:"code,omitempty"`
	// Redirect sends the box to other bootstrap servers, https://host:port, best first: a
	// manufacturer's core, which boxes ask by themselves, names their owners' in this way.
	Redirect []string `json:"redirect,omitempty"`
	// Release names the Release that the box must run before it takes its apps.
	Release string `json:"release,omitempty"`
	// Name, Site and Labels are what the device gets.
	Name   string            `json:"name,omitempty"`
	Site   string            `json:"site,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

// ExpectedDeviceStatus tells how far the box has come.
type ExpectedDeviceStatus struct {
	// Progress is the last report of the box (RFC 8572 section 7.3), Message its words.
	Progress string `json:"progress,omitempty"`
	Message  string `json:"message,omitempty"`
	// At is Unix seconds of that report.
	At int64 `json:"at,omitempty"`
	// Device is the box's id once it has enrolled.
	Device string `json:"device,omitempty"`
}

func validateExpectedDevice(s *ExpectedDeviceSpec, f *findings) {
	// Of a box that waits and shows its code the core knows the serial number.
	if s.Serial == "" && s.Code == "" || len(s.Serial) > 64 {
		f.addf("spec.serial", "copy it from the label of the box", "a serial number has 1 to 64 characters")
	}
	if len(s.Voucher) > 96<<10 {
		f.addf("spec.voucher", "give one voucher, in base64", "the voucher is longer than any")
	} else if _, err := base64.StdEncoding.DecodeString(s.Voucher); err != nil {
		f.addf("spec.voucher", "give the voucher's DER in base64; `edgectl device expect` does", "the voucher is not base64")
	}
	if len(s.Code) > 32 {
		f.addf("spec.code", "type the twelve characters that the box shows", "this is no pairing code")
	}
	if len(s.Redirect) > 16 {
		f.addf("spec.redirect", "name 16 at most", "%d bootstrap servers", len(s.Redirect))
	}
	for _, r := range s.Redirect {
		if len(r) > 300 || !strings.HasPrefix(r, "https://") {
			f.addf("spec.redirect", "write https://host:port", "%.80q is no bootstrap server", r)
		}
	}
	if s.Release != "" {
		validateName(s.Release, "spec.release", f)
	}
	if s.Name != "" {
		validateName(s.Name, "spec.name", f)
	}
	if s.Site != "" {
		validateName(s.Site, "spec.site", f)
	}
	validateLabels(s.Labels, "spec.labels", f)
}
