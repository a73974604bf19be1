// Package guard answers: who judges a release on trial when the agent, which should, does not live?
//
// Process 1 does: it hears of each end of the agent and of the time. It writes the verdict into the update's state and
// starts the box anew; BootNext is used up, so the old slot starts. It knows of that state no more than it needs, and
// stays small: pkg/edge/update, which owns the file, brings much with it.
package guard

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Limits.
const (
	maxState = 256 << 10
	// Ends is how often the agent may end while a release is on trial.
	Ends = 4
	// Most is the uptime by which a trial has come to its end by itself: the agent's own deadline is 20 minutes.
	Most = 25 * time.Minute
)

// Guard judges one boot. From any goroutine.
type Guard struct {
	Path    string // /state/update.json
	Running string // the slot: a or b
	// Most is the uptime by which a trial is over; 0 is Most.
	Most time.Duration
	// Counted tells whether the boot manager counted this start: the sign of a trial that needs no STATE. Nil knows of none.
	Counted func() bool
	mu      sync.Mutex
	ends    int
}

type verdict struct {
	Cause  string `json:"cause"`
	Reason string `json:"reason"`
}

// Trial tells whether the release that runs is on trial, and its name. A file that is not there, or not whole, leaves it
// to the boot manager's count: a release that cannot open STATE must not stay because of that.
func (g *Guard) Trial() (name string, on bool) {
	_, head, err := g.read()
	if err != nil {
		return "(its state cannot be read)", g.Counted != nil && g.Counted()
	}
	on = head.Good != "" && head.Good != g.Running && (head.Phase == "armed" || head.Phase == "trial")
	return head.Target.Version, on
}

type head struct {
	Phase  string `json:"phase"`
	Good   string `json:"good"`
	Target struct {
		Version string `json:"version"`
	} `json:"target"`
	Verdict *verdict `json:"verdict"`
}

func (g *Guard) read() (all map[string]json.RawMessage, h head, err error) {
	info, err := os.Stat(g.Path)
	if err != nil {
		return nil, h, err
	}
	if info.Size() > maxState {
		return nil, h, fmt.Errorf("%s has %d bytes", g.Path, info.Size())
	}
	b, err := os.ReadFile(g.Path)
	if err != nil {
		return nil, h, err
	}
	return all, h, errors.Join(json.Unmarshal(b, &all), json.Unmarshal(b, &h))
}

// AgentEnded hears that the agent ended, and how. When it says true the box shall start anew, for that reason.
func (g *Guard) AgentEnded(how string) (reason string, restart bool) {
	name, on := g.Trial()
	if !on {
		return "", false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ends++; g.ends < Ends {
		return "", false
	}
	return g.judge("agent", fmt.Sprintf("release %s: the agent ended %d times, at last by %s", name, g.ends, how))
}

// Tick hears how long the box is up. When it says true the box shall start anew, for that reason.
func (g *Guard) Tick(uptime time.Duration) (reason string, restart bool) {
	most := cmp.Or(g.Most, Most)
	if uptime < most {
		return "", false // nothing is read at each beat
	}
	name, on := g.Trial()
	if !on {
		return "", false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.judge("no-verdict", fmt.Sprintf("release %s: the agent came to no judgement within %s", name, most.Round(time.Second)))
}

// judge writes the verdict. Where that is not possible the box starts anew all the same: the old slot finds its words.
func (g *Guard) judge(cause, reason string) (string, bool) {
	defer Hold(g.Path)()
	all, h, err := g.read()
	if err == nil && h.Verdict == nil {
		if all["verdict"], err = json.Marshal(verdict{cause, reason}); err == nil {
			var b []byte
			if b, err = json.MarshalIndent(all, "", " "); err == nil {
				err = atomicfile.Write(g.Path, append(b, '\n'), 0o600)
			}
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		reason += fmt.Sprintf(" (not written down: %v)", err)
	}
	return reason, true
}
