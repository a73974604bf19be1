package roster

import (
	"encoding/json"
	"time"

	"tributary.dev/tributary/pkg/api"
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
	if spec.Name != "" {
		a.Name = spec.Name
	}
	out, err := newcomer(a, expected.Metadata.Tenant, api.DeviceSpec{Site: spec.Site, Approved: true}, spec.Labels, p)
	if err != nil {
		return nil, err
	}
	out.write.Box.Token, out.write.Token, out.write.TokenStatus = expected.Metadata.UID, expected, status
	return out, nil
}
