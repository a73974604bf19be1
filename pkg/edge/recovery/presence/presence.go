// Package presence answers: does somebody stand before this box?
//
// A person at the console is asked to press the power button within so many seconds. Process
// 1, which hears the button, takes that one press for the answer instead of switching the box
// off. The two meet in files of /run, which root alone writes.
package presence

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// The proofs that a profile may name.
const Button = "button"

const (
	wanted  = "presence-wanted"
	pressed = "presence-pressed"
	// look is how often the console looks for the press.
	look = 50 * time.Millisecond
)

// ErrNobody tells that no press came in time.
var ErrNobody = errors.New("the power button was not pressed in time")

// Rules are what a profile says of it.
type Rules struct {
	Proof  []string `json:"proof"`
	Shell  bool     `json:"shell"`
	Window int64    `json:"window"` // seconds
}

// ReadRules reads them from the profile that the image carries. An image without one has
// none.
func ReadRules(path string) (Rules, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Rules{}, nil
	}
	var p struct {
		Rules Rules `json:"physicalPresence"`
	}
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	return p.Rules, err
}

// ByButton tells whether the button alone opens the shell, and how long it is waited for.
func (r Rules) ByButton() (window time.Duration, ok bool) {
	if !r.Shell {
		return 0, false
	}
	for _, proof := range r.Proof {
		if proof == Button {
			window = time.Duration(r.Window) * time.Second
			return min(max(window, 10*time.Second), 10*time.Minute), true
		}
	}
	return 0, false
}

type until struct {
	Until time.Duration `json:"until"` // since the box started
}

// Ask waits for a press. now is the time since the box started.
func Ask(ctx context.Context, dir string, window time.Duration, now func() time.Duration) error {
	ask, answer := filepath.Join(dir, wanted), filepath.Join(dir, pressed)
	if err := os.Remove(answer); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text, err := json.Marshal(until{now() + window})
	if err != nil {
		return err
	}
	if err := atomicfile.Write(ask, text, 0o600); err != nil {
		return err
	}
	defer os.Remove(ask)
	tick := time.NewTicker(look)
	defer tick.Stop()
	for end := now() + window; now() < end; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := os.Remove(answer); err == nil {
			return nil
		}
	}
	return ErrNobody
}

// Pressed hears of a press of the button, and tells whether it was an answer: then it means
// nothing else. now is the time since the box started.
func Pressed(dir string, now time.Duration) bool {
	ask := filepath.Join(dir, wanted)
	text, err := os.ReadFile(ask)
	var u until
	if err != nil || json.Unmarshal(text, &u) != nil || now >= u.Until {
		return false
	}
	// One press is one answer.
	return os.Remove(ask) == nil && os.WriteFile(filepath.Join(dir, pressed), nil, 0o600) == nil
}
