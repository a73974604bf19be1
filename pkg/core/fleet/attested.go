package fleet

import (
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/tpm/attest"
)

// holdSecrets withholds what a device does not hold yet, where one of its fleets wants its TPM to
// show what it runs and that does not: a secret that it has stays as it is, a new one stays away.
func (l *Loop) holdSecrets(e *entry, w *World, fleets []string, want map[string]Want, fingerprint func([]byte) [32]byte) []api.Warning {
	who := slices.IndexFunc(fleets, func(f string) bool { a := w.Fleets[f].Attest; return a != nil && a.Required })
	if who < 0 {
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
		Message: fmt.Sprintf("fleet %s wants attested devices: %s", fleets[who], why),
		Remedy:  "see status.attestation of the device; name its system in a Release (pcr11) or in the fleet (attest.systems), or approve new firmware: edgectl device unlock-state " + e.Name}
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
// what its fleets name.
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
	for _, fleet := range w.Selected(e.Labels) {
		if a := w.Fleets[fleet].Attest; a != nil {
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
