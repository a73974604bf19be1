package api

// Placement puts an app on some of a fleet's devices: on those that can give what its
// services claim, at different sites where there is a choice. It stays where it is while it
// can, whatever comes to be free elsewhere.
type Placement struct {
	App string `json:"app"`
	// Replicas is on how many devices it runs.
	Replicas int `json:"replicas"`
}

// PlacementStatus is how far a placement is.
type PlacementStatus struct {
	App string `json:"app"`
	// Placed is on how many of the Replicas devices it is, Running where all of it runs.
	Replicas int `json:"replicas"`
	Placed   int `json:"placed"`
	Running  int `json:"running"`
	// Message says what is missing where, when it is on fewer devices than it should.
	Message string `json:"message,omitempty"`
}

// Lack is hardware that an app waits for on devices of a fleet, in their own words.
type Lack struct {
	App     string `json:"app"`
	Message string `json:"message"`
	// Count is on how many devices, Devices the first of their names.
	Count   int      `json:"count"`
	Devices []string `json:"devices"`
}

// AllApps lists the names of the apps that a fleet has on all or on some of its devices.
func (s *FleetSpec) AllApps() []string {
	if len(s.Placed) == 0 {
		return s.Apps
	}
	out := append([]string(nil), s.Apps...)
	for _, p := range s.Placed {
		out = append(out, p.App)
	}
	return out
}

// maxReplicas bounds a placement; a fleet has fewer devices.
const maxReplicas = 1 << 20

func validatePlaced(s *FleetSpec, f *findings) {
	const field = "spec.placed"
	if len(s.Placed) > maxListed {
		f.addf(field, "use several fleets", "there are %d placements; the most is %d", len(s.Placed), maxListed)
		return
	}
	seen := map[string]bool{}
	for _, app := range s.Apps {
		seen[app] = true
	}
	for i, p := range s.Placed {
		at := index(field, i)
		validateName(p.App, join(at, "app"), f)
		if seen[p.App] {
			f.addf(join(at, "app"), "list it once, in apps or in placed", "%s is listed twice", quote(p.App))
		}
		seen[p.App] = true
		if p.Replicas < 1 || p.Replicas > maxReplicas {
			f.addf(join(at, "replicas"), "give a number from 1", "%d devices cannot be asked for", p.Replicas)
		}
	}
}
