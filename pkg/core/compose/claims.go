package compose

import (
	"fmt"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"tributary.dev/tributary/pkg/api"
)

// claims reads deploy.resources.reservations.devices (compose-spec, deploy.md): each entry
// names one capability, which is the class of hardware, and what of it is wanted.
func (c *compiler) claims(in types.ServiceConfig, s *api.Service) {
	if in.Deploy == nil || in.Deploy.Resources.Reservations == nil {
		return
	}
	at := place("services", in.Name, "deploy", "resources", "reservations", "devices")
	for i, d := range in.Deploy.Resources.Reservations.Devices {
		if claim, ok := c.claim(index(at, i), d); ok {
			s.Claims = append(s.Claims, claim)
		}
	}
	if e := api.CheckClaims(s.Claims); e != nil && len(s.Claims) > 0 && !strings.Contains(e.Field, ".") {
		c.add(at, e.Remedy, "%s", e.Message)
	}
	if in.NetworkMode == "host" && slices.ContainsFunc(s.Claims, func(cl api.Claim) bool { return cl.Class == api.ClaimVF && cl.Driver != "vfio-pci" }) {
		c.add(at, "leave out network_mode: host, or ask for driver: vfio-pci", "a virtual function moves into the network of its container, and this one has none of its own")
	}
}

// gpuWords are capabilities that files for Docker carry beside gpu.
var gpuWords = []string{"compute", "utility", "graphics", "video", "display", "nvidia"}

func (c *compiler) claim(at string, d types.DeviceRequest) (api.Claim, bool) {
	claim := api.Claim{Driver: d.Driver, Count: int(d.Count), IDs: d.IDs, Options: d.Options}
	if len(claim.Options) == 0 {
		claim.Options = nil
	}
	capabilities := slices.DeleteFunc(slices.Clone(d.Capabilities), func(w string) bool { return slices.Contains(gpuWords, w) })
	switch {
	case len(capabilities) == 1:
		claim.Class = api.ClaimClass(capabilities[0])
	case len(capabilities) == 0 && len(d.Capabilities) > 0:
		claim.Class = api.ClaimGPU
	default:
		c.add(join(at, "capabilities"), fmt.Sprintf("name one class: %v", api.ClaimClasses()), "the entry must say which hardware is meant")
		return claim, false
	}
	switch {
	case claim.Count == 0 && len(claim.IDs) > 0:
		claim.Count = len(claim.IDs)
	case claim.Count == 0 && claim.Class == api.ClaimGPU:
		claim.Count = api.AllOfThem // as Docker reads a device request without a count
	case claim.Count == 0:
		claim.Count = 1
	}
	if claim.Class == api.ClaimHugePages && claim.Options["size"] == "" {
		claim.Options = withOption(claim.Options, "size", "2M")
	}
	if e := api.CheckClaim(&claim); e != nil {
		where := at
		for _, key := range strings.Split(e.Field, ".") {
			where = join(where, key)
		}
		c.add(c.written(where, at), e.Remedy, "%s", e.Message)
		return claim, false
	}
	return claim, true
}

func withOption(options map[string]string, name, value string) map[string]string {
	out := map[string]string{name: value}
	for k, v := range options {
		out[k] = v
	}
	return out
}

// gpus reads the short form of a claim of GPUs (compose-spec: services.*.gpus).
func (c *compiler) gpus(at string, in types.ServiceConfig, s *api.Service) {
	for i, d := range in.Gpus {
		if len(d.Capabilities) == 0 {
			d.Capabilities = []string{string(api.ClaimGPU)}
		}
		if claim, ok := c.claim(index(join(at, "gpus"), i), d); ok {
			s.Claims = append(s.Claims, claim)
		}
	}
}
