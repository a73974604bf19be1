package boot

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"time"
)

// Must says what a step's failure means.
type Must bool

const (
	// must: without it nothing else makes sense; the box says why and starts anew.
	must Must = true
	// log and go on: the box comes up with less, and with a warning.
	logOn Must = false
)

// step is one line of the list that is boot.
type step struct {
	name string
	must Must
	do   func(context.Context) error
}

// Report is /run/tributary/boot.json: how this boot went.
type Report struct {
	Version string `json:"version"`
	Slot    string `json:"slot,omitempty"`
	Profile string `json:"profile,omitempty"`
	Disk    string `json:"disk,omitempty"`
	First   bool   `json:"first,omitempty"` // STATE was made in this boot
	// Initrd are the steps before this list, in the initramfs.
	Initrd []StepReport `json:"initrd,omitempty"`
	Steps  []StepReport `json:"steps"`
	// Done: the list is through, however its steps went.
	Done bool `json:"done"`
}

// StepReport is one step. Times are seconds since the kernel started.
type StepReport struct {
	Name  string  `json:"name"`
	Must  Must    `json:"must,omitempty"`
	At    float64 `json:"at"`
	Took  float64 `json:"took"`
	Error string  `json:"error,omitempty"`
}

// line is how a step looks on the console.
func (s StepReport) line() string {
	text := fmt.Sprintf("%8.3f  %-10s %6.0f ms", s.At, s.Name, s.Took*1000)
	if s.Error != "" {
		text += "  FAILED: " + s.Error
	}
	return text
}

// climb takes the steps in order. It ends early only when a must fails. each hears of every
// step when it is over.
func climb(ctx context.Context, steps []step, uptime func() time.Duration, each func(StepReport)) error {
	for _, s := range steps {
		at := uptime()
		err := guarded(ctx, s.do)
		r := StepReport{Name: s.name, Must: s.must, At: at.Seconds(), Took: (uptime() - at).Seconds()}
		if err != nil {
			r.Error = err.Error()
		}
		each(r)
		if err != nil && bool(s.must) {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// guarded turns a panic into an error: process 1 must not die of a step.
func guarded(ctx context.Context, do func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return do(ctx)
}

func (r Report) encode() []byte {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return []byte("{}")
	}
	return append(b, '\n')
}
