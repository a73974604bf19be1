package update

import (
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/release"
)

// Warnings tell people of a refused release, of a trial, and of release keys that end.
func (m *Manager) Warnings() (out []api.Warning) {
	s := m.State()
	w, _ := m.cfg.Want()
	if r := s.Refusal(w, m.cfg.RootHash); r != nil {
		out = append(out, api.Warning{Name: "update-refused", Severity: api.Degraded, Since: r.Time.Unix(), Message: r.Reason,
			Remedy: "name another release, or raise the release's attempt once the cause is gone"})
	}
	m.mu.Lock()
	waits, root := m.waits, m.root
	m.mu.Unlock()
	if waits.times >= waitsTold {
		out = append(out, api.Warning{Name: "update-waits", Severity: api.Degraded, Since: waits.since.Unix(), Message: fmt.Sprintf("the update does not go on (%s): %v", waits.doing, waits.err),
			Remedy: "it is tried again by itself; make room on DATA, or see to the parent, where the message says so"})
	}
	if s.Phase == Trial || s.Phase == Confirming {
		out = append(out, api.Warning{Name: "update-on-trial", Severity: api.Info, Since: s.since(m.cfg.Now()).Unix(), Message: fmt.Sprintf("release %s is on trial in slot %s", s.Target.Name(), m.cfg.Running)})
	}
	if root != nil {
		out = append(out, rootWarnings(root, m.cfg.Past())...)
	}
	return out
}

// rootTold is how long before the root of the release keys ends people hear of it: several of them, far from each
// other, have to sign the next.
const rootTold = 90 * 24 * time.Hour

// look reads the root that is trusted now, for Warnings.
func (m *Manager) look() {
	t, err := m.trusted()
	if err != nil {
		return // Check tells it
	}
	m.mu.Lock()
	m.root = t
	m.mu.Unlock()
}

// rootWarnings tell that a root of release keys ends soon, or has. past is a moment that is certainly over: a clock that
// is ahead tells nothing.
func rootWarnings(t *release.Trusted, past time.Time) []api.Warning {
	ends := t.Ends()
	if past.IsZero() || past.Before(ends.Add(-rootTold)) {
		return nil
	}
	w := api.Warning{Name: "release-root-expiring", Severity: api.Degraded, Since: ends.Add(-rootTold).Unix(),
		Message: fmt.Sprintf("root %d of the release keys ends on %s; this box takes no release under it then", t.Version(), ends.UTC().Format(time.DateOnly)),
		Remedy:  "have the owners of the root keys sign the next root (edgectl release root --follows), and bring it with the next release (edgectl release sign --root)"}
	if !past.Before(ends) {
		w.Name, w.Severity, w.Since = "release-root-expired", api.Critical, ends.Unix()
		w.Message = fmt.Sprintf("root %d of the release keys ended on %s; this box takes no release under it", t.Version(), ends.UTC().Format(time.DateOnly))
	}
	return []api.Warning{w}
}
