package cli

import (
	"cmp"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// flowRow shows a flow policy: how its rules stand is told with each device.
func (a *app) flowRow(obj *api.Object) []string {
	var s api.FlowPolicySpec
	_ = readSpec(obj, &s)
	at := strings.TrimSpace(strings.Join([]string{s.Interface.Name, s.Interface.MAC, s.Interface.SwitchPort}, " "))
	return []string{obj.Metadata.Name, orDash(at), cmp.Or(s.Direction, api.FlowIngress), strconv.Itoa(cmp.Or(s.Priority, 100)), strconv.Itoa(len(s.Rules)),
		cmp.Or(s.Offload, api.OffloadPreferred), a.age(obj.Metadata.Created)}
}
