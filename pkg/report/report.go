// Package report answers: which entries of reported state tell of an app or of a box's
// hardware, and how do they become one status again?
//
// A hop carries an entry as a whole, so what changes apart stands apart:
//
//	app/<app>             the head: the bundle's digest and the names of the services;
//	                      state and message only where Sum does not give them
//	app/<app>/<service>   one service, without what its key says
//
// A restart of one service is one small entry, and a change of the app's state that
// follows from a service's takes none. Devices of older versions put the whole
// api.AppStatus under app/<app>; Join reads both. Hardware is parted alike: inventory.go.
package report

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
)

// Prefix begins the keys that tell of apps.
const Prefix = "app/"

// Bounds of what is read.
const (
	maxValue    = 64 << 10 // as link.MaxValue
	maxServices = 1024     // of one app; a bundle of 1 MiB names fewer
	maxPairs    = 256      // functions on one PCI bus
)

// head is the value of app/<app>. Name and Services are those of the older form, which
// always has a name.
type head struct {
	Name     string              `cbor:"1,keyasint,omitempty"`
	State    api.AppState        `cbor:"2,keyasint,omitempty"`
	Bundle   string              `cbor:"3,keyasint,omitempty"` // when it is not sha256:hex
	Services []api.ServiceStatus `cbor:"4,keyasint,omitempty"`
	Message  string              `cbor:"5,keyasint,omitempty"`
	Digest   []byte              `cbor:"6,keyasint,omitempty"` // of the bundle, 32 bytes
	Names    []string            `cbor:"7,keyasint,omitempty"` // of the services, in their order
	Rejected string              `cbor:"8,keyasint,omitempty"` // digest of the wanted bundle
}

// service is the value of app/<app>/<service>.
type service struct {
	State     api.AppState `cbor:"2,keyasint,omitempty"` // none: Running
	Container string       `cbor:"3,keyasint,omitempty"` // when it does not begin with app-service-
	Restarts  int          `cbor:"4,keyasint,omitempty"`
	ExitCode  *int         `cbor:"5,keyasint,omitempty"`
	Address   string       `cbor:"6,keyasint,omitempty"`
	Message   string       `cbor:"7,keyasint,omitempty"`
	Suffix    string       `cbor:"8,keyasint,omitempty"` // of the container, after app-service-
	Lacks     bool         `cbor:"9,keyasint,omitempty"`
}

var encMode = func() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // constant options: a fault in this file
	}
	return m
}()

var decMode = func() cbor.DecMode {
	m, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, MaxNestedLevels: 8,
		MaxArrayElements: maxServices, MaxMapPairs: maxPairs, UTF8: cbor.UTF8RejectInvalid}.DecMode()
	if err != nil {
		panic(err) // constant options: a fault in this file
	}
	return m
}()

// Split gives the entries of an app's status: deterministic CBOR by key.
func Split(s api.AppStatus) (map[string][]byte, error) {
	h := head{State: s.State, Message: s.Message, Bundle: s.Bundle, Rejected: s.Rejected}
	if state, message := Sum(s.Services); len(s.Services) > 0 && state == s.State && message == s.Message {
		h.State, h.Message = "", ""
	}
	if sum, err := hex.DecodeString(strings.TrimPrefix(s.Bundle, digestPrefix)); err == nil && len(sum) == 32 && digestText(sum) == s.Bundle {
		h.Digest, h.Bundle = sum, ""
	}
	out := map[string][]byte{}
	var err error
	for i := range s.Services {
		one := &s.Services[i]
		h.Names = append(h.Names, one.Name)
		if out[Prefix+s.Name+"/"+one.Name], err = encMode.Marshal(serviceOf(s.Name, one)); err != nil {
			return nil, err
		}
	}
	out[Prefix+s.Name], err = encMode.Marshal(h)
	return out, err
}

const digestPrefix = "sha256:"

func digestText(sum []byte) string { return digestPrefix + hex.EncodeToString(sum) }

func serviceOf(app string, s *api.ServiceStatus) service {
	out := service{State: s.State, Container: s.Container, Restarts: s.Restarts, ExitCode: s.ExitCode, Address: s.Address, Message: s.Message, Lacks: s.Lacks}
	if out.State == api.Running {
		out.State = ""
	}
	if rest, ok := strings.CutPrefix(s.Container, containerPrefix(app, s.Name)); ok && rest != "" {
		out.Container, out.Suffix = "", rest
	}
	return out
}

