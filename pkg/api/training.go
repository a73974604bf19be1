package api

import (
	"regexp"
	"slices"
	"strings"
	"time"
)

// KindTrainingJob trains a model at the core.
const KindTrainingJob = "TrainingJob"

// TrainingJobSpec says what is trained, on what, by whom. All but Suspend and Cancel stays as it
// is once the job is there: another training is another job.
type TrainingJobSpec struct {
	// Driver is who runs it: local (containers on the core's machine), kubernetes (a TrainJob of
	// Kubeflow Trainer) or ray (the Jobs API). Default local.
	Driver string `json:"driver,omitempty"`
	// Trainer names a trainer of the image, such as autoencoder. Exactly one of Trainer and Command is set.
	Trainer string `json:"trainer,omitempty"`
	// Command is a script of the image with its arguments, which PyTorch's elastic launcher starts in each rank.
	Command []string `json:"command,omitempty"`
	// Image is what it runs in: repository:tag or repository@digest of the core's registry, of the job's
	// tenant unless it begins with platform/. Default platform/trainer:latest.
	Image string `json:"image,omitempty"`
	// Data is the data set, an artifact of the tenant: repository:tag or repository@digest. The job
	// pins its digest when it begins.
	Data string `json:"data,omitempty"`
	// Parameters are the trainer's.
	Parameters map[string]string `json:"parameters,omitempty"`
	// Ranks is how many processes train together. Default 1, at most 64.
	Ranks     int               `json:"ranks,omitempty"`
	Resources TrainingResources `json:"resources,omitzero"`
	// TimeLimit is how long it may run, pauses left out. Default 1h, at most 720h.
	TimeLimit Duration `json:"timeLimit,omitempty"`
	// MaxRestarts is how often a killed rank, or the whole, is started again from the last checkpoint.
	// Default 3, at most 100; -1 for never.
	MaxRestarts int `json:"maxRestarts,omitempty"`
	// Model is the repository in which the result is kept, as a model. Default: the job's name.
	Model string `json:"model,omitempty"`
	// Suspend ends it at the next checkpoint, and lets it go on from there when taken back.
	Suspend bool `json:"suspend,omitempty"`
	// Cancel ends it for good.
	Cancel bool `json:"cancel,omitempty"`
}

// TrainingResources bound one rank.
type TrainingResources struct {
	// CPUs is how many processors it may use. Default 1, at least 0.1.
	CPUs float64 `json:"cpus,omitempty"`
	// MemoryBytes is how much memory it may use. Default 1 GiB, at least 256 MiB.
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	// GPUs is how many accelerators it needs.
	GPUs int `json:"gpus,omitempty"`
}

// The defaults of a training.
const (
	DefaultTrainerImage    = PlatformTenant + "/trainer:latest"
	DefaultTrainingTime    = Duration(time.Hour)
	DefaultTrainingMemory  = int64(1 << 30)
	DefaultTrainingRestart = 3
)

// Filled gives the spec with its defaults.
func (s TrainingJobSpec) Filled(name string) TrainingJobSpec {
	fill(&s.Driver, "local")
	fill(&s.Image, DefaultTrainerImage)
	fill(&s.Ranks, 1)
	fill(&s.Resources.CPUs, 1)
	fill(&s.Resources.MemoryBytes, DefaultTrainingMemory)
	fill(&s.TimeLimit, DefaultTrainingTime)
	fill(&s.MaxRestarts, DefaultTrainingRestart)
	fill(&s.Model, name)
	s.MaxRestarts = max(s.MaxRestarts, 0)
	return s
}

func fill[T comparable](p *T, v T) {
	var none T
	if *p == none {
		*p = v
	}
}

// The phases of a training job. The last three are final.
const (
	TrainingQueued    = "Queued"
	TrainingRunning   = "Running"
	TrainingSuspended = "Suspended"
	TrainingSucceeded = "Succeeded"
	TrainingFailed    = "Failed"
	TrainingCancelled = "Cancelled"
)

