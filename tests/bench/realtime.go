package main

import (
	"context"
	"encoding/json"
	"fmt"
)

// benchRealtime measures how late a thread of the real-time class wakes up (cyclictest) in a container that claimed
// isolated processors, against the same as a program of the box on the same processors of the same guest, in turns. The
// scenario that measures it starts the guest, which runs the real-time kernel.
func benchRealtime(ctx context.Context) ([]Figure, error) {
	text, err := measured(ctx, "TestRealtime")
	if err != nil {
		return nil, err
	}
	return lateFigures(text)
}

// lateFigures reads what the scenario measured: the median and the largest of each run, in microseconds, of both sides.
func lateFigures(text []byte) ([]Figure, error) {
	var runs struct {
		Container, Box []struct{ Median, Max float64 }
	}
	if err := json.Unmarshal(text, &runs); err != nil {
		return nil, err
	}
	n := len(runs.Container)
	if n == 0 || len(runs.Box) != n {
		return nil, fmt.Errorf("not as many runs of each: %s", text)
	}
	var medians, most [2][]float64
	for i := range n {
		medians[0], medians[1] = append(medians[0], runs.Container[i].Median), append(medians[1], runs.Box[i].Median)
		most[0], most[1] = append(most[0], runs.Container[i].Max), append(most[1], runs.Box[i].Max)
	}
	middle, worst := plain("realtime.latency", median(medians[0]), "µs").against(median(medians[1])), plain("realtime.latency.max", median(most[0]), "µs").against(median(most[1]))
	middle.Note = fmt.Sprintf("emulated, medians of runs in turns: container %.0f, box %.0f", medians[0], medians[1])
	worst.Note = fmt.Sprintf("emulated, the largest of each run: container %.0f, box %.0f", most[0], most[1])
	return []Figure{middle, worst}, nil
}
