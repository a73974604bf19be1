//go:build cgo

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"tributary.dev/tributary/cmd/gpud/card"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
)

func serve(in io.Reader, out io.Writer) int { return with(nvml.New(), in, out) }

// with answers from a library: NVIDIA's, and a mock of it in tests.
func with(lib nvml.Interface, in io.Reader, out io.Writer) int {
	cards, err := card.Open(lib, time.Now)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gpud:", err)
		return 1
	}
	defer cards.Close()
	if err := gpud.Serve(context.Background(), in, out, cards); err != nil {
		fmt.Fprintln(os.Stderr, "gpud:", err)
		return 1
	}
	return 0
}