// TrainingJobStatus is what the core tells of a training.
type TrainingJobStatus struct {
	Phase string `json:"phase"`
	// Reason says why it is where it is, with what to do where something is to be done.
	Reason string `json:"reason,omitempty"`
	// Image and Data are what it runs in and on, pinned by digest.
	Image string `json:"image,omitempty"`
	Data  string `json:"data,omitempty"`
	// Step of Steps is done; Loss is the trainer's measure there.
	Step  int64    `json:"step,omitempty"`
	Steps int64    `json:"steps,omitempty"`
	Loss  *float64 `json:"loss,omitempty"`
	// Estimate is when it will end if it goes on so.
	Estimate *time.Time `json:"estimate,omitempty"`
	Started  *time.Time `json:"started,omitempty"`
	Ended    *time.Time `json:"ended,omitempty"`
	// RanMillis is how long it ran, pauses left out; CPUMicros is the processor time of all ranks.
	RanMillis int64 `json:"ranMillis,omitempty"`
	CPUMicros int64 `json:"cpuMicros,omitempty"`
	// Restarts is how often it was started again after it broke off.
	Restarts int `json:"restarts,omitempty"`
	// Model is the result: repository@digest.
	Model string `json:"model,omitempty"`
	// Metrics is what the trainer tells of it.
	Metrics map[string]float64 `json:"metrics,omitempty"`
}

// Final reports whether nothing will change any more.
func (s *TrainingJobStatus) Final() bool {
	return slices.Contains([]string{TrainingSucceeded, TrainingFailed, TrainingCancelled}, s.Phase)
}

var trainerName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

func validateTrainingJob(s *TrainingJobSpec, f *findings) {
	if d := s.Driver; d != "" && !slices.Contains([]string{"local", "kubernetes", "ray"}, d) {
		f.add("spec.driver", "there is no driver "+quote(d), "local, kubernetes or ray")
	}
	switch {
	case (s.Trainer == "") == (len(s.Command) == 0):
		f.add("spec.trainer", "exactly one of trainer and command is needed", "name a trainer of the image, such as autoencoder, or a script as command")
	case s.Trainer != "" && !trainerName.MatchString(s.Trainer):
		f.add("spec.trainer", quote(s.Trainer)+" is no trainer's name", "lower-case letters, digits and _, such as autoencoder")
	}
	if len(s.Command) > 64 || len(strings.Join(s.Command, "")) > 16<<10 || slices.Contains(s.Command, "") {
		f.add("spec.command", "at most 64 words, none empty, and 16 KiB of them", "put more into the image, or into parameters")
	}
	if len(s.Parameters) > 200 {
		f.add("spec.parameters", "more than 200 parameters", "give a file as a part of the data set")
	}
	for name, v := range s.Parameters {
		if !parameterName.MatchString(name) || len(v) > 4<<10 {
			f.add("spec.parameters."+name, "a parameter has a name of letters, digits and _ and at most 4 KiB", "mend the name, or give less")
		}
	}
	inRange(f, "spec.ranks", s.Ranks, 1, 64)
	inRange(f, "spec.resources.cpus", s.Resources.CPUs, 0.1, 1024)
	inRange(f, "spec.resources.memoryBytes", s.Resources.MemoryBytes, 256<<20, 64<<40)
	inRange(f, "spec.resources.gpus", s.Resources.GPUs, 1, 64)
	inRange(f, "spec.timeLimit", s.TimeLimit, Duration(time.Second), Duration(720*time.Hour))
	inRange(f, "spec.maxRestarts", s.MaxRestarts, -1, 100)
}

var parameterName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,62}$`)

// inRange finds a number out of its range; zero is the default and fits.
func inRange[T int | int64 | float64 | Duration](f *findings, field string, v, least, most T) {
	if v != 0 && (v < least || v > most) {
		f.addf(field, "mend the number, or leave it out for the default", "%v is not from %v to %v", v, least, most)
	}
}
