package fleet

import (
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/tpm/attest"
)

// wantsAttested names who wants a device's TPM to show what it runs: its tenant, or one of its fleets; nobody is "".
func (w *World) wantsAttested(tenant string, fleets []string) string {
	if w.Attest != nil && w.Attest.Required {
		return "tenant " + tenant
	}
	if i := slices.IndexFunc(fleets, func(f string) bool { a := w.Fleets[f].Attest; return a != nil && a.Required }); i >= 0 {
		return "fleet " + fleets[i]
	}
	return ""
}

// holdSecrets withholds what a device does not hold yet, where somebody wants its TPM to
// show what it runs and that does not: a secret that it has stays as it is, a new one stays away.
func (l *Loop) holdSecrets(e *entry, w *World, fleets []string, want map[string]Want, fingerprint func([]byte) [32]byte) []api.Warning {
	who := w.wantsAttested(e.Tenant, fleets)
	if who == "" { // check: required
		return nil
	}
	ok, why := false, "this core does not attest"
	if l.cfg.Attested != nil {
		ok, why = l.cfg.Attested(e.ID)
	}
	if ok {
		return nil
	}
	held := withhold(e.state, l.cfg.Epoch, want, fingerprint)
	w0 := api.Warning{Name: "not-attested", Severity: api.Degraded, Since: l.cfg.Now().Unix(),
		Message: fmt.Sprintf("%s wants attested devices: %s", who, why),
		Remedy:  "see status.attestation of the device; name its system in a Release (pcr11) or in the fleet or tenant (attest.systems), or approve new firmware: edgectl device unlock-state " + e.Name}
	if len(held) > 0 {
		w0.Severity, w0.Message = api.Critical, w0.Message+"; withheld: "+strings.Join(held, ", ")
	}
	return []api.Warning{w0}
}

// withhold changes want for a device that gets no new secrets, and names those.
func withhold(prev State, epoch uint64, want map[string]Want, fingerprint func([]byte) [32]byte) (held []string) {
	for key, w := range want {
		if w.Plain == nil {
			continue
		}
		_, had := prev.Items[key]
		switch {
		case had && prev.Seals[key] == fingerprint(w.Plain):
			continue // it holds just this one
		case had && prev.Generation > 0 && prev.Epoch == epoch:
			w.Keep = true
			want[key] = w
		default:
			delete(want, key)
		}
		held = append(held, strings.TrimPrefix(key, manifest.PrefixSecret))
	}
	slices.Sort(held)
	return held
}

// Systems are those that a device may run, as its TPM shows them: the releases of its tenant, and
// what that and its fleets name.
func (l *Loop) Systems(id api.DeviceID) (out []attest.Release) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.worlds.byID[id]
	if e == nil || l.worlds.tenants[e.Tenant] == nil {
		return nil
	}
	w := &l.worlds.tenants[e.Tenant].World
	for name, image := range w.Images {
		out = append(out, attest.Release{Name: name, PCR11: image})
	}
	specs := []*api.AttestSpec{w.Attest}
	for _, fleet := range w.Selected(e.Labels) {
		specs = append(specs, w.Fleets[fleet].Attest)
	}
	for _, a := range specs {
		if a != nil {
			for name, text := range a.Systems {
				if image, ok := api.ParsePCR(text); ok {
					out = append(out, attest.Release{Name: name, PCR11: image})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b attest.Release) int { return strings.Compare(a.Name, b.Name) })
	return out
}
