package api

// KindQuota bounds what a tenant, with all below it, may have.
const KindQuota = "Quota"

// QuotaName is the name of a tenant's one Quota.
const QuotaName = "quota"

// QuotaSpec says the most of what a tenant may have together with all tenants below it. What is left
// out is not bounded. A bound below what there is takes nothing away: nothing more comes in.
type QuotaSpec struct {
	// Devices counts all that are there, retired ones too until they are deleted.
	Devices *int64 `json:"devices,omitempty"`
	Apps    *int64 `json:"apps,omitempty"`
	// TrainingJobs counts those that are not over.
	TrainingJobs *int64 `json:"trainingJobs,omitempty"`
	// TrainingRanks counts their ranks.
	TrainingRanks *int64 `json:"trainingRanks,omitempty"`
	// Note is for people: a contract, whom to ask for more.
	Note string `json:"note,omitempty"`
}

// Bounds are the limits that are set, by the name of their field.
func (s *QuotaSpec) Bounds() map[string]int64 {
	out := map[string]int64{}
	for name, v := range map[string]*int64{"devices": s.Devices, "apps": s.Apps, "trainingJobs": s.TrainingJobs, "trainingRanks": s.TrainingRanks} {
		if v != nil {
			out[name] = *v
		}
	}
	return out
}

// Quantities tells what an object counts for, by the names of QuotaSpec's fields; nil for a kind that nothing bounds.
func Quantities(kind string, spec *TrainingJobSpec) map[string]int64 {
	switch kind {
	case KindDevice:
		return map[string]int64{"devices": 1}
	case KindApp:
		return map[string]int64{"apps": 1}
	case KindTrainingJob:
		return map[string]int64{"trainingJobs": 1, "trainingRanks": int64(max(spec.Ranks, 1))}
	}
	return nil
}

// QuotaStatus tells what of it is used, as of the moment when it is read.
type QuotaStatus struct {
	Used map[string]int64 `json:"used"`
}

func validateQuota(s *QuotaSpec, f *findings) {
	bounds := s.Bounds()
	if len(bounds) == 0 {
		f.add("spec", "it bounds nothing", "give devices, apps, trainingJobs or trainingRanks")
	}
	validateLine(s.Note, "spec.note", f)
	for name, n := range bounds {
		if n < 0 {
			f.addf("spec."+name, "0 lets none in; leave it out for no bound", "%d is below 0", n)
		}
	}
}
