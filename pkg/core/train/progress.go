package train

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
)

// line is what a trainer says in /work/progress.jsonl, one JSON object a line.
type line struct {
	Step    *int64   `json:"step"`
	Steps   int64    `json:"steps"`
	Loss    *float64 `json:"loss"`
	Resumed *bool    `json:"resumed"`
	Ended   string   `json:"ended"`
}

// progress is what a trainer said of its run.
type progress struct {
	Step, Steps, First int64
	Loss               *float64
	Said               string
	Starts             int // how often its ranks began
}

// maxProgress bounds what is read of a trainer's progress: the newest bytes.
const maxProgress = 4 << 20

// parseProgress reads what a trainer said; a line that cannot be read (the last may be cut) is passed
// over. A start forgets how the run before ended.
func parseProgress(b []byte) (p progress) {
	for raw := range bytes.Lines(b) {
		var l line
		if json.Unmarshal(raw, &l) != nil {
			continue
		}
		if l.Resumed != nil {
			p.Starts++
			p.Said = ""
			if l.Step != nil {
				p.First = *l.Step
			}
		}
		if l.Step != nil && *l.Step >= 0 && l.Steps >= *l.Step {
			p.Step, p.Steps = *l.Step, l.Steps
		}
		if l.Loss != nil && !math.IsNaN(*l.Loss) && !math.IsInf(*l.Loss, 0) {
			p.Loss = l.Loss
		}
		switch l.Ended {
		case "done", "suspended":
			p.Said = l.Ended
		}
	}
	return p
}

// readProgress reads a file of progress from an offset; none is no progress.
func readProgress(file string, from int64) (progress, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return progress{}, nil
	}
	if err != nil {
		return progress{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return progress{}, err
	}
	from = max(from, info.Size()-maxProgress)
	b, err := io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
	return parseProgress(b), err
}
