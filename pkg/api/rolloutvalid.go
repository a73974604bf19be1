package api

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Bounds of a rollout.
const (
	maxWaves   = 64
	maxChanges = 64
	maxSoak    = 7 * 24 * time.Hour
)

func validateRollout(s *RolloutSpec, f *findings) {
	if s.Target.Fleet == "" && s.Target.Selector == nil {
		f.add("spec.target", "it says nothing of the devices", "name a fleet, or give a selector, or both")
	}
	if s.Target.Fleet != "" {
		validateName(s.Target.Fleet, "spec.target.fleet", f)
	}
	validatePicks(s.Target.Selector, "spec.target.selector", f)
	validateChange(s.Change, f)
	if len(s.Waves) > maxWaves {
		f.addf("spec.waves", "join some of them", "there are %d waves; the most is %d", len(s.Waves), maxWaves)
		return
	}
	for i, w := range s.Waves {
		at := index("spec.waves", i)
		if w.Name != "" {
			validateName(w.Name, join(at, "name"), f)
		}
		validatePicks(w.Selector, join(at, "selector"), f)
		switch {
		case w.Devices < 0 || w.Percent < 0 || w.Percent > 100 || w.Percent != w.Percent:
			f.add(at, "a wave has a number of devices from 1, or a percentage from 0 to 100", "mend devices or percent")
		case w.Devices > 0 && w.Percent > 0:
			f.add(at, "a wave has devices or percent", "leave one of them out")
		case w.Devices == 0 && w.Percent == 0 && w.Selector == nil:
			f.add(at, "nothing says which devices the wave has", "give devices, percent or a selector")
		}
		if w.Pause < 0 || time.Duration(w.Pause) > maxSoak {
			f.add(join(at, "pause"), "a pause lasts 0 to 168h", "mend it")
		}
	}
	validateGates(s, f)
}

func validatePicks(s *Selector, at string, f *findings) {
	if s == nil {
		return
	}
	s.validate(at, f)
	if s.Empty() {
		f.add(at, "an empty selector picks no device", "give matchLabels or matchExpressions, or leave it out")
	}
}

func validateChange(list []RevisionRef, f *findings) {
	if len(list) == 0 || len(list) > maxChanges {
		f.addf("spec.change", "name 1 to 64 objects by kind and name", "it changes %d objects", len(list))
		return
	}
	seen := map[string]bool{}
	for i, c := range list {
		at := index("spec.change", i)
		if !HasRevisions(c.Kind) {
			f.addf(join(at, "kind"), "those that do: "+strings.Join(revisioned, ", "), "a %s does not reach devices by rollouts", quote(cmp.Or(c.Kind, "kind without a name")))
		}
		validateName(c.Name, join(at, "name"), f)
		if c.Revision < 0 {
			f.add(join(at, "revision"), "revisions count from 1", "leave it out for the newest; see `edgectl rollout history`")
		}
		if seen[c.Kind+"/"+c.Name] {
			f.addf(at, "remove one of them", "%s is listed twice", quote(c.Kind+"/"+c.Name))
		}
		seen[c.Kind+"/"+c.Name] = true
	}
}

func validateGates(s *RolloutSpec, f *findings) {
	validateAmount(s.MinHealthy, "spec.minHealthy", f)
	validateAmount(s.MaxFailures, "spec.maxFailures", f)
	if !slices.Contains([]string{"", FailurePause, FailureRollback}, s.OnFailure) {
		f.addf("spec.onFailure", "write pause or rollback", "%s says not what to do", quote(s.OnFailure))
	}
	if s.AtOnce < 0 || s.PerSite < 0 {
		f.add("spec.atOnce", "numbers of devices count from 1", "leave it out for no bound")
	}
	if err := s.Hours.Check(); err != nil {
		f.add("spec.hours", err.Error(), "write them in UTC as 22:00-04:30")
	}
	h := s.Health
	if h == nil {
		return
	}
	if h.Soak < 0 || h.Timeout < 0 || time.Duration(max(h.Soak, h.Timeout)) > maxSoak {
		f.add("spec.health", "soak and timeout last 0 to 168h", "mend them")
	}
	if !slices.Contains([]string{"", string(Info), string(Degraded), string(Critical), WarningsOff}, h.Warnings) {
		f.addf("spec.health.warnings", "write info, degraded, critical or off", "%s is no severity", quote(h.Warnings))
	}
	if len(h.Absent) > maxListed {
		f.addf("spec.health.absent", "name fewer", "there are %d names; the most is %d", len(h.Absent), maxListed)
	}
}

func validateAmount(a *Amount, at string, f *findings) {
	if a != nil && (a.Devices < 0 || a.Percent < 0 || a.Percent > 100 || a.Percent != a.Percent || a.Devices > 0 && a.Percent > 0) {
		f.add(at, "give devices, or a percentage from 0 to 100", "leave one of them out, or mend it")
	}
}
