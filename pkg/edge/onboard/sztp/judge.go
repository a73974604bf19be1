// Package sztp answers: how does a box with nothing but power and a network find its
// owner, and refuse everybody else?
//
// Secure zero touch provisioning (RFC 8572). The box asks its sources in a fixed order:
// a stick with signed data, the bootstrap servers that DHCP names, those that answer on
// the site by DNS-SD, and those built into the image. None of them is believed: an
// answer counts only if a voucher by the manufacturer, or the pairing code that the box
// shows, leads to the owner who signed it.
package sztp

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// Device is what a judgement needs to know of the box.
type Device struct {
	ID     api.DeviceID
	Serial string
	// Code is the pairing code that the box shows; empty where pairing is not allowed.
	Code string
	// Makers are the manufacturers' certificates of the image.
	Makers []*x509.Certificate
	// Updates tells whether the box can install another system.
	Updates bool
}

// Clock is what the box knows of the time. Floor is a moment that is certainly past; Now
// counts only if it is Trusted.
type Clock struct {
	Now, Floor time.Time
	Trusted    bool
}

// Artifacts are what a source gave.
type Artifacts struct {
	Conveyed, OwnerCert, Voucher []byte
	Pairing                      *voucher.Pairing
	// Nonce is what the box asked with; nil where it could not ask (a stick).
	Nonce []byte
}

// Verdict is a judgement: whose box it is and what its owner said, or where else to ask.
type Verdict struct {
	Owner    *x509.Certificate // root; nil of an untrusted redirect
	Conveyed *voucher.Conveyed
}

// Reason is why an answer was refused; the names are stable.
type Reason string

// The reasons.
const (
	Unsigned   Reason = "unsigned"    // nothing leads to an owner
	Forged     Reason = "forged"      // a signature is wrong or not by whom it should be
	WrongBox   Reason = "wrong-box"   // the voucher is of another device
	WrongOwner Reason = "wrong-owner" // another owner signed than the voucher names
	Expired    Reason = "expired"
	Replayed   Reason = "replayed"   // the voucher answers another question
	Unreadable Reason = "unreadable" // what the owner said cannot be used
	Declined   Reason = "declined"   // the owner did not let the box in
	Unfit      Reason = "unfit"      // the owner wants a system first that the box cannot install
)

// Refusal is an answer that the box does not take.
type Refusal struct {
	Reason  Reason
	Message string
}

func (r *Refusal) Error() string { return string(r.Reason) + ": " + r.Message }

func refuse(reason Reason, format string, args ...any) error {
	return &Refusal{reason, fmt.Sprintf(format, args...)}
}

// Judge decides whether the box believes an answer. It is the whole of the box's trust
// in strangers, and has no memory, clock or network.
func Judge(d Device, c Clock, a Artifacts) (*Verdict, error) {
	root, err := owner(d, c, a)
	if err != nil {
		return nil, err
	}
	if root == nil {
		return untrusted(a)
	}
	if len(a.OwnerCert) == 0 {
		return nil, refuse(Unsigned, "there is no owner certificate")
	}
	var at time.Time
	if c.Trusted {
		at = c.Now
	}
	leaf, err := voucher.OpenOwnerCertificate(a.OwnerCert, root, at)
	if err != nil {
		return nil, refuse(WrongOwner, "%v", err)
	}
	conveyed, err := voucher.OpenConveyed(a.Conveyed, leaf)
	if err != nil {
		return nil, refuse(Forged, "%v", err)
	}
	if f := firstOf(conveyed); f != nil && f.Serial != d.Serial {
		return nil, refuse(WrongBox, "what it shall run is of the device %s; this one is %s", f.Serial, d.Serial)
	}
	if conveyed.Onboarding != nil && conveyed.Onboarding.BootImage != nil {
		if _, _, err := conveyed.Onboarding.BootImage.Release(); err != nil {
			return nil, refuse(Unfit, "the system that it shall run first: %v", err)
		}
		if !d.Updates {
			return nil, refuse(Unfit, "it shall run another system first, and cannot install any")
		}
	}
	return &Verdict{Owner: root, Conveyed: conveyed}, nil
}

// firstOf reads what a box shall run at first; nil where the owner does not say.
func firstOf(c *voucher.Conveyed) *First {
	var b Beginning
	if c.Onboarding == nil || json.Unmarshal(c.Onboarding.Config, &b) != nil { // Read tells what is wrong
		return nil
	}
	return b.First
}

