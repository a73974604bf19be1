package train

import (
	"context"

	"tributary.dev/tributary/pkg/api"
)

// Order is what a driver starts: a job with all that it refers to pinned.
type Order struct {
	UID, Tenant, Name string
	Spec              api.TrainingJobSpec // filled
	Image, Data       string              // repository@digest; Data may be empty
}

// Result is what a trainer left: files by name. What is made of them is a model (docs/training.md).
type Result map[string][]byte

// maxResult bounds the files of a result together, in bytes.
const maxResult = 2 << 30

// Driver runs jobs. All methods but Refuses may fail and are then called again; each may be called
// again after it succeeded, and does nothing more. They may be called from one goroutine at a time.
type Driver interface {
	// Refuses tells what of a spec the driver cannot honour, by the field's name; nil when it can all.
	Refuses(spec *api.TrainingJobSpec) error
	// Capacity is what there is to train with.
	Capacity() Capacity
	// Start lets a job run: from its last checkpoint where there is one.
	Start(ctx context.Context, o Order) error
	// Suspend asks for an end at the next checkpoint.
	Suspend(ctx context.Context, uid string) error
	// Stop ends it now.
	Stop(ctx context.Context, uid string) error
	// Observe tells what there is of a job.
	Observe(ctx context.Context, uid string) (Run, error)
	// Result reads what a job left that was done.
	Result(ctx context.Context, uid string) (Result, error)
	// Remove takes a run away; checkpoints stay, for the next run. With all it takes them too.
	Remove(ctx context.Context, uid string, all bool) error
	// Logs gives the newest lines of all ranks, at most so many bytes.
	Logs(ctx context.Context, uid string, bytes int64) ([]byte, error)
	// Jobs lists the uids of all of which there is anything, so that nothing stays of deleted ones.
	Jobs(ctx context.Context) ([]string, error)
}

// Artifacts is the registry as training needs it. References are repository:tag or repository@digest,
// the repository with its tenant.
type Artifacts interface {
	ResolvePinned(ctx context.Context, ref string) (pinned string, size int64, err error)
}