// containerPrefix is how containers are named by pkg/edge/workload; one named otherwise
// is reported in full.
func containerPrefix(app, service string) string { return app + "-" + service + "-" }

// Join reads the apps of a device's reported state, by name; entries that tell of no app
// are passed over. Keys of entries that cannot be read are in bad: such an app or service
// is there by its name, and without a state. A service that the head names and that has no
// entry yet is Pending; one that the head does not name is left out.
func Join(entries map[string][]byte) (apps []api.AppStatus, bad []string) {
	for key, raw := range entries {
		name, ok := strings.CutPrefix(key, Prefix)
		if !ok || name == "" || strings.Contains(name, "/") {
			continue
		}
		app, wrong := join(name, raw, entries)
		apps, bad = append(apps, app), append(bad, wrong...)
	}
	slices.SortFunc(apps, func(a, b api.AppStatus) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(bad)
	return apps, bad
}

func join(name string, raw []byte, entries map[string][]byte) (app api.AppStatus, bad []string) {
	app.Name = name
	var h head
	if !read(raw, &h) || len(h.Digest) != 0 && len(h.Digest) != 32 || twice(h.Names) {
		return app, []string{Prefix + name}
	}
	app.State, app.Message, app.Bundle, app.Rejected = h.State, h.Message, h.Bundle, h.Rejected
	if h.Name != "" { // the older form; the key, not the value, says which app it is
		app.Services = h.Services
		return app, nil
	}
	if h.Digest != nil {
		app.Bundle = digestText(h.Digest)
	}
	for _, n := range h.Names {
		s, ok := joinService(name, n, entries)
		if !ok {
			bad = append(bad, Prefix+name+"/"+n)
		}
		app.Services = append(app.Services, s)
	}
	if app.State == "" && len(app.Services) > 0 && len(bad) == 0 {
		app.State, app.Message = Sum(app.Services)
	}
	return app, bad
}

// twice tells whether a name is there twice: small heads must not make large statuses.
func twice(names []string) bool {
	names = slices.Sorted(slices.Values(names))
	return len(slices.Compact(names)) < len(names)
}

func joinService(app, name string, entries map[string][]byte) (api.ServiceStatus, bool) {
	raw, told := entries[Prefix+app+"/"+name]
	if !told {
		return api.ServiceStatus{Name: name, State: api.Pending}, true
	}
	var s service
	if !read(raw, &s) {
		return api.ServiceStatus{Name: name}, false
	}
	if s.State == "" {
		s.State = api.Running
	}
	if s.Suffix != "" {
		s.Container = containerPrefix(app, name) + s.Suffix
	}
	return api.ServiceStatus{Name: name, State: s.State, Container: s.Container, Restarts: s.Restarts, ExitCode: s.ExitCode, Address: s.Address, Message: s.Message, Lacks: s.Lacks}, true
}

// read decodes one map; CBOR's null, which decodes into anything, is none.
func read(raw []byte, into any) bool {
	return len(raw) <= maxValue && !bytes.Equal(raw, []byte{0xf6}) && !bytes.Equal(raw, []byte{0xf7}) && decMode.Unmarshal(raw, into) == nil
}

// rank orders states by how much they need attention.
var rank = map[api.AppState]int{api.Exited: 0, api.Running: 1, api.Stopping: 2, api.Starting: 3, api.Pending: 4, api.Pulling: 5, api.Backoff: 6, api.Failed: 7}

// Sum tells the state of an app from its services': the one that needs most attention,
// and every message by the name of its service. Devices and the core must agree on it,
// as what it gives is not sent: another rule takes another key.
func Sum(services []api.ServiceStatus) (api.AppState, string) {
	state := api.Exited
	var msgs []string
	for _, s := range services {
		if rank[s.State] > rank[state] {
			state = s.State
		}
		if s.Message != "" {
			msgs = append(msgs, s.Name+": "+s.Message)
		}
	}
	return state, strings.Join(msgs, "; ")
}
