package main

import (
	"context"
	"encoding/json"
	"fmt"
)

// benchSRIOV compares the network of a container on a virtual function with a namespace on a bridge and a veth, both over the same emulated igb
// and cable to another guest, in turns: round trips of 64 bytes by TCP, and the throughput of one connection. The scenario
// that measures it starts the guests.
func benchSRIOV(ctx context.Context) ([]Figure, error) {
	text, err := measured(ctx, "TestFunctionFigures")
	if err != nil {
		return nil, err
	}
	return functionFigures(text)
}

// functionFigures reads what the scenario measured: the medians of each block, in microseconds and Mbit/s, of both ways.
func functionFigures(text []byte) ([]Figure, error) {
	type way struct{ US, Mbit []float64 }
	var blocks struct{ Function, Bridge way }
	if err := json.Unmarshal(text, &blocks); err != nil {
		return nil, err
	}
	f, b := blocks.Function, blocks.Bridge
	if n := len(f.US); n == 0 || len(f.Mbit) != n || len(b.US) != n || len(b.Mbit) != n {
		return nil, fmt.Errorf("not as many blocks of each: %s", text)
	}
	latency, rate := plain("sriov.latency", median(f.US), "µs").against(median(b.US)), plain("sriov.throughput", median(f.Mbit), "Mbit/s").against(median(b.Mbit))
	latency.Note = fmt.Sprintf("emulated, round trips of 64 bytes by TCP, medians of blocks in turns: function %.0f, bridge and veth %.0f", f.US, b.US)
	rate.Note = fmt.Sprintf("emulated, one TCP connection, blocks in turns: function %.1f, bridge and veth %.1f", f.Mbit, b.Mbit)
	return []Figure{latency, rate}, nil
}
