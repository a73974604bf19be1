package roster

import (
	"encoding/json"
	"maps"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// decideExpected is the judgement over a box that an ExpectedDevice names. That it is the
// box was proved before; a box that is known is welcome again.
func decideExpected(a Applicant, expected *api.Object, p presence, _ time.Time) (*plan, error) {
	if expected == nil {
		return nil, &api.Error{Code: api.Unauthorized, Message: "this core does not expect the box", Remedy: "say so: `edgectl device expect SERIAL`"}
	}
	if p.box != nil {
		return again(&api.Object{Metadata: api.Meta{UID: p.box.Token}}, p)
	}
	var spec api.ExpectedDeviceSpec
	var status api.ExpectedDeviceStatus
	if err := json.Unmarshal(expected.Spec, &spec); err != nil {
		return nil, err
	}
	if len(expected.Status) > 0 {
		if err := json.Unmarshal(expected.Status, &status); err != nil {
			return nil, err
		}
	}
	if status.Device != "" && status.Device != a.Device.String() {
		return nil, &api.Error{Code: api.Conflict, Message: "the device of this serial number came in before, by another key: " + status.Device, Remedy: "if the box was reset, delete the expectation and make it anew"}
	}
	status.Device = a.Device.String()
	raw, err := json.Marshal(api.DeviceSpec{Site: spec.Site, Approved: true})
	if err != nil {
		return nil, err
	}
	labels := maps.Clone(spec.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for k, v := range a.Labels {
		if strings.HasPrefix(k, api.Reserved) {
			labels[k] = v
		}
	}
	if spec.Name != "" {
		a.Name = spec.Name
	}
	tenant := expected.Metadata.Tenant
	name := freeName(a, func(name string) bool { return p.taken(tenant, name) })
	hardware := a.Hardware
	return &plan{
		write: store.Enrolment{
			Box:    store.Box{Device: a.Device, Tenant: tenant, Name: name, PublicKey: a.PublicKey, SealKey: a.SealKey, Token: expected.Metadata.UID},
			Object: &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Tenant: tenant, Name: name, Labels: labels}, Spec: raw},
			Status: api.DeviceStatus{ID: a.Device, Relay: a.Relay, Addresses: a.Addresses, Hardware: &hardware},
			Token:  expected, TokenStatus: status,
		},
		grant: Grant{Name: name, Tenant: tenant, Labels: labels, Approved: true},
	}, nil
}