// owner finds the root that a voucher or a pairing leads to; nil without either.
func owner(d Device, c Clock, a Artifacts) (*x509.Certificate, error) {
	if len(a.Voucher) == 0 {
		if a.Pairing == nil {
			return nil, nil
		}
		if d.Code == "" {
			return nil, refuse(Unsigned, "it comes by pairing, which this box does not allow")
		}
		root, err := a.Pairing.Check(d.Code, d.ID)
		if err != nil {
			return nil, refuse(Forged, "%v", err)
		}
		return root, nil
	}
	v, err := voucher.Open(a.Voucher, d.Makers)
	if err != nil {
		return nil, refuse(Forged, "%v", err)
	}
	switch {
	case v.SerialNumber != d.Serial:
		return nil, refuse(WrongBox, "the voucher is of the device %s; this one is %s", v.SerialNumber, d.Serial)
	case v.Nonce != nil && !bytes.Equal(v.Nonce, a.Nonce):
		return nil, refuse(Replayed, "the voucher was made for another request")
	}
	// A moment that is certainly past is trusted whatever the clock says.
	past := c.Floor
	if c.Trusted && c.Now.After(past) {
		past = c.Now
	}
	if v.ExpiresOn != nil && !past.Before(*v.ExpiresOn) {
		return nil, refuse(Expired, "the voucher ended on %s", v.ExpiresOn.UTC().Format(time.RFC3339))
	}
	return v.Owner()
}

// untrusted takes from an answer that nobody vouches for no more than where else to ask.
func untrusted(a Artifacts) (*Verdict, error) {
	conveyed, err := voucher.PeekConveyed(a.Conveyed)
	if err != nil || conveyed.Redirect == nil {
		return nil, refuse(Unsigned, "neither a voucher nor a pairing says that this is the owner")
	}
	return &Verdict{Conveyed: conveyed}, nil
}

// Beginning is our own configuration in onboarding information, in JSON. It holds no
// secrets: a device is let in by its own key.
type Beginning struct {
	// Parents is where the box attaches, best first.
	Parents []api.ParentRef `json:"parents"`
	Name    string          `json:"name,omitempty"`
	// First is what the box runs until it can enrol, where the owner is out of reach.
	First *First `json:"first,omitempty"`
}

// First names apps and configurations of one box. All of it is the owner's signed word, and
// none of it is a secret; the first word of the core itself takes its place.
type First struct {
	Serial string `json:"serial"`
	Made   int64  `json:"made"` // Unix seconds
	// Items are those of a manifest, by key.
	Items json.RawMessage `json:"items,omitempty"`
}

const maxParents = 16

// Read takes the beginning out of onboarding information.
func Read(o *voucher.Onboarding) (*Beginning, error) {
	switch {
	case len(o.PreScript) > 0 || len(o.PostScript) > 0:
		return nil, refuse(Unreadable, "the owner sent a script; this box runs none")
	case len(o.Config) == 0:
		return nil, refuse(Unreadable, "the owner sent no configuration")
	}
	var b Beginning
	if err := json.Unmarshal(o.Config, &b); err != nil {
		return nil, refuse(Unreadable, "the owner's configuration: %v", err)
	}
	if len(b.Parents) == 0 || len(b.Parents) > maxParents {
		return nil, refuse(Unreadable, "the owner's configuration names %d parents; it has 1 to %d", len(b.Parents), maxParents)
	}
	for _, p := range b.Parents {
		if p.Address == "" || len(p.Address) > 300 || p.HTTPSPort < 0 || p.HTTPSPort > 65535 {
			return nil, refuse(Unreadable, "the owner's configuration names a parent %.80q", p.Address)
		}
	}
	return &b, nil
}

// Found is the end of a search: what the box keeps, and enrols with.
type Found struct {
	// RootFP is the SHA-256 of the owner's root.
	RootFP    [32]byte
	Beginning Beginning
	Source    string // in words
	// Server is the root of the server that answered; empty of a stick.
	Server string
	// Release is what the box must run before it takes its apps; nil for any.
	Release *Release
}

// Release is a system by its repository and digest.
type Release struct{ Repo, Digest string }

func found(v *Verdict, source string) (*Found, error) {
	b, err := Read(v.Conveyed.Onboarding)
	if err != nil {
		return nil, err
	}
	f := &Found{RootFP: sha256.Sum256(v.Owner.Raw), Beginning: *b, Source: source}
	if image := v.Conveyed.Onboarding.BootImage; image != nil {
		repo, digest, err := image.Release()
		if err != nil {
			return nil, refuse(Unfit, "the system that it shall run first: %v", err)
		}
		f.Release = &Release{repo, digest}
	}
	return f, nil
}

// ReasonOf is the reason of a refusal; empty for other errors.
func ReasonOf(err error) Reason {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}
