package main

// Figure is one measured value held against its milestone and goal. For most figures
// less is better; a Floor figure wants more.
type Figure struct {
	Name      string   `json:"name"`
	Value     float64  `json:"value"`
	Unit      string   `json:"unit"`
	Milestone *float64 `json:"milestone,omitempty"`
	Goal      *float64 `json:"goal,omitempty"`
	// OK says whether the milestone, or the goal where there is only one, is met.
	OK      bool     `json:"ok"`
	GoalMet bool     `json:"goal_met"`
	Peer    *float64 `json:"peer,omitempty"`
	Ratio   *float64 `json:"ratio,omitempty"`
	Note    string   `json:"note,omitempty"`
}

// atMost makes a figure that wants to be small.
func atMost(name string, value float64, unit string, milestone, goal float64) Figure {
	return Figure{Name: name, Value: value, Unit: unit, Milestone: &milestone, Goal: &goal, OK: value <= milestone, GoalMet: value <= goal}
}

// atLeast makes a figure that wants to be large.
func atLeast(name string, value float64, unit string, milestone, goal float64) Figure {
	return Figure{Name: name, Value: value, Unit: unit, Milestone: &milestone, Goal: &goal, OK: value >= milestone, GoalMet: value >= goal}
}

// against adds the peer measured in the same run.
func (f Figure) against(peer float64) Figure {
	f.Peer = &peer
	if peer != 0 {
		ratio := f.Value / peer
		f.Ratio = &ratio
	}
	return f
}

// plain makes a figure that has no target; it is told beside those that have one.
func plain(name string, value float64, unit string) Figure {
	return Figure{Name: name, Value: value, Unit: unit, OK: true, GoalMet: true}
}
